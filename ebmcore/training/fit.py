"""The fit loop on Lightning Fabric."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from ebmcore.energies import check_energies, frozen
from ebmcore.errors import DivergenceError, UsageError
from ebmcore.losses import BaseLoss
from ebmcore.random import stream_seed
from ebmcore.training.checkpoints import latest_checkpoint, write_checkpoint
from ebmcore.training.data import DataSource, StepBatches, batches, n_examples, training_examples
from ebmcore.training.observers import BaseObserver, MetricsFile, ProgressBar, TensorBoard, notify, watched
from ebmcore.training.origins import origins
from ebmcore.training.state import TrainingState

POWER_ITERATIONS = 30  # from the vectors of weights nearby, which are close already
DIVERGED = 1e12  # a metric beyond it is taken for divergence: float32 energies have no digit after the point left by then
OptimizerFactory = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class FitResult:
    """What training leaves.

    Args:
        energy: The trained energy: its moving average where one was asked for.
        step: Number of training steps done.
        metrics: The last logged metrics.
        checkpoint: The last checkpoint, where ``out`` was given.
    """

    energy: nn.Module
    step: int
    metrics: dict[str, float]
    checkpoint: Path | None


def fit(
    loss: BaseLoss,
    data: DataSource | Tensor | Dataset[Any],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    optimizer: Literal["adam", "sgd"] | OptimizerFactory = "adam",
    lr: float = 1e-3,
    lr_schedule: Literal["constant", "linear"] = "constant",
    clip_grad: float | None = None,
    ema_decay: float | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    devices: int = 1,
    precision: Literal["32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"] = "32-true",
    out: Path | None = None,
    resume: bool = False,
    log_every: int = 10,
    checkpoint_every: int = 500,
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None,
    measure_every: int | None = None,
    compile: bool = False,
    progress: bool = True,
    observers: Sequence[BaseObserver] = (),
) -> FitResult:
    """Train the energy of ``loss`` on ``data``.

    All randomness of a step is a function of (seed, stream, step, rank): a run that is killed and resumed ends with the same
    parameters and chains, bit for bit, as one that was not.

    Args:
        loss: The loss; its energy is trained in place.
        data: A data set component, of which the training examples are taken; or training examples ``(N, *shape)``; or a
            map-style torch ``Dataset`` whose items are examples or tuples of an example and its conditions.
        epochs: Passes through the data. Give this or ``steps``.
        steps: Training steps, in place of ``epochs``.
        batch_size: Examples per step and device.
        optimizer: Adam, plain stochastic gradient descent, or a function that makes an optimizer of the parameters (``lr`` is
            then its own affair).
        lr: Learning rate.
        lr_schedule: Keep the learning rate, or let it fall linearly to 0 at the end of training.
        clip_grad: Bound on the norm of the gradient; `None` does not clip.
        ema_decay: Decay of an exponential moving average of the parameters, e.g. 0.999, whose buffers are copies of the trained
            energy's, spectral norms (torch's parametrization) its own; `None` keeps none.
        seed: Seed of all streams.
        accelerator: ``"cpu"``, ``"gpu"``, or what there is (``"auto"``).
        devices: Number of devices; chains and data are split between them.
        precision: Floating-point arithmetic, as Lightning Fabric names it.
        out: Directory for ``metrics.csv``, checkpoints and TensorBoard's files; `None` writes nothing.
        resume: Go on from the last checkpoint in ``out``, or from the beginning if it has none.
        log_every: Steps between two logged metrics.
        checkpoint_every: Steps between two checkpoints; one more is written at the end.
        measure: Gives named numbers for the energy, or for its moving average where one is kept, on the first rank; they are
            logged with the metrics of that step.
        measure_every: Steps between two measurements; `None` makes none.
        compile: Draw negatives by compiled graphs (``loss.compile()``): the first steps take seconds more, all others less;
            a run that was killed then goes on with the same up to rounding.
        progress: Show a progress bar.
        observers: Further observers.

    Raises:
        DivergenceError: When a metric or the norm of the parameters is not finite, or beyond 1e12. The last good checkpoint
            stays.
        UsageError: If an option cannot work, or the energy cannot take the data.

    Example:
        >>> import ebmcore
        >>> from ebmcore.testing import ExactGaussian, Quadratic
        >>> cd = ebmcore.create_loss("cd", Quadratic((2,)), ExactGaussian())
        >>> fit(cd, torch.randn(100, 2), epochs=2, batch_size=50, progress=False).step
        4
    """
    require_train_extra()
    _check_options(batch_size, lr, clip_grad, ema_decay, log_every, checkpoint_every, measure_every)
    fabric = _fabric(accelerator, devices, precision)
    rank, world = fabric.global_rank, fabric.world_size

    train = training_examples(data)
    order = StepBatches(n_examples(train), batch_size, seed=seed, rank=rank, world=world)
    n_steps = _number_of_steps(epochs, steps, order.steps_per_epoch)
    # The whole loss is wrapped, not the energy: inside, samplers see the bare module with all its capabilities.
    if compile:
        loss.compile()
    model, wrapped_optimizer = fabric.setup(loss, _optimizer(optimizer, loss, lr, precision))
    energy: nn.Module = getattr(loss, "energy", loss)  # a loss may be its own model
    average = None
    if ema_decay is not None:
        # Buffers are copied: the mean of unit vectors or of indices is neither.
        average = AveragedModel(energy, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    parts = {name: getattr(loss, name, None) for name in ("energy", "sampler")}
    components = {"loss": loss, **parts, "dataset": None if train is data else data}
    state = TrainingState(loss, wrapped_optimizer.optimizer, average, components)

    checkpoint = None
    if out is not None:
        out = Path(out)
        checkpoint = latest_checkpoint(out / "checkpoints") if resume else None
        if resume is False and latest_checkpoint(out / "checkpoints"):
            raise UsageError(f"{out} holds the checkpoints of another run: resume it, or choose another directory")
    order.start = state.load(checkpoint) if checkpoint else 0
    if order.start > n_steps:
        raise UsageError(f"{out} already has {order.start} steps, more than the {n_steps} asked for")
    if order.start == 0 and energy is not loss:
        _probe(energy, next(batches(train, order)), fabric)

    if out is not None:
        state.check()  # an error now, and not after hours
    if out is not None and rank == 0:
        out.mkdir(parents=True, exist_ok=True)
    watching = _watching(out, progress, observers) if rank == 0 else []
    schedule = _schedule(lr_schedule, n_steps)
    base_rates = [group["lr"] for group in wrapped_optimizer.param_groups]
    metrics: dict[str, float] = {}
    visited = batches(train, order)
    with ExitStack() as leaving:
        leaving.callback(setattr, loss, "generator", loss.generator)
        loss.generator = torch.Generator(device=fabric.device)
        leaving.enter_context(watched(watching, order.start, n_steps))
        leaving.enter_context(torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []))
        for step in range(order.start, n_steps):
            # Dropout in the energy, and whatever else draws from the global generator.
            torch.manual_seed(stream_seed(seed, "forward", step, rank))
            batch = next(visited)
            loss.generator.manual_seed(stream_seed(seed, "sampler", step, rank))
            for group, base in zip(wrapped_optimizer.param_groups, base_rates, strict=True):
                group["lr"] = base * schedule(step)
            with _naming(step):
                value = _first(model(*fabric.to_device(batch)))
            wrapped_optimizer.zero_grad()
            fabric.backward(value)
            if clip_grad is not None:
                fabric.clip_gradients(model, wrapped_optimizer, max_norm=clip_grad, error_if_nonfinite=False)
            wrapped_optimizer.step()
            if average is not None:
                average.update_parameters(energy)
            if out is not None and step == order.start:
                state.check()  # again, with what the optimizer keeps

            done = step + 1
            last = done == n_steps
            measuring = measure is not None and measure_every is not None and done % measure_every == 0
            saving = out is not None and (done % checkpoint_every == 0 or last)
            if average is not None and (measuring or saving or last):
                _settle(average.module)
            if done % log_every == 0 or last or measuring:
                metrics = _read_metrics(fabric, loss, value, done)
                if measuring and measure is not None and rank == 0:
                    metrics |= measure(energy if average is None else average.module)
                notify(watching, "on_log", done, metrics)
            if out is not None and saving:
                _check_finite(fabric, energy, done)
                checkpoint = write_checkpoint(
                    out / "checkpoints", done, state.tensors(), origins(components, observers) | state.info()
                )
                notify(watching, "on_checkpoint", done, checkpoint)
    trained = average.module if average is not None else energy
    return FitResult(trained, max(order.start, n_steps), metrics, checkpoint)


@torch.no_grad()
def _settle(average: nn.Module) -> None:
    """Give averaged weights spectral norms of their own, in place of those whose vectors were copied from the trained ones."""
    for module in filter(parametrize.is_parametrized, average.modules()):
        parametrizations: Any = module.parametrizations
        for name, own in parametrizations.items():
            if any(isinstance(one, _SpectralNorm) for one in own):
                training = own.training
                own.train()
                for _ in range(POWER_ITERATIONS):
                    getattr(module, name)  # makes an iteration where it is in training mode
                own.train(training)


def _check_options(
    batch_size: int,
    lr: float,
    clip_grad: float | None,
    ema_decay: float | None,
    log_every: int,
    checkpoint_every: int,
    measure_every: int | None,
) -> None:
    counts = {"batch_size": batch_size, "log_every": log_every, "checkpoint_every": checkpoint_every}
    for name, count in (counts | {"measure_every": 1 if measure_every is None else measure_every}).items():
        if count < 1:
            raise UsageError(f"{name} must be at least 1, got {count!r}")
    if not 0 < lr < math.inf:
        raise UsageError(f"lr must be above 0, got {lr!r}")
    if clip_grad is not None and not clip_grad > 0:
        raise UsageError(f"clip_grad must be above 0, or None for no clipping, got {clip_grad!r}")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise UsageError(f"ema_decay must be from 0 to below 1, or None for no average, got {ema_decay!r}")


def _fabric(accelerator: str, devices: int, precision: Any) -> Any:
    from lightning_fabric import Fabric

    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)
    except (ValueError, RuntimeError, ImportError, TypeError) as error:
        raise UsageError(f"accelerator={accelerator!r}, devices={devices!r}, precision={precision!r}: {error}") from error
    fabric.launch()
    return fabric


def require_train_extra() -> None:
    """Raise `UsageError` with the line that installs what training needs, unless it is there."""
    needed = ("lightning_fabric", "jsonargparse", "yaml", "rich", "matplotlib")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"this needs {', '.join(missing)}, which is not installed: pip install 'ebmcore[train]'")


def _number_of_steps(epochs: int | None, steps: int | None, steps_per_epoch: int) -> int:
    if (epochs is None) == (steps is None):
        raise UsageError("give the length of training, either as epochs or as steps")
    n_steps = steps if steps is not None else (epochs or 0) * steps_per_epoch
    if n_steps < 1:
        raise UsageError(f"training needs at least one step, got epochs={epochs}, steps={steps}")
    return n_steps


def _optimizer(
    optimizer: Literal["adam", "sgd"] | OptimizerFactory, loss: nn.Module, lr: float, precision: str
) -> torch.optim.Optimizer:
    if callable(optimizer):
        return optimizer(loss.parameters())
    if optimizer not in ("adam", "sgd"):
        raise UsageError(f"optimizer must be 'adam', 'sgd' or a function of the parameters, got {optimizer!r}")
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    # One kernel for all parameters; with scaled gradients it would unscale them itself, and clipping come too early.
    return kind(loss.parameters(), lr=lr, fused=precision != "16-mixed")


def _schedule(name: str, n_steps: int) -> Callable[[int], float]:
    if name not in ("constant", "linear"):
        raise UsageError(f"lr_schedule must be 'constant' or 'linear', got {name!r}")
    return (lambda step: 1 - step / n_steps) if name == "linear" else (lambda step: 1.0)


def _watching(out: Path | None, progress: bool, observers: Sequence[BaseObserver]) -> list[BaseObserver]:
    watching = list(observers)
    if out is not None:
        watching.append(MetricsFile(out / "metrics.csv"))
        if TensorBoard.available:
            watching.append(TensorBoard(out / "tensorboard"))
    if progress:
        watching.append(ProgressBar())
    return watching


def _probe(energy: nn.Module, batch: Sequence[Tensor], fabric: Any) -> None:
    """Find out before the first step whether the energy can take the data."""
    x, *conditions = (part[:2] for part in fabric.to_device(batch))
    try:
        with frozen(energy), torch.no_grad(), fabric.autocast():
            check_energies(energy(fabric.strategy.precision.convert_input(x), *conditions), x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"the energy {type(energy).__name__} cannot take examples of shape {tuple(x.shape[1:])} ({x.dtype}): {reason}"
        ) from error


def _first(output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


@contextmanager
def _naming(step: int) -> Iterator[None]:
    try:
        yield
    except DivergenceError as error:
        raise DivergenceError(f"training stopped at step {step + 1}: {error}") from error


def _read_metrics(fabric: Any, loss: BaseLoss, value: Tensor, step: int) -> dict[str, float]:
    """Metrics averaged over ranks; the one place where a step waits for the device."""
    names = ["loss", *loss.metrics]
    values = torch.stack([t.detach().double() for t in (value, *loss.metrics.values())])
    metrics = dict(zip(names, fabric.all_reduce(values, reduce_op="mean").tolist(), strict=True))
    _stop_unless_finite(metrics, step)
    return metrics


def _check_finite(fabric: Any, energy: nn.Module, step: int) -> None:
    """No checkpoint of parameters that are not finite."""
    norms = [p.detach().double().norm() for p in energy.parameters()]
    total = torch.stack(norms).sum() if norms else torch.zeros((), device=fabric.device)
    _stop_unless_finite({"norm of the parameters": fabric.all_reduce(total, reduce_op="mean").item()}, step)


def _stop_unless_finite(metrics: Mapping[str, float], step: int) -> None:
    for name, value in metrics.items():
        if not abs(value) <= DIVERGED:
            raise DivergenceError(
                f"training stopped at step {step}: the {name} is {json.dumps(value)}. Lower the learning rate or the step size, "
                "clip the gradient (clip_grad), or regularise the energy (energy_l2, spectral normalisation); the last good "
                "checkpoint is kept"
            )

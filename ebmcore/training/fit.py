"""The fit loop on Lightning Fabric."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ebmcore.errors import DivergenceError, UsageError
from ebmcore.host.origin import is_out_of_memory
from ebmcore.losses import BaseLoss
from ebmcore.random import stream_seed
from ebmcore.training.averaging import refresh_spectral_norms
from ebmcore.training.checkpoints import KEPT, latest_checkpoint
from ebmcore.training.data import DataSource
from ebmcore.training.directory import owned
from ebmcore.training.launch import Strategy, launch, on_first_rank
from ebmcore.training.numbers import check_numbers
from ebmcore.training.observers import BaseObserver, notify, observing
from ebmcore.training.opening import loader_batch_size
from ebmcore.training.optimizers import OptimizerChoice
from ebmcore.training.options import Options, Precision
from ebmcore.training.origins import origins
from ebmcore.training.preparation import DEFAULT_BATCH_SIZE, prepare, require_train_extra
from ebmcore.training.progress import Due, Training
from ebmcore.training.schedules import Schedule
from ebmcore.training.sharding import fill, gathered, give_up, make_whole, share_buffers, whole
from ebmcore.training.stopping import InterruptedRun, signals

DIVERGED = 1e12  # a metric beyond it counts as divergence: float32 energies have no digit after the point by then


@dataclass
class FitResult:
    """Result of a training run.

    Args:
        energy: The trained energy, or its moving average where one is kept.
        step: Number of optimizer steps done.
        metrics: The last logged metrics.
        checkpoint: The last checkpoint, where ``out`` was given.
        rank: Rank of this process in the run.
    """

    energy: nn.Module
    step: int
    metrics: dict[str, float]
    checkpoint: Path | None
    rank: int


def fit(
    loss: BaseLoss,
    data: DataSource | Tensor | Dataset[Any] | DataLoader[Any] | Any,
    *,
    weights: Any = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    optimizer: OptimizerChoice = "adam",
    lr: float = 1e-3,
    schedules: Mapping[str, Schedule | str] | None = None,
    clip_grad: float | None = None,
    ema_decay: float | None = None,
    seed: int = 0,
    num_workers: int = 0,
    accelerator: str = "auto",
    devices: int | None = None,
    num_nodes: int | None = None,
    strategy: Strategy = "auto",
    precision: Precision = "32-true",
    out: Path | str | None = None,
    resume: bool = False,
    changed: Sequence[str] = (),
    log_every: int = 10,
    checkpoint_every: int = 500,
    checkpoint_async: bool = False,
    keep: int | str = KEPT,
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None,
    measure_every: int | None = None,
    compile: bool = False,
    progress: bool = True,
    observers: Sequence[BaseObserver] = (),
    config: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train the energy of ``loss`` on ``data``.

    A step is an optimizer step. All randomness of a step is a function of (seed, stream, step, rank) and the micro-batch within
    it: a run that is killed and resumed ends with the same parameters and chains, bit for bit, as one that was not. The loss
    counts its steps (``loss.step``): a later call continues the streams and the order of the data where the last one stopped.

    Args:
        loss: The loss; its energy is trained in place.
        data: A data set component, whose training examples are used; training examples ``(N, *shape)``, a tensor or a numpy
            array; or a torch ``Dataset``, map-style or iterable, or a ``DataLoader``, whose batch size, workers and sampler are
            used, or a ``Dataset`` of the library `datasets`. An item is an example, a tuple of an example and its conditions,
            the last of which may be a mapping of named ones, or a mapping with the example as ``"x"``. A loss whose ``labels``
            are `None` receives the examples alone. Examples are converted to the energy's floating-point type.
        weights: Weights of the examples ``(N,)``, at least 0: how much each counts. By default those of ``data``
            (``train_weights``), otherwise all count the same.
        epochs: Passes through the data. Give this or ``steps``.
        steps: Optimizer steps, in place of ``epochs``.
        batch_size: Examples per micro-batch and device; `None` is 64, or the batch size of a ``DataLoader``.
        accumulate: Micro-batches per optimizer step, whose mean gradient it follows: a batch of ``accumulate * batch_size``
            examples in the memory of ``batch_size``. The loss is called once for each.
        optimizer: An optimizer of ``torch.optim`` by its name in lower case, such as ``"adamw"``; a mapping with the name and
            its options, ``{"name": "adamw", "betas": (0.0, 0.999)}``; or a function that makes an optimizer of the loss's
            parameter groups (``lr`` is then not used).
        lr: Learning rate of each parameter group that has none of its own.
        schedules: Options that change during training, by name, e.g. ``{"optimizer.lr": Linear(end=0.0)}``; see
            `ebmcore.training.schedules`. Other options do not change. After training each option has its earlier
            value again.
        clip_grad: Bound on the norm of the gradient; `None` does not clip.
        ema_decay: Decay of an exponential moving average of the parameters, e.g. 0.999, whose buffers are copies of the trained
            energy's, spectral norms its own; `None` keeps none.
        seed: Seed of all streams.
        num_workers: Processes that read the items of a torch ``Dataset``; 0 reads them in this one.
        accelerator: ``"cpu"``, ``"gpu"``, or what there is (``"auto"``).
        devices: Number of devices of each node, with a process for each; chains and data are split between them. `None` is what
            the launcher (``torchrun`` or Slurm's ``srun``) has started, and 1 without one.
        num_nodes: Number of nodes; `None` is what the launcher has started.
        strategy: How several processes share the work: with ``"ddp"``, which ``"auto"`` chooses, each has all parameters; with
            ``"fsdp"`` each keeps a part of them and of the optimizer's state, gathered once in each step
            (`ebmcore.training.sharding`).
        precision: Floating-point arithmetic, as Lightning Fabric names it. With ``"64-true"``, ``"16-true"`` and ``"bf16-true"``
            the loss and its energy are converted to that dtype, and keep it after training.
        out: Directory for ``metrics.csv``, checkpoints and TensorBoard's files, which must hold nothing yet unless the run is
            resumed; `None` writes nothing.
        resume: Resume from the last checkpoint in ``out``, or start if it has none. What makes it another run is refused: other
            data, other components or options of these, another seed.
        changed: Names of what differs on purpose from the run that is resumed, as the refusal gives them, such as
            ``"loss.k_steps"``, ``"seed"``, ``"sampler"`` with all of its options, or ``"data"``.
        log_every: Steps between two logged metrics.
        checkpoint_every: Steps between two checkpoints; one more is written at the end.
        checkpoint_async: Write checkpoints while training continues, from a copy of the state in memory.
        keep: Number of checkpoints that are kept, the last ones; or ``"best METRIC"``, which keeps the last two and the one with
            the largest value of that metric, by its name in ``metrics.csv`` (``"best -METRIC"``: the smallest). It is then
            read, and ``measure`` called, at each checkpoint.
        measure: Returns named numbers for the energy, or for its moving average where one is kept, on the first rank; they are
            logged with the metrics of that step.
        measure_every: Steps between two measurements; `None` makes none.
        compile: Draw negatives by compiled graphs (``loss.compile()``): the first steps take seconds more, all others less;
            a run that was killed then continues with the same up to rounding. A loss that samples nothing trains as without.
        progress: Show a progress bar.
        observers: Further observers.
        config: The value of ``run.config``, which observers read; by default the options of this call that are plain data.

    Raises:
        InterruptedRun: With ``out``, after Ctrl-C or SIGTERM: the step is completed and saved first; several processes do so at
            the next logged step. It is a `KeyboardInterrupt`.
        DivergenceError: When a metric or the norm of the parameters is not finite, or beyond 1e12. The last good checkpoint
            stays.
        LostProcessError: When another process of a distributed run ends before its time.
        UsageError: If an option cannot work, the energy cannot take the data, or another process uses ``out``.

    Example:
        >>> import ebmcore
        >>> from ebmcore.testing import ExactGaussian, Quadratic
        >>> cd = ebmcore.create_loss("cd", Quadratic((2,)), ExactGaussian())
        >>> fit(cd, torch.randn(100, 2), epochs=2, batch_size=50, progress=False).step
        4
    """
    require_train_extra()
    if not isinstance(loss, BaseLoss):
        raise UsageError(f"loss must be an instance of BaseLoss, got {type(loss).__name__}")
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        context = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        raise UsageError(f"training takes gradients, which {context} turns off: call fit() outside of it")
    given = {
        "epochs": epochs,
        "steps": steps,
        "batch_size": loader_batch_size(data) or DEFAULT_BATCH_SIZE if batch_size is None else batch_size,
        "accumulate": accumulate,
        "optimizer": optimizer,
        "lr": lr,
        "schedules": {} if schedules is None else schedules,
        "clip_grad": clip_grad,
        "ema_decay": ema_decay,
        "seed": seed,
        "num_workers": num_workers,
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": strategy,
        "precision": precision,
        "out": Path(out) if isinstance(out, str | os.PathLike) else out,
        "resume": resume,
        "changed": changed,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
        "checkpoint_async": checkpoint_async,
        "keep": keep,
        "measure": measure,
        "measure_every": measure_every,
        "compile": compile,
        "progress": progress,
        "observers": observers,
        "config": config,
    }
    options = Options(**check_numbers(given))
    options.check()
    train = partial(_fit, loss, data, weights, options)
    more = loss.family != "contrastive-divergence"  # e.g. score matching, in which an output bias takes no part
    return launch(train, accelerator, options.devices, options.num_nodes, strategy, precision, may_skip_parameters=more)


def _fit(loss: BaseLoss, data: Any, weights: Any, options: Options, fabric: Any) -> FitResult:
    with _saying_when_memory_ends(lambda: _before_the_first_step(options)):
        training = prepare(loss, data, weights, options, fabric)
    with (
        signals(training.end_by) if options.out is not None else nullcontext(),
        _own(options),
        _whole_at_the_end(training),
        _training(training),
        _saying_when_memory_ends(lambda: f"in step {training.step + 1}; {training.kept}"),
    ):
        for step in range(training.step, training.n_steps):
            due = training.due(step + 1)
            with training.state.first_step(training.checkpoint) if step == training.first else nullcontext():
                readings = _train_step(training, step, read=due.log)
            if _after_step(training, due, readings):
                break
        _take_checkpoint(training, wait=True)
        _share_buffers(training)
    if training.signal is not None and (training.step < training.n_steps or training.unmeasured):
        raise InterruptedRun(_end_by(training), training.signal)
    return FitResult(training.trained, training.step, training.metrics, training.checkpoint, fabric.global_rank)


@contextmanager
def _own(options: Options) -> Iterator[None]:
    """Own the run's directory, by the first rank's lock; every rank raises if it cannot."""
    with ExitStack() as stack:
        if options.out is not None:
            directory = owned(options.out, new=not options.resume)
            on_first_rank(lambda: stack.enter_context(directory))
        yield


def _resume(training: Training) -> None:
    """Load the last checkpoint of a run, if there is one, and begin to visit the data where it stopped."""
    options = training.options
    if options.out is not None:
        training.checkpoint = latest_checkpoint(options.out / "checkpoints")
    if training.checkpoint is not None:
        training.step = training.state.load(training.checkpoint)
        if training.step > training.n_steps:
            raise UsageError(f"{options.out} already has {training.step} steps, more than the {training.n_steps} asked for")
        training.visit_from_here()
    training.first = training.step


@contextmanager
def _training(training: Training) -> Iterator[None]:
    """Set up a run: the loss gets the generator of the run, observers start, the global generator is restored at the end."""
    loss, device = training.loss, training.fabric.device
    own = loss.generator
    with _saying_when_memory_ends(lambda: f"before step {training.step + 1}; {training.kept}"):
        _resume(training)
        _show(training)
    try:
        loss.generator = torch.Generator(device=device)
        with (
            observing(training.watching, training.run),
            training.scheduled.put_back(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            yield
    finally:
        loss.generator = own
        if training.writer is not None:
            training.writer.close()


@contextmanager
def _whole_at_the_end(training: Training) -> Iterator[None]:
    """Make a sharded energy whole at the end; after an error, for which other ranks do not gather, it has no parameters."""
    try:
        yield
    except BaseException:
        if training.bare is not None:
            give_up(training.loss, training.bare)
        raise
    if training.bare is not None:
        make_whole(training.loss, training.bare)


@contextmanager
def _saying_when_memory_ends(when: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"out of memory {when()}; take a smaller batch_size (with accumulate), fewer chains, a smaller energy or a cheaper "
            f"metric ({reason})"
        ) from error


def _before_the_first_step(options: Options) -> str:
    """When that was, and the checkpoint of a resumed run."""
    there = latest_checkpoint(options.out / "checkpoints") if options.resume and options.out is not None else None
    return "before the first step" + (f"; the last checkpoint is {there}" if there else "")


def _train_step(training: Training, step: int, *, read: bool) -> dict[str, Tensor]:
    """Make optimizer step number ``step``, from 0; return the loss and its metrics, averaged over micro-batches, if requested."""
    options, fabric, loss, optimizer = training.options, training.fabric, training.loss, training.optimizer
    training.scheduled.set(step)
    loss.step = training.before + step
    readings: list[dict[str, Tensor]] = []
    if training.bare is not None:
        share_buffers(loss)  # as torch's DistributedDataParallel does
    with gathered(training.energy) if training.bare is not None else nullcontext():
        for micro in range(options.accumulate):
            more = micro + 1 < options.accumulate
            with fabric.no_backward_sync(training.model) if more else nullcontext():
                value = _forward(training, micro)
                if micro == 0:
                    optimizer.zero_grad()
                fabric.backward(value if options.accumulate == 1 else value / options.accumulate)
            if read:
                readings.append({"loss": value.detach(), **loss.metrics})
    if step == training.first and fabric.world_size > 1 and loss.family == "contrastive-divergence":
        _check_all_take_part(loss)
    if options.clip_grad is not None:
        fabric.clip_gradients(training.model, optimizer, max_norm=options.clip_grad, error_if_nonfinite=False)
    optimizer.step()
    if training.average is not None:
        training.average.update_parameters(training.energy)
    if options.out is not None and step == training.first:
        training.state.check()  # again, with what the optimizer keeps
    training.step, loss.step = step + 1, loss.step + 1
    names = readings[-1] if readings else {}
    return {name: torch.stack([r[name].detach().double() for r in readings if name in r]).mean() for name in names}


def _check_all_take_part(loss: BaseLoss) -> None:
    """Raise at the first step for what DistributedDataParallel raises at the second, when the parameters have parted already."""
    unused = [name for name, p in loss.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        raise UsageError(f"{unused[0]} is trained but takes no part in the loss: set its requires_grad to False")


def _forward(training: Training, micro: int) -> Tensor:
    """The loss of the next micro-batch, 0-dim. The streams of the first micro-batch are those of a step without others."""
    loss, seed, rank = training.loss, training.options.seed, training.fabric.global_rank
    suffix = f"/{micro}" if micro else ""
    # Dropout in the energy, and all else that draws from the global generator.
    torch.manual_seed(stream_seed(seed, f"forward{suffix}", loss.step, rank))
    args, kwargs, loss.data_weights = training.fabric.to_device(next(training.visited))
    generator = loss.generator
    assert generator is not None  # noqa: S101 - set for the time of training
    generator.manual_seed(stream_seed(seed, f"sampler{suffix}", loss.step, rank))
    try:
        output = training.model(*args, **kwargs)
    except DivergenceError as error:
        raise DivergenceError(f"training stopped at step {training.step + 1}: {error}; {training.kept}") from error
    finally:
        loss.data_weights = None
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def _after_step(training: Training, due: Due, readings: Mapping[str, Tensor]) -> bool:
    """Log, measure and save, each if it is due; return whether the run ends here, with a checkpoint."""
    options, done = training.options, training.step
    if training.average is not None and (due.log or due.save):
        refresh_spectral_norms(training.average.module)
    if due.log or due.save:
        _show(training)
    if due.log:
        training.metrics = _average_over_ranks(training, readings)
        if due.measure and options.measure is not None and training.fabric.global_rank == 0:
            with _saying_when_memory_ends(lambda: f"while measuring after step {done}; {training.kept}"):
                training.measure()
        notify(training.watching, "on_log", training.run(), training.metrics)
        if done == training.first + 1:
            training.best()  # raises now, not at the first checkpoint
    ending = _ends(training, due)
    if (due.save or ending) and training.writer is not None:
        _check_finite(training)
        _share_buffers(training)
        info = origins(training.components, options.observers) | training.state.info() | training.best()
        _take_checkpoint(training, wait=True)
        training.writer.write(done, training.state.tensors(), info)
    _take_checkpoint(training)
    return ending


def _ends(training: Training, due: Due) -> bool:
    """Whether an observer or a signal has asked for the end. Several ranks agree at logged steps, where they meet anyway."""
    if training.fabric.world_size == 1:
        return training.stopped
    if not due.log:
        return False
    asked = torch.tensor(float(training.stopped), device=training.fabric.device)
    dist.all_reduce(asked)
    return bool(asked.item())


def _end_by(training: Training) -> str:
    assert training.signal is not None  # noqa: S101 - the caller has looked
    by = "Ctrl-C" if training.signal == signal.SIGINT else signal.Signals(training.signal).name
    return f"ended by {by} after step {training.step}; {training.checkpoint} is complete, from which to resume"


def _share_buffers(training: Training) -> None:
    """Give all ranks the buffers of the first one, as each step begins with them."""
    for module in (training.loss, training.average):
        if module is not None:
            share_buffers(module)


def _show(training: Training) -> None:
    """Let the first rank, whose observers the others do not wait for, see a sharded energy as it is now: in a copy on the CPU."""
    if training.bare is not None:
        fill(training.bare, training.energy, copy_to="cpu", keep=training.fabric.global_rank == 0)


def _take_checkpoint(training: Training, *, wait: bool = False) -> None:
    path = training.writer.take(wait=wait) if training.writer is not None else None
    if path is not None:
        training.checkpoint = path
        notify(training.watching, "on_checkpoint", training.run(), path)


def _average_over_ranks(training: Training, readings: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics averaged over ranks; the one place where a step waits for the device."""
    values = torch.stack(list(readings.values()))
    metrics = dict(zip(readings, training.fabric.all_reduce(values, reduce_op="mean").tolist(), strict=True))
    _stop_unless_finite(metrics, training)
    return metrics


def _check_finite(training: Training) -> None:
    """No checkpoint of parameters that are not finite."""
    norms = [whole(p.detach().abs().double().norm()) for p in training.energy.parameters()]  # absolute, as some are complex
    total = torch.stack(norms).sum() if norms else torch.zeros((), device=training.fabric.device)
    mean = training.fabric.all_reduce(total, reduce_op="mean").item()
    _stop_unless_finite({"norm of the parameters": mean}, training)


def _stop_unless_finite(metrics: Mapping[str, float], training: Training) -> None:
    for name, value in metrics.items():
        if not abs(value) <= DIVERGED:
            raise DivergenceError(
                f"training stopped at step {training.step}: the {name} is {json.dumps(value)}. Lower the learning rate or the "
                "step size, clip the gradient (clip_grad), or regularise the energy (energy_l2, spectral normalisation); "
                f"{training.kept}"
            )

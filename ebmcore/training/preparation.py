"""A run before its first step: its parts are made, and checked against each other."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset

from ebmcore.energies import check_energies, frozen
from ebmcore.errors import UsageError
from ebmcore.losses import BaseLoss
from ebmcore.random import stream_seed
from ebmcore.training.averaging import moving_average
from ebmcore.training.checkpoints import CheckpointWriter
from ebmcore.training.data import Batch, DataSource, StepBatches, batches, check_compatible, n_examples, training_examples
from ebmcore.training.observers import BaseObserver, MetricsFile, ProgressBar, TensorBoard
from ebmcore.training.optimizers import create_optimizer
from ebmcore.training.options import Options, binding, options_of
from ebmcore.training.run import Run
from ebmcore.training.scheduled import ScheduledOptions
from ebmcore.training.sharding import check_shardable, gathered, without_parameters
from ebmcore.training.state import TrainingState


def require_train_extra() -> None:
    """Raise `UsageError` with the line that installs what training needs, unless it is there."""
    needed = ("lightning_fabric", "jsonargparse", "yaml", "rich", "matplotlib", "safetensors")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"this needs {', '.join(missing)}, which is not installed: pip install 'ebmcore[train]'")


@dataclass
class Training:
    """A run in progress.

    Args:
        model: The loss as Fabric wraps it. The whole loss is wrapped, not the energy: samplers see the bare module.
        optimizer: The optimizer as Fabric wraps it.
        bare: Where the parameters of the energy are sharded, the energy without them.
        first: Number of optimizer steps that were done before the run was resumed.
        step: Number of optimizer steps done.
        scheduled: The options that schedules change.
        state: What checkpoints hold.
        train: Training examples.
        order: In which order they are visited.
        components: The components by kind, whose origins a checkpoint records.
        stopped: Whether an observer has asked to end the run.
        metrics: The last logged ones.
    """

    options: Options
    fabric: Any
    loss: BaseLoss
    model: Any
    optimizer: Any
    energy: nn.Module
    bare: nn.Module | None
    average: AveragedModel | None
    data: Any
    train: Tensor | Dataset[Any]
    order: StepBatches
    components: Mapping[str, object]
    n_steps: int
    scheduled: ScheduledOptions
    state: TrainingState
    watching: Sequence[BaseObserver]
    writer: CheckpointWriter | None
    visited: Iterator[Batch] = field(default_factory=lambda: iter(()))
    first: int = 0
    step: int = 0
    stopped: bool = False
    checkpoint: Path | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def trained(self) -> nn.Module:
        """The energy, or its moving average where one is kept."""
        return self.energy if self.average is None else self.average.module

    @property
    def shown(self) -> nn.Module:
        """What observers and metrics on the first rank see: the trained energy, of a sharded one a copy; see `_show`."""
        return self.trained if self.bare is None else self.bare

    def due(self, done: int) -> Due:
        """Return whether to log, measure and save after ``done`` steps."""
        options, last = self.options, done == self.n_steps
        measure = options.measure is not None and options.measure_every is not None and done % options.measure_every == 0
        save = options.out is not None and (done % options.checkpoint_every == 0 or last)
        return Due(log=done % options.log_every == 0 or last or measure, measure=measure, save=save)

    def stop(self) -> None:
        """End the run with the next step whose metrics are logged."""
        self.stopped = True

    def run(self) -> Run:
        """Return the run as observers receive it."""
        options = self.options
        return Run(
            config=options.as_config(),
            loss=self.loss,
            energy=self.shown,
            data=self.data,
            sampler=getattr(self.loss, "sampler", None),
            step=self.step,
            n_steps=self.n_steps,
            rank=self.fabric.global_rank,
            directory=options.out,
            stop=self.stop,
        )


@dataclass(frozen=True)
class Due:
    """Actions that follow a step."""

    log: bool
    measure: bool
    save: bool


def prepare(loss: BaseLoss, data: DataSource | Tensor | Dataset[Any], options: Options, fabric: Any) -> Training:
    """Check before the first step that the options work, and make the parts of the run."""
    rank, out = fabric.global_rank, options.out
    energy: nn.Module = getattr(loss, "energy", loss)  # a loss may be its own model
    sampler = getattr(loss, "sampler", None)
    if isinstance(data, DataSource):
        check_compatible(energy, sampler, data, loss)
    train = training_examples(data, loss)
    order = StepBatches(n_examples(train), options.batch_size, seed=options.seed, rank=rank, world=fabric.world_size)
    n_steps = options.number_of_steps(order.steps_per_epoch)
    first = next(batches(train, order))
    build_loss(loss, first[0][0].shape[1:], options.seed)
    if options.compile:
        loss.compile()
    bare = None
    if options.strategy == "fsdp" and fabric.world_size > 1:
        check_shardable(loss, ema_decay=options.ema_decay, compile=options.compile)
        bare = without_parameters(energy)
    model = fabric.setup_module(loss)
    optimizer = create_optimizer(options.optimizer, loss, options.lr, options.precision)
    scheduled = ScheduledOptions(options.schedules, loss, optimizer, n_steps)
    wrapped_optimizer = fabric.setup_optimizers(optimizer)
    average = None if options.ema_decay is None else moving_average(energy, options.ema_decay)
    components = {"loss": loss, "energy": bare or energy, "sampler": sampler, "dataset": None if train is data else data}
    config = dict(options.as_config())
    if options.config is None:  # which would hold those of the components
        config |= {kind: options_of(part) for kind, part in components.items() if kind != "dataset" and part is not None}
    bound = None if out is None else binding(config, train)
    state = TrainingState(loss, wrapped_optimizer.optimizer, average, components, scheduled.optimizer_options, bound)
    if energy is not loss:
        _probe(loss, energy, first, fabric)
    if out is not None:
        state.check()  # raises now, not after hours
    return Training(
        options=options,
        fabric=fabric,
        loss=loss,
        model=model,
        optimizer=wrapped_optimizer,
        energy=energy,
        bare=bare,
        average=average,
        data=data,
        train=train,
        order=order,
        components=components,
        n_steps=n_steps,
        scheduled=scheduled,
        state=state,
        watching=_all_observers(options) if rank == 0 else [],
        writer=None if out is None else CheckpointWriter(out / "checkpoints", background=options.checkpoint_async),
    )


def build_loss(loss: BaseLoss, shape: Sequence[int], seed: int) -> None:
    """Let a loss make the parts whose shape depends on the data, once. Their initial values are a function of the seed."""
    if loss.built:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "build"))
        loss.build(tuple(shape))
    loss.built = True


def _probe(loss: BaseLoss, energy: nn.Module, batch: Batch, fabric: Any) -> None:
    """Check before the first step that the energy can take the data."""
    (x, *args), kwargs = fabric.to_device(batch)
    if loss.labels != "conditions":
        args, kwargs = [], {}
    x, args, kwargs = x[:2], [t[:2] for t in args], {name: t[:2] for name, t in kwargs.items()}
    try:
        with gathered(energy), frozen(energy), torch.no_grad(), fabric.autocast():
            check_energies(energy(fabric.strategy.precision.convert_input(x), *args, **kwargs), x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"the energy {type(energy).__name__} cannot take examples of shape {tuple(x.shape[1:])} ({x.dtype}): {reason}"
        ) from error


def _all_observers(options: Options) -> list[BaseObserver]:
    observers = list(options.observers)
    if options.out is not None:
        observers.append(MetricsFile(options.out / "metrics.csv"))
        if TensorBoard.available:
            observers.append(TensorBoard(options.out / "tensorboard"))
    if options.progress:
        observers.append(ProgressBar())
    return observers

"""A run in progress: its parts, where it is, and what follows a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim.swa_utils import AveragedModel

from ebmcore.errors import UsageError
from ebmcore.losses import BaseLoss
from ebmcore.training.batches import Batch, Examples, LabelledExamples
from ebmcore.training.checkpoints import CheckpointWriter
from ebmcore.training.observers import BaseObserver
from ebmcore.training.options import Options
from ebmcore.training.run import Run
from ebmcore.training.scheduled import ScheduledOptions
from ebmcore.training.state import TrainingState
from ebmcore.training.stopping import Unmeasured

# Of the last run of each loss: batches of a pass, their size, how many a step takes; and how far beyond its count it is.
_BATCHES: WeakKeyDictionary[BaseLoss, tuple[tuple[int | None, int, int], int]] = WeakKeyDictionary()


@dataclass
class Training:
    """A run in progress.

    Args:
        model: The loss as Fabric wraps it. The whole loss is wrapped, not the energy: samplers see the bare module.
        optimizer: The optimizer as Fabric wraps it.
        bare: Where the parameters of the energy are sharded, the energy without them.
        first: Number of optimizer steps that were done before the run was resumed.
        step: Number of optimizer steps done.
        before: Number of steps that the loss had been trained for before the run: streams and order continue from there.
        scheduled: The options that schedules change.
        state: What checkpoints hold.
        examples: Training examples.
        seen: A few of them, which observers see.
        visited: Their batches that are left.
        components: The components by kind, whose origins a checkpoint records.
        stopped: Whether an observer or a signal has asked to end the run.
        signal: Number of that signal.
        measuring: Whether ``options.measure`` is running.
        unmeasured: Whether a signal has prevented or ended the last measurement.
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
    examples: Examples
    seen: LabelledExamples
    visited: Iterator[Batch]
    components: Mapping[str, object]
    n_steps: int
    scheduled: ScheduledOptions
    state: TrainingState
    watching: Sequence[BaseObserver]
    writer: CheckpointWriter | None
    before: int
    first: int = 0
    step: int = 0
    stopped: bool = False
    signal: int | None = None
    measuring: bool = False
    unmeasured: bool = False
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

    @property
    def kept(self) -> str:
        """What messages say of checkpoints."""
        return f"the last checkpoint is {self.checkpoint}" if self.checkpoint else "there is no checkpoint"

    def end_by(self, signal: int) -> None:
        """End the run because of a signal; end a measurement in progress by `Unmeasured`."""
        self.stopped, self.signal = True, signal
        if self.measuring:
            raise Unmeasured

    def measure(self) -> None:
        """Measure, unless a signal ends it or has come before: time may be short then."""
        assert self.options.measure is not None  # noqa: S101 - the caller has looked
        self.unmeasured = True
        try:
            self.measuring = self.signal is None
            try:
                if self.measuring:
                    self.metrics |= self.options.measure(self.shown)
                    self.unmeasured = False
            finally:
                self.measuring = False
        except Unmeasured:
            return

    def due(self, done: int) -> Due:
        """Return whether to log, measure and save after ``done`` steps."""
        options, last = self.options, done == self.n_steps
        save = options.out is not None and (done % options.checkpoint_every == 0 or last)
        read = options.out is not None and options.kept[1] is not None and (save or done == self.first + 1)
        measure = options.measure is not None and (
            read or (options.measure_every is not None and done % options.measure_every == 0)
        )
        return Due(log=done % options.log_every == 0 or last or measure or read, measure=measure, save=save)

    def visit_from_here(self) -> None:
        """Continue with the batch that follows those of the steps done, after a checkpoint was loaded."""
        accumulate = self.options.accumulate
        self.before = self.loss.step - self.step
        beyond = self.state.first_batch - self.before * accumulate
        _BATCHES[self.loss] = _batches(self.examples, self.options), beyond
        self.visited = self.examples.starting_at(self.loss.step * accumulate + beyond)

    def best(self) -> dict[str, Any]:
        """Return what a checkpoint records where the best one is kept: the metric, and a value of which more is better."""
        metric = self.options.kept[1]
        if metric is None or self.options.out is None or self.fabric.global_rank:
            return {}
        name, sign = metric.removeprefix("-"), -1 if metric.startswith("-") else 1
        if self.unmeasured and name not in self.metrics:
            return {"best": {"metric": metric, "value": None}}  # so that the best one before it stays
        if name not in self.metrics:
            raise UsageError(f"keep={self.options.keep!r} names no metric of this run: it has {', '.join(self.metrics)}")
        return {"best": {"metric": metric, "value": sign * float(self.metrics[name])}}

    def stop(self) -> None:
        """End the run after this step; several processes at the next logged one."""
        self.stopped = True

    def run(self) -> Run:
        """Return the run as observers receive it."""
        options = self.options
        return Run(
            config=options.as_config(),
            loss=self.loss,
            energy=self.shown,
            data=self.data,
            examples=self.seen,
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


def position(loss: BaseLoss, examples: Examples, options: Options) -> int:
    """Return the batch at which a run begins: where the last one of this loss stopped, or the next pass if batches differ."""
    now, count = _batches(examples, options), loss.step * options.accumulate
    before, beyond = _BATCHES.get(loss, (now, 0))
    if before != now:
        beyond = -count % now[0] if now[0] is not None else 0
    _BATCHES[loss] = now, beyond
    return count + beyond


def _batches(examples: Examples, options: Options) -> tuple[int | None, int, int]:
    return examples.steps_per_epoch, options.batch_size, options.accumulate

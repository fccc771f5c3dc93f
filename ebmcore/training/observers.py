"""What watches a run: the metrics file, TensorBoard, the progress bar, and observers of plugins."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebmcore import host
from ebmcore.errors import EbmcoreError, PluginError, UsageError


class BaseObserver:
    """Told of what happens in a run, on the first rank only. A subclass overrides what it wants to hear of."""

    def on_start(self, step: int, n_steps: int) -> None:
        """Training begins after ``step`` steps already done (0, or more in a resumed run), up to ``n_steps``."""

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of training step ``step``, at the logging interval."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint is complete."""

    def on_end(self) -> None:
        """Training ended, or was stopped by an error."""


@contextmanager
def watched(observers: Sequence[BaseObserver], step: int, n_steps: int) -> Iterator[None]:
    """Tell observers that training begins and, whatever happens then, all those that were told that it ended."""
    started: list[BaseObserver] = []
    try:
        for observer in observers:
            notify([observer], "on_start", step, n_steps)
            started.append(observer)
        yield
    except BaseException as error:
        for failure in _end(started):
            error.add_note(str(failure))  # why training ended comes first
        raise
    failures = _end(started)
    if failures:
        for failure in failures[1:]:
            failures[0].add_note(str(failure))
        raise failures[0]


def _end(observers: Sequence[BaseObserver]) -> list[EbmcoreError]:
    failures = []
    for observer in observers:
        try:
            notify([observer], "on_end")
        except EbmcoreError as failure:
            failures.append(failure)
    return failures


def notify(observers: Sequence[BaseObserver], event: str, *args: Any) -> None:
    """Tell all observers. One that raises ends the run, with its name, its plugin and the event in the message."""
    for observer in observers:
        method: Callable[..., None] = getattr(observer, event)
        try:
            method(*args)
        except (Exception, SystemExit) as error:
            if isinstance(error, EbmcoreError) and isinstance(observer, (MetricsFile, TensorBoard, ProgressBar)):
                raise  # ours say by themselves what to do
            known = host.provenance(observer)
            plugin = f" of {known['distribution']} {known['version']}" if known["distribution"] else ""
            raise PluginError(
                f"the observer {type(observer).__name__}{plugin} failed in {event}{args[:1]}: {type(error).__name__}: {error}"
            ) from error


class MetricsFile(BaseObserver):
    """``metrics.csv``: one row for each logged step. A resumed run drops the rows it will write again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []

    def on_start(self, step: int, n_steps: int) -> None:
        rows = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                # The last line of a killed run may be cut off.
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
            try:
                rows = [row for row in rows if int(row["step"]) <= step]
            except (KeyError, ValueError) as error:
                raise UsageError(f"{self.path} is not the metrics of a run: move it away to go on") from error
        self.columns = list(rows[0]) if rows else []
        self._rewrite(rows)

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        temporary = self.path.with_suffix(".writing")
        with temporary.open("w", newline="") as file:
            if self.columns:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(rows)
        os.replace(temporary, self.path)


class TensorBoard(BaseObserver):
    """Scalars for TensorBoard, where it is installed (`available`)."""

    available = importlib.util.find_spec("tensorboard") is not None

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_start(self, step: int, n_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.directory), purge_step=step + 1 if step else None)

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def on_end(self) -> None:
        self.writer.close()


class ProgressBar(BaseObserver):
    """A bar in the terminal."""

    def on_start(self, step: int, n_steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
        )
        self.task = self.progress.add_task("training", total=n_steps, completed=step, metrics="")
        self.progress.start()

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.progress.update(self.task, completed=step, metrics=f"loss {metrics['loss']:.3f}")

    def on_end(self) -> None:
        self.progress.stop()

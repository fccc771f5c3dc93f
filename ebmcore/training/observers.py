"""Observers of a run: the metrics file, TensorBoard, the progress bar, and observers of plugins."""

from __future__ import annotations

import csv
import importlib.util
import io
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebmcore import host
from ebmcore.errors import EbmcoreError, PluginError, UsageError
from ebmcore.training.directory import check_directory, naming, open_to_append, read_text, write_text
from ebmcore.training.run import Run, flat_config

_MOST_METRICS = 2**28  # bytes


class BaseObserver:
    """Base of observers: a subclass overrides the events that it needs. Events are called on the first rank only.

    Each event receives the `Run`: its configuration, loss, energy, data, sampler, step, number of steps and directory.

    Example:
        >>> class Printed(BaseObserver):
        ...     def on_log(self, run, metrics):
        ...         print(f"step {run.step} of {run.n_steps}: {sorted(metrics)}")
    """

    def on_start(self, run: Run) -> None:
        """Training begins; ``run.step`` is 0, or the number of steps done before in a resumed run."""

    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        """The metrics of step ``run.step`` were read, at the logging interval."""

    def on_checkpoint(self, run: Run, path: Path) -> None:
        """A checkpoint is complete."""

    def on_end(self, run: Run) -> None:
        """Training ended, or was stopped by an error."""


@contextmanager
def observing(observers: Sequence[BaseObserver], run: Callable[[], Run]) -> Iterator[None]:
    """Call ``on_start`` of each observer, and at the end, also after an error, ``on_end`` of each that was started.

    Args:
        observers: The observers.
        run: Returns the run as it is at the moment.
    """
    started: list[BaseObserver] = []
    try:
        for observer in observers:
            notify([observer], "on_start", run())
            started.append(observer)
        yield
    except BaseException as error:
        for failure in _end(started, run()):
            error.add_note(str(failure))  # the reason why training ended comes first
        raise
    failures = _end(started, run())
    if failures:
        for failure in failures[1:]:
            failures[0].add_note(str(failure))
        raise failures[0]


def _end(observers: Sequence[BaseObserver], run: Run) -> list[EbmcoreError]:
    failures = []
    for observer in observers:
        try:
            notify([observer], "on_end", run)
        except EbmcoreError as failure:
            failures.append(failure)
    return failures


def notify(observers: Sequence[BaseObserver], event: str, run: Run, *args: Any) -> None:
    """Call one event of all observers. One that raises ends the run; the message names it, its plugin and the event."""
    for observer in observers:
        method: Callable[..., None] = getattr(observer, event)
        try:
            method(run, *args)
        except (Exception, SystemExit) as error:
            own = type(observer).__module__.startswith(("ebmcore.training.", "ebmcore.cli."))
            if own and isinstance(error, EbmcoreError | OSError):
                raise  # these messages say what to do
            known = host.provenance(observer)
            plugin = f" of {known['distribution']} {known['version']}" if known["distribution"] else ""
            raise PluginError(
                f"the observer {type(observer).__name__}{plugin} failed in {event} at step {run.step}: "
                f"{type(error).__name__}: {error}"
            ) from error


class MetricsFile(BaseObserver):
    """``metrics.csv``: one row for each logged step. A resumed run drops the rows it will write again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []

    def on_start(self, run: Run) -> None:
        try:
            rows = list(_rows_until(run.step, self._rows()))
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise UsageError(f"{self.path} is not the metrics of a run ({error}): move it away to resume") from error
        self.columns = list(rows[0]) if rows else []
        self._rewrite(rows)

    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        row = {"step": run.step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite(self._rows())
        with naming(self.path), open_to_append(self.path) as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rows(self) -> Iterator[dict[str, str]]:
        try:
            text = read_text(self.path, _MOST_METRICS)
        except FileNotFoundError:
            return iter(())
        return csv.DictReader(io.StringIO(text, newline=""))

    def _rewrite(self, rows: Iterable[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        if self.columns:
            writer = csv.DictWriter(text, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        write_text(self.path, text.getvalue())


def _rows_until(last: int, rows: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """The rows up to step ``last``. Each is of a later step than the one before, so there are not more than ``last``."""
    before = 0
    for row in rows:
        if None in row.values():  # the last line of a killed run may be cut off
            continue
        step = int(row["step"])
        if step <= before or None in row:
            raise ValueError(f"the row after step {before} is of no later step, or has more values than there are columns")
        if step > last:
            return
        yield row
        before = step


class TensorBoard(BaseObserver):
    """Scalars and hyper-parameters for TensorBoard, where it is installed (`available`)."""

    available = importlib.util.find_spec("tensorboard") is not None

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.described = False

    def on_start(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        check_directory(self.directory)
        self.writer = SummaryWriter(
            str(self.directory),
            purge_step=run.step + 1 if run.step else None,
            filename_suffix=f".{secrets.token_hex(8)}",  # its file follows links: nobody can have put one under that name
        )

    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        if not self.described:
            self._describe(run, metrics)
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, run.step)

    def _describe(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Write the table of hyper-parameters, which names the metrics too. ``add_hparams`` would make a run of its own."""
        from torch.utils.tensorboard.summary import hparams

        plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in flat_config(run.config).items()}
        for summary in hparams(plain, dict(metrics)):
            self.writer._get_file_writer().add_summary(summary)
        self.described = True

    def on_end(self, run: Run) -> None:
        self.writer.close()


class ProgressBar(BaseObserver):
    """A bar in the terminal."""

    def on_start(self, run: Run) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
        )
        self.task = self.progress.add_task("training", total=run.n_steps, completed=run.step, metrics="")
        self.progress.start()

    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        self.progress.update(self.task, completed=run.step, metrics=f"loss {metrics['loss']:.3f}")

    def on_end(self, run: Run) -> None:
        self.progress.stop()

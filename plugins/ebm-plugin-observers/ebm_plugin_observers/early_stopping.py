"""An end of training when a metric no longer improves."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from ebmcore.training import BaseObserver, Run


class EarlyStopping(BaseObserver):
    """Ends the run, with a checkpoint, when a metric has not improved for a number of logs.

    Logs without the metric do not count: one that is measured now and then is judged when it is measured. A resumed run reads the
    earlier values in ``metrics.csv``, so it ends where the run that was not interrupted does. The loss of contrastive divergence
    is no measure of progress; a likelihood is (``--metric exact-ll --measure_every 100``).

    Args:
        metric: Name of the metric, as ``metrics.csv`` has it.
        patience: Number of its logs in a row without an improvement after which the run ends, at least 1.
        min_delta: Smallest change that is an improvement, at least 0.
        lower_is_better: Whether the metric improves when it falls; a log-likelihood rises.

    Source: L. Prechelt (1998), "Early stopping - but when?".

    Example:
        >>> observer = EarlyStopping("exact-ll", patience=2)
        >>> [observer.exhausted_by({"exact-ll": value}) for value in (-5.0, -4.0, -4.5, -4.1)]
        [False, False, False, True]
    """

    example_options: ClassVar[dict[str, Any]] = {"metric": "energy_data"}

    def __init__(self, metric: str, *, patience: int = 10, min_delta: float = 0.0, lower_is_better: bool = False) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience!r}")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta must be at least 0, got {min_delta!r}")
        self.metric = metric
        self.patience = patience
        self.min_delta = min_delta
        self.lower_is_better = lower_is_better
        self._forget()

    def _forget(self) -> None:
        self.best = -math.inf
        self.seen = False
        self.without_improvement = 0
        self.others: set[str] = set()

    def exhausted_by(self, metrics: Mapping[str, float]) -> bool:
        """Takes the metrics of one log and returns whether the patience is at its end."""
        if self.metric not in metrics:
            self.others |= metrics.keys()
            return False
        self.seen = True
        value = -metrics[self.metric] if self.lower_is_better else metrics[self.metric]
        if value > self.best + self.min_delta:
            self.best, self.without_improvement = value, 0
        else:
            self.without_improvement += 1
        return self.without_improvement >= self.patience

    def on_start(self, run: Run) -> None:
        self._forget()
        if run.step == 0 or run.directory is None:
            return
        with (run.directory / "metrics.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if int(row["step"]) <= run.step and row.get(self.metric):
                    self.exhausted_by({self.metric: float(row[self.metric])})

    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        if self.exhausted_by(metrics):
            run.stop()

    def on_end(self, run: Run) -> None:
        if self.others and not self.seen:
            logged = ", ".join(sorted(self.others))
            warnings.warn(f"early-stopping never saw the metric {self.metric!r}; logged were {logged}", stacklevel=2)

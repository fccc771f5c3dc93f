"""Rows of the table of studies."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        study: What was done.
        published: The figure or the statement that it is held against.
        ours: What came out, with its error.
        verdict: Whether it holds; `None` where it was not run.
    """

    study: str
    published: str
    ours: str
    verdict: bool | None


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = ["| study | published | ours | holds |", "|---|---|---|---|"]
    lines += [f"| {r.study} | {r.published} | {r.ours} | {'not run' if r.verdict is None else r.verdict} |" for r in rows]
    return "\n".join(lines)

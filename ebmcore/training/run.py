"""The run as observers receive it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ebmcore.losses import BaseLoss
from ebmcore.training.batches import LabelledExamples


@dataclass(frozen=True)
class Run:
    """A training run at one moment. Observers receive one at every event; they must not change what it holds.

    Args:
        config: The configuration: from the command line the content of ``config.yaml``, from Python the options of `fit` that
            are plain data.
        loss: The loss, as it is trained.
        energy: The energy, or its moving average where one is kept.
        data: What `fit` was given to train on.
        examples: A few training examples in the form in which the loss receives them, for every kind of ``data``: the first 256
            of those in memory, otherwise the first batch.
        sampler: The loss's sampler; `None` for a loss that has none.
        step: Number of optimizer steps done.
        n_steps: Number of optimizer steps of the whole run.
        rank: Rank of this process; observers are called on rank 0 alone.
        directory: Where the run writes its files; `None` if it writes none.
        stop: Ends the run after this step, with a checkpoint and no error; several processes at the next logged step.
    """

    config: Mapping[str, Any]
    loss: BaseLoss
    energy: nn.Module
    data: Any
    examples: LabelledExamples
    sampler: Any
    step: int
    n_steps: int
    rank: int
    directory: Path | None
    stop: Callable[[], None]


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested options by dotted names, for trackers that take one table.

    Example:
        >>> flat_config({"energy": {"name": "rbm", "hidden": 64}, "lr": 0.1})
        {'energy.name': 'rbm', 'energy.hidden': 64, 'lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= flat_config(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat

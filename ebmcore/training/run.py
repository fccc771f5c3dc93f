"""The run as observers receive it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ebmcore.losses import BaseLoss


@dataclass(frozen=True)
class Run:
    """A training run at one moment. Observers receive one at every event; they must not change what it holds.

    Args:
        config: The configuration: from the command line the content of ``config.yaml``, from Python the options of `fit` that
            are plain data.
        loss: The loss, as it is trained.
        energy: The energy, or its moving average where one is kept.
        data: What `fit` was given to train on.
        sampler: The loss's sampler; `None` for a loss that has none.
        step: Number of optimizer steps done.
        n_steps: Number of optimizer steps of the whole run.
        rank: Rank of this process; observers are called on rank 0 alone.
        directory: Where the run writes its files; `None` if it writes none.
    """

    config: Mapping[str, Any]
    loss: BaseLoss
    energy: nn.Module
    data: Any
    sampler: Any
    step: int
    n_steps: int
    rank: int
    directory: Path | None

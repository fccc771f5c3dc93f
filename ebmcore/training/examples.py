"""What a checkpoint records of the examples of its run, so that the run can be used where its data are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmcore.errors import CheckpointError

_SPACES = (None, "continuous", "binary", "categorical")


@dataclass(frozen=True)
class TrainingExamples:
    """Shape, state space and range of the examples of a run.

    Args:
        shape: Shape of one example.
        state_space: ``"continuous"``, ``"binary"`` or ``"categorical"``; `None` where the data do not say.
        low: The smallest value among the training examples; `None` where it is not known.
        high: The largest one.
        n_classes: Number of classes of the labels; `None` where there are none.
    """

    shape: tuple[int, ...]
    state_space: str | None = None
    low: float | None = None
    high: float | None = None
    n_classes: int | None = None

    @classmethod
    def of(cls, data: Any, first: Tensor) -> TrainingExamples:
        """Describe what `ebmcore.training.fit` was given to train on.

        Args:
            data: A data set component, a tensor or a torch ``Dataset``.
            first: A batch of it, ``(B, *shape)``.

        Example:
            >>> TrainingExamples.of(torch.tensor([[0.0], [2.0]]), torch.zeros(1, 1)).as_json()
            {'shape': [1], 'state_space': None, 'low': 0.0, 'high': 2.0, 'n_classes': None}
        """
        examples = data if isinstance(data, Tensor) else getattr(data, "train", None)
        low = high = None
        if isinstance(examples, Tensor) and examples.numel():
            low, high = (end.item() for end in torch.aminmax(examples.detach()))
            if not math.isfinite(low) or not math.isfinite(high):
                low = high = None
        space, n_classes = getattr(data, "state_space", None), getattr(data, "n_classes", None)
        return cls(
            tuple(first.shape[1:]),
            space if space in _SPACES else None,
            low,
            high,
            n_classes if type(n_classes) is int and n_classes > 0 else None,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the record."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_json(cls, record: Any, where: Path) -> TrainingExamples:
        """Return what a record says.

        Raises:
            CheckpointError: If it is no such record.
        """
        known = record if isinstance(record, Mapping) else {}
        shape, low, high, n_classes = (known.get(name) for name in ("shape", "low", "high", "n_classes"))
        right = (
            isinstance(shape, list)
            and all(type(size) is int and size >= 0 for size in shape)
            and known.get("state_space") in _SPACES
            and all(end is None or (type(end) in (int, float) and math.isfinite(end)) for end in (low, high))
            and (low is None) == (high is None)
            and (n_classes is None or (type(n_classes) is int and n_classes > 0))
        )
        if not right:
            raise CheckpointError(f"{where} does not say what the examples of its run are: it is not one of ebmcore")
        return cls(tuple(known["shape"]), known.get("state_space"), low, high, n_classes)

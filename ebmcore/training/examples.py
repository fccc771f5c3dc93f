"""What a checkpoint records of the examples of its run, so that the run can be used where its data are not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmcore.errors import CheckpointError, UsageError

_SPACES = (None, "continuous", "binary", "categorical")
_MAX_RECORD = 2**18  # bytes, of the classes or of the record of a data set; a checkpoint's JSON may have four times as many
_SHOWN = 10  # classes in a message


@dataclass(frozen=True)
class TrainingExamples:
    """Shape, state space and range of the examples of a run, its classes, and how its data set reads files.

    Args:
        shape: Shape of one example.
        state_space: ``"continuous"``, ``"binary"`` or ``"categorical"``; `None` where the data do not say.
        low: The smallest value among the training examples; `None` where it is not known.
        high: The largest one.
        n_classes: Number of classes of the labels; `None` where there are none.
        classes: Their names, in the order of the class numbers; `None` where the data have no names.
        record: What the data set's ``as_record()`` returns, from which its ``from_record()`` makes it without its examples;
            `None` where it has none, or one that is too large for a checkpoint.
    """

    shape: tuple[int, ...]
    state_space: str | None = None
    low: float | None = None
    high: float | None = None
    n_classes: int | None = None
    classes: tuple[str | int, ...] | None = None
    record: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, data: Any, first: Tensor) -> TrainingExamples:
        """Describe what `ebmcore.training.fit` was given to train on.

        Args:
            data: A data set component, a tensor or a torch ``Dataset``.
            first: A batch of it, ``(B, *shape)``.

        Example:
            >>> examples = TrainingExamples.of(torch.tensor([[0.0], [2.0]]), torch.zeros(1, 1))
            >>> examples.shape, examples.low, examples.high
            ((1,), 0.0, 2.0)
        """
        examples = data if isinstance(data, Tensor) else getattr(data, "train", None)
        low = high = None
        if isinstance(examples, Tensor) and examples.numel():
            low, high = (end.item() for end in torch.aminmax(examples.detach().to(first.dtype)))
            if not math.isfinite(low) or not math.isfinite(high):
                low = high = None
        space, n_classes = getattr(data, "state_space", None), getattr(data, "n_classes", None)
        n_classes = n_classes if type(n_classes) is int and n_classes > 0 else None
        as_record = getattr(data, "as_record", None)
        return cls(
            tuple(first.shape[1:]),
            space if space in _SPACES else None,
            low,
            high,
            n_classes,
            _classes(getattr(data, "classes", None), n_classes),
            _fitting(as_record()) if callable(as_record) else None,
        )

    def class_numbers(self, labels: Sequence[str | float]) -> list[float]:
        """Return the class numbers of labels: names of classes, or the numbers themselves.

        Where one of them is a name, all are: a name that is a number wins over the class of that number.

        Raises:
            UsageError: If one is neither.

        Example:
            >>> TrainingExamples((2,), n_classes=2, classes=("cat", "dog")).class_numbers(["dog", "cat"])
            [1, 0]
            >>> TrainingExamples((2,), n_classes=2, classes=(3, 7)).class_numbers([7])
            [1]
        """
        numbers = {str(name): number for number, name in enumerate(self.classes or ())}
        texts = [str(label) for label in labels]
        if any(text in numbers for text in texts):
            strange = [text for text in texts if text not in numbers]
            if strange:
                raise UsageError(f"{strange[0]!r} is no class of the run, {self._known()}")
            return [numbers[text] for text in texts]
        try:
            return [_number(text) for text in texts]
        except ValueError as error:
            told = (
                "conditions of this run are numbers" if self.classes is None else f"give classes of the run, {self._known()}"
            )
            raise UsageError(f"{told}: got {', '.join(texts[:_SHOWN])}") from error

    def _known(self) -> str:
        names = list(map(str, self.classes or ()))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"which has {', '.join(names[:_SHOWN])}{more}"

    def as_json(self) -> dict[str, Any]:
        """Return the record."""
        classes = None if self.classes is None else list(self.classes)
        return asdict(self) | {"shape": list(self.shape), "classes": classes}

    @classmethod
    def from_json(cls, record: Any, where: Path) -> TrainingExamples:
        """Return what a record says.

        Raises:
            CheckpointError: If it is no such record.
        """
        known = record if isinstance(record, Mapping) else {}
        shape, low, high, n_classes = (known.get(name) for name in ("shape", "low", "high", "n_classes"))
        classes, own = known.get("classes"), known.get("record")
        right = (
            isinstance(shape, list)
            and all(type(size) is int and size >= 0 for size in shape)
            and known.get("state_space") in _SPACES
            and all(end is None or (type(end) in (int, float) and math.isfinite(end)) for end in (low, high))
            and (low is None) == (high is None)
            and (n_classes is None or (type(n_classes) is int and n_classes > 0))
            and (classes is None or (isinstance(classes, list) and _classes(classes, n_classes) == tuple(classes)))
            and (own is None or isinstance(own, dict))
        )
        if not right:
            raise CheckpointError(f"{where} does not say what the examples of its run are: it is not one of ebmcore")
        names = None if classes is None else tuple(classes)
        return cls(tuple(known["shape"]), known.get("state_space"), low, high, n_classes, names, own)


def _classes(names: Any, n_classes: int | None) -> tuple[str | int, ...] | None:
    """The names of the classes, where they are names: a text or whole number for each, no two alike."""
    if n_classes is None or not isinstance(names, list | tuple) or len(names) != n_classes:
        return None
    right = all(type(name) in (str, int) for name in names) and len(set(map(str, names))) == n_classes
    return None if not right or _fitting(list(names)) is None else tuple(names)


def _fitting(record: Any) -> Any:
    """A record as plain JSON; `None` if it is larger than a checkpoint may hold."""
    text = json.dumps(record)
    return json.loads(text) if len(text) <= _MAX_RECORD else None


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)

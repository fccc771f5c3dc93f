"""From what a file holds to examples: checks, classes, split, scaling and state space."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ebmcore.distributed import rank
from ebmcore.errors import UsageError
from ebmcore.training import as_floating

Scale = Literal["none", "standard", "unit", "symmetric"]
SCALES = ("none", "standard", "unit", "symmetric")
SPACES = ("continuous", "binary", "categorical")
MISSING = {"", "na", "n/a", "nan", "null", "none"}  # texts that stand for no value, in lower case
_SHOWN = 5  # names in a message


class Beside(NamedTuple):
    """Labels or weights, and where they are from.

    Args:
        values: The values.
        where: What a message calls their place.
        advice: What it advises if they are not one for each.
        column: Name of their column or array, where it is one of the examples' own file.
    """

    values: np.ndarray
    where: str
    advice: str = "give one for each"
    column: str | None = None


class FileData:
    """What the data sets of this package have in common: a training and a test share of the examples of a file."""

    train: Tensor
    test: Tensor
    shape: tuple[int, ...]
    state_space: str
    train_labels: Tensor
    test_labels: Tensor
    n_classes: int
    classes: tuple[str | int, ...]
    train_weights: Tensor
    test_weights: Tensor
    shift: Tensor
    spread: Tensor
    _threshold: float | None = None

    def as_record(self) -> dict[str, Any]:
        """What `from_record` needs, as JSON: how other files are read, without any example."""
        shift, spread = (part.tolist() for part in self._learnt)
        scale = {"shift": shift, "spread": spread, "threshold": self._threshold}
        return {"shape": list(self.shape), "state_space": self.state_space, **scale}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The data set of an `as_record`, without its examples: it has `examples_of`, `scaled` and `unscaled`.

        Raises:
            ValueError, TypeError, LookupError: If it is no such record.
        """
        data = cls.__new__(cls)
        data.shape, data.state_space = tuple(map(int, record["shape"])), record["state_space"]
        check_choice("state_space", data.state_space, SPACES)
        shift, spread = (np.array(record[name], dtype=np.float64) for name in ("shift", "spread"))
        whole = (1, *data.shape)
        fits = shift.shape == spread.shape and np.broadcast_shapes(shift.shape, whole) == whole
        if not fits or not np.isfinite(shift).all() or not np.isfinite(spread).all() or not (spread > 0).all():
            raise ValueError(f"its scale does not fit examples of shape {data.shape}")
        data._keep_scale(shift, spread)
        data._threshold = None if record["threshold"] is None else float(record["threshold"])
        return data

    @property
    def invertible(self) -> bool:
        """Whether `unscaled` takes examples back to the units of the file: bits of a ``threshold`` do not."""
        return self._threshold is None

    def scaled(self, x: Tensor) -> Tensor:
        """Examples ``(N, *shape)`` in the units of the file, as they would be in this data set.

        Raises:
            UsageError: If they have another shape.
        """
        values = torch.as_tensor(x).numpy()
        self._check_shape(values, "the array")
        return torch.from_numpy(self._in_model(values))

    def unscaled(self, x: Tensor) -> Tensor:
        """Examples ``(N, *shape)`` of this data set, or samples of a model of it, in the units of the file, float64.

        Raises:
            UsageError: If a ``threshold`` made bits of them.
        """
        if not self.invertible:
            raise UsageError(f"bits that threshold {self._threshold} made have no value in the file: use them as they are")
        shift, spread = map(torch.from_numpy, self._learnt)
        return shift + spread * x.double()

    def _in_model(self, x: np.ndarray) -> np.ndarray:
        """Examples of another file, scaled and made bits as those of this data set."""
        x = self._scaled(x)
        return x if self._threshold is None else (x > self._threshold).astype(np.float32)

    def _hold(self, x: np.ndarray, rows: tuple[np.ndarray, np.ndarray]) -> None:
        """Keeps the examples, those to train and those to test."""
        self.train, self.test = (torch.from_numpy(np.ascontiguousarray(x[part])) for part in rows)
        self.shape = x.shape[1:]

    def _hold_labels(self, given: Beside, rows: tuple[np.ndarray, np.ndarray], missing: Collection[str] = MISSING) -> None:
        """Keeps the labels, as class numbers; texts of ``missing`` are none."""
        numbers, self.classes = class_numbers(one_each(given, rows, "labels"), given.where, missing)
        self.train_labels, self.test_labels = (torch.from_numpy(numbers[part]) for part in rows)
        self.n_classes = len(self.classes)

    def _hold_weights(self, given: Beside, rows: tuple[np.ndarray, np.ndarray]) -> None:
        """Keeps the weights."""
        values, where = one_each(given, rows, "weights"), given.where
        check_numbers(values, where)
        negative = np.flatnonzero(values < 0)
        if len(negative):
            raise UsageError(
                f"weights of {where} must be at least 0, got {values[negative[0]]} in row {negative[0]} (counted from 0) and "
                f"{len(negative) - 1} more below 0"
            )
        self.train_weights, self.test_weights = (torch.from_numpy(values[part].astype(np.float32)) for part in rows)
        for part, weights in (("training", self.train_weights), ("test", self.test_weights)):
            if len(weights) and not weights.any():
                raise UsageError(f"weights of {where} are 0 for every {part} example: give some above 0, or another seed")

    def _keep_scale(self, shift: np.ndarray, spread: np.ndarray) -> None:
        """Keeps what `learn_scale` has found, in its precision for the examples and in float32 for users."""
        self._learnt = shift, spread
        self.shift, self.spread = (torch.tensor(part[0]).float() for part in (shift, spread))

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        """Examples, of this file or of another, on the scale of the training examples."""
        precise = np.result_type(x.dtype, np.float32)
        shift, spread = (part.astype(precise) for part in self._learnt)
        return ((x - shift) / spread).astype(np.float32)

    def _check_shape(self, x: np.ndarray, path: Path | str) -> None:
        """Raises `UsageError` if the examples of another file have another shape."""
        if x.shape[1:] != self.shape:
            raise UsageError(
                f"examples of {path} have shape {x.shape[1:]}, but the training examples have {self.shape}: give a file of such "
                "examples"
            )

    def _say(self, path: Path, guessed: bool, stored: np.dtype[Any] | None = None) -> None:
        """Prints one line of what was made of the file, and of the numbers that it has stored."""
        if rank() == 0:
            line = f"{path}: {len(self.train)} training and {len(self.test)} test examples of shape {self.shape}, "
            line += "" if stored is None or stored == np.float32 else f"{stored} converted to float32, "
            line += f"{self.state_space}{' (guessed)' if guessed else ''}"
            line += f", classes {listed(self.classes)}" if hasattr(self, "classes") else ""
            print(f"ebmcore: {line}", file=sys.stderr)  # noqa: T201 - for the user of the command line


def listed(names: Sequence[object]) -> str:
    """The first few names, for messages."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises `UsageError` if an option is none of its values."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def split(n: int, test_share: float, seed: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train and rows to test, drawn at random, each in the order of the file."""
    if not 0 <= test_share < 1:
        raise UsageError(f"test_share must be at least 0 and below 1, got {test_share!r}: training needs examples")
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed must be from 0 to 2**32 - 1, got {seed!r}")
    n_least = 1 + (test_share > 0)
    if n < n_least:
        raise UsageError(
            f"{path} holds {n} example{'s' * (n != 1)}: give at least {n_least}, one to train{' and one to test' * (n_least - 1)}"
        )
    n_test = min(max(round(test_share * n), 1), n - 1) if test_share else 0
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
    return np.sort(order[n_test:]), np.sort(order[:n_test])


def check_numbers(x: np.ndarray, path: Path | str, names: Sequence[str] | None = None) -> None:
    """Raises `UsageError` if there are no values, or for what is no number, or NaN, infinite or too large for float32."""
    if x.size == 0 or x.ndim == 0:
        raise UsageError(f"{path} holds an array of shape {x.shape}: give examples (N, *shape)")
    if x.dtype.kind not in "fiub":
        raise UsageError(f"{path} holds {x.dtype}, not real numbers: convert them")
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(x.astype(np.float32))
    if bad.any():
        where = np.argwhere(bad)
        rows, first = np.unique(where[:, 0]), where[0]
        place = f"row {first[0]} (counted from 0)"
        if names is not None:
            place += f", column {names[first[1]]!r}"
        raise UsageError(
            f"{path} holds {len(where)} value{'s' * (len(where) != 1)} NaN, infinite or too large for float32, in {len(rows)} of "
            f"{len(x)} rows, the first in {place}: fill them in, or leave those rows out"
        )


def check_exact(x: np.ndarray, path: Path, *, text: bool) -> None:
    """Raises `UsageError` for numbers that are to be taken as they are and do not train so, or that float32 does not hold.

    Args:
        x: Examples ``(N, *shape)``.
        path: The file.
        text: Whether it holds texts, whose whole numbers have no type.
    """
    if text:
        whole = (x == np.rint(x)) & (np.abs(x) < 2**63)
        x = x[:, whole.reshape(len(x), -1).all(0).reshape(x.shape[1:])].astype(np.int64)
    if x.dtype.kind in "iu":
        native = torch.from_numpy(x.astype(x.dtype.newbyteorder("=")))
        remedy = "set scale to unit for values in [0, 1], symmetric for [-1, 1], or standard"
        as_floating(native, torch.float32, None, f"the values of {path}", warn=False, remedy=remedy)


def class_numbers(
    values: np.ndarray, where: str, missing: Collection[str] = MISSING
) -> tuple[np.ndarray, tuple[str | int, ...]]:
    """Class numbers from 0, int64, and what each stands for in the file: the distinct labels in their order.

    Raises:
        UsageError: If there is one that is no label, such as a text of ``missing``.
    """
    if values.dtype.kind == "O":
        values = np.array(["" if value is None or value != value else str(value) for value in values])
    kind = values.dtype.kind
    if kind not in "fiubU":
        raise UsageError(f"labels of {where} must be whole numbers or texts, got {values.dtype}")
    texts = np.char.lower(np.char.strip(values)) if kind == "U" else values
    unlabelled = np.flatnonzero(np.isin(texts, list(missing)) if kind == "U" else ~np.isfinite(values))
    if len(unlabelled):
        cell = f", {str(values[unlabelled[0]])!r}" if kind == "U" else ""
        raise UsageError(
            f"{where} has {len(unlabelled)} rows without a label, the first is row {unlabelled[0]} (counted from 0){cell}: leave "
            "those rows out, or give them a class"
        )
    if kind == "f" and (values != np.round(values)).any():
        raise UsageError(f"labels of {where} must be whole numbers or texts, got {values[values != np.round(values)][0]}")
    distinct, numbers = np.unique(values, return_inverse=True)
    names = tuple(value if isinstance(value, str) else int(value) for value in distinct.tolist())
    return numbers.reshape(-1).astype(np.int64), names


def class_names(given: Beside, missing: Collection[str] = MISSING) -> list[str | int]:
    """The label of each example of a file, in the form of ``classes``."""
    numbers, names = class_numbers(given.values.reshape(-1), given.where, missing)
    return [names[number] for number in numbers]


def one_each(given: Beside, rows: tuple[np.ndarray, np.ndarray], what: str) -> np.ndarray:
    """The labels or weights, if there is one for each example."""
    values, n = given.values, sum(map(len, rows))
    if values.size != n or len(values) != n:
        raise UsageError(f"{what} of {given.where} have shape {values.shape}, but there are {n} examples: {given.advice}")
    return values.reshape(n)


def learn_scale(
    x: np.ndarray,
    train: np.ndarray,
    scale: Scale,
    axes: tuple[int, ...],
    *,
    path: Path,
    limits: tuple[float, float] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What the training rows of examples say of their scale.

    Args:
        x: Examples ``(N, *shape)``.
        train: The rows to learn from.
        scale: How.
        axes: What is scaled together.
        path: The file, for messages.
        limits: The range of the values, where it is known.
        names: Names of the columns, for messages.

    Returns:
        ``shift`` and ``spread`` ``(1, ...)`` float64, with ``x = shift + spread * scaled``.
    """
    if scale == "none":
        return np.zeros(1), np.ones(1)
    seen = x[train]
    low, high = (of(axes, keepdims=True).astype(np.float64) for of in (seen.min, seen.max))
    constant = low == high
    if scale == "standard":
        shift, spread = (of(axes, keepdims=True, dtype=np.float64) for of in (seen.mean, seen.std))
    else:
        if limits is not None:
            low, high = np.full_like(low, limits[0]), np.full_like(high, limits[1])
            constant = low == high
        shift, spread = (low, high - low) if scale == "unit" else ((low + high) / 2, (high - low) / 2)
    if constant.any():
        shift, spread = np.where(constant, low, shift), np.where(constant, 1.0, spread)
        which = "every value"
        if constant.size > 1:
            places = np.flatnonzero(constant).tolist()
            which = f"column {listed([names[i] if names else i for i in places])}"
        warnings.warn(
            f"{path}: constant in the training share is {which}: scale={scale} shifts it and divides it by 1",
            UserWarning,
            stacklevel=3,
        )
    return shift, spread


def bits(x: np.ndarray, threshold: float, path: Path) -> np.ndarray:
    """1 where a value is above the threshold, otherwise 0; not all of the same."""
    above = x > threshold
    if above.all() or not above.any():
        raise UsageError(
            f"threshold {threshold} makes each bit of {path} {int(above.all())}: the scaled values lie in {x.min():g} to "
            f"{x.max():g}; choose one between"
        )
    return above.astype(np.float32)


def are_bits(x: np.ndarray) -> bool:
    """Whether all values are 0 or 1."""
    return bool(((x == 0) | (x == 1)).all())


def space_of(x: np.ndarray, state_space: str | None, path: Path) -> str:
    """The state space of examples ``(N, *shape)``: the given one, if they lie in it, otherwise a guess."""
    if state_space is None:
        if not are_bits(x):
            return "continuous"
        return "categorical" if _is_categorical(x) else "binary"
    check_choice("state_space", state_space, SPACES)
    if state_space == "binary" and not (x.min() >= 0 and x.max() <= 1):
        raise UsageError(
            f"the values of {path} lie in {x.min():g} to {x.max():g}, not in 0 to 1 as state_space=binary says: set scale or "
            "threshold"
        )
    if state_space == "categorical" and not _is_categorical(x):
        raise UsageError(
            f"examples of {path}, of shape {x.shape[1:]}, are not categorical, which is (*units, values) with sums of 1 over the "
            "last axis: encode them one-hot, set shape, or choose another state_space"
        )
    return state_space


def _is_categorical(x: np.ndarray) -> bool:
    return x.ndim > 2 and x.shape[-1] > 1 and bool(x.min() >= 0 and (np.abs(x.sum(-1) - 1) < 1e-4).all())


def reshaped(x: np.ndarray, shape: Sequence[int] | None, path: Path) -> np.ndarray:
    """Examples ``(N, *shape)``; of a single number each, ``(N, 1)``."""
    if shape is None:
        return x if x.ndim > 1 else x[:, None]
    if any(side < 1 for side in shape) or math.prod(shape) != math.prod(x.shape[1:]):
        raise UsageError(f"shape {tuple(shape)} does not hold the {math.prod(x.shape[1:])} values of an example of {path}")
    return x.reshape(len(x), *shape)

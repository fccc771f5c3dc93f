"""Batches for training: of examples in memory, of a torch ``Dataset``, or of a ``DataLoader``."""

from __future__ import annotations

import hashlib
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate, default_convert

from ebmcore.errors import UsageError
from ebmcore.random import stream_seed
from ebmcore.training.data import as_floating, check_labels, check_values
from ebmcore.training.described import describe_function
from ebmcore.training.order import LoaderBatches, StepBatches, seeded
from ebmcore.training.stopping import WorkerStart
from ebmcore.training.tensors import as_label, as_tensor, is_numpy

_FEW = 256  # examples that observers see
_MANY = 1000  # examples that are read at once to have them all
# A resumed run knows a data set by all of its examples, or by a few, from the first to the last at equal distances, where it has
# more examples or elements than are read in a moment.
_LOOKED_AT = 16
_READ_EXAMPLES, _READ_ELEMENTS = 2**14, 2**26


class Batch(NamedTuple):
    """Examples of one call of a loss, with their conditions or targets by place and by name, and with their weights."""

    args: tuple[Tensor, ...]
    named: dict[str, Tensor]
    weights: Tensor | None = None


@dataclass(frozen=True)
class LabelledExamples:
    """Examples with what belongs to them.

    Args:
        x: Examples ``(N, *shape)``.
        conditions: What the energy takes beside them, ``(N, ...)`` each, by the names of `ebmcore.conditions.name_conditions`;
            empty where it takes nothing.
        weights: Weights ``(N,)`` of mean 1; `None` where all count the same.
    """

    x: Tensor
    conditions: Mapping[str, Tensor]
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How examples are read.

    Args:
        dtype: What they are converted to.
        space: The state space that they must lie in, or `None`.
        n_classes: Number of classes of their labels, or `None`.
        bounds: The bounds that they must lie in, or `None`.
        batch_size: Examples in a batch.
        num_workers: Processes that read a torch ``Dataset``; 0 reads in this one.
        seed: Seed of the order, and of what a data set draws.
        rank: This process.
        world: Number of processes, which share the batches.
        warn: Whether a conversion is said.
        taker: What is called with the examples and their labels, which are left out if it does not take them; `None` takes all.
    """

    dtype: torch.dtype = torch.float32
    space: str | None = None
    n_classes: int | None = None
    bounds: tuple[float, float] | None = None
    batch_size: int = 64
    num_workers: int = 0
    seed: int = 0
    rank: int = 0
    world: int = 1
    warn: bool = True
    taker: Callable[..., Any] | None = None

    def taken(self, labels: Sequence[Tensor], named: Mapping[str, Tensor]) -> tuple[Sequence[Tensor], Mapping[str, Tensor]]:
        """Return the labels by place and by name, or none if ``taker`` takes nothing after the examples that they may be."""
        if self.taker is not None and (labels or named):
            signature = inspect.signature(self.taker)
            try:
                signature.bind_partial(None, *labels, **named)  # partial, as a loss may add conditions of its own
            except TypeError:
                others = [p for p in [*signature.parameters.values()][1:] if p.kind is not p.VAR_KEYWORD]
                if all(p.kind is p.KEYWORD_ONLY and (not named or p.default is p.empty) for p in others):
                    return (), {}
        return labels, named


class Examples(ABC):
    """Training examples, as `ebmcore.training.fit` reads them.

    Attributes:
        steps_per_epoch: Batches of a rank in one pass; `None` where the data do not say how many they are.
        weights: Weights of the examples ``(N,)``, where they have any.
    """

    steps_per_epoch: int | None
    weights: Tensor | None = None

    @abstractmethod
    def starting_at(self, batch: int) -> Iterator[Batch]:
        """Return batch number ``batch``, from 0, and all that follow, without end."""

    def some(self, first: Batch) -> Batch:
        """Return a few examples, of which ``first`` was read already; it alone where more would have to be read."""
        return first

    @abstractmethod
    def whole(self) -> Batch:
        """Return all examples in their order; those of a data set are read once more."""

    def outermost(self) -> list[Batch]:
        """Return, for each kind of labels that are whole numbers, the example with the smallest and that with the largest."""
        return []

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return what a checkpoint records of the examples, as JSON: with another description they are others."""


class Table(Examples, Dataset[Any]):
    """Examples in memory.

    Args:
        x: Examples ``(N, *shape)``.
        reading: How they are read.
        labels: Conditions or targets by place, ``(N, ...)`` each.
        named: Those by name.
        weights: Weights ``(N,)``, at least 0.
    """

    def __init__(
        self,
        x: Tensor,
        reading: Reading,
        labels: Sequence[Tensor] = (),
        named: Mapping[str, Tensor] | None = None,
        weights: Any = None,
    ) -> None:
        self.x = as_floating(x.detach(), reading.dtype, reading.space, "the data", warn=reading.warn)
        labels, named = reading.taken(labels, named or {})
        self.labels = tuple(as_label(one, reading.dtype, "the labels") for one in labels)
        self.named = {name: as_label(one, reading.dtype, f"the condition {name!r}") for name, one in named.items()}
        self.weights = None if weights is None else as_tensor(weights, "weights")
        self._check(reading)
        self.order = StepBatches(len(x), reading.batch_size, seed=reading.seed, rank=reading.rank, world=reading.world)
        self.steps_per_epoch = self.order.steps_per_epoch

    def _check(self, reading: Reading) -> None:
        check_values(self.x, reading.space, "the data", reading.bounds)
        check_labels([*self.labels, *self.named.values()], reading.n_classes, "the labels")
        for one in (*self.labels, *self.named.values()):
            if len(one) != len(self.x):
                raise UsageError(f"the data have {len(self.x)} examples but {len(one)} labels")
        if self.weights is not None:
            if self.weights.shape != (len(self.x),):
                raise UsageError(
                    f"weights must be one number for each of {len(self.x)} examples, got shape {tuple(self.weights.shape)}"
                )
            if not (self.weights.isfinite().all() and (self.weights >= 0).all() and self.weights.any()):
                raise UsageError("weights of examples must be finite, at least 0 and not all 0")
            self.weights = self.weights / self.weights.double().mean()  # so that a batch needs to know no other

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> Batch:
        args = self.x[rows], *(t[rows] for t in self.labels)
        named = {name: t[rows] for name, t in self.named.items()}
        return Batch(args, named, None if self.weights is None else self.weights[rows])

    def starting_at(self, batch: int) -> Iterator[Batch]:
        self.order.start = batch
        return (self[rows] for rows in self.order)

    def some(self, first: Batch) -> Batch:
        return self[:_FEW]

    def whole(self) -> Batch:
        return self[:]

    def outermost(self) -> list[Batch]:
        numbers = [t for t in (*self.labels, *self.named.values()) if t.ndim == 1 and t.dtype == torch.int64]
        return [self[torch.stack([t.argmin(), t.argmax()])] for t in numbers]

    def description(self) -> dict[str, Any]:
        parts = [self.x, *self.labels, *_by_name(self.named)]
        parts += [] if self.weights is None else [self.weights]
        return {"examples": len(self.x), "shape": list(self.x.shape[1:]), "digest": _digest(parts)}


class Items(Examples):
    """Examples of a map-style torch ``Dataset``.

    What the data set draws at random for a batch, such as augmentations, is a function of the seed and the batch's number, with
    any number of workers.
    """

    def __init__(
        self, dataset: Any, reading: Reading, order: StepBatches, collate: Callable[[Any], Any] | None = None, **options: Any
    ) -> None:
        self.reading, self.order, self.dataset, self.collate = reading, order, dataset, collate
        self.steps_per_epoch = order.steps_per_epoch
        own = torch.Generator().manual_seed(reading.seed)  # without which a loader takes a number of the global one
        start = WorkerStart(options.pop("worker_init_fn", None))
        fixed = {"batch_size": None, "collate_fn": collate or _collate, "generator": own, "worker_init_fn": start}
        self.options = {**fixed, **options}

    def starting_at(self, batch: int) -> Iterator[Batch]:
        self.order.start = batch
        return self._read(enumerate(self.order, batch), batch)

    def whole(self) -> Batch:
        rows = torch.arange(len(self.dataset)).split(_MANY)
        return _joined(self._read(enumerate(part.tolist() for part in rows), 0))

    def _read(self, numbered: Any, first: int) -> Iterator[Batch]:
        loader: Any = DataLoader(_NumberedBatches(self.dataset, self.reading), sampler=numbered, **self.options)
        return _checked(loader, self.reading, first)

    def description(self) -> dict[str, Any]:
        collate = None if self.collate is None else describe_function(self.collate)
        known = {"examples": len(self.dataset), **self.order.description(), "collate_fn": collate}
        held: list[Any] = list(self.dataset.tensors) if isinstance(self.dataset, TensorDataset) else []
        held += [] if type(self.dataset) is TensorDataset and self.collate is None else self._looked_at()
        return known | ({"digest": _digest(held)} if held else {})

    def _looked_at(self) -> list[str]:
        """A digest of the items of the data set; none where they are others at each look, as with a generator of its own."""
        n = len(self.dataset)
        rows = sorted({(n - 1) * i // (_LOOKED_AT - 1) for i in range(_LOOKED_AT)})
        few, again = self._parts([(0, rows), (0, rows)])
        digest = _digest(few)
        if digest != _digest(again):
            return []
        elements = sum(part.numel() for part in few if isinstance(part, Tensor)) * n // len(rows)
        if n <= _READ_EXAMPLES and elements <= _READ_ELEMENTS:
            batches = enumerate(part.tolist() for part in torch.arange(n).split(_LOOKED_AT))
            digest = _digest(part for parts in self._parts([*batches]) for part in parts)
        return [digest]

    def _parts(self, numbered: Sequence[tuple[int, list[int]]]) -> Iterator[list[Any]]:
        """The contents of batches, with what is drawn for them from one seed."""
        alike = _NumberedBatches(self.dataset, replace(self.reading, seed=0, rank=0))
        # By the loader's own processes: a file that a data set opens at its first item must not be opened before they start.
        loader: Any = DataLoader(alike, sampler=numbered, **self.options)
        return ([*args, *_by_name(named)] for args, named in map(_as_batch, loader))


class _NumberedBatches(Dataset[Any]):
    def __init__(self, dataset: Any, reading: Reading) -> None:
        # Not all of how they are read, as processes that do not fork are sent a copy of this.
        self.dataset, self.seed, self.rank = dataset, reading.seed, reading.rank

    def __getitem__(self, numbered: tuple[int, list[int]]) -> Any:
        number, rows = numbered
        with seeded(stream_seed(self.seed, "items", number, self.rank)):
            several = getattr(self.dataset, "__getitems__", None)
            return several(rows) if several is not None else [self.dataset[row] for row in rows]


@contextmanager
def _leaving_signals(loader: DataLoader[Any]) -> Iterator[None]:
    own = loader.worker_init_fn
    loader.worker_init_fn = WorkerStart(own)
    try:
        yield
    finally:
        loader.worker_init_fn = own


class Stream(Examples):
    """Batches of an iterable data set, or of a ``DataLoader`` whose order cannot be known beforehand.

    Every rank reads all of them and takes every ``world``-th. A resumed run reads once more what it was trained on before.
    """

    def __init__(self, loader: DataLoader[Any], reading: Reading) -> None:
        self.loader, self.reading = loader, reading
        try:
            self.steps_per_epoch = -(-len(loader) // reading.world)
        except TypeError:
            self.steps_per_epoch = None

    def starting_at(self, batch: int) -> Iterator[Batch]:
        own = itertools.islice(self._all(), self.reading.rank, None, self.reading.world)
        return _checked(itertools.islice(own, batch, None), self.reading, batch)

    def _all(self) -> Iterator[Any]:
        number, reading = 0, self.reading
        for epoch in itertools.count():
            before = number
            with seeded(stream_seed(reading.seed, "data", epoch)), _leaving_signals(self.loader):
                left = iter(self.loader)
            while True:
                with seeded(stream_seed(reading.seed, "items", number)):
                    batch = next(left, left)
                if batch is left:
                    break
                yield batch
                number += 1
            if number == before:
                raise UsageError("the data end: an iterable data set must give its examples again when it is iterated again")

    def whole(self) -> Batch:
        if self.steps_per_epoch is None:
            raise UsageError("all examples are needed at once, but an iterable data set does not say where they end")
        return _joined(_checked(itertools.islice(self._all(), len(self.loader)), self.reading, 0))

    def description(self) -> dict[str, Any]:
        """The class, and the number of batches where it is known: a look at the examples might use them up."""
        loader: Any = self.loader
        known: dict[str, Any] = {"class": type(loader.dataset).__qualname__, "drop_last": loader.drop_last}
        if self.steps_per_epoch is not None:
            known["batches"] = len(loader)
            if not isinstance(loader.dataset, IterableDataset):
                known |= LoaderBatches(loader.batch_sampler or loader.sampler, seed=0).description()
        own = loader.collate_fn not in (default_collate, default_convert)
        return known | {"collate_fn": describe_function(loader.collate_fn) if own else None}


def _checked(loader: Any, reading: Reading, first: int) -> Iterator[Batch]:
    for number, found in enumerate(loader, first):
        (x, *args), named = _as_batch(found)
        x = as_floating(x, reading.dtype, reading.space, "the data", warn=reading.warn and number == first)
        if x.is_cpu:  # elsewhere it would wait for the device
            check_values(x, reading.space, f"the data of batch {number}", reading.bounds)
        labels, by_name = reading.taken(args, named)
        labels = [as_label(one, reading.dtype, f"the labels of batch {number}") for one in labels]
        by_name = {
            name: as_label(one, reading.dtype, f"the condition {name!r} of batch {number}") for name, one in by_name.items()
        }
        if x.is_cpu:
            check_labels([*labels, *by_name.values()], reading.n_classes, f"the labels of batch {number}")
        yield Batch((x, *labels), by_name)


def _joined(batches: Iterator[Batch]) -> Batch:
    parts = list(batches)
    args = tuple(torch.cat(of_one) for of_one in zip(*(part.args for part in parts), strict=True))
    return Batch(args, {name: torch.cat([part.named[name] for part in parts]) for name in parts[0].named})


def _collate(items: Any) -> Any:
    try:
        return default_collate(items)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UsageError(
            "items of a data set must be tensors, arrays or numbers, all of one shape, or tuples or mappings of such: "
            f"{' '.join(str(error).split())}"
        ) from error


def _as_batch(found: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    args: tuple[Any, ...] = tuple(found) if isinstance(found, tuple | list) else (found,)
    named: Mapping[str, Any] = args[-1] if args and isinstance(args[-1], Mapping) else {}
    args = args[:-1] if named else args
    if not args and "x" in named:
        args, named = (named["x"],), {name: one for name, one in named.items() if name != "x"}
    args = tuple(as_tensor(one, "an array of a data set") if is_numpy(one) else one for one in args)
    named = {name: as_tensor(one, f"the array {name!r}") if is_numpy(one) else one for name, one in named.items()}
    strange = next((pair for pair in (*enumerate(args), *named.items()) if not isinstance(pair[1], Tensor)), None)
    if strange is not None:
        raise UsageError(
            "an item of a data set must be a tensor, a tuple of an example and its conditions, or a mapping of such, but holds a "
            f"{type(strange[1]).__name__} at {strange[0]!r}: leave it out, or wrap the data set in one that gives such items"
        )
    if not args:
        raise UsageError(f"an item of a data set must hold the example as 'x', but holds {', '.join(named)}: rename it")
    return args, dict(named)


def _by_name(named: Mapping[str, Tensor]) -> list[Any]:
    return [part for pair in sorted(named.items()) for part in pair]


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in map(_in_one_precision, parts):
        text = f"{tuple(part.shape)} {part.dtype}" if isinstance(part, Tensor) else str(part)
        digest.update(f"{text};".encode())
        if isinstance(part, Tensor):
            digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _in_one_precision(part: Any) -> Any:
    """Real numbers as float32, as a resumed run may be in another precision than the first."""
    return part.detach().float() if isinstance(part, Tensor) and part.is_floating_point() else part

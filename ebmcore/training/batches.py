"""Batches for training: of examples in memory, of a torch ``Dataset``, or of a ``DataLoader``."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import random
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    TensorDataset,
    default_collate,
)

from ebmcore.conditions import name_conditions
from ebmcore.errors import UsageError
from ebmcore.losses import BaseLoss
from ebmcore.random import stream_generator, stream_seed
from ebmcore.training.data import DataSource, as_floating, check_labels, check_values
from ebmcore.training.stopping import WorkerStart

_FEW = 256  # examples that observers see
_MANY = 1000  # examples that are read at once to have them all
_LOOKED_AT = 16  # examples of a data set by which a resumed run knows it, from the first to the last at equal distances


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


class StepBatches(Sampler[list[int]]):
    """Batches of row numbers from a given step on: epoch after epoch, each in a new order.

    The order of an epoch is a function of (seed, epoch) alone, so a resumed run sees what the uninterrupted one would have
    seen. Every rank takes every ``world``-th row of the same order; the last batch of an epoch may be smaller.
    """

    def __init__(
        self, n_examples: int, batch_size: int, *, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.n_examples = n_examples
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world = world
        rows_per_rank = -(-n_examples // world)
        self.steps_per_epoch = -(-rows_per_rank // batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.start, self.steps_per_epoch)
        while True:
            yield from itertools.islice(self._rows(epoch), first, None)
            epoch, first = epoch + 1, 0

    def _rows(self, epoch: int) -> Iterator[list[int]]:
        order = torch.randperm(self.n_examples, generator=stream_generator(self.seed, "data", epoch))
        padding = -self.n_examples % self.world
        rows = torch.cat([order, order[:padding]])[self.rank :: self.world]
        return (batch.tolist() for batch in rows.split(self.batch_size))


class LoaderBatches(StepBatches):
    """Batches of row numbers in the order of a ``DataLoader``, whose sampler draws an epoch as a function of (seed, epoch).

    Every rank takes every ``world``-th batch.
    """

    def __init__(self, batch_sampler: Sampler[list[int]], **options: Any) -> None:
        n_batches = len(batch_sampler)  # type: ignore[arg-type]
        super().__init__(n_batches, 1, **options)  # of batches, an epoch has one in each step
        self.batch_sampler = batch_sampler

    def _rows(self, epoch: int) -> Iterator[list[int]]:
        inner = getattr(self.batch_sampler, "sampler", None)
        own = [g for part in (self.batch_sampler, inner) if (g := getattr(part, "generator", None)) is not None]
        seed = stream_seed(self.seed, "data", epoch)
        for part in (self.batch_sampler, inner):
            advance: Any = getattr(part, "set_epoch", None)
            if advance is not None:
                advance(epoch)
        with _seeded(seed, own):
            drawn = list(self.batch_sampler)
        padding = -len(drawn) % self.world
        return iter((drawn + drawn[:padding])[self.rank :: self.world])


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
        self.labels = tuple(as_label(one, reading, "the labels") for one in labels)
        self.named = {name: as_label(one, reading, f"the condition {name!r}") for name, one in (named or {}).items()}
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
        self, dataset: Any, reading: Reading, order: StepBatches, collate: Callable[[Any], Any], **options: Any
    ) -> None:
        self.reading, self.order, self.dataset = reading, order, dataset
        self.steps_per_epoch = order.steps_per_epoch
        own = torch.Generator().manual_seed(reading.seed)  # without which a loader takes a number of the global one
        start = WorkerStart(options.pop("worker_init_fn", None))
        self.options = {"batch_size": None, "collate_fn": collate, "generator": own, "worker_init_fn": start, **options}

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
        kind = getattr(getattr(self.order, "batch_sampler", None), "sampler", None)
        order = {} if kind is None else {"order": type(kind).__name__}
        held = self.dataset.tensors if isinstance(self.dataset, TensorDataset) else self._looked_at()
        return {"examples": len(self.dataset), **order} | ({"digest": _digest(held)} if held else {})

    def _looked_at(self) -> list[Any]:
        """The contents of a few examples; none where they are others at each look, as with a generator of its own."""
        last = len(self.dataset) - 1
        rows = sorted({last * i // (_LOOKED_AT - 1) for i in range(_LOOKED_AT)})
        alike = _NumberedBatches(self.dataset, replace(self.reading, seed=0, rank=0))
        # By the loader's own processes: a file that a data set opens at its first item must not be opened before they start.
        loader: Any = DataLoader(alike, sampler=[(0, rows), (0, rows)], **self.options)
        first, again = ([*args, *_by_name(named)] for args, named in map(_as_batch, loader))
        return first if _digest(first) == _digest(again) else []


class _NumberedBatches(Dataset[Any]):
    def __init__(self, dataset: Any, reading: Reading) -> None:
        self.dataset, self.reading = dataset, reading

    def __getitem__(self, numbered: tuple[int, list[int]]) -> Any:
        number, rows = numbered
        with _seeded(stream_seed(self.reading.seed, "items", number, self.reading.rank)):
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
            with _seeded(stream_seed(reading.seed, "data", epoch)), _leaving_signals(self.loader):
                left = iter(self.loader)
            while True:
                with _seeded(stream_seed(reading.seed, "items", number)):
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
        known = {} if self.steps_per_epoch is None else {"batches": len(self.loader)}
        return {"class": type(self.loader.dataset).__qualname__, **known}


def open_examples(data: Any, loss: BaseLoss, reading: Reading, weights: Any = None) -> Examples:
    """Return the training examples of ``data``, in any of the forms that `ebmcore.training.fit` takes.

    Raises:
        UsageError: If there are none, or they cannot be what the loss is trained on.
    """
    labels: Any = None
    if isinstance(data, DataSource) and not isinstance(data, Tensor | Dataset):
        # A torch Dataset may have a flag called train.
        labels = getattr(data, "train_labels", None)
        weights = getattr(data, "train_weights", None) if weights is None else weights
        data = data.train
    taker = loss.forward if loss.labels == "targets" else getattr(loss, "energy", loss).forward
    return _open(data, reading, labels, None if loss.labels is None else taker, weights)


def labelled_examples(
    energy: nn.Module, data: Any, part: str = "train", *, dtype: torch.dtype | None = None
) -> LabelledExamples:
    """Return the examples of a data set for a metric, with the labels that the energy takes beside them as conditions.

    Args:
        energy: The energy.
        data: The data set; see `DataSource`.
        part: ``"train"`` or ``"test"``.
        dtype: Floating-point type of examples and real labels; `None` is that of the energy.

    Raises:
        UsageError: If there is no example, or the data have no labels and the energy needs some.

    Example:
        >>> from types import SimpleNamespace
        >>> from ebmcore.testing import Quadratic
        >>> labelled_examples(Quadratic((2,)), SimpleNamespace(train=torch.zeros(3, 2))).conditions
        {}
    """
    x, labels, weights = (getattr(data, name, None) for name in (part, f"{part}_labels", f"{part}_weights"))
    own = (t.dtype for t in (*energy.parameters(), *energy.buffers()) if t.is_floating_point())
    reading = Reading(
        dtype=dtype or next(own, torch.get_default_dtype()), space=getattr(data, "state_space", None), warn=False
    )
    (x, *args), named, weights = _open(x, reading, labels, energy.forward, weights).whole()
    taken, by_name = _taken(energy.forward, args, named)
    if not taken and not by_name and not _binds(energy.forward, (), {}):
        raise UsageError(
            f"the energy {type(energy).__name__} takes conditions beside the examples, and the {part} data have no labels "
            f"that are these: give the data set {part}_labels"
        )
    return LabelledExamples(x, name_conditions(taken, by_name, x), weights)


def _open(data: Any, reading: Reading, labels: Any, taker: Callable[..., Any] | None, weights: Any) -> Examples:
    """Open examples whose labels go to ``taker``, if it takes them."""
    if is_numpy(data):
        data = _from_numpy(data)
    if hasattr(data, "to_numpy"):
        raise UsageError(f"data must be a tensor or an array, got {type(data).__name__}: pass data.to_numpy()")
    data = _of_tensors(data)
    if isinstance(data, TensorDataset) and labels is None:
        data, *labels = data.tensors
    if isinstance(data, Tensor):
        _check_size(data)
        by_name = labels if isinstance(labels, Mapping) else {}
        by_place = [] if labels is None or by_name else labels if isinstance(labels, list) else [labels]
        args, named = [as_tensor(t, "labels") for t in by_place], {name: as_tensor(t, name) for name, t in by_name.items()}
        return Table(data, reading, *_taken(taker, args, named), weights=weights)
    if weights is not None:
        raise UsageError("weights of examples need examples in memory: pass a tensor (N, *shape), not a Dataset")
    loader = data if isinstance(data, DataLoader) else None
    dataset: Any = data if loader is None else _of_tensors(loader.dataset)
    if loader is not None and reading.num_workers:
        raise UsageError("num_workers is for a Dataset: give it to the DataLoader, or pass its .dataset")
    own_way = loader is not None and (loader.batch_sampler is None or type(loader).__iter__ is not DataLoader.__iter__)
    if isinstance(dataset, IterableDataset) or own_way:
        if loader is None:
            loader = DataLoader(dataset, reading.batch_size, num_workers=reading.num_workers)
        return Stream(loader, reading)
    _check_size(dataset)
    order: StepBatches = StepBatches(
        len(dataset), reading.batch_size, seed=reading.seed, rank=reading.rank, world=reading.world
    )
    if loader is None:
        return Items(dataset, reading, order, _collate, num_workers=reading.num_workers)
    batch_sampler: Any = loader.batch_sampler
    if not len(batch_sampler):
        raise UsageError(
            f"the DataLoader gives no batch of {len(dataset)} examples: leave out drop_last, or lower its batch_size"
        )
    if not isinstance(getattr(batch_sampler, "sampler", None), DistributedSampler):  # whose ranks are fit's own affair
        order = LoaderBatches(batch_sampler, seed=reading.seed, rank=reading.rank, world=reading.world)
    kept = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")
    collate = _collate if loader.collate_fn is default_collate else loader.collate_fn
    return Items(dataset, reading, order, collate, **{name: getattr(loader, name) for name in kept})


def _of_tensors(data: Any) -> Any:
    """A data set of the library datasets with items of tensors, unless its items are arrays or a user's own."""
    if not (hasattr(data, "with_format") and hasattr(data, "column_names")):
        return data
    formatted = getattr(data, "format", None)
    known = formatted if isinstance(formatted, Mapping) else {}
    if known.get("type") in ("torch", "numpy", "custom"):
        return data
    return data.with_format("torch", **({"columns": known["columns"]} if known.get("type") else {}))


def _collate(items: Any) -> Any:
    try:
        return default_collate(items)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UsageError(
            "items of a data set must be tensors, arrays or numbers, all of one shape, or tuples or mappings of such: "
            f"{' '.join(str(error).split())}"
        ) from error


def loader_batch_size(data: Any) -> int | None:
    """Return the batch size that a ``DataLoader`` has already; `None` where `fit` says it."""
    sampler = getattr(data, "batch_sampler", None) if isinstance(data, DataLoader) else None
    return sampler.batch_size if isinstance(sampler, BatchSampler) else None


def _check_size(data: Any) -> None:
    if (
        isinstance(data, str | bytes | Mapping | Sequence)
        or not hasattr(data, "__getitem__")
        or not hasattr(data, "__len__")
    ):
        raise UsageError(
            f"data must be a tensor (N, *shape), a numpy array, a torch Dataset or DataLoader, or a data set, got "
            f"{type(data).__name__}"
        )
    if isinstance(data, Tensor) and data.ndim < 2:
        raise UsageError(f"data must be a tensor (N, *shape) with a row for each example, got shape {tuple(data.shape)}")
    if len(data) == 0:
        raise UsageError("data must hold at least one example, got none")


def _taken(
    taker: Callable[..., Any] | None, args: Sequence[Tensor], named: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The labels by place and by name, if ``taker`` takes them after the examples; otherwise none."""
    return (tuple(args), named) if taker is not None and _binds(taker, args, named) else ((), {})


def _binds(taker: Callable[..., Any], args: Sequence[Tensor], named: Mapping[str, Tensor]) -> bool:
    try:
        inspect.signature(taker).bind(None, *args, **named)
    except TypeError:
        return False
    return True


def check_test(data: DataSource, reading: Reading, shape: Sequence[int]) -> None:
    """Check the test examples of a data set, which metrics measure at the end, and the labels of both shares.

    Args:
        data: The data set. Test examples that are no tensor or array are not checked.
        reading: How its training examples are read.
        shape: Shape of one of these.

    Raises:
        UsageError: If they are not such as the training examples, or there is not one label of a class for each example.
    """
    test = as_tensor(data.test, "the test data") if is_numpy(data.test) else data.test
    for name, x in (("train_labels", data.train), ("test_labels", test)):
        labels = getattr(data, name, None)
        known = labels.values() if isinstance(labels, Mapping) else [] if labels is None else [labels]
        for one in known if hasattr(x, "__len__") else []:
            own = as_label(as_tensor(one, name), reading, name)
            if own.shape[:1] != (len(x),):
                raise UsageError(f"{name} must have a row for each of {len(x)} examples, got shape {tuple(own.shape)}")
            check_labels([own], reading.n_classes, name)
    if not isinstance(test, Tensor) or not len(test):
        return
    if tuple(test.shape[1:]) != tuple(shape):
        raise UsageError(
            f"the test data have examples of shape {tuple(test.shape[1:])}, but the training examples have {tuple(shape)}: give "
            "both one shape"
        )
    test = as_floating(test, reading.dtype, reading.space, "the test data", warn=False)
    check_values(test, reading.space, "the test data")
    if reading.bounds is not None:
        low, high = reading.bounds
        beyond = int(((test < low) | (test > high)).flatten(1).any(1).sum())
        if beyond:  # as a scaling that the training examples say leaves some
            warnings.warn(
                f"{beyond} of {len(test)} test examples are beyond the bounds {tuple(reading.bounds)} of the sampler, where no "
                "chain is: a likelihood of them is not that of the chains",
                UserWarning,
                stacklevel=3,
            )


def is_numpy(values: Any) -> bool:
    return type(values).__module__.partition(".")[0] == "numpy"


def _from_numpy(values: Any) -> Tensor:
    if hasattr(values, "mask"):
        raise UsageError("data must not be a masked array, whose masked values are numbers too: pass data.filled(value)")
    try:
        return _native(values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"data must be numbers that torch has, got an array of {values.dtype}: convert it") from error


def _native(array: Any) -> Tensor:
    return torch.as_tensor(array.astype(array.dtype.newbyteorder("="), order="C"))


def as_tensor(values: Any, what: str) -> Tensor:
    try:
        return _native(values) if is_numpy(values) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{what} must be numbers, a tensor or what becomes one, got {type(values).__name__}") from error


def as_label(values: Tensor, reading: Reading, what: str) -> Tensor:
    """A label or another condition: whole numbers are those of embeddings, real ones of the energy's type and finite."""
    if values.is_floating_point():
        if values.is_cpu:
            check_values(values, None, what)
        return values.to(reading.dtype)
    return values if values.dtype in (torch.bool, torch.int64) or values.is_complex() else values.to(torch.int64)


def _checked(loader: Any, reading: Reading, first: int) -> Iterator[Batch]:
    for number, found in enumerate(loader, first):
        (x, *args), named = _as_batch(found)
        x = as_floating(x, reading.dtype, reading.space, "the data", warn=reading.warn and number == first)
        if x.is_cpu:  # elsewhere it would wait for the device
            check_values(x, reading.space, f"the data of batch {number}", reading.bounds)
        args = [as_label(one, reading, f"the labels of batch {number}") for one in args]
        named = {name: as_label(one, reading, f"the condition {name!r} of batch {number}") for name, one in named.items()}
        if x.is_cpu:
            check_labels([*args, *named.values()], reading.n_classes, f"the labels of batch {number}")
        yield Batch((x, *args), named)


def _joined(batches: Iterator[Batch]) -> Batch:
    parts = list(batches)
    args = tuple(torch.cat(of_one) for of_one in zip(*(part.args for part in parts), strict=True))
    return Batch(args, {name: torch.cat([part.named[name] for part in parts]) for name in parts[0].named})


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


@contextmanager
def _seeded(seed: int, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Context in which torch, numpy and Python draw numbers that follow from the seed."""
    numpy: Any = getattr(sys.modules.get("numpy"), "random", None)
    states = random.getstate(), None if numpy is None else numpy.get_state(), [g.get_state() for g in generators]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.seed(seed % 2**32)
        for generator in generators:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy is not None:
                numpy.set_state(states[1])
            for generator, state in zip(generators, states[2], strict=True):
                generator.set_state(state)


def _by_name(named: Mapping[str, Tensor]) -> list[Any]:
    return [part for pair in sorted(named.items()) for part in pair]


def _digest(parts: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        text = f"{tuple(part.shape)} {part.dtype}" if isinstance(part, Tensor) else str(part)
        digest.update(f"{text};".encode())
        if isinstance(part, Tensor):
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

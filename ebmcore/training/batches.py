"""Batches for training: of examples in memory, of a torch ``Dataset``, or of a ``DataLoader``."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
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

from ebmcore.errors import UsageError
from ebmcore.losses import BaseLoss
from ebmcore.random import stream_generator, stream_seed
from ebmcore.training.data import DataSource, as_floating, check_labels, check_values

_MANY = 1000  # examples that are read at once to have them all
_LOOKED_AT = 16  # examples of a data set by which a resumed run knows it, from the first to the last at equal distances


class Batch(NamedTuple):
    """Examples of one call of a loss, with their conditions or targets by place and by name, and with their weights."""

    args: tuple[Tensor, ...]
    named: dict[str, Tensor]
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

    @abstractmethod
    def whole(self) -> Tensor:
        """Return all examples ``(N, *shape)``, without what belongs to them; those of a data set are read once more."""

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
        self.x = as_floating(x.detach(), reading.dtype, reading.space, "the data")
        self.labels = tuple(_label(one, reading, "the labels") for one in labels)
        self.named = {name: _label(one, reading, f"the condition {name!r}") for name, one in (named or {}).items()}
        self.weights = None if weights is None else _tensor(weights, "weights")
        self._check(reading)
        self.order = StepBatches(len(x), reading.batch_size, seed=reading.seed, rank=reading.rank, world=reading.world)
        self.steps_per_epoch = self.order.steps_per_epoch

    def _check(self, reading: Reading) -> None:
        check_values(self.x, reading.space, "the data", reading.bounds)
        check_labels([*self.labels, *self.named.values()], reading.n_classes, "the labels")
        for one in (*self.labels, *self.named.values()):
            if len(one) != len(self.x):
                raise UsageError(f"the data have {len(self.x)} training examples but {len(one)} labels")
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

    def whole(self) -> Tensor:
        return self.x

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
        self.options = {"batch_size": None, "collate_fn": collate, "generator": own, **options}

    def starting_at(self, batch: int) -> Iterator[Batch]:
        self.order.start = batch
        return self._read(enumerate(self.order, batch), batch)

    def whole(self) -> Tensor:
        rows = torch.arange(len(self.dataset)).split(_MANY)
        return torch.cat([batch.args[0] for batch in self._read(enumerate(part.tolist() for part in rows), 0)])

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
            with _seeded(stream_seed(reading.seed, "data", epoch)):
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

    def whole(self) -> Tensor:
        if self.steps_per_epoch is None:
            raise UsageError("the energy starts from all data, but an iterable data set does not say where they end")
        return torch.cat(
            [batch.args[0] for batch in _checked(itertools.islice(self._all(), len(self.loader)), self.reading, 0)]
        )

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
    if type(data).__module__.partition(".")[0] == "numpy":
        data = _from_numpy(data)
    if hasattr(data, "to_numpy"):
        raise UsageError(f"data must be a tensor or an array, got {type(data).__name__}: pass data.to_numpy()")
    formatted = getattr(data, "format", None)
    unformatted = not isinstance(formatted, Mapping) or formatted.get("type") is None
    if hasattr(data, "with_format") and hasattr(data, "column_names") and unformatted:  # of the library datasets
        data = data.with_format("torch")
    if isinstance(data, TensorDataset) and labels is None:
        data, *labels = data.tensors
    if isinstance(data, Tensor):
        _check_size(data)
        return Table(data, reading, *_labels_for(loss, labels), weights=weights)
    if weights is not None:
        raise UsageError("weights of examples need examples in memory: pass a tensor (N, *shape), not a Dataset")
    loader = data if isinstance(data, DataLoader) else None
    dataset: Any = data if loader is None else loader.dataset
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
        return Items(dataset, reading, order, default_collate, num_workers=reading.num_workers)
    batch_sampler: Any = loader.batch_sampler
    if not len(batch_sampler):
        raise UsageError(
            f"the DataLoader gives no batch of {len(dataset)} examples: leave out drop_last, or lower its batch_size"
        )
    if not isinstance(getattr(batch_sampler, "sampler", None), DistributedSampler):  # whose ranks are fit's own affair
        order = LoaderBatches(batch_sampler, seed=reading.seed, rank=reading.rank, world=reading.world)
    kept = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")
    return Items(dataset, reading, order, loader.collate_fn, **{name: getattr(loader, name) for name in kept})


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


def _labels_for(loss: BaseLoss, labels: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The labels by place and by name, if the loss takes any."""
    if labels is None or loss.labels is None:
        return (), {}
    by_name = labels if isinstance(labels, Mapping) else {}
    by_place = () if by_name else labels if isinstance(labels, list) else [labels]
    args, named = tuple(_tensor(t, "labels") for t in by_place), {name: _tensor(t, name) for name, t in by_name.items()}
    taker = loss.forward if loss.labels == "targets" else getattr(loss, "energy", loss).forward
    try:
        inspect.signature(taker).bind(None, *args, **named)
    except TypeError:
        return (), {}
    return args, named


def _from_numpy(values: Any) -> Tensor:
    if hasattr(values, "mask"):
        raise UsageError("data must not be a masked array, whose masked values are numbers too: pass data.filled(value)")
    try:
        return torch.as_tensor(values.astype(values.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise UsageError(f"data must be numbers that torch has, got an array of {values.dtype}: convert it") from error


def _tensor(values: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{what} must be numbers, a tensor or what becomes one, got {type(values).__name__}") from error


def _label(values: Tensor, reading: Reading, what: str) -> Tensor:
    """A label or another condition: whole numbers are those of embeddings, real ones of the energy's type and finite."""
    if values.is_floating_point():
        if values.is_cpu:
            check_values(values, None, what)
        return values.to(reading.dtype)
    return values if values.dtype in (torch.bool, torch.int64) or values.is_complex() else values.to(torch.int64)


def _checked(loader: Any, reading: Reading, first: int) -> Iterator[Batch]:
    for number, found in enumerate(loader, first):
        (x, *args), named = _as_batch(found)
        x = as_floating(x, reading.dtype, reading.space, "the data", warn=number == first)
        if x.is_cpu:  # elsewhere it would wait for the device
            check_values(x, reading.space, f"the data of batch {number}", reading.bounds)
        args = [_label(one, reading, f"the labels of batch {number}") for one in args]
        named = {name: _label(one, reading, f"the condition {name!r} of batch {number}") for name, one in named.items()}
        if x.is_cpu:
            check_labels([*args, *named.values()], reading.n_classes, f"the labels of batch {number}")
        yield Batch((x, *args), named)


def _as_batch(found: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    args: tuple[Any, ...] = tuple(found) if isinstance(found, tuple | list) else (found,)
    named: Mapping[str, Any] = args[-1] if args and isinstance(args[-1], Mapping) else {}
    args = args[:-1] if named else args
    if not args and "x" in named:
        args, named = (named["x"],), {name: one for name, one in named.items() if name != "x"}
    strange = next((type(part).__name__ for part in (*args, *named.values()) if not isinstance(part, Tensor)), None)
    if strange is not None:
        raise UsageError(
            "an item of a data set must be a tensor, a tuple of an example and its conditions, or a mapping of such, but holds a "
            f"{strange}: wrap the data set in one that gives such items"
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

"""Data for training: what a data set must provide, and the order of its batches."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from ebmcore.errors import UsageError
from ebmcore.losses import BaseLoss
from ebmcore.random import stream_generator


@runtime_checkable
class DataSource(Protocol):
    """Interface of a component of the kind ``dataset``.

    Attributes:
        train: Training examples ``(N, *shape)``, floating point.
        test: Test examples ``(M, *shape)``, floating point.
        shape: Shape of one example.
        state_space: ``"continuous"``, ``"binary"`` or ``"categorical"``.

    A data set with labels also has ``train_labels`` and ``test_labels``, each one tensor with a row for each example or a mapping
    of names to such tensors, and ``n_classes``. They reach a loss whose ``labels`` are ``"targets"``, and any other that takes
    labels if its energy does.

    A data set that reads files may have ``examples_of(path)``, which ``ebmcore score`` uses: the examples ``(N, *shape)`` of
    another file, in their order and on the scale of the training examples.
    """

    train: Tensor
    test: Tensor
    shape: tuple[int, ...]
    state_space: str


def check_compatible(energy: nn.Module, sampler: object, data: DataSource, loss: object = None) -> None:
    """Raise `UsageError` if energy, sampler, loss and data live in different state spaces.

    An energy, sampler or loss that declares no ``state_space`` fits any.
    """
    of_energy = getattr(energy, "state_space", None)
    of_sampler = getattr(sampler, "state_space", None)
    if of_energy not in (None, data.state_space):
        raise UsageError(
            f"the energy {type(energy).__name__} is for {of_energy} data, but {type(data).__name__} is "
            f"{data.state_space}: choose another data set or energy, or the data set's option for {of_energy} examples"
        )
    if of_sampler not in (None, data.state_space):
        raise UsageError(
            f"the sampler {type(sampler).__name__} moves in a {of_sampler} space, but {type(data).__name__} is "
            f"{data.state_space}: choose a sampler for {data.state_space} units, or {of_sampler} data"
        )
    of_loss = getattr(loss, "state_space", None)
    if of_loss not in (None, data.state_space):
        name = loss.__name__ if isinstance(loss, type) else type(loss).__name__
        raise UsageError(
            f"the loss {name} is for {of_loss} data, but {type(data).__name__} is {data.state_space}: "
            f"choose a loss for {data.state_space} data, or {of_loss} data"
        )


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
            order = torch.randperm(self.n_examples, generator=stream_generator(self.seed, "data", epoch))
            padding = -self.n_examples % self.world
            rows = torch.cat([order, order[:padding]])[self.rank :: self.world]
            for batch in rows.split(self.batch_size)[first:]:
                yield batch.tolist()
            epoch, first = epoch + 1, 0


Batch = tuple[
    tuple[Tensor, ...], dict[str, Tensor]
]  # the arguments of a loss: examples, and conditions by place and by name


def training_examples(data: DataSource | Tensor | Dataset[Any], loss: BaseLoss) -> Tensor | Dataset[Any]:
    """Training examples of a data set component, with their labels where the loss takes them; or ``data`` itself."""
    # A torch Dataset may have a flag of that name.
    if not isinstance(data, DataSource) or not isinstance(data.train, Tensor):
        return data
    labels = getattr(data, "train_labels", None)
    if labels is None or not _takes(loss, labels):
        return data.train
    named = labels if isinstance(labels, Mapping) else {}
    for one in named.values() if named else (labels,):
        if len(one) != len(data.train):
            raise UsageError(f"{type(data).__name__} has {len(data.train)} training examples but {len(one)} labels")
    return _LabelledExamples(data.train, () if named else (labels,), named)


def _takes(loss: BaseLoss, labels: Any) -> bool:
    taker = loss.forward if loss.labels == "targets" else getattr(loss, "energy", loss).forward
    args, kwargs = ((), labels) if isinstance(labels, Mapping) else ((labels,), {})
    try:
        inspect.signature(taker).bind(None, *args, **kwargs)
    except TypeError:
        return False
    return True


class _LabelledExamples(Dataset[Any]):
    """Examples with labels; takes a list of rows at once, as a `TensorDataset` does."""

    def __init__(self, x: Tensor, labels: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        self.x, self.labels, self.named = x, labels, named

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> tuple[Any, ...]:
        return self.x[rows], *(t[rows] for t in self.labels), {name: t[rows] for name, t in self.named.items()}


def batches(data: Tensor | Dataset[Any], order: StepBatches) -> Iterator[Batch]:
    """Batches ``(x, *conditions), named_conditions`` in that order, without end."""
    dataset = TensorDataset(data) if isinstance(data, Tensor) else data
    # Without a generator of its own the loader would take a number from the global one.
    generator = torch.Generator().manual_seed(order.seed)
    if isinstance(dataset, TensorDataset | _LabelledExamples):  # take a whole batch of rows at once
        loader = DataLoader(dataset, sampler=order, batch_size=None, generator=generator)
    else:
        loader = DataLoader(dataset, batch_sampler=order, generator=generator)
    for batch in loader:
        parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        args, named = (parts[:-1], parts[-1]) if len(parts) > 1 and isinstance(parts[-1], Mapping) else (parts, {})
        strange = next((type(part).__name__ for part in (*args, *named.values()) if not isinstance(part, Tensor)), None)
        if strange is not None:
            raise UsageError(
                f"an item of a data set must be a tensor, or a tuple of an example and its conditions, but holds a {strange}: "
                "wrap the data set in one that gives such items"
            )
        yield args, dict(named)


def n_examples(data: Tensor | Dataset[Any]) -> int:
    """Number of training examples. Raises `UsageError` if there are none."""
    if not hasattr(data, "__len__") or len(data) == 0:
        raise UsageError("data must hold at least one example: pass a tensor (N, *shape) or a map-style torch Dataset")
    return len(data)


def data_digest(train: Any) -> str:
    """Digest of the training examples and their labels; of a torch ``Dataset``, whose items may be random, only of its length.

    Example:
        >>> data_digest(torch.zeros(2)) == data_digest(torch.ones(2))
        False
    """
    digest = hashlib.sha256()
    for part in _parts(train):
        text = f"{tuple(part.shape)} {part.dtype}" if isinstance(part, Tensor) else str(part)
        digest.update(f"{text};".encode())
        if isinstance(part, Tensor):
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(train: Any) -> list[Any]:
    if isinstance(train, Tensor):
        return [train]
    if isinstance(train, TensorDataset):
        return list(train.tensors)
    if isinstance(train, _LabelledExamples):
        return [train.x, *train.labels, *(part for pair in sorted(train.named.items()) for part in pair)]
    return [len(train)]

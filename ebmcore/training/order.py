"""The order in which examples are read: a function of the seed and the number of the batch."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import BatchSampler, Sampler

from ebmcore.random import stream_generator, stream_seed


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

    def description(self) -> dict[str, Any]:
        """Return what a checkpoint records of the order, beside the seed and the batch size, as JSON."""
        return {}

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

    def description(self) -> dict[str, Any]:
        """Return the class of the sampler and a digest of its rows, which is missing where each draw gives others.

        The rows of a plain ``BatchSampler`` are those of its sampler: their number in a batch is an option of its own.
        """
        source: Any = self.batch_sampler
        if type(source) is BatchSampler:
            source = source.sampler
        first, again = (_digest(self._drawn(source, epoch=0, seed=0)) for _ in range(2))
        if first != again:
            warnings.warn(
                f"the sampler {type(source).__name__} of the DataLoader gives other rows at each draw, so that a "
                "resumed run would be another: let it draw from torch's global generator, or from its attribute generator",
                UserWarning,
                stacklevel=2,
            )
        drop_last = {"drop_last": bool(getattr(self.batch_sampler, "drop_last", False))}
        return {"sampler": type(source).__name__, **drop_last} | ({"rows": first} if first == again else {})

    def _rows(self, epoch: int) -> Iterator[list[int]]:
        drawn = self._drawn(self.batch_sampler, epoch, stream_seed(self.seed, "data", epoch))
        padding = -len(drawn) % self.world
        return iter((drawn + drawn[:padding])[self.rank :: self.world])

    def _drawn(self, source: Any, epoch: int, seed: int) -> list[Any]:
        """What the batch sampler, or the sampler within it, gives in an epoch."""
        inner = getattr(self.batch_sampler, "sampler", None)
        own = [g for part in (self.batch_sampler, inner) if (g := getattr(part, "generator", None)) is not None]
        for part in (self.batch_sampler, inner):
            advance: Any = getattr(part, "set_epoch", None)
            if advance is not None:
                advance(epoch)
        with seeded(seed, own):
            return list(source)


def _digest(rows: list[Any]) -> str:
    text = json.dumps(rows, default=lambda row: row.item() if hasattr(row, "item") else str(row))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def seeded(seed: int, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
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

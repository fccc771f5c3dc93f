"""Random streams: pure functions of their arguments."""

from __future__ import annotations

import pytest
import torch

from ebmcore.random import stream_generator, stream_seed

PINNED = 8809743251124126291  # stream_seed(0, "sampler", step=1, rank=2), computed once


def test_a_stream_is_a_pure_function():
    """The same arguments give the same numbers, regardless of draws in between; torch's global generator is left alone."""
    before = torch.get_rng_state()
    first = torch.rand(5, generator=stream_generator(3, "sampler", step=7, rank=1))
    torch.rand(5, generator=stream_generator(4, "data"))
    assert torch.equal(first, torch.rand(5, generator=stream_generator(3, "sampler", step=7, rank=1)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("other", [{"seed": 1}, {"stream": "data"}, {"step": 1}, {"rank": 1}], ids=lambda o: next(iter(o)))
def test_streams_differ_by_each_argument(other):
    arguments = {"seed": 0, "stream": "sampler", "step": 0, "rank": 0}
    first = torch.rand(5, generator=stream_generator(**arguments))
    assert not torch.equal(first, torch.rand(5, generator=stream_generator(**arguments | other)))


def test_step_and_rank_never_collide():
    """No two of a thousand combinations of seed, step and rank share a seed."""
    seeds = {stream_seed(i, "sampler", step=j, rank=k) for i in range(10) for j in range(10) for k in range(10)}
    assert len(seeds) == 1000


def test_a_known_seed_never_changes():
    """A run that another version of the package resumes draws the same numbers."""
    assert stream_seed(0, "sampler", step=1, rank=2) == PINNED
    assert stream_generator(0, "sampler", step=1, rank=2).initial_seed() == PINNED


def test_seeds_fit_into_63_bits():
    """A generator of torch takes a signed number of 64 bits."""
    seeds = [stream_seed(i, "chains") for i in range(100)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62

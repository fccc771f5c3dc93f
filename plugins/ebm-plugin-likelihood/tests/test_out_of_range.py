"""The share of chains outside the data's range, against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ebm_plugin_likelihood.out_of_range import OutOfRange
from ebmcore import BaseSampler
from ebmcore.errors import UsageError
from ebmcore.testing import ExactGaussian, Identity, Quadratic, SiteGibbs

N = 40_000
TRAIN = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [0.0, 0.0]])


class Losing(BaseSampler):
    """Loses the chains that start at the third example."""

    def step(self, energy, state, *, generator=None):
        return replace(state, x=torch.where((state.x == 0).all(1, keepdim=True), torch.nan, state.x)), {}


def data(train=TRAIN, state_space="continuous"):
    return SimpleNamespace(train=train, test=train, shape=tuple(train.shape[1:]), state_space=state_space)


def measure(sampler, train=TRAIN, n_chains=N):
    energy = Quadratic(tuple(train.shape[1:]))
    return OutOfRange(n_chains=n_chains, n_steps=1)(
        energy, data(train), sampler=sampler, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("train", [TRAIN, TRAIN.view(3, 1, 1, 2)])
def test_shares_are_those_of_the_normal_law(train):
    """A component of a standard normal is beyond -1 and 1 with probability p, one of two with 1 - (1 - p)^2."""
    result, p = measure(ExactGaussian(), train), math.erfc(1 / math.sqrt(2))
    error = 4.5 / math.sqrt(N)
    assert result["values_outside"] == pytest.approx(p, abs=error * math.sqrt(p * (1 - p) / 2))
    assert result["chains_outside"] == pytest.approx(1 - (1 - p) ** 2, abs=error / 2)


def test_the_data_themselves_are_within():
    """Values at the ends of the range are within, and a constant component does not narrow it."""
    assert measure(Identity(), torch.tensor([[0.0, -1.0], [0.0, 1.0]])) == {"chains_outside": 0.0, "values_outside": 0.0}


def test_lost_chains_are_outside():
    result = measure(Losing())
    assert result["chains_outside"] == pytest.approx(1 / 3, abs=4.5 * math.sqrt(2 / 9 / N))
    assert result["values_outside"] == pytest.approx(result["chains_outside"])


def test_range_refuses_what_it_cannot_measure():
    energy = Quadratic((2,))
    with pytest.raises(UsageError, match="is for real values, but SimpleNamespace is binary"):
        OutOfRange().check(energy, data(state_space="binary"), sampler=Identity())
    with pytest.raises(UsageError, match="needs a sampler: train with one"):
        OutOfRange().check(energy, data())
    with pytest.raises(UsageError, match="is for samplers of real values, but SiteGibbs is"):
        OutOfRange().check(energy, data(), sampler=SiteGibbs())


@pytest.mark.parametrize("options", [{"n_chains": 0}, {"n_steps": 0}])
def test_invalid_sizes_raise(options):
    with pytest.raises(ValueError, match="n_chains and n_steps must be at least 1"):
        OutOfRange(**options)

"""Tempering: one inverse temperature for each chain, from a base distribution to the energy."""

from __future__ import annotations

import math

import pytest
import torch

import ebmcore
from ebmcore.distributions import Normal
from ebmcore.energies import value_and_grad
from ebmcore.tempering import tempered
from ebmcore.testing import Gaussian, Quadratic, Watched


def test_each_chain_has_its_beta():
    values = tempered(Quadratic((2,)), torch.tensor([0.0, 0.5, 1.0]))(torch.ones(3, 2))
    assert values.tolist() == [0.0, 0.5, 1.0]


def test_the_path_ends_at_base_and_energy():
    """At ``beta = 0`` the tempered energy is ``-log p_0``, normalised; at 1 it is the energy."""
    energy, base = Quadratic((2,)).double(), Normal(torch.zeros(2, dtype=torch.float64), 2.0)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tempered(energy, torch.tensor(0.0), base)(x), -base.log_prob(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(tempered(energy, torch.tensor(1.0), base)(x), energy(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("base", [None, Normal(torch.zeros(3), 2.0)], ids=["no base", "base"])
@pytest.mark.parametrize("energy", [Quadratic((3,)), Gaussian(torch.eye(3))], ids=["autograd", "closed form"])
def test_the_gradient_is_that_of_the_value(energy, base):
    """``value_and_grad`` of a tempered energy is what autograd makes of its ``forward``, in the dtype of the positions."""
    beta, x = torch.tensor([0.0, 0.3, 1.0]), torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = tempered(energy, beta, base)(x)
    (slope,) = torch.autograd.grad(wanted.sum(), x)
    value, grad = value_and_grad(tempered(energy, beta, base), x.detach())
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(grad, slope)
    assert grad.dtype == torch.float32


def test_several_temperatures_take_one_evaluation():
    """Betas ``(K, N)`` give energies ``(K, N)`` and evaluate the energy once at the ``N`` positions."""
    calls = []
    energy = Watched(Quadratic((2,)), lambda x: calls.append(len(x)))
    values = tempered(energy, torch.tensor([[0.0, 1.0], [0.5, 2.0]]))(torch.ones(2, 2))
    assert values.tolist() == [[0.0, 1.0], [0.5, 2.0]]
    assert calls == [2]


def test_an_energys_own_path_wins():
    """An energy with a `tempered` of its own is asked for it, base included."""

    class Own(Quadratic):
        def tempered(self, beta, base=None):
            return beta, base

    beta, base = torch.ones(2), Normal(torch.zeros(2))
    assert tempered(Own(), beta, base) == (beta, base)


def test_ladder_of_bounded_chains_is_exact():
    """Replicas within bounds, the hottest one uniform there, sample the restricted law."""

    class Slope(torch.nn.Module):
        def forward(self, x):
            return 3.0 * x.flatten(1).sum(1)

    inner = ebmcore.create_sampler("mala", step_size=0.2, bounds=(-1.0, 0.5))
    ladder = ebmcore.create_sampler("tempering", inner=inner, betas=(1.0, 0.3, 0.0))
    x = ladder.sample(Slope(), torch.full((20_000, 1), -1.0), 40, generator=torch.Generator().manual_seed(0)).double()
    cdf = (math.exp(3) - torch.exp(-3 * x.flatten().sort().values)) / (math.exp(3) - math.exp(-1.5))
    rank = torch.arange(1, len(x) + 1, dtype=torch.float64) / len(x)
    assert (cdf - rank).abs().max() * math.sqrt(len(x)) < 2.23  # Kolmogorov-Smirnov, exceeded with probability 1e-4
    assert x.min() >= -1
    assert x.max() <= 0.5

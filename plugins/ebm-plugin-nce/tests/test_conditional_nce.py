"""Conditional noise-contrastive estimation."""

from __future__ import annotations

import math

import pytest
import torch

import ebmcore
from ebm_plugin_nce.conditional import ConditionalNoiseContrastiveEstimation as ConditionalNCE
from ebmcore.testing import Boltzmann, Gaussian, Quadratic, outcomes, run_checks

COVARIANCE = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)


class BitFlips(ConditionalNCE):
    """As it is on binary data."""

    state_space = "binary"
    example_options = {"noise": "bit-flips"}


@pytest.mark.parametrize("shape", [(2,), (1, 2, 1)])
def test_small_noise_is_score_matching(shape):
    """``(L - 2 log 2) / (sigma^2 / 2)`` tends to ``|grad E|^2 / 2 - Laplacian E``."""
    sigma = 1e-3
    energy = Gaussian(COVARIANCE, shape)
    x = energy.sample(5, generator=torch.Generator().manual_seed(0))
    loss = ConditionalNCE(energy, noise_scale=sigma, n_samples=4)
    directions = (
        math.sqrt(2) * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).double()
    )  # mean 0 and covariance 1, exactly
    loss.perturb = lambda copies: copies + sigma * directions.repeat(5, 1).view_as(copies)
    grad = x.flatten(1) @ energy.precision
    score_matching = 0.5 * grad.square().sum(1).mean() - energy.precision.trace()
    found = (loss(x) - 2 * math.log(2)) / (sigma**2 / 2)
    torch.testing.assert_close(found, score_matching, rtol=1e-4, atol=0)


def test_every_pair_gives_no_gradient_at_the_truth():
    """Over all pairs of states and flipped states the true energy has the gradient 0 exactly, and another one has not."""
    energy = Boltzmann(3, seed=1).double()
    states = energy.states()
    loss = ConditionalNCE(energy, noise="bit-flips", noise_scale=0.2)
    found = outcomes(lambda rows: loss.perturb(states[rows]), len(states))
    assert found.probability.sum() == pytest.approx(len(states))
    flips = (found.value != states[found.start]).sum(1)
    torch.testing.assert_close(found.probability, 0.2**flips * 0.8 ** (3 - flips), check_dtype=False)
    loss.data_weights = len(found.start) * energy.probabilities()[found.start] * found.probability
    loss.perturb = lambda _: found.value
    loss(states[found.start]).backward()
    assert max(p.grad.abs().max() for p in energy.parameters()) < 1e-10
    energy.bias.data[0] += 0.1
    energy.zero_grad()
    loss(states[found.start]).backward()
    assert energy.bias.grad[0].abs() > 1e-3


def test_weights_count_as_copies():
    """An example of weight 2 counts as two, and one of weight 0 as none."""
    energy = Gaussian(COVARIANCE)
    x = energy.sample(4, generator=torch.Generator().manual_seed(0))
    loss = ConditionalNCE(energy)
    loss.perturb = lambda copies: copies.roll(1, 1) + 0.3
    loss.data_weights = torch.tensor([2.0, 1.0, 1.0, 0.0])
    weighted = loss(x)
    loss.data_weights = None
    torch.testing.assert_close(weighted, loss(x[[0, 0, 1, 2]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "flips"}, "noise must be 'normal' or 'bit-flips'"),
        ({"noise_scale": 0.0}, "noise_scale must be above 0"),
        ({"noise_scale": math.nan}, "noise_scale must be above 0"),
        ({"noise": "bit-flips", "noise_scale": 1.0}, "the probability of a flip, which must be below 1"),
        ({"n_samples": 1.5}, "n_samples must be a whole number of at least 1"),
    ],
)
def test_conditional_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        ConditionalNCE(Quadratic(), **options)


def test_bit_flips_conform():
    """The kit's rules hold with bit flips on binary data."""
    assert not [result for result in run_checks(BitFlips) if result.outcome == "failed"]


def test_conditional_nce_is_installed():
    assert ebmcore.host.load("loss", "ebm-plugin-nce:conditional-nce") is ConditionalNCE

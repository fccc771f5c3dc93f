"""Distributions: moments of the samples, and densities against those of torch."""

from __future__ import annotations

import pytest
import torch

from ebmcore.distributions import Bernoulli, Categorical, Normal, Uniform


def generator():
    return torch.Generator().manual_seed(0)


def test_normal_has_its_moments_and_density():
    normal = Normal(torch.tensor([1.0, -1.0], dtype=torch.float64), torch.tensor([2.0, 0.5]))
    x = normal.sample(100_000, generator=generator())
    torch.testing.assert_close(x.mean(0), normal.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x.std(0), normal.std, atol=0.03, rtol=0)
    reference = torch.distributions.Normal(normal.mean, normal.std).log_prob(x).sum(1)
    torch.testing.assert_close(normal.log_prob(x), reference, atol=1e-12, rtol=0)


def test_bernoulli_has_its_rates_and_density():
    bernoulli = Bernoulli(torch.tensor([[-2.0, 0.0], [1.0, 3.0]], dtype=torch.float64))
    x = bernoulli.sample(100_000, generator=generator())
    torch.testing.assert_close(x.mean(0), bernoulli.logits.sigmoid(), atol=0.01, rtol=0)
    reference = torch.distributions.Bernoulli(logits=bernoulli.logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(bernoulli.log_prob(x), reference, atol=1e-12, rtol=0)


def test_categorical_has_its_rates_and_density():
    """One-hot vectors along the last axis, one for each unit."""
    categorical = Categorical(torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]], dtype=torch.float64))
    x = categorical.sample(100_000, generator=generator())
    assert torch.equal(x.sum(-1), torch.ones(100_000, 2, dtype=torch.float64))
    torch.testing.assert_close(x.mean(0), categorical.logits.softmax(-1), atol=0.01, rtol=0)
    reference = torch.distributions.OneHotCategorical(logits=categorical.logits).log_prob(x).sum(1)
    torch.testing.assert_close(categorical.log_prob(x), reference, atol=1e-12, rtol=0)


def test_uniform_has_its_moments_and_density():
    """Density ``1 / (high - low)^d`` inside and 0 outside."""
    uniform = Uniform(torch.zeros(2, dtype=torch.float64), -1.0, 3.0)
    x = uniform.sample(100_000, generator=generator())
    assert x.min() >= -1
    assert x.max() <= 3
    torch.testing.assert_close(x.mean(0), torch.ones(2, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(x.var(0), torch.full((2,), 16 / 12, dtype=torch.float64), atol=0.02, rtol=0)
    inside, outside = torch.tensor([[0.0, 0.0], [0.0, 3.1]], dtype=torch.float64)
    assert uniform.log_prob(torch.stack([inside, outside])).exp().tolist() == pytest.approx([1 / 16, 0.0])


def test_rare_ones_stay_rare_in_half_precision():
    """Uniform numbers are drawn in float32: in bfloat16 they would be too coarse for a rate of 0.00091."""
    coins = Bernoulli(torch.full((1,), -7.0, dtype=torch.bfloat16))
    x = coins.sample(200_000, generator=generator())
    assert x.dtype == torch.bfloat16
    assert abs(float(x.float().sum()) - 182.2) < 4 * 182.2**0.5


@pytest.mark.parametrize(
    "distribution",
    [Normal(torch.zeros(2, 3)), Uniform(torch.zeros(2, 3)), Bernoulli(torch.zeros(2, 3)), Categorical(torch.zeros(2, 3))],
    ids=lambda d: type(d).__name__,
)
def test_a_generator_is_the_only_randomness(distribution):
    before = torch.get_rng_state()
    first, again = (distribution.sample(50, generator=generator()) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (50, 2, 3)
    assert torch.equal(before, torch.get_rng_state())

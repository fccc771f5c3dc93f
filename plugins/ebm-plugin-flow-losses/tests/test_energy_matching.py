"""Energy matching."""

from __future__ import annotations

import pytest
import torch

import ebmcore
from ebm_plugin_flow_losses.energy_matching import EnergyMatching
from ebmcore.testing import Affine, Drift, ExactGaussian, Gaussian, Quadratic

COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1)])
def test_pairs_are_those_of_optimal_transport(shape):
    """In one dimension the best pairs are in the same order, and each noise row is used about once."""
    x, noise = 2 * torch.randn(200, *shape, generator=seeded()) + 1, torch.randn(200, *shape, generator=seeded(1))
    loss = EnergyMatching(Quadratic(shape), Drift())
    loss.generator = seeded(2)
    rows = loss.pair(x, noise)
    best = (x.flatten().sort().values - noise.flatten().sort().values).square().mean()
    assert (x - noise[rows]).square().mean() < 1.1 * best
    assert (x - noise).square().mean() > 2 * best
    assert len(rows.unique()) > 100
    assert noise[rows].mean().item() == pytest.approx(noise.mean().item(), abs=0.05)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 1)])
def test_flow_points_from_noise_to_the_data(shape):
    """Of random pairs with N(0, S) the minimum of the flow has the precision ``-E ((t S - (1 - t)) / E (t^2 S + (1 - t)^2)``."""
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    variances, axes = torch.linalg.eigh(COVARIANCE)
    along = -(t * variances - (1 - t)).mean(0) / (t**2 * variances + (1 - t) ** 2).mean(0)
    energy = Gaussian(COVARIANCE, shape)
    energy.precision.data.copy_(axes @ torch.diag(along) @ axes.T)
    loss = EnergyMatching(energy, Drift(), pairing="random")
    loss.generator = seeded(1)
    x = Gaussian(COVARIANCE, shape).sample(400_000, generator=seeded())
    (grad,) = torch.autograd.grad(loss(x), energy.precision)
    assert grad.abs().max() < 0.02
    energy.precision.data += 0.05 * torch.eye(2)
    (grad,) = torch.autograd.grad(loss(x), energy.precision)
    assert grad.abs().max() > 0.03


def test_divergence_is_added_with_its_weight():
    """The loss is the flow plus ``lambda_cd`` times the energy of the data minus that of the negatives."""
    energy, x = Gaussian(COVARIANCE), torch.randn(6, 2, generator=seeded()).double()
    losses = []
    for lambda_cd in (0.0, 0.5):
        loss = EnergyMatching(energy, Affine(shift=3.0), lambda_cd=lambda_cd, n_steps=2)
        loss.generator = seeded(1)
        losses.append(loss(x))
    g = seeded(1)
    torch.randn(6, 2, generator=g, dtype=x.dtype)
    torch.empty(6, 6, dtype=x.dtype).exponential_(generator=g)
    torch.rand(6, generator=g, dtype=x.dtype)
    start = x.clone()
    start[1::2] = torch.randn(6, 2, generator=g, dtype=x.dtype)[1::2]
    gap = (energy(x) - energy(start + 6)).mean()
    torch.testing.assert_close(losses[1] - losses[0], 0.5 * gap, rtol=0, atol=1e-10)
    assert loss.metrics["energy_gap"].item() == pytest.approx(gap.item())


def test_exact_negatives_give_the_likelihood_gradient():
    """The share of contrastive divergence has the gradient of the likelihood, where negatives are exact samples."""
    energy, x = Gaussian(torch.eye(2).double()), Gaussian(COVARIANCE).sample(100_000, generator=seeded())
    loss = EnergyMatching(energy, ExactGaussian(), lambda_cd=1.0, n_steps=1)
    loss.generator = seeded(1)
    (grad,) = torch.autograd.grad(loss.gap(x).mean(), energy.precision)
    assert (grad - 0.5 * (COVARIANCE - torch.eye(2))).abs().max() < 0.01


def test_nothing_is_sampled_in_the_first_phase():
    class Never(Drift):
        def step(self, *args, **kwargs):
            raise AssertionError("a negative was moved")

    loss = EnergyMatching(Quadratic(), Never(), lambda_cd=0.0)
    assert loss(torch.randn(8, 2, generator=seeded())).isfinite()
    loss.lambda_cd = 0.1
    with pytest.raises(AssertionError, match="a negative was moved"):
        loss(torch.randn(8, 2, generator=seeded()))


def test_cutoff_ends_the_flow_at_the_data():
    """The weight of the flow is 1 up to the cutoff and falls linearly to 0."""
    energy, x = Gaussian(COVARIANCE), torch.randn(6, 2, generator=seeded()).double()
    flows = []
    for cutoff in (1.0, 0.4):
        loss = EnergyMatching(energy, Drift(), cutoff=cutoff, pairing="random")
        loss.generator = seeded(1)
        flows.append(loss.flow(x))
    g = seeded(1)
    torch.randn(6, 2, generator=g, dtype=x.dtype)
    t = torch.rand(6, generator=g, dtype=x.dtype)
    wanted = torch.where(t < 0.4, 1, (1 - t) / 0.6)
    torch.testing.assert_close(flows[1] / flows[0], wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_cd": -0.1}, "lambda_cd must be at least 0"),
        ({"n_steps": 0}, "n_steps must be a whole number of at least 1"),
        ({"pairing": "none"}, "pairing must be 'optimal-transport' or 'random'"),
        ({"cutoff": 1.5}, "cutoff must be at least 0 and at most 1"),
    ],
)
def test_energy_matching_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        EnergyMatching(Quadratic(), Drift(), **options)


def test_pairs_keep_their_digits():
    """Under autocast and for half precision pairs are those of float32 numbers."""
    x, noise = torch.randn(64, 3, generator=seeded()).bfloat16(), torch.randn(64, 3, generator=seeded(1)).bfloat16()
    loss, pairs = EnergyMatching(Quadratic((3,)), Drift()), []
    for autocast in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            loss.generator = seeded(2)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                pairs.append(loss.pair(x.to(dtype), noise.to(dtype)))
    assert all(torch.equal(pairs[0], other) for other in pairs[1:])


def test_energy_matching_is_installed():
    assert ebmcore.host.load("loss", "ebm-plugin-flow-losses:energy-matching") is EnergyMatching

"""Equilibrium matching."""

from __future__ import annotations

import pytest
import torch

import ebmcore
from ebm_plugin_flow_losses.equilibrium_matching import EquilibriumMatching
from ebmcore.testing import Gaussian, Quadratic

COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)


def test_gradient_decays_at_the_data():
    """The target is constant up to the cutoff, and falls linearly to 0 at the data."""
    loss = EquilibriumMatching(Quadratic(), scale=4.0, cutoff=0.8)
    gamma = torch.tensor([0.0, 0.5, 0.8, 0.9, 1.0], dtype=torch.float64)
    torch.testing.assert_close(loss.decay(gamma), torch.tensor([4.0, 4, 4, 2, 0], dtype=torch.float64))


@pytest.mark.parametrize("cutoff", [0.0, 0.8])
@pytest.mark.parametrize("shape", [(2,), (1, 2, 1)])
def test_gaussian_minimum(shape, cutoff):
    """On N(0, S) the minimum has the precision ``E c ((1 - g) - g S) / E (g^2 S + (1 - g)^2)``, by regression; not S^-1."""
    gamma = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    loss = EquilibriumMatching(Quadratic(), scale=1.5, cutoff=cutoff)
    variances, axes = torch.linalg.eigh(COVARIANCE)
    right = (loss.decay(gamma) * ((1 - gamma) - gamma * variances)).mean(0)
    precision = axes @ torch.diag(right / (gamma**2 * variances + (1 - gamma) ** 2).mean(0)) @ axes.T
    energy = Gaussian(COVARIANCE, shape)
    energy.precision.data.copy_(precision)
    loss.energy, loss.generator = energy, torch.Generator().manual_seed(1)
    x = Gaussian(COVARIANCE, shape).sample(400_000, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad(loss(x), energy.precision)
    assert grad.abs().max() < 0.02
    energy.precision.data.mul_(1.05)
    (grad,) = torch.autograd.grad(loss(x), energy.precision)
    assert grad.abs().max() > 0.03


def test_equilibrium_loss_is_its_formula():
    """Value and gradient are those of the formula, for the same noise, on weighted examples."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    energy = Gaussian(COVARIANCE)
    loss = EquilibriumMatching(energy)
    loss.generator = torch.Generator().manual_seed(1)
    loss.data_weights = torch.tensor([2.0, 1, 1, 1, 1, 0])
    with torch.no_grad():
        found = loss(x)
    g = torch.Generator().manual_seed(1)
    noise, gamma = torch.randn(6, 2, generator=g, dtype=x.dtype), torch.rand(6, generator=g, dtype=x.dtype)[:, None]
    c = 4 * ((1 - gamma) / 0.2).clamp(max=1)
    grad = (gamma * x + (1 - gamma) * noise) @ energy.precision
    wanted = loss.data_weights @ (grad - (noise - x) * c).square().sum(1).detach().float() / 6
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_mixtures_keep_their_label():
    """Each point between an example and noise is scored under the label of the example."""

    class Labelled(Quadratic):
        def forward(self, x, label):
            seen.append((x.detach(), label))
            return super().forward(x)

    seen = []
    EquilibriumMatching(Labelled())(torch.tensor([[1e6, 0.0], [0.0, 1e6], [1e6, 0.0]]), label=torch.tensor([0, 1, 0]))
    points, label = seen[0]
    assert torch.equal(points.argmax(1), label)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale": 0.0}, "scale must be above 0"), ({"cutoff": 1.0}, "cutoff must be at least 0 and below 1, got 1.0")],
)
def test_equilibrium_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        EquilibriumMatching(Quadratic(), **options)


def test_equilibrium_matching_is_installed():
    assert ebmcore.host.load("loss", "ebm-plugin-flow-losses:equilibrium-matching") is EquilibriumMatching

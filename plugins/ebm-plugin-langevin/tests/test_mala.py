"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

import pytest
import torch

import ebmcore
from ebm_plugin_langevin.mala import MALA
from ebmcore import run
from ebmcore.testing import DoubleWell, Quadratic

N = 100_000
CHI_SQUARE_19_DF = 50.8  # exceeded with probability 1e-4


def test_acceptance_is_float64_metropolis_ratio():
    """Its acceptance is the Metropolis ratio in float64."""
    torch.manual_seed(0)
    energy, h, T = DoubleWell(height=1.0).double(), 0.3, 0.7
    scale = (2 * h * T) ** 0.5
    sampler, x = MALA(h, T), torch.randn(1000, 2).double()
    after, info = run(sampler, energy, sampler.init(energy, x), 1, generator=torch.Generator().manual_seed(1))

    def drifted(z):
        z = z.clone().requires_grad_()
        return (z - h * torch.autograd.grad(energy(z).sum(), z)[0]).detach()

    generator = torch.Generator().manual_seed(1)
    y = drifted(x) + scale * torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    forward = torch.distributions.Normal(drifted(x), scale).log_prob(y).sum(1)
    backward = torch.distributions.Normal(drifted(y), scale).log_prob(x).sum(1)
    ratio = (energy(x) - energy(y)) / T + backward - forward
    accepted = torch.rand(1000, generator=generator, dtype=torch.float64).log() < ratio
    assert torch.equal(info["acceptance_rate"].bool(), accepted)
    torch.testing.assert_close(after.x, torch.where(accepted[:, None], y, x), atol=1e-12, rtol=0)
    assert 0.1 < accepted.double().mean() < 0.999


def test_bfloat16_acceptance_uses_float64():
    """The acceptance of a bfloat16 model is computed in float64."""
    # From the very positions, energies and gradients that the bfloat16 model gave, no digit may be lost on the way.
    torch.manual_seed(0)
    energy, sampler = Quadratic((8,)).to(torch.bfloat16), MALA(0.4)
    state = sampler.init(energy, torch.randn(5000, 8).bfloat16())
    _, info = run(sampler, energy, state, 1, generator=torch.Generator().manual_seed(1))
    assert info["acceptance_rate"].dtype == torch.float64

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(5000, 8, generator=generator, dtype=torch.bfloat16)
    y = torch.add(state.x, state.grad, alpha=-0.4).add_(noise, alpha=0.8**0.5)
    proposed = sampler.init(energy, y)
    x, y, g_x, g_y = (t.double() for t in (state.x, y, state.grad, proposed.grad))
    ratio = state.energy.double() - proposed.energy.double()
    ratio += ((y - x + 0.4 * g_x).square().sum(1) - (x - y + 0.4 * g_y).square().sum(1)) / 1.6
    accepted = torch.rand(5000, generator=generator, dtype=torch.float64).log() < ratio
    assert torch.equal(info["acceptance_rate"].bool(), accepted)
    assert 0.3 < accepted.double().mean() < 0.95


def test_mala_takes_one_gradient_per_step():
    """It takes one gradient for each step and one to begin."""

    class Counting(Quadratic):
        count = 0

        def forward(self, x):
            self.count += 1
            return super().forward(x)

    energy = Counting()
    MALA(0.1).sample(energy, torch.zeros(4, 2), 10)
    assert energy.count == 11


def test_nothing_is_clipped_however_steep_the_energy():
    energy, sampler = Quadratic((1,), precision=1e4), MALA(1e-2)
    _, info = run(sampler, energy, sampler.init(energy, torch.ones(100, 1)), 1)
    assert info["acceptance_rate"].sum() == 0  # the proposal overshoots a hundredfold


@pytest.mark.parametrize("arguments", [{"step_size": -1.0}, {"step_size": 0.1, "temperature": 0.0}, {"step": 0.1}])
def test_invalid_options_raise(arguments):
    """A value that cannot work raises an error."""
    with pytest.raises((ValueError, TypeError), match="must be above 0|it accepts: step_size, temperature, bounds"):
        MALA(**arguments)


def test_it_is_installed_under_its_name():
    assert ebmcore.host.load("sampler", "ebm-plugin-langevin:mala") is MALA

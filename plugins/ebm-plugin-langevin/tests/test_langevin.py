"""The unadjusted Langevin algorithm."""

from __future__ import annotations

import math

import pytest
import torch

import ebmcore
from ebm_plugin_langevin.langevin import Langevin
from ebmcore import ChainState, run
from ebmcore.testing import Quadratic

N = 100_000  # relative standard error of a variance: 0.0045


def test_one_step_is_its_formula():
    x, energy = torch.randn(5, 3), Quadratic((3,), precision=2.0, mean=1.0)
    state, _ = run(Langevin(0.1, 0.5), energy, ChainState(x), 1, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(state.x, x - 0.1 * 2 * (x - 1) + math.sqrt(2 * 0.1 * 0.5) * noise)


def test_at_temperature_zero_it_descends_the_energy():
    x = Langevin(0.1, temperature=0.0).sample(Quadratic((2,), mean=3.0), torch.zeros(4, 2), 200)
    torch.testing.assert_close(x, torch.full((4, 2), 3.0), atol=1e-4, rtol=0)


def test_clipping_bounds_each_component_of_the_gradient():
    x = torch.tensor([[100.0, -100.0, 0.5]])
    clipped = Langevin(0.1, temperature=0.0, clip_grad=1.0).sample(Quadratic((3,)), x, 1)
    torch.testing.assert_close(clipped, torch.tensor([[99.9, -99.9, 0.45]]))


def test_nothing_is_clipped_by_default():
    x = torch.tensor([[1e6]])
    torch.testing.assert_close(Langevin(0.5, temperature=0.0).sample(Quadratic((1,)), x, 1), 0.5 * x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"step_size": float("nan")}, "step_size must be above 0"),
        ({"step_size": 0.1, "temperature": -1.0}, "temperature must be at least 0"),
        ({"step_size": 0.1, "clip_grad": 0.0}, "clip_grad must be above 0"),
        ({"step_size": 0.1, "noise": -0.1}, "noise must be at least 0"),
        (
            {"step_size": 0.1, "temperature": 1.0, "noise": 0.1},
            "two ways to give one number: give one of them, got 1.0 and 0.1",
        ),
        ({"step_size": 0.1, "sigma": 0.1}, "it accepts: step_size, temperature, noise, bounds, clip_grad"),
    ],
)
def test_invalid_options_raise_with_advice(arguments, message):
    """A value that cannot work raises an error with advice."""
    with pytest.raises((ValueError, TypeError), match=message):
        Langevin(**arguments)


def test_noise_is_a_temperature():
    """The noise sigma is the temperature sigma^2 / 2 h, in each step and in the stationary variance."""
    h, sigma = 0.2, 0.3
    noisy, warm = Langevin(h, noise=sigma), Langevin(h, sigma**2 / (2 * h))
    assert noisy.temperature == pytest.approx(0.225, rel=1e-12)
    x, energy = torch.randn(5, 3), Quadratic((3,), precision=2.0)
    a, b = (s.sample(energy, x, 3, generator=torch.Generator().manual_seed(0)) for s in (noisy, warm))
    torch.testing.assert_close(a, b)

    x = noisy.sample(Quadratic((1,), precision=2.0), torch.zeros(N, 1), 60, generator=torch.Generator().manual_seed(1))
    assert x.var().item() == pytest.approx(0.225 / 2 / (1 - h), rel=4.5 * 0.0045)
    assert x.var().item() == pytest.approx(0.225 / 2 * (1 + noisy.predicted_bias(2.0)), rel=4.5 * 0.0045)


def test_published_noise_needs_no_temperature():
    assert Langevin(1.0, noise=0.01).temperature == pytest.approx(5e-5)
    assert Langevin(1.0, noise=0.01).noise_scale == 0.01


def test_noise_zero_descends_the_energy():
    x = Langevin(0.1, noise=0.0).sample(Quadratic((2,), mean=3.0), torch.zeros(4, 2), 200)
    torch.testing.assert_close(x, torch.full((4, 2), 3.0), atol=1e-4, rtol=0)


def test_noise_follows_its_schedule():
    """A schedule changes the noise and, beside it, the temperature; the temperature itself cannot be set."""
    sampler = Langevin(0.1, noise=0.2)
    sampler.step_size, sampler.noise = 0.05, 0.1
    assert sampler.noise_scale == 0.1
    assert sampler.temperature == pytest.approx(0.1)
    with pytest.raises(ValueError, match="follows from noise and step_size"):
        sampler.temperature = 2.0


def test_it_is_installed_under_its_name():
    assert ebmcore.host.load("sampler", "ebm-plugin-langevin:langevin") is Langevin

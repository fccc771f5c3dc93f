"""Bounds: reflections, and the laws of chains within them against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ebm_plugin_langevin.bounds import reflect
from ebm_plugin_langevin.langevin import Langevin
from ebm_plugin_langevin.mala import MALA
from ebmcore import BasePersistentContrastiveDivergence, run
from ebmcore.compiling import CompiledTransitions
from ebmcore.testing import DoubleWell, Quadratic

N = 100_000  # a Kolmogorov-Smirnov test sees a distribution function that is off by 0.007
KOLMOGOROV = 2.23  # exceeded with probability 1e-4
LOW, HIGH = -1.0, 0.5


class Slope(nn.Module):
    """``E(x) = rate * sum x``: an exponential density, cut off at the bounds."""

    def __init__(self, rate=3.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, x):
        return self.rate * x.flatten(1).sum(1)


class PersistentCD(BasePersistentContrastiveDivergence):
    """Persistent CD, nothing more."""


class Continued(nn.Module):
    """``E(r(y))`` of any ``y``, by the triangle wave ``r`` of trigonometry."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, y):
        return self.energy(wave(y))


def wave(y):
    return LOW + (HIGH - LOW) * torch.acos(torch.cos(math.pi * (y - LOW) / (HIGH - LOW))) / math.pi


def cut(cdf):
    """The distribution function of a density restricted to the bounds."""
    ends = torch.tensor([LOW, HIGH], dtype=torch.float64)
    below, above = cdf(ends)
    return lambda x: (cdf(x) - below) / (above - below)


def normal_at(temperature):  # of Quadratic(precision=2, mean=0.3)
    return cut(lambda x: torch.special.ndtr((x - 0.3) * (2 / temperature) ** 0.5))


LAWS = {
    "uniform": (Quadratic((2,), precision=0.0), cut(lambda x: x)),
    "normal": (Quadratic((2,), precision=2.0, mean=0.3), normal_at(1.0)),
    "exponential": (Slope(3.0), cut(lambda x: -torch.exp(-3.0 * x))),
}


def distance(x, cdf):
    """Kolmogorov-Smirnov distance times the root of the number of samples, the largest of the components."""
    x = x.double().flatten(1).sort(0).values
    grid = torch.arange(len(x) + 1, dtype=torch.float64).unsqueeze(1) / len(x)
    return math.sqrt(len(x)) * float(torch.maximum((cdf(x) - grid[:-1]).abs(), (cdf(x) - grid[1:]).abs()).max())


def from_one_corner(sampler, energy, n_steps, shape=(2,)):
    return sampler.sample(energy, torch.full((N, *shape), LOW), n_steps, generator=torch.Generator().manual_seed(0))


def test_reflection_is_the_triangle_wave():
    y = torch.linspace(-9, 9, 3001, dtype=torch.float64).requires_grad_()
    x, turn = reflect(y.detach(), LOW, HIGH)
    torch.testing.assert_close(x, wave(y).detach(), atol=1e-7, rtol=0)
    (slope,) = torch.autograd.grad(wave(y).sum(), y)
    torch.testing.assert_close(turn.double(), slope, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_reflected_positions_lie_within(dtype):
    """In every precision all positions are within, and those that were do not change in any digit."""
    y = (100 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))).to(dtype)
    x, _ = reflect(y, 0.1, 0.7)
    within = (y >= 0.1) & (y <= 0.7)
    assert within.any()
    assert torch.equal(x[within], y[within])
    assert bool(((x >= torch.tensor(0.1, dtype=dtype)) & (x <= torch.tensor(0.7, dtype=dtype))).all())


def test_rounding_leaves_no_position_outside():
    """Images of a bound itself lie within, whose sums are rounded; at a bound nothing is reflected."""
    y = torch.tensor([-0.33 + 0.25 * k for k in range(-40, 40)])
    x, _ = reflect(y, -0.58, -0.33)
    assert bool(((x >= -0.58) & (x <= -0.33)).all())
    assert reflect(torch.tensor([0.37]), -0.47, 0.37)[1].item() == 1


def test_lost_positions_stay_lost():
    assert reflect(torch.tensor([torch.nan, torch.inf, -torch.inf]), 0.0, 1.0)[0].isnan().all()


@pytest.mark.parametrize(
    ("law", "h", "n_steps"),
    [("uniform", 1.0, 20), ("normal", 0.05, 60), ("normal", 0.3, 60), ("exponential", 0.05, 60), ("exponential", 0.2, 80)],
)
def test_mala_samples_the_restricted_law(law, h, n_steps):
    """From one corner MALA reaches the law within the bounds, also where a step passes both of them."""
    energy, cdf = LAWS[law]
    x = from_one_corner(MALA(h, bounds=(LOW, HIGH)), energy, n_steps)
    assert float(x.min()) >= LOW
    assert float(x.max()) <= HIGH
    assert distance(x, cdf) < KOLMOGOROV


def test_temperature_holds_within_bounds():
    energy = Quadratic((1, 2, 1), precision=2.0, mean=0.3)
    x = from_one_corner(MALA(0.3, 0.5, bounds=(LOW, HIGH)), energy, 60, shape=(1, 2, 1))
    assert x.shape == (N, 1, 2, 1)
    assert distance(x, normal_at(0.5)) < KOLMOGOROV
    assert distance(x, normal_at(0.6)) > KOLMOGOROV


def test_mala_step_is_that_of_continued_energy():
    """A step within bounds is the plain step under the continued energy, then reflected."""
    torch.manual_seed(0)
    energy, x = DoubleWell(height=2.0).double(), LOW + (HIGH - LOW) * torch.rand(2000, 2, dtype=torch.float64)
    bounded, plain = MALA(0.5, 0.7, bounds=(LOW, HIGH)), MALA(0.5, 0.7)
    after, info = run(bounded, energy, bounded.init(energy, x), 1, generator=torch.Generator().manual_seed(1))
    continued = Continued(energy)
    same, expected = run(plain, continued, plain.init(continued, x), 1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(info["acceptance_rate"], expected["acceptance_rate"])
    assert 0.1 < info["acceptance_rate"].mean() < 0.999
    assert ((same.x < LOW) | (same.x > HIGH)).double().mean() > 0.2
    torch.testing.assert_close(after.x, wave(same.x), atol=1e-7, rtol=0)
    fresh = bounded.init(energy, after.x)
    torch.testing.assert_close(after.energy, fresh.energy)
    torch.testing.assert_close(after.grad, fresh.grad)


def test_mala_is_in_detailed_balance_within_bounds():
    """Steps there and back between ten cells are equally frequent, from exact samples of an exponential law."""
    uniform = torch.rand(500_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = torch.exp(-3 * torch.tensor([LOW, HIGH], dtype=torch.float64))
    x = -torch.log(ends[0] + uniform * (ends[1] - ends[0])) / 3
    y = MALA(0.1, bounds=(LOW, HIGH)).sample(Slope(3.0).double(), x, 1, generator=torch.Generator().manual_seed(1))
    a, b = (((t - LOW) / (HIGH - LOW) * 10).long().clamp(0, 9).flatten() for t in (x, y))
    flow = torch.bincount(10 * a + b, minlength=100).view(10, 10).double()
    off = (flow - flow.T).abs() / (flow + flow.T).clamp(min=1).sqrt()
    assert off.max() < 4.5


def test_unadjusted_uniform_law_is_exact():
    """Without a gradient the reflected step is a symmetric walk: the law is uniform at any step size."""
    energy, cdf = LAWS["uniform"]
    assert distance(from_one_corner(Langevin(0.3, bounds=(LOW, HIGH)), energy, 40), cdf) < KOLMOGOROV


def test_unadjusted_bias_falls_with_step_size():
    """The reflected unadjusted step nears the restricted law as its step size falls."""
    energy, cdf = LAWS["exponential"]
    coarse, fine = (
        distance(from_one_corner(Langevin(h, bounds=(LOW, HIGH)), energy, int(2 / h)), cdf) for h in (0.08, 0.01)
    )
    assert 4 * fine < coarse


@pytest.mark.parametrize("sampler", [Langevin(1e-6, bounds=(0.0, 1.0)), MALA(1e-6, bounds=(0.0, 1.0))])
def test_starts_outside_are_reflected(sampler):
    energy, x, inside = Quadratic((1,)), torch.tensor([[1.25], [-0.5], [0.3]]), torch.tensor([[0.75], [0.5], [0.3]])
    started, expected = sampler.init(energy, x).tensors(), sampler.init(energy, inside).tensors()
    assert all(torch.equal(started[name], t) for name, t in expected.items())
    assert torch.equal(started["x"], inside)
    torch.testing.assert_close(sampler.sample(energy, x, 1), inside, atol=0.02, rtol=0)


@pytest.mark.parametrize("sampler", [Langevin(0.1, bounds=(0.0, 1.0)), MALA(0.1, bounds=(0.0, 1.0))])
def test_refresh_reflects_stored_starts(sampler):
    """A store of chains may hold starts that no sampler has seen: they are reflected, with energy and gradient there."""
    energy, inside = Quadratic((1,)), torch.tensor([[0.75], [0.3]])
    stored = replace(sampler.init(energy, inside), x=torch.tensor([[1.25], [0.3]]))
    refreshed, expected = sampler.refresh(energy, stored).tensors(), sampler.init(energy, inside).tensors()
    assert all(torch.equal(refreshed[name], t) for name, t in expected.items())


def test_bias_within_bounds_is_not_known():
    assert Langevin(0.1, bounds=(0.0, 1.0)).predicted_bias(1.0) is None


@pytest.mark.parametrize("sampler", [Langevin(0.01, bounds=(-0.5, 0.5)), MALA(0.01, bounds=(-0.5, 0.5))])
def test_persistent_chains_stay_within(sampler):
    """Chains of a persistent loss that start at a standard normal lie within the bounds once they have moved."""
    torch.manual_seed(0)
    loss = PersistentCD(Quadratic((3,)), sampler, n_chains=16, restart_prob=0.2)
    for _ in range(3):
        _, pred_x = loss(torch.zeros(16, 3))
        assert pred_x.abs().max() <= 0.5
    assert loss.chain.abs().max() <= 0.5


@pytest.mark.parametrize("sampler", [Langevin(0.2, noise=0.5, bounds=(-0.5, 0.5)), MALA(0.2, bounds=(-0.5, 0.5))])
def test_compiled_steps_stay_within_bounds(sampler):
    """Compiled steps within bounds are the eager ones, and other bounds need no other graph."""
    energy, transitions = Quadratic((3,)), CompiledTransitions()
    x = torch.linspace(-0.5, 0.5, 24).view(8, 3)
    for _ in range(2):
        transitions(sampler, energy, sampler.init(energy, x), 1, generator=torch.Generator().manual_seed(0))
    assert len(transitions.graphs) == 1
    for bounds in ((-0.5, 0.5), (-0.6, 0.7)):
        sampler.bounds = bounds
        start = sampler.init(energy, x)
        compiled, _ = transitions(sampler, energy, start, 1, generator=torch.Generator().manual_seed(0))
        eager, _ = run(sampler, energy, start, 1, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(compiled.x, eager.x)
    assert len(transitions.graphs) == 1


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (1.0, -1.0), (0.0,), (0.0, 1.0, 2.0), (0.0, torch.inf), ("a", "b"), "ab", 3])
@pytest.mark.parametrize("sampler", [Langevin, MALA])
def test_invalid_bounds_raise_with_advice(sampler, bounds):
    with pytest.raises(ValueError, match=r"bounds must be two finite numbers \(low, high\) with low < high"):
        sampler(0.1, bounds=bounds)


@pytest.mark.parametrize("sampler", [Langevin, MALA])
def test_bounds_may_be_a_list(sampler):
    assert sampler(0.1, bounds=[-1, 1]).bounds == (-1.0, 1.0)

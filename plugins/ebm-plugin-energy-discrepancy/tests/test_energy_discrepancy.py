"""Energy discrepancy of continuous data."""

from __future__ import annotations

import math

import pytest
import torch

import ebmcore
from ebm_plugin_energy_discrepancy.continuous import EnergyDiscrepancy as ED
from ebmcore.testing import Gaussian, Quadratic

COVARIANCE = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
PRECISION = torch.tensor([[0.9, -0.3], [-0.3, 1.4]], dtype=torch.float64)  # of a model that is not that of the data


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def examples(n):
    """Normal examples and standard normal noise, whose second moments are exactly those of their distributions."""
    z = torch.randn(n, 4, generator=seeded(1)).double()
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / n)).T
    return z[:, :2] @ torch.linalg.cholesky(COVARIANCE).T, z[:, 2:]


def model(shape=(2,)):
    return Gaussian(torch.linalg.inv(PRECISION), shape)


def closed_form(precision, t):
    """The discrepancy of a Gaussian energy on Gaussian data, as the number of points grows."""
    eye = torch.eye(2, dtype=torch.float64)
    smoothed = torch.linalg.inv(torch.linalg.inv(precision) + t * eye)
    gap = (precision @ COVARIANCE).trace() - (smoothed @ (COVARIANCE + t * eye)).trace()
    return 0.5 * gap - 0.5 * torch.logdet(eye + t * precision)


@pytest.mark.parametrize("t", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(2,), (1, 2, 1)])
def test_gaussian_closed_form(t, shape):
    """With many points value and gradient are those of the closed form."""
    energy = model(shape)
    x, noise = (rows.view(-1, *shape) for rows in examples(2000))
    loss = ED(energy, t=t, n_samples=500, w=0.0)
    loss.generator, draw = seeded(2), loss.perturb
    loss.perturb = lambda points: x + math.sqrt(t) * noise if len(points) == 2000 else draw(points)
    found = loss(x)
    (grad,) = torch.autograd.grad(found, energy.precision)
    precision = PRECISION.clone().requires_grad_()
    wanted = closed_form(precision, t)
    (exact,) = torch.autograd.grad(wanted, precision)
    assert found.item() == pytest.approx(wanted.item(), rel=0.03)
    assert (0.5 * (grad + grad.T) - exact).abs().max() < 0.03 * exact.abs().max()


def test_small_time_is_score_matching():
    """With ``w = 1`` it is, up to a constant, ``t M / (M + 1)`` times ``|grad E|^2 / 2 - Laplacian E``, for every M."""
    t, energy = 1e-6, model()
    x = Gaussian(COVARIANCE).sample(5, generator=seeded())
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 6).view(
        -1, 3, 2
    )  # mean 0 and covariance 1, exactly
    loss = ED(energy, t=t, n_samples=2)
    steps = iter([signs[:, 0].repeat(5, 1), signs[:, 1:].flatten(0, 1).repeat(5, 1)])
    loss.perturb = lambda points: points + math.sqrt(t) * next(steps)
    found = (loss(x.repeat_interleave(64, 0)) - math.log(3 / 2)) / (t * 2 / 3)
    score_matching = 0.5 * (x @ PRECISION).square().sum(1).mean() - PRECISION.trace()
    torch.testing.assert_close(found, score_matching, rtol=1e-3, atol=0)


def test_large_time_is_the_likelihood():
    """As t grows the gradient tends to that of the likelihood."""
    likelihood = 0.5 * (COVARIANCE - torch.linalg.inv(PRECISION))
    energy, (x, _) = model(), examples(1000)
    off = []
    for t in (0.1, 1.0, 30.0):
        loss = ED(energy, t=t, n_samples=1000, w=0.0)
        loss.generator = seeded(2)
        (grad,) = torch.autograd.grad(loss(x), energy.precision)
        off.append((0.5 * (grad + grad.T) - likelihood).norm() / likelihood.norm())
    assert off[0] > 2 * off[1] > 4 * off[2]
    assert off[2] < 0.25


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_value_and_gradient_of_given_points(w):
    """Value and gradient are those of the formula, one example after the other."""
    energy, x = model(), torch.randn(5, 2, generator=seeded()).double()
    back = torch.randn(5, 3, 2, generator=seeded(1)).double()
    loss = ED(energy, n_samples=3, w=w)
    loss.perturb = lambda points: points if len(points) == 5 else back.view(15, 2)
    found = loss(x)
    (grad,) = torch.autograd.grad(found, energy.precision)
    wanted, exact = 0.0, torch.zeros(2, 2).double()
    for one, points in zip(x, back, strict=True):
        ratios = (energy(one[None]) - energy(points)).exp().detach()
        wanted += math.log((w + ratios.sum().item()) / 3) / 5
        for ratio, point in zip(ratios, points, strict=True):
            exact += 0.5 * ratio / (w + ratios.sum()) * (torch.outer(one, one) - torch.outer(point, point)) / 5
    assert found.item() == pytest.approx(wanted, abs=1e-10)
    torch.testing.assert_close(grad, exact, rtol=0, atol=1e-10)


def test_points_share_one_noisy_copy():
    """The points of an example spread with variance t around a copy that has itself the variance t."""
    loss = ED(Quadratic(), t=0.25, n_samples=4)
    loss.generator = seeded()
    seen = []
    loss.energy.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    loss(torch.zeros(20_000, 2))
    points = seen[0][20_000:].view(20_000, 4, 2)
    assert points.var(1).mean().item() == pytest.approx(0.25, rel=0.02)
    assert points.var().item() == pytest.approx(0.5, rel=0.02)


def test_large_gaps_do_not_overflow():
    loss = ED(Quadratic(precision=1e6), t=1.0)
    loss.generator = seeded()
    assert loss(100 * torch.ones(4, 2)).isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": 0.0}, "t must be above 0"),
        ({"t": math.nan}, "t must be above 0"),
        ({"n_samples": 0}, "n_samples must be a whole number of at least 1"),
        ({"w": -1.0}, "w must be at least 0"),
    ],
)
def test_discrepancy_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        ED(Quadratic(), **options)


def test_energy_discrepancy_is_installed():
    assert ebmcore.host.load("loss", "ebm-plugin-energy-discrepancy:energy-discrepancy") is ED

"""Data sets whose density is known: it is normalised, and it is that of the examples."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

import ebmcore
from ebm_plugin_datasets.ising_samples import IsingSamples

# How wide the narrowest feature is, in units of which a grid is fine enough.
WIDTHS = {
    "ring-of-gaussians": 0.2,
    "eight-gaussians": 0.35,
    "25-gaussians": 0.2,
    "spirals": 0.1,
    "rings": 0.08,
    "checkerboard": 0.2,
}
N = 100_000


def on_grid(data, width):
    """Points on a grid over the data's extent, the log-density there, and the area of a cell."""
    n = 2 * math.ceil(2.5 * data.extent / width)
    ticks = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * data.extent / n) - data.extent
    points = torch.cartesian_prod(ticks, ticks)
    return points, data.log_prob(points), (2 * data.extent / n) ** 2


@pytest.mark.parametrize(("name", "width"), WIDTHS.items())
def test_density_is_that_of_the_points(name, width):
    """The density has the integral 1, and its moments and its entropy are those of the points, within 4.5 standard errors."""
    n = 20_000
    data = ebmcore.create_dataset(name, n_train=n, n_test=10)
    points, log_p, area = on_grid(data, width)
    mass = log_p.exp() * area
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)  # five standard deviations are inside
    x = data.train.double()
    found = {
        "log p": data.log_prob(x),
        "x": x[:, 0],
        "y": x[:, 1],
        "xx": x[:, 0] ** 2,
        "xy": x[:, 0] * x[:, 1],
        "yy": x[:, 1] ** 2,
    }
    u, v = points.T
    wanted = {"log p": log_p.nan_to_num(neginf=0), "x": u, "y": v, "xx": u**2, "xy": u * v, "yy": v**2}
    for what, values in found.items():
        off = values.mean() - mass @ wanted[what]
        assert off.abs() <= 4.5 * values.std() / n**0.5 + 1e-9, what


def test_ring_density_by_quadrature():
    """The closed form of a ring is the mean of normal densities whose centres go around it."""
    data = ebmcore.create_dataset("rings", n_rings=1, noise=0.4, n_train=5)
    angles = 2 * math.pi * torch.arange(2000, dtype=torch.float64) / 2000
    centres = 3 * torch.stack([angles.cos(), angles.sin()], 1)
    squares = torch.cdist(data.train.double(), centres).square() / 0.4**2
    wanted = torch.logsumexp(-0.5 * squares, 1) - math.log(2000 * 2 * math.pi * 0.4**2)
    torch.testing.assert_close(data.log_prob(data.train), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5])
def test_spiral_density_by_midpoints(noise):
    """The quadrature along the arms is the mean over very many centres, evenly spaced in u."""
    data = ebmcore.create_dataset("spirals", noise=noise, n_train=20)
    t = 3 * math.pi * ((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).sqrt()
    line = (t / 3)[:, None] * torch.stack([-t.cos(), t.sin()], 1)
    squares = torch.cdist(
        data.train.double(), torch.cat([line, -line]), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    wanted = torch.logsumexp(-0.5 * squares / noise**2, 1) - math.log(400_000 * 2 * math.pi * noise**2)
    torch.testing.assert_close(data.log_prob(data.train), wanted, rtol=0, atol=1e-7)


def test_checkerboard_has_eight_squares():
    data = ebmcore.create_dataset("checkerboard", n_train=N)
    cells, counts = (data.train / 2).floor().unique(dim=0, return_counts=True)
    assert len(cells) == 8
    assert (cells.sum(1) % 2 == 0).all()
    assert (counts / N - 1 / 8).abs().max() < 4.5 * (7 / 64 / N) ** 0.5


def test_25_gaussians_have_equal_shares():
    data = ebmcore.create_dataset("25-gaussians", std=0.05, n_train=N)
    counts = torch.bincount(torch.cdist(data.train, data.centres).argmin(1), minlength=25)
    assert (counts / N - 1 / 25).abs().max() < 4.5 * (24 / 625 / N) ** 0.5


def test_neighbouring_cells_differ_in_one_bit():
    data = ebmcore.create_dataset("gray-code")
    states = data.states.view(64, 64, 12)
    assert (states[1:] != states[:-1]).sum(2).unique().tolist() == [1]
    assert (states[:, 1:] != states[:, :-1]).sum(2).unique().tolist() == [1]
    assert len(data.states.unique(dim=0)) == 4096
    assert torch.equal(data.cells(data.states), torch.arange(4096))


def test_gray_code_of_a_checkerboard():
    """Where cells fit into the squares of the board, half of them have equal probabilities, and the others none."""
    data = ebmcore.create_dataset("gray-code", density="checkerboard")
    p = data.probabilities.unique()
    torch.testing.assert_close(p, torch.tensor([0.0, 1 / 2048], dtype=torch.float64))
    dark = (data.points / 2).floor().sum(1) % 2 == 0
    assert torch.equal(data.probabilities > 0, dark)
    assert data.log_prob(data.train).unique().tolist() == [pytest.approx(-math.log(2048))]


@pytest.mark.parametrize("density", ["eight-gaussians", "rings"])
def test_gray_code_is_drawn_by_its_probabilities(density):
    """The mean log-probability of the examples is that of all states, and the means of the bits too."""
    data = ebmcore.create_dataset("gray-code", density=density, n_train=N)
    log_p = data.log_prob(data.train)
    wanted = torch.special.entr(data.probabilities).sum()
    assert (log_p.mean() + wanted).abs() < 4.5 * log_p.std() / N**0.5
    assert (data.train.double().mean(0) - data.probabilities @ data.states.double()).abs().max() < 4.5 * 0.5 / N**0.5


def test_gray_code_bins_the_density():
    """Examples have the moments of the density in the plane, up to the width of a cell."""
    data, plane = ebmcore.create_dataset("gray-code", n_train=N), ebmcore.create_dataset("eight-gaussians", n_train=N)
    decoded = data.points[data.cells(data.train)]
    width = 2 * plane.extent / 64
    covariance = plane.train.T.cov() + torch.eye(2) * width**2 / 12
    torch.testing.assert_close(decoded.T.cov(), covariance, rtol=0, atol=0.1)


def ising_log_weights(shape, coupling, field):
    """All states of a periodic lattice and minus their energies, bond by bond."""
    height, width = shape
    states = torch.tensor(list(product((0.0, 1.0), repeat=height * width)), dtype=torch.float64).view(-1, 1, height, width)
    s = 2 * states[:, 0] - 1
    total = field * s.sum((1, 2))
    for i, j in product(range(height), range(width)):
        total += coupling * s[:, i, j] * (s[:, (i + 1) % height, j] + s[:, i, (j + 1) % width])
    return states, total


@pytest.mark.parametrize(
    ("shape", "coupling", "field"), [((2, 3), 0.3, 0.2), ((3, 2), 0.3, 0.2), ((3, 4), -0.5, 0.0), ((4, 3), 0.44, -0.3)]
)
def test_ising_probabilities_by_enumeration(shape, coupling, field):
    data = IsingSamples(height=shape[0], width=shape[1], coupling=coupling, field=field, n_train=10)
    states, log_weights = ising_log_weights(shape, coupling, field)
    torch.testing.assert_close(data.log_partition, torch.logsumexp(log_weights, 0), rtol=0, atol=1e-11)
    torch.testing.assert_close(data.log_prob(states), log_weights.log_softmax(0), rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(2, 3), (4, 2), (3, 3)])
def test_ising_samples_are_exact(shape):
    """Of 100,000 samples, a chi-square test of all states is within 4.5 standard deviations."""
    data = IsingSamples(height=shape[0], width=shape[1], coupling=0.35, field=0.15, n_train=N)
    p = ising_log_weights(shape, 0.35, 0.15)[1].softmax(0)
    place = 2 ** torch.arange(shape[0] * shape[1]).flip(0)
    counts = torch.bincount(data.train.long().flatten(1) @ place, minlength=len(p))
    chi_square = ((counts - N * p).square() / (N * p)).sum()
    freedom = len(p) - 1
    assert (chi_square - freedom).abs() < 4.5 * (2 * freedom) ** 0.5


def test_ising_samples_at_the_critical_point():
    """On 8 by 8 sites beyond the reach of enumeration, the mean of the bonds is the derivative of log Z."""
    K, step = 0.5 * math.log(1 + math.sqrt(2)), 1e-5
    data = IsingSamples(coupling=K, n_train=20_000)
    ends = [IsingSamples(coupling=K + sign * step, n_train=1, n_test=1).log_partition for sign in (1, -1)]
    s = 2 * data.train.double()[:, 0] - 1
    bonds = (s * (s.roll(1, 1) + s.roll(1, 2))).sum((1, 2))
    assert (bonds.mean() - (ends[0] - ends[1]) / (2 * step)).abs() < 4.5 * bonds.std() / 20_000**0.5
    assert s.mean(0).abs().max() < 4.5 / 20_000**0.5

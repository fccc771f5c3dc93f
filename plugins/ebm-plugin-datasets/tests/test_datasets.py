"""The data sets."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

import ebmcore

NAMES = (
    "digits", "bars-and-stripes", "two-moons", "ring-of-gaussians", "eight-gaussians", "25-gaussians", "spirals", "rings",
    "checkerboard", "gray-code", "ising-samples",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_data_sources_are_reproducible(name):
    """Each is a data source of its shape and the same every time."""
    data, again = ebmcore.create_dataset(name), ebmcore.create_dataset(name)
    for part in (data.train, data.test):
        assert part.dtype == torch.float32
        assert tuple(part.shape[1:]) == tuple(data.shape)
        assert part.isfinite().all()
    assert data.state_space in ("binary", "continuous")
    assert torch.equal(data.train, again.train)
    assert torch.equal(data.test, again.test)


@pytest.mark.parametrize("name", NAMES)
def test_making_one_leaves_the_global_generators_alone(name):
    import numpy as np

    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    ebmcore.create_dataset(name)
    assert torch.equal(before, torch.get_rng_state())
    assert (numpys == np.random.get_state()[1]).all()


def test_binary_digits_split_and_threshold():
    """Digits are split by their number and cut at the threshold."""
    levels = load_digits().images
    data = ebmcore.create_dataset("digits")
    assert (len(data.train), len(data.test)) == (1497, 300)
    assert data.train.unique().tolist() == [0.0, 1.0]
    assert torch.equal(data.test[1, 0], torch.from_numpy(levels[6] >= 8).float())
    assert torch.equal(data.train[0, 0], torch.from_numpy(levels[1] >= 8).float())


def test_continuous_digits_are_scaled_grey_levels():
    """Continuous digits are grey levels from minus one to one."""
    data = ebmcore.create_dataset("digits", binary=False)
    assert data.state_space == "continuous"
    assert data.train.min() == -1
    assert data.train.max() == 1
    assert len(data.train.unique()) == 17


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_bars_and_stripes_are_all_of_them(side):
    data = ebmcore.create_dataset("bars-and-stripes", side=side)
    x = data.train[:, 0]
    assert len(x) == 2 * 2**side
    bars = (x == x[:, :1, :]).all(2).all(1)
    stripes = (x == x[:, :, :1]).all(2).all(1)
    assert (bars | stripes).all()
    patterns, counts = x.flatten(1).unique(dim=0, return_counts=True)
    uniform = (patterns == patterns[:, :1]).all(1)
    if side > 1:
        assert len(patterns) == 2 * 2**side - 2
        assert counts[uniform].tolist() == [2, 2]
        assert (counts[~uniform] == 1).all()


def test_two_moons_have_the_noise_asked_for():
    data = ebmcore.create_dataset("two-moons", noise=0.0, n_train=1000)
    upper = data.train[data.train[:, 1] > 0.6]  # only the upper moon reaches there
    torch.testing.assert_close((upper - torch.tensor([-1.0, -0.5])).norm(dim=1), torch.full((len(upper),), 2.0))


def test_ring_modes_have_equal_shares():
    """A ring has its modes in equal shares."""
    data = ebmcore.create_dataset("ring-of-gaussians", n_modes=5, radius=3.0, std=0.1, n_train=20_000)
    nearest = torch.cdist(data.train, data.centres)
    shares = torch.bincount(nearest.argmin(1), minlength=5) / 20_000
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.012, rtol=0)
    spread = data.train - data.centres[nearest.argmin(1)]
    assert spread.std().item() == pytest.approx(0.1, rel=0.02)
    torch.testing.assert_close(data.centres.norm(dim=1), torch.full((5,), 3.0))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("bars-and-stripes", {"side": 0}),
        ("bars-and-stripes", {"side": 11}),
        ("ring-of-gaussians", {"n_modes": 0}),
        ("ring-of-gaussians", {"std": 0.0}),
        ("ring-of-gaussians", {"n_train": -1}),
        ("ring-of-gaussians", {"n_test": 0}),
        ("ring-of-gaussians", {"n_train": 2**32}),
        ("two-moons", {"n_train": -1}),
        ("two-moons", {"n_test": 2**32}),
        ("two-moons", {"n_test": 0}),
        ("two-moons", {"noise": float("nan")}),
        ("25-gaussians", {"spacing": 0.0}),
        ("25-gaussians", {"std": float("inf")}),
        ("eight-gaussians", {"n_train": 0}),
        ("spirals", {"noise": 0.0}),
        ("rings", {"n_rings": 0}),
        ("rings", {"noise": float("nan")}),
        ("checkerboard", {"n_test": 0}),
        ("gray-code", {"bits": 9}),
        ("gray-code", {"density": "digits"}),
        ("gray-code", {"n_train": 0}),
        ("ising-samples", {"height": 1}),
        ("ising-samples", {"height": 11, "width": 11}),
        ("ising-samples", {"width": 33}),
        ("ising-samples", {"coupling": float("nan")}),
    ],
)
def test_invalid_options_raise(name, arguments):
    """A value that cannot work raises an error."""
    with pytest.raises(ValueError, match="must be |need n_|need spacing|need one side|from 1 to 10,000,000"):
        ebmcore.create_dataset(name, **arguments)

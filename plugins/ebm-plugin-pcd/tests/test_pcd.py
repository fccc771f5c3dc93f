"""Persistent CD."""

from __future__ import annotations

import pytest
import torch

import ebmcore
from ebm_plugin_pcd.loss import PersistentContrastiveDivergence as PCD
from ebmcore.distributions import Normal
from ebmcore.testing import DoubleWell, Identity, Quadratic


def test_ten_thousand_steps_keep_every_chain():
    loss = PCD(Quadratic(), Identity(), n_chains=100)
    loss.generator = torch.Generator().manual_seed(0)
    x = torch.zeros(64, 2)
    loss(x)
    before = {int(i): row.clone() for i, row in zip(loss.chains.ids, loss.chain, strict=True)}
    for _ in range(10_000):
        loss.draw_negatives(x)
    assert sorted(loss.chains.ids.tolist()) == list(range(100))
    assert all(torch.equal(before[int(i)], row) for i, row in zip(loss.chains.ids, loss.chain, strict=True))


def test_chains_stay_spread_over_both_wells():
    # With lineages lost at each step, all chains end in one well.
    loss = PCD(DoubleWell(), Identity(), n_chains=100)
    loss.generator = torch.Generator().manual_seed(0)
    chain = loss.initialize_persistent_chain((100, 2))
    chain[:, 0] = torch.where(torch.arange(100) < 50, 2.0, -2.0)
    for _ in range(1000):
        loss.draw_negatives(torch.zeros(64, 2))
    assert (loss.chain[:, 0] > 0).sum() == 50


def test_restarts_sample_initial_distribution():
    """Restarts are fresh samples of the initial distribution."""
    initial = Normal(torch.tensor([3.0]), 2.0)
    loss = PCD(Quadratic((1,)), Identity(), n_chains=20_000, restart_prob=1.0, initial=initial)
    loss.generator = torch.Generator().manual_seed(0)
    loss.initialize_persistent_chain((20_000, 1)).zero_()
    _, pred_x = loss(torch.zeros(20_000, 1))
    assert pred_x.mean().item() == pytest.approx(3.0, abs=0.06)
    assert pred_x.std().item() == pytest.approx(2.0, abs=0.04)


def test_chains_can_start_at_the_data():
    loss = PCD(Quadratic(), Identity(), n_chains=50, initial="data")
    x = torch.arange(4.0)[:, None].expand(4, 2)
    loss(x)
    assert set(loss.chain[:, 0].tolist()) == {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize("restart_prob", [0.0, 1.0])
def test_data_start_takes_labels(restart_prob):
    """Chains that start at the data start under the labels of their examples."""

    class Labelled(Quadratic):
        def forward(self, x, label):
            return super().forward(x)

    loss = PCD(Labelled(), Identity(), n_chains=50, initial="data", restart_prob=restart_prob)
    for batch in (torch.arange(8.0), torch.arange(8.0) + 100):
        loss(batch[:, None].expand(8, 2).clone(), batch)
    assert torch.equal(loss.chain[:, 0], loss.chains.conditions["0"])
    assert (loss.chain.max() >= 100) == bool(restart_prob)


def test_torch_distribution_is_refused():
    """A distribution of torch is refused as the start."""
    with pytest.raises(ValueError, match="as those of ebmcore.distributions have"):
        PCD(Quadratic(), Identity(), initial=torch.distributions.Normal(torch.zeros(2), torch.ones(2)))


def test_data_start_leaves_global_generator():
    """Chains that start at the data take nothing from the global generator."""
    before = torch.get_rng_state()
    loss = PCD(Quadratic(), Identity(), n_chains=50, initial="data", restart_prob=0.5)
    loss.generator = torch.Generator().manual_seed(0)
    loss(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_starting_at_the_data_needs_data():
    with pytest.raises(ValueError, match="call the loss on data first"):
        PCD(Quadratic(), Identity(), initial="data").initialize_persistent_chain((10, 2))


def test_loaded_chain_count_must_match():
    """Loaded chains of another number are not replaced silently."""
    used = PCD(Quadratic(), Identity(), n_chains=20)
    used(torch.zeros(8, 2))
    fresh = PCD(Quadratic(), Identity(), n_chains=30)
    fresh.load_state_dict(used.state_dict())
    with pytest.raises(ValueError, match=r"the loss holds chains \(20, 2\)"):
        fresh(torch.zeros(8, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_chains": 0}, "n_chains must be a whole number of at least 1"),
        ({"restart_prob": 1.5}, r"restart_prob must be a probability in \[0, 1\]"),
        ({"initial": "noise"}, "initial must be 'model', 'data'"),
        ({"n_chain": 3}, "Did you mean 'n_chains'"),
    ],
)
def test_invalid_options_raise_with_advice(arguments, message):
    """A value that cannot work raises an error with advice."""
    with pytest.raises((ValueError, TypeError), match=message):
        PCD(Quadratic(), Identity(), **arguments)


def test_it_is_installed_under_its_name():
    assert ebmcore.host.load("loss", "ebm-plugin-pcd:pcd") is PCD


def test_data_noise_uses_loss_generator():
    """Noise is added to the data and drawn from the loss's generator."""
    x, losses = torch.zeros(2000, 2), []
    for noise in (0.0, 0.5, 0.5):
        loss = PCD(Quadratic(), Identity(), n_chains=10, data_noise=noise)
        loss.generator = torch.Generator().manual_seed(0)
        loss(x)
        losses.append(loss.metrics["energy_data"].item())
    assert losses[0] == 0
    assert losses[1] == losses[2] == pytest.approx(0.25, rel=0.1)  # mean of (x^2 + y^2) / 2
    assert (x == 0).all()


def test_chains_may_start_from_uniform_noise():
    loss = PCD(Quadratic(), Identity(), n_chains=5000, initial="uniform")
    x = loss.initialize_persistent_chain((5000, 2))
    assert x.abs().max() <= 1
    assert x.var().item() == pytest.approx(1 / 3, rel=0.05)


def test_negative_noise_is_an_error():
    with pytest.raises(ValueError, match="data_noise must be at least 0"):
        PCD(Quadratic(), Identity(), data_noise=-1.0)

"""The loss `ptcd`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ebmcore
from ebm_plugin_tempering.loss import ParallelTemperingContrastiveDivergence as PTCD
from ebm_plugin_tempering.tempering import Tempering
from ebmcore import BasePersistentContrastiveDivergence
from ebmcore.testing import DoubleWell, Drift, EnumerableRBM, Identity, Poison, Quadratic, SiteGibbs


class PCD(BasePersistentContrastiveDivergence):
    forward, compute_loss = lambda self, x: (self.compute_loss(x, p := self.draw_negatives(x)), p), PTCD.compute_loss


def train(loss, steps=10):
    """Parameters, chains and losses of a short training."""
    loss.generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(loss.energy.parameters(), lr=0.05)
    values = []
    for i in range(steps):
        value, _ = loss(torch.randn(8, 2, generator=torch.Generator().manual_seed(i)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.detach())
    return [*(p.detach() for p in loss.energy.parameters()), *loss.chains.state_dict().values(), *values]


def equal(a, b):
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def test_one_rung_is_pcd_bit_for_bit():
    pcd, ptcd = PCD(DoubleWell(), Drift(), 3, n_chains=20), PTCD(DoubleWell(), Drift(), 3, n_rungs=1, n_chains=20)
    n_parameters = len(list(DoubleWell().parameters()))
    a, b = train(pcd), train(ptcd)
    assert equal(a[:n_parameters], b[:n_parameters])
    assert equal(a[-10:], b[-10:])
    assert torch.equal(pcd.chain, ptcd.chain)


def test_it_is_pcd_with_the_sampler_tempering():
    ladder = {"n_rungs": 3, "min_beta": 0.3, "adapt": 0.1}
    pcd = PCD(DoubleWell(), Tempering(Drift(), **ladder), 2, n_chains=20)
    assert equal(train(pcd), train(PTCD(DoubleWell(), Drift(), 2, n_chains=20, **ladder)))


def test_whole_ladder_persists():
    """The whole ladder persists and the negatives are its coldest replicas."""
    loss = PTCD(Quadratic((2,)), Drift(), n_rungs=3, n_chains=12)
    loss.generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        _, pred_x = loss(torch.ones(12, 2))
    held = loss.chains.state_dict()
    assert held["rungs.x"].shape == (12, 2, 2)
    assert torch.equal(torch.sort(pred_x[:, 0]).values, torch.sort(held["x"][:, 0]).values)
    replicas = torch.cat([held["x"].unsqueeze(1), held["rungs.x"]], 1)
    assert len(replicas.flatten(0, 1).unique(dim=0)) == 36


def test_saved_ladder_resumes_exactly():
    """A saved ladder resumes bit for bit."""

    def fresh():
        return PTCD(EnumerableRBM((2,), 2), SiteGibbs(), n_rungs=3, n_chains=12)

    def call(loss, seed):
        loss.generator = torch.Generator().manual_seed(seed)
        return loss(torch.ones(6, 2))

    on = fresh()
    call(on, 1)
    resumed = fresh()
    resumed.load_state_dict(on.state_dict())
    assert equal(call(on, 2), call(resumed, 2))
    assert equal(on.state_dict().values(), resumed.state_dict().values())


def test_lost_replica_restarts_its_chain():
    """A lost replica restarts its chain and has no weight."""
    loss = PTCD(Quadratic((2,)), Poison(2), n_rungs=3, n_chains=8)
    value, pred_x = loss(torch.ones(8, 2))
    assert loss.metrics["quarantined"] == 1
    assert value.isfinite()
    assert pred_x.isnan().any(1).sum() == 1
    assert all(t.isfinite().all() for t in loss.chains.state_dict().values())


def test_labels_stay_with_their_ladder():
    from ebmcore.testing import Labelled

    energy = Labelled()
    loss = PTCD(energy, Drift(), 2, n_rungs=3, n_chains=16)
    labels = torch.arange(8)
    for _ in range(4):
        loss(torch.randn(8, 4), labels)
    assert sorted(loss.chains.conditions["0"].tolist()) == sorted([*range(8)] * 2)


def test_ptcd_finds_mode_masses():
    """It finds the masses of two modes where PCD stays in one."""

    class Metropolis(Identity):
        def step(self, energy, state, *, generator=None):
            y = state.x + 0.7 * torch.randn(state.x.shape, generator=generator)
            log_accept = (energy(state.x) - energy(y)).double()
            accepted = torch.rand(len(y), generator=generator, dtype=torch.float64).log() < log_accept
            return replace(state, x=torch.where(accepted[:, None], y, state.x)), {}

    energy, shares = DoubleWell(height=12.0, tilt=0.5), []
    for loss in (PCD(energy, Metropolis(), 800, n_chains=2000), PTCD(energy, Metropolis(), 800, n_rungs=6, n_chains=2000)):
        loss.initialize_persistent_chain((2000, 1)).fill_(2.0)
        loss.generator = torch.Generator().manual_seed(0)
        _, pred_x = loss(torch.ones(2000, 1))
        shares.append((pred_x[:, 0] < 0).double().mean().item())
    mass = energy.mass(-12, 0)
    assert shares[0] < 0.02 < 0.5 < mass
    assert abs(shares[1] - mass) < 4.5 * (mass * (1 - mass) / 2000) ** 0.5


@pytest.mark.parametrize("options", [{"n_rungs": 0}, {"rungs": 2}, {"n_chains": 0}])
def test_invalid_options_raise(options):
    """A value that cannot work raises an error."""
    with pytest.raises((ValueError, TypeError)):
        PTCD(Quadratic(), Identity(), **options)


def test_it_is_installed_under_its_name():
    assert ebmcore.host.load("loss", "ebm-plugin-tempering:ptcd") is PTCD

"""Fast PCD."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ebmcore
from ebm_plugin_fpcd.loss import FastPersistentContrastiveDivergence as FPCD
from ebmcore import BasePersistentContrastiveDivergence, BaseSampler
from ebmcore.testing import DoubleWell, Identity, Quadratic


class PCD(BasePersistentContrastiveDivergence):
    forward, compute_loss = lambda self, x: (self.compute_loss(x, p := self.draw_negatives(x)), p), FPCD.compute_loss


class Spy(BaseSampler):
    """Notes the parameters under which chains move."""

    def __init__(self):
        self.seen = []

    def step(self, energy, state, *, generator=None):
        self.seen.append([p.detach().clone() for p in energy.parameters()])
        return state, {}


class Down(BaseSampler):
    """Follows the energy's gradient, with noise."""

    def step(self, energy, state, *, generator=None):
        _, grad = ebmcore.value_and_grad(energy, state.x)
        noise = torch.randn(state.x.shape, generator=generator, dtype=state.x.dtype)
        return type(state)(state.x - 0.1 * grad + 0.4 * noise), {}


def train(loss, steps=20):
    """Parameters, chains and losses of a short training."""
    loss.generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(loss.energy.parameters(), lr=0.05)
    values = []
    for i in range(steps):
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(i))
        value, _ = loss(x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.detach())
    return [*(p.detach() for p in loss.energy.parameters()), loss.chain, *values]


def test_zero_fast_rate_equals_pcd():
    """Without fast weights it is PCD bit for bit."""
    results = [train(cls(DoubleWell(), Down(), 3, n_chains=20, **o)) for cls, o in ((PCD, {}), (FPCD, {"fast_lr": 0.0}))]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_fast_weights_move_only_chains():
    """Chains move under both sets and everything is scored under the slow one."""
    spy = Spy()
    loss = FPCD(Quadratic((2,)), spy, fast_lr=1.0)
    for fast in loss.fast.buffers():
        fast.fill_(0.5)
    slow = [p.detach().clone() for p in loss.energy.parameters()]
    x = torch.ones(4, 2)
    value, pred_x = loss(x)
    assert all(torch.equal(seen, s + 0.5) for seen, s in zip(spy.seen[0], slow, strict=True))
    assert torch.allclose(value, loss.energy(x).mean() - loss.energy(pred_x).mean(), atol=1e-6)
    assert all(torch.equal(p, s) for p, s in zip(loss.energy.parameters(), slow, strict=True))


def test_fast_weights_follow_their_rule():
    loss = FPCD(Quadratic((2,)), Identity(), fast_lr=0.3, fast_decay=0.9, n_chains=8)
    expected = torch.zeros(())
    for i in range(5):
        value, _ = loss(torch.full((4, 2), float(i)))
        loss.energy.precision.grad = None
        value.backward()
        expected = 0.9 * expected - 0.3 * loss.energy.precision.grad
        torch.testing.assert_close(loss.fast.precision, expected)
    assert loss.metrics["fast_weights"] > 0


class Plane(nn.Module):
    """``E(x) = w x``; with a capability of its own that uses the weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return x @ self.weight

    def sample_hidden(self, x, *, generator=None):
        return x + self.weight


def test_fast_weights_raise_energy_at_chains():
    """Fast weights raise the energy where the chains stay."""
    loss = FPCD(Plane(), Identity(), fast_lr=0.1, n_chains=8)
    loss.initialize_persistent_chain((8, 2)).fill_(2.0)
    for _ in range(10):
        loss(torch.tensor([[2.0, 0.0], [-2.0, 0.0]] * 4))
    with loss.negative_phase():
        assert (loss.energy(loss.chain) > 1).all()
    assert (loss.energy(loss.chain) == 0).all()


def test_data_statistics_use_slow_weights():
    """Statistics of the data are taken at the slow weights."""

    class Observing(Quadratic):
        def observe_data(self, x):
            self.seen = self.precision.item()

    loss = FPCD(Observing((2,), precision=1.5), Identity(), n_chains=10)
    loss.fast.precision.fill_(7.0)
    loss(torch.ones(4, 2))
    assert loss.energy.seen == 1.5


def test_capabilities_see_fast_weights():
    """Capabilities of the energy see the fast weights."""

    class Capable(BaseSampler):
        def step(self, energy, state, *, generator=None):
            return type(state)(energy.sample_hidden(state.x, generator=generator)), {}

    loss = FPCD(Plane(), Capable(), n_chains=4)
    loss.initialize_persistent_chain((4, 2)).zero_()
    loss.fast.weight.fill_(3.0)
    assert (loss(torch.zeros(4, 2))[1] == 3).all()


def test_slow_weights_return_after_error():
    """The slow weights come back when the sampler raises."""

    class Broken(BaseSampler):
        def step(self, energy, state, *, generator=None):
            raise KeyError("mine")

    loss = FPCD(Quadratic((2,)), Broken())
    for fast in loss.fast.buffers():
        fast.fill_(0.5)
    before = [p.detach().clone() for p in loss.energy.parameters()]
    with pytest.raises(KeyError):
        loss(torch.zeros(4, 2))
    assert all(torch.equal(p, b) for p, b in zip(loss.energy.parameters(), before, strict=True))


def test_untrained_parameters_have_no_fast_weights():
    """Parameters that are not trained have no fast weights."""
    loss = FPCD(Quadratic((2,)), Identity(), fast_lr=0.3)
    loss.energy.mean.requires_grad_(False)
    loss(torch.ones(4, 2))
    assert loss.fast.mean.abs().sum() == 0
    assert loss.fast.precision.abs().sum() > 0


def test_it_works_where_no_gradient_is_wanted():
    loss = FPCD(Quadratic((2,)), Identity(), fast_lr=0.3)
    with torch.no_grad():
        loss(torch.ones(4, 2))
    assert loss.fast.precision.abs().sum() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fast_lr": -1.0}, "fast_lr must be at least 0"),
        ({"fast_decay": 1.0}, r"fast_decay must be in \[0, 1\)"),
        ({"fast_rate": 1.0}, "unknown keyword 'fast_rate'"),
    ],
)
def test_invalid_options_raise_with_advice(options, message):
    """A value that cannot work raises an error with advice."""
    with pytest.raises((ValueError, TypeError), match=message):
        FPCD(Quadratic(), Identity(), **options)


def test_it_is_installed_under_its_name():
    assert ebmcore.host.load("loss", "ebm-plugin-fpcd:fpcd") is FPCD


def test_nan_batch_keeps_fast_weights():
    """A batch that is not finite leaves the fast weights."""
    loss = FPCD(Quadratic((2,)), Identity(), n_chains=8, fast_lr=0.1)
    x = torch.ones(4, 2)
    loss(x)
    before = [fast.clone() for fast in loss.fast.buffers()]
    value, _ = loss(x * torch.nan)
    assert value.isnan()
    assert any(fast.any() for fast in before)
    assert all(torch.equal(a, b) for a, b in zip(before, loss.fast.buffers(), strict=True))

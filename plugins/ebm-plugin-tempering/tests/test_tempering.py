"""The sampler `tempering`: exact matrices of whole ladders, one rung, diagnostics, adaptation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import ebmcore
import ebmcore.tempering
from ebm_plugin_tempering.tempering import LadderState, Tempering
from ebmcore import BaseSampler, ChainState, run, tempered
from ebmcore.conditions import condition
from ebmcore.energies import SupportsBlockGibbs, frozen
from ebmcore.errors import MissingCapabilityError
from ebmcore.samplers import check_sampler
from ebmcore.testing import (
    Affine,
    Cached,
    Drift,
    EnumerableRBM,
    Identity,
    Mixture,
    Poison,
    Quadratic,
    SiteGibbs,
    Watched,
    outcomes,
)


class BlockGibbs(BaseSampler):
    requires = (SupportsBlockGibbs,)
    exact = True

    def step(self, energy, state, *, generator=None):
        hidden = energy.sample_hidden(state.x, generator=generator)
        return replace(state, x=energy.sample_visible(hidden, generator=generator)), {}


class Flat(nn.Module):
    """All examples alike."""

    def forward(self, x):
        return 0 * x.flatten(1).sum(1)


def start(sampler, energy, x, generator=None):
    with frozen(energy), torch.no_grad():
        return sampler.init(energy, x, generator=generator)


def ladder(sampler, energy, replicas):
    """The state of chains with given replicas ``(N, R, *shape)``."""
    state = start(sampler, energy, replicas[:, 0])
    return state.with_tensors(state.tensors() | {"rungs.x": replicas[:, 1:]})


def matrix(sampler, energy, first):
    """Transition probabilities between all replicas of a ladder: state ``i`` holds the digits of ``i``, rung by rung."""
    n_states, n_rungs = len(energy.states()), len(sampler.betas)
    digits = torch.cartesian_prod(*[torch.arange(n_states)] * n_rungs)
    whole = ladder(sampler, energy, energy.states()[digits])
    whole = replace(whole, odd=torch.full_like(whole.odd, first == "odd"))
    place = n_states ** torch.arange(n_rungs - 1, -1, -1)
    found = torch.zeros(len(digits), len(digits), dtype=torch.float64)
    for rows in torch.arange(len(digits)).split(16):  # all outcomes of all ladders at once would be many

        def step(i, rows=rows):
            chosen = {name: t[rows[i]] for name, t in whole.tensors().items()}
            after = sampler.step(energy, whole.with_tensors(chosen))[0]
            codes = energy.codes(after.rungs.x).view(-1, n_rungs)
            return (codes * place).sum(1)

        with frozen(energy), torch.no_grad():
            o = outcomes(step, len(rows))
        found.index_put_((rows[o.start], o.value.long()), o.probability, accumulate=True)
    laws = [
        torch.softmax(-tempered(energy, torch.tensor(b, dtype=torch.float64))(energy.states()), 0) for b in sampler.betas
    ]
    law = laws[0]
    for other in laws[1:]:
        law = torch.outer(law, other).flatten()
    return found, law.detach()


@pytest.mark.parametrize("first", ["even", "odd"])
@pytest.mark.parametrize("inner", [BlockGibbs(), SiteGibbs()], ids=["block", "site"])
@pytest.mark.parametrize("betas", [(1.0, 0.3), (1.0, 0.5, 0.0)], ids=["two", "three"])
def test_ladder_matrix_keeps_exact_law(betas, inner, first):
    """The matrix of a ladder over a 2x2 RBM leaves the exact law invariant."""
    sampler, energy = Tempering(inner, betas=betas), EnumerableRBM((2,), 2, scale=1.5).double()
    found, law = matrix(sampler, energy, first)
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)).double(), atol=1e-12, rtol=0)
    assert (law @ found - law).abs().max() < 1e-12


@pytest.mark.parametrize("energy", [Quadratic((3,)), Mixture()], ids=["quadratic", "closed form"])
def test_one_rung_equals_inner_sampler(energy):
    """One rung is the inner sampler bit for bit."""
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    results = []
    for sampler in (Drift(), Tempering(Drift(), n_rungs=1)):
        g = torch.Generator().manual_seed(0)
        state, info = run(sampler, energy, start(sampler, energy, x, g), 5, generator=g)
        results.append([state.x, info["moved"], g.get_state()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_all_replicas_move_in_one_call():
    """All replicas of all chains move in one call each at its own temperature."""
    seen = []

    class Spy(BaseSampler):
        def step(self, energy, state, *, generator=None):
            seen.append(energy(state.x))
            return state, {}

    sampler, energy = Tempering(Spy(), betas=(1.0, 0.5, 0.25)), Quadratic((2,))
    run(sampler, energy, start(sampler, energy, torch.tensor([[2.0, 0.0], [0.0, 4.0]])), 1)
    (energies,) = seen
    torch.testing.assert_close(energies.view(2, 3), torch.tensor([[2.0, 1.0, 0.5], [8.0, 4.0, 2.0]]))


def test_replicas_share_chain_conditions():
    """Each replica has the condition of its chain."""

    class OfLabel(nn.Module):
        def forward(self, x, label):
            assert x.shape[:1] == label.shape
            assert (x[:, 0].round() == label).all()
            return x.sum(1)

    sampler, x = Tempering(Identity(), n_rungs=3), torch.arange(5.0)[:, None].repeat(1, 2)
    conditioned = ChainState(x, conditions={"0": torch.arange(5)})
    energy = condition(OfLabel(), conditioned.conditions)
    state = start(sampler, energy, x)
    state = replace(state, conditions=conditioned.conditions)
    after, _ = run(sampler, OfLabel(), state, 4)
    assert torch.equal(after.conditions["0"], torch.arange(5))


def test_ladder_keeps_conditional_rbm():
    """Conditional RBMs keep their conditionals on the ladder."""

    class Shifted(EnumerableRBM):
        """Another visible bias for each chain."""

        def forward(self, x, shift):
            return super().forward(x) - x.flatten(1) @ torch.ones(2).double() * shift

        def sample_hidden(self, x, shift, **kwargs):
            return super().sample_hidden(x, **kwargs)

        def sample_visible(self, hidden, shift, *, beta=None, generator=None):
            logits = hidden @ self.weight.T + self.visible_bias + shift[:, None]
            beta = torch.ones(len(hidden)) if beta is None else beta
            return torch.bernoulli((beta[:, None] * logits).sigmoid(), generator=generator)

        def tempered(self, beta, base=None):
            return Hot(self, beta)

    class Hot(nn.Module):
        def __init__(self, rbm, beta):
            super().__init__()
            self.rbm, self.beta = rbm, beta

        def forward(self, x, shift):
            logits = self.beta.unsqueeze(-1) * self.rbm._hidden_logits(x)
            linear = x.flatten(1) @ self.rbm.visible_bias + shift * x.flatten(1).sum(1)
            return -self.beta * linear - nn.functional.softplus(logits).sum(-1)

        def sample_hidden(self, x, shift, generator=None):
            return self.rbm.sample_hidden(x, shift, beta=self.beta, generator=generator)

        def sample_visible(self, hidden, shift, generator=None):
            return self.rbm.sample_visible(hidden, shift, beta=self.beta, generator=generator)

    energy, n = Shifted((2,), 2).double(), 40_000
    shift, x = torch.tensor([-1.0, 1.0]).repeat(n // 2).double(), torch.zeros(n, 2).double()
    sampler, g = Tempering(BlockGibbs(), betas=(1.0, 0.3)), torch.Generator().manual_seed(0)
    state = start(sampler, condition(energy, {"0": shift}), x, g)
    after, _ = run(sampler, energy, replace(state, conditions={"0": shift}), 20, generator=g)
    for value in (-1.0, 1.0):
        states = energy.states()
        with torch.no_grad():
            p = torch.softmax(-energy(states, torch.full((4,), value).double()), 0)
        found = torch.bincount(energy.codes(after.x[shift == value]), minlength=4) / (n / 2)
        assert (found - p).abs().max() < 4.5 * 0.5 / (n / 2) ** 0.5


def test_swaps_are_decided_in_float64():
    dtypes = []

    class Notes(Quadratic):
        def tempered(self, beta, base=None):
            dtypes.append(beta.dtype)
            return ebmcore.tempering.Tempered(self, beta, base)

    sampler, energy = Tempering(Identity(), n_rungs=2), Notes((2,)).bfloat16()
    run(sampler, energy, start(sampler, energy, torch.ones(3, 2).bfloat16()), 1)
    assert torch.float64 in dtypes


def test_swap_takes_one_evaluation():
    """Energies for a swap take one evaluation of all replicas."""
    calls = []
    energy = Watched(Quadratic((2,)), lambda x: calls.append(len(x)))
    sampler = Tempering(Identity(), n_rungs=5)
    state = start(sampler, energy, torch.ones(4, 2))
    calls.clear()
    run(sampler, energy, state, 3)
    assert calls == [20, 20, 20]


def test_swap_updates_inner_cache():
    """What the inner sampler caches is that of the new temperature."""
    cached, energy = Cached(), Quadratic((2,))
    sampler, g = Tempering(cached, n_rungs=4, adapt=0.1), torch.Generator().manual_seed(0)
    replicas = torch.randn(50, 4, 2, generator=g)
    state = start(sampler, energy, torch.zeros(50, 2))
    state = sampler.refresh(energy, state.with_tensors(state.tensors() | {"x": replicas[:, 0], "rungs.x": replicas[:, 1:]}))
    _, info = run(sampler, energy, state, 6, generator=g)
    assert 0 < info["swap_rate"].mean() < 1
    assert max(cached.stale) < 1e-6


def test_certain_swaps_make_round_trips():
    """Replicas that always exchange make a round trip every two ladders."""
    sampler = Tempering(Identity(), n_rungs=4)
    state, _ = run(sampler, Flat(), start(sampler, Flat(), torch.zeros(3, 2)), 16)  # until every replica has been everywhere
    _, info = run(sampler, Flat(), state, 80)
    assert info["swap_rate"].tolist() == [1.0] * 3
    assert info["round_trip_rate"].tolist() == [0.5] * 3  # each of 4 replicas once in 8 steps


def test_coldest_replica_finds_both_modes():
    """The coldest replica finds both modes of a density and the inner sampler alone does not."""

    class Metropolis(BaseSampler):
        exact = True

        def step(self, energy, state, *, generator=None):
            y = state.x + torch.randn(state.x.shape, generator=generator)
            log_accept = (energy(state.x) - energy(y)).double()
            accepted = torch.rand(len(y), generator=generator, dtype=torch.float64).log() < log_accept
            return replace(state, x=torch.where(accepted[:, None], y, state.x)), {}

    density, n = Mixture((0.3, 0.7), (-5.0, 5.0)), 3000
    shares = []
    for sampler in (Metropolis(), Tempering(Metropolis(), n_rungs=8, min_beta=0.05)):
        g = torch.Generator().manual_seed(0)
        state, _ = run(
            sampler, density, start(sampler, density, torch.tensor([[-5.0], [5.0]]).repeat(n // 2, 1), g), 1000, generator=g
        )
        shares.append((state.x[:, 0] > 0).double().mean())
    assert abs(shares[0] - 0.5) < 0.02  # where they started
    assert abs(shares[1] - 0.7) < 4.5 * (0.21 / n) ** 0.5


def test_adaptation_evens_swap_rates():
    """An adapting ladder evens out its swap rates and a fixed one keeps the result."""
    energy = Quadratic((20,))

    class Exact(BaseSampler):
        exact = True

        def step(self, energy, state, *, generator=None):
            noise = torch.randn(state.x.shape, generator=generator)
            return replace(state, x=noise / energy.beta.sqrt()[:, None]), {}

    uneven, g = (1.0, 0.9, 0.8, 0.1), torch.Generator().manual_seed(0)
    state = start(Tempering(Exact(), betas=uneven), energy, torch.zeros(400, 20), g)

    def rates(state):
        """Expected swap rate of each pair."""
        found = []
        for odd in (False, True):
            now = replace(state, odd=torch.full_like(state.odd, odd))
            moved, _ = run(Tempering(Exact(), betas=uneven), energy, now, 1, generator=g)
            beta, x2 = now.beta, moved.rungs.x.square().sum(1).view(400, 4) / 2
            change = (beta[:, 1:] - beta[:, :-1]) * (x2[:, 1:] - x2[:, :-1])
            found.append(change.clamp(max=0).exp().mean(0))
        return torch.stack(found).mean(0)

    before = rates(state)
    adapted, _ = run(Tempering(Exact(), betas=uneven, adapt=0.3), energy, state, 200, generator=g)
    adapted, _ = run(Tempering(Exact(), betas=uneven, adapt=0.03), energy, adapted, 600, generator=g)
    after = rates(adapted)
    assert before.max() / before.min() > 5
    assert after.max() / after.min() < 1.3
    assert torch.equal(adapted.beta[:, 0], torch.ones(400))
    torch.testing.assert_close(adapted.beta[:, -1], torch.full((400,), 0.1))
    fixed, _ = run(Tempering(Exact(), betas=uneven), energy, adapted, 5, generator=g)
    assert torch.equal(fixed.beta, adapted.beta)


def test_lost_replica_loses_its_chain():
    """A replica that is lost takes its chain with it."""
    sampler, energy = Tempering(Poison(3), n_rungs=3), Quadratic((2,))
    state, _ = run(sampler, energy, start(sampler, energy, torch.ones(5, 2)), 1)
    assert state.finite().tolist() == [False, True, True, True, True]
    assert state.x[0].isnan().all()


def test_state_is_complete_without_copies():
    """The state says all and holds no position twice."""
    sampler, energy = Tempering(Affine(), n_rungs=3), Quadratic((2,))
    state = start(sampler, energy, torch.zeros(4, 2))
    shapes = {name: tuple(t.shape) for name, t in state.tensors().items()}
    assert shapes == {
        "x": (4, 2), "rungs.x": (4, 2, 2), "beta": (4, 3), "was_hottest": (4, 3), "odd": (4,)
    }  # fmt: skip
    again = state.with_tensors({name: t.clone() for name, t in state.tensors().items()})
    assert isinstance(again, LadderState)
    assert torch.equal(again.rungs.x, state.rungs.x)


def test_untempered_conditionals_raise_early():
    """Conditionals without a tempered path raise an error before the first step."""

    class Untempered(EnumerableRBM):
        tempered = None

    with pytest.raises(MissingCapabilityError, match="Tempering needs an energy with the capability SupportsTempering"):
        check_sampler(Tempering(BlockGibbs()), Untempered())
    check_sampler(Tempering(BlockGibbs(), n_rungs=1), Untempered())


class Warm(BaseSampler):
    temperature = 0.5

    def step(self, energy, state, *, generator=None):
        return state, {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (0.9, 0.5)}, "betas must fall from 1"),
        ({"betas": (1.0, 0.5, 0.5)}, "betas must fall from 1"),
        ({"betas": (1.0, -0.1)}, "betas must fall from 1"),
        ({"betas": ()}, "betas must fall from 1"),
        ({"n_rungs": 0}, "n_rungs must be a whole number"),
        ({"n_rungs": -1, "betas": (1.0, 0.5)}, "n_rungs must be a whole number"),
        ({"n_rungs": 10**12}, "n_rungs must be at most 1000"),
        ({"min_beta": 1.0}, r"min_beta must be in \[0, 1\)"),
        ({"adapt": -1.0}, "adapt must be at least 0"),
        ({"inner_options": {"step_size": 1.0}}, "inner_options belong to an inner sampler given by name"),
        ({"inner": Identity}, "inner must be a sampler or the name of one"),
        ({"inner": Tempering(Identity())}, "inner is a ladder already"),
        ({"inner": Warm()}, "give the inner sampler temperature 1, not 0.5"),
        ({"rungs": 3}, "unknown keyword 'rungs'"),
    ],
)
def test_invalid_options_raise_with_advice(options, message):
    """A value that cannot work raises an error with advice."""
    with pytest.raises((ValueError, TypeError), match=message):
        Tempering(**{"inner": Identity()} | options)


def test_the_inner_sampler_may_be_named():
    class Plugin:
        @ebmcore.hookimpl
        def ebmcore_register(self, register):
            register.sampler("moving", Affine)

    with ebmcore.temporary_plugin(Plugin()):
        sampler = ebmcore.create_sampler("tempering", inner="moving", inner_options={"shift": 3.0}, n_rungs=2)
    assert isinstance(sampler.inner, Affine)
    assert sampler.inner.shift == 3.0

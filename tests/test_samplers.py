"""The driver `run`, and `sample`: what they guarantee for every sampler."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from ebmcore import BaseSampler, ChainState, run, value_and_grad
from ebmcore.compiling import CompiledTransitions
from ebmcore.energies import frozen
from ebmcore.errors import UnknownKeywordError
from ebmcore.samplers import as_rows, check_sampler, eager_transitions, finite_rows, sample, select_chains
from ebmcore.testing import Affine, Identity, Moody, Quadratic, Raising, Watched
from ebmcore.testing.awkward import EnergyError
from ebmcore.testing.instruments import Trace


class Drift(BaseSampler):
    """Follows the gradient, with noise."""

    def step(self, energy, state, *, generator=None):
        _, grad = value_and_grad(energy, state.x)
        return replace(state, x=state.x - 0.1 * grad + 0.1 * torch.randn_like(state.x, generator=generator)), {}


class Pole(nn.Module):
    """Not a number left of zero."""

    def forward(self, x):
        return x.sqrt().flatten(1).sum(1)


def test_sampling_leaves_no_trace():
    """Modes, flags, buffers and gradients of the energy are bit for bit what they were."""
    torch.manual_seed(0)
    energy = Moody()
    energy(torch.randn(8, 2)).sum().backward()
    before = Trace.of(energy)
    run(Drift(), energy, ChainState(torch.randn(4, 2)), 20, generator=torch.Generator().manual_seed(0))
    assert before.changes(energy) == []


def test_an_energys_error_leaves_no_trace():
    """The error reaches the caller, and the energy is what it was."""
    energy = Watched(Quadratic(), Raising())
    before = Trace.of(energy)
    with pytest.raises(EnergyError):
        run(Drift(), energy, ChainState(torch.zeros(4, 2)), 1)
    assert before.changes(energy) == []


def test_steps_see_a_frozen_energy():
    """In evaluation mode, and no parameter asks for a gradient."""
    seen = []

    class Spy(BaseSampler):
        def step(self, energy, state, *, generator=None):
            seen.append((energy.training, any(p.requires_grad for p in energy.parameters())))
            return state, {}

    run(Spy(), Moody().train(), ChainState(torch.zeros(2, 2)), 1)
    assert seen == [(False, False)]


def test_flags_the_energy_sets_are_restored():
    """An energy that changes its own mode and flags in ``forward`` has them back after the run."""

    class Stubborn(Quadratic):
        def forward(self, x):
            self.train()
            self.mean.requires_grad_(True)
            return super().forward(x)

    energy = Stubborn().eval()
    energy.mean.requires_grad_(False)
    run(Drift(), energy, ChainState(torch.zeros(2, 2)), 2)
    assert not energy.training
    assert not energy.mean.requires_grad


def test_replaced_buffers_are_restored():
    """A buffer that ``forward`` replaces has its old value after the run."""

    class Counting(Quadratic):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return super().forward(x)

    energy = Counting()
    run(Drift(), energy, ChainState(torch.zeros(2, 2)), 3)
    assert energy.calls == 0


def test_results_are_detached():
    state, _ = run(Drift(), Quadratic(), ChainState(torch.zeros(4, 2, requires_grad=True)), 2)
    assert state.x.grad_fn is None
    assert not state.x.requires_grad


def test_a_samplers_graph_is_dropped():
    """State and information are detached, also where a step recorded gradients."""

    class Graph(BaseSampler):
        def step(self, energy, state, *, generator=None):
            with torch.enable_grad():
                x = state.x.detach().requires_grad_()
                return replace(state, x=2 * x), {"energy": energy(x)}

    state, info = run(Graph(), Quadratic(), ChainState(torch.ones(4, 2)), 1)
    assert not state.x.requires_grad
    assert not info["energy"].requires_grad


def test_run_leaves_the_start():
    """The positions of the given state keep their values."""
    x = torch.randn(4, 2)
    before = x.clone()
    run(Drift(), Quadratic(), ChainState(x), 3)
    assert torch.equal(x, before)


def test_no_grad_changes_nothing():
    """Gradients with respect to positions are computed under ``torch.no_grad`` too."""
    start = ChainState(torch.ones(4, 2))
    with torch.no_grad():
        inside, _ = run(Drift(), Quadratic(), start, 3, generator=torch.Generator().manual_seed(0))
    outside, _ = run(Drift(), Quadratic(), start, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(inside.x, outside.x)


def test_inference_mode_is_refused():
    """The message says to use ``torch.no_grad``."""
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"use torch\.no_grad\(\) instead"):
        run(Drift(), Quadratic(), ChainState(torch.ones(4, 2)), 1)


def test_a_generator_is_the_only_randomness():
    """The same seed gives the same numbers, another gives others, and the global generator stands still."""
    before = torch.get_rng_state()
    start = ChainState(torch.zeros(4, 2))
    first, _ = run(Drift(), Quadratic(), start, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    again, _ = run(Drift(), Quadratic(), start, 5, generator=torch.Generator().manual_seed(0))
    other, _ = run(Drift(), Quadratic(), start, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_a_lost_chain_is_marked():
    """A chain that becomes NaN is not finite; the others continue."""
    x = torch.tensor([[4.0, 4.0], [-1.0, 4.0], [4.0, 4.0]])
    state, _ = run(Drift(), Pole(), ChainState(x), 3)
    assert state.finite().tolist() == [True, False, True]
    assert state.x[[0, 2]].isfinite().all()


def test_a_lost_cache_marks_positions():
    """A chain of which another tensor alone is infinite has NaN positions."""

    @dataclass(eq=False)
    class Cached(ChainState):
        energy: Tensor

    state = Cached(torch.zeros(3, 2), torch.tensor([0.0, torch.inf, 0.0]))
    state, _ = run(Identity(), Quadratic(), state, 1)
    assert state.x.isnan().all(1).tolist() == [False, True, False]


@dataclass(eq=False)
class Excused(ChainState):
    """Chains with a weight that is not finite now and then."""

    weight: torch.Tensor


class Returning(BaseSampler):
    def init(self, energy, x, *, generator=None):
        return Excused(x, torch.zeros(len(x)))

    def step(self, energy, state, *, generator=None):
        return replace(state, x=state.x + 1, weight=torch.where(state.x[:, 0] == 1, torch.inf, 0.0)), {}


@pytest.mark.parametrize(
    "options", [{}, {"observers": [lambda i, state, info: None]}, {"transitions": CompiledTransitions()}]
)
def test_the_end_decides_who_is_lost(interpreted, options):
    """A chain that was infinite on the way and is finite at the end is not lost."""
    energy, sampler = Quadratic((2,)), Returning()
    for n_steps, lost in ((2, True), (3, False), (40, False)):
        for _ in range(2):
            state, _ = run(sampler, energy, sampler.init(energy, torch.zeros(4, 2)), n_steps, **options)
        assert state.x.isnan().all().item() is lost


def test_infinite_conditions_lose_no_chain():
    """A condition such as a mask of minus infinity says nothing about its chain."""
    mask = torch.tensor([[0.0], [-torch.inf]])
    state, _ = run(Identity(), Quadratic((2,)), ChainState(torch.zeros(2, 2), conditions={"mask": mask}), 1)
    assert state.finite().all()
    assert state.x.isfinite().all()


def test_information_is_averaged_over_steps():
    class Counter(BaseSampler):
        count = 0

        def step(self, energy, state, *, generator=None):
            self.count += 1
            return state, {"count": torch.full((len(state),), float(self.count))}

    _, info = run(Counter(), Quadratic(), ChainState(torch.zeros(2, 2)), 4)
    assert info["count"].tolist() == [2.5, 2.5]


def test_observers_see_each_transition():
    seen = []
    run(Identity(), Quadratic(), ChainState(torch.zeros(2, 2)), 3, observers=[lambda i, s, info: seen.append((i, len(s)))])
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_observer_errors_reach_the_caller():
    def observer(i, state, info):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(Identity(), Quadratic(), ChainState(torch.zeros(2, 2)), 1, observers=[observer])


def test_conditions_reach_energy_and_result():
    """Each chain moves under its own conditions and still carries them afterwards."""

    class Shifted(Quadratic):
        def forward(self, x, shift):
            return super().forward(x - shift)

    shift = torch.tensor([[5.0, 5.0], [-5.0, -5.0]])
    state, _ = run(Drift(), Shifted(), ChainState(torch.zeros(2, 2), conditions={"0": shift}), 200)
    assert torch.equal(state.x.sign(), shift.sign())
    assert torch.equal(state.conditions["0"], shift)


class Momentum(BaseSampler):
    """Carries a momentum that `init` draws; notes in what context the energy is used."""

    def __init__(self):
        self.seen = []

    def note(self, energy):
        flags = any(p.requires_grad for p in energy.parameters()), energy.training, torch.is_grad_enabled()
        self.seen.append((*flags, getattr(energy, "conditions", None)))

    def init(self, energy, x, *, generator=None):
        self.note(energy)
        return Moving(x, 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype) + energy(x)[:, None])

    def step(self, energy, state, *, generator=None):
        self.note(energy)
        momentum = 0.5 * state.momentum - 0.1 * value_and_grad(energy, state.x)[1]
        noise = 0.1 * torch.randn(state.x.shape, generator=generator, dtype=state.x.dtype)
        return replace(state, x=state.x + momentum + noise, momentum=momentum), {}


@dataclass(eq=False)
class Moving(ChainState):
    """Positions and a momentum."""

    momentum: Tensor


def test_sample_is_init_and_run():
    """From the same generator: first what `init` draws, then what the steps draw."""
    energy, x, sampler = Quadratic((2,)), torch.ones(4, 2), Momentum()
    sampled = sample(sampler, energy, x, 5, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    with frozen(energy), torch.no_grad():
        state = sampler.init(energy, x.clone(), generator=generator)
    state, _ = run(sampler, energy, state, 5, generator=generator)
    assert torch.equal(sampled, state.x)
    assert torch.equal(sampled, sampler.sample(energy, x, 5, generator=torch.Generator().manual_seed(0)))
    assert not sampled.requires_grad


def test_sample_leaves_the_start():
    """The tensor ``x`` keeps its values, also where a sampler writes in place."""

    class InPlace(Identity):
        def step(self, energy, state, *, generator=None):
            state.x.add_(1)
            return state, {}

    x = torch.zeros(4, 2)
    assert sample(InPlace(), Quadratic(), x, 3).tolist() == [[3.0, 3.0]] * 4
    assert torch.equal(x, torch.zeros(4, 2))


@pytest.mark.parametrize("name", ["0", "shift"])
def test_sample_hands_on_conditions(name):
    """By name, or by ``"0"`` as the first positional argument, to `init` and to each step; chains go to their own."""

    class Shifted(Quadratic):
        def forward(self, x, shift):
            return super().forward(x - shift)

    sampler, shift = Momentum(), torch.tensor([[5.0, 5.0], [-5.0, -5.0]])
    generator = torch.Generator().manual_seed(0)
    x = sample(sampler, Shifted(), torch.zeros(2, 2), 100, conditions={name: shift}, generator=generator)
    assert (x - shift).abs().max() < 1.5
    assert len(sampler.seen) == 101
    assert all(list(conditions) == [name] for *_, conditions in sampler.seen)
    assert all(torch.equal(conditions[name], shift) for *_, conditions in sampler.seen)


@pytest.mark.parametrize(
    "given", [torch.ones(1, 2), torch.ones(3, 2), torch.tensor(1.0), 1.0], ids=["1", "3", "0-dim", "number"]
)
def test_sample_needs_a_condition_per_chain(given):
    """One row for each chain, as a loss asks for; a single one does not silently stand for all."""

    class Shifted(Quadratic):
        def forward(self, x, shift):
            return super().forward(x - shift)

    with pytest.raises(ValueError, match="a row for each of 2 examples"):
        sample(Identity(), Shifted(), torch.zeros(2, 2), 1, conditions={"0": given})


def test_sample_starts_chains_frozen():
    """`init` and the steps see no trainable parameter, evaluation mode and no recording of gradients."""
    sampler, energy = Momentum(), Quadratic((2,)).train()
    sample(sampler, energy, torch.zeros(2, 2, requires_grad=True), 2)
    assert sampler.seen == [(False, False, False, None)] * 3
    assert energy.training
    assert all(p.requires_grad for p in energy.parameters())


def test_sample_marks_lost_chains():
    x = sample(Drift(), Pole(), torch.tensor([[4.0, 4.0], [-1.0, 4.0]]), 3, generator=torch.Generator().manual_seed(0))
    assert x.isnan().any(1).tolist() == [False, True]


def test_infinite_positions_are_not_clamped():
    """A chain of which one coordinate is infinite shows it in the result."""
    x = sample(Affine(scale=1e30, shift=0.0), Quadratic(), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 2)
    assert x.isfinite().all(1).tolist() == [False, True]


def test_sample_marks_chains_lost_elsewhere():
    """A chain whose momentum alone is infinite has NaN positions in the result."""

    class Still(Momentum):
        def step(self, energy, state, *, generator=None):
            lost = torch.tensor([[0.0], [torch.inf], [0.0]])
            return replace(state, momentum=state.momentum + lost), {}

    assert sample(Still(), Quadratic((2,)), torch.zeros(3, 2), 1).isnan().all(1).tolist() == [False, True, False]


def test_sample_makes_given_transitions():
    calls = []

    def transitions(sampler, energy, state, n_steps, *, generator=None):
        calls.append(n_steps)
        return eager_transitions(sampler, energy, state, n_steps, generator=generator)

    assert sample(Affine(), Quadratic(), torch.zeros(1, 2), 4, transitions=transitions).tolist() == [[4.0, 4.0]]
    assert calls == [4]


def test_select_chains_takes_whole_chains():
    """Positions and conditions of one chain come from one state."""
    a = ChainState(torch.ones(3, 2), conditions={"0": torch.ones(3)})
    b = ChainState(torch.zeros(3, 2), conditions={"0": torch.zeros(3)})
    mixed = select_chains(torch.tensor([True, False, True]), a, b)
    assert mixed.x[:, 0].tolist() == mixed.conditions["0"].tolist() == [1.0, 0.0, 1.0]


def test_finite_rows_finds_nan_and_infinity():
    """In any row shape; a row without entries is finite."""
    t = torch.zeros(4, 2, 2)
    t[1, 0, 1], t[2, 1, 0], t[3] = torch.nan, -torch.inf, torch.finfo().max
    assert finite_rows(t).tolist() == [True, False, False, True]
    assert finite_rows(t[:, 0, 1]).tolist() == [True, False, True, True]
    assert finite_rows(torch.zeros(3, 0)).tolist() == [True] * 3


def test_as_rows_broadcasts_over_rows():
    assert as_rows(torch.ones(4), torch.zeros(4, 2, 3)).shape == (4, 1, 1)
    assert as_rows(torch.ones(4), torch.zeros(4)).shape == (4,)


@pytest.mark.parametrize("n_steps", [0, -1])
def test_no_steps_are_refused(n_steps):
    with pytest.raises(ValueError, match="at least 1"):
        run(Identity(), Quadratic(), ChainState(torch.zeros(2, 2)), n_steps)


def test_a_sampler_class_is_refused():
    """The message says to pass an instance."""
    with pytest.raises(TypeError, match="pass an instance"):
        check_sampler(Identity, Quadratic())


def test_an_unknown_keyword_lists_the_accepted():
    """The message suggests the closest name."""

    class WithOption(Drift):
        def __init__(self, step_size: float):
            self.step_size = step_size

    with pytest.raises(
        UnknownKeywordError, match=r"unknown keyword 'step_sise'; it accepts: step_size\. Did you mean 'step_size'"
    ):
        WithOption(step_sise=1.0)


def test_options_extend_the_constructor_above():
    """A constructor that ends in ``**options`` has the keywords of the one above it in its signature, and refuses others."""

    class Base(BaseSampler):
        def __init__(self, step_size: float = 0.1, *, scale: float = 1.0):
            self.options = (step_size, scale)

        def step(self, energy, state, *, generator=None):
            return state, {}

    class Middle(Base):
        pass

    class Derived(Middle):
        def __init__(self, step_size: float = 0.2, *, extra: int = 0, **options):
            super().__init__(step_size, **options)

    assert list(inspect.signature(Derived).parameters) == ["step_size", "extra", "scale"]
    assert inspect.signature(Derived).parameters["scale"].annotation is float
    assert Derived(scale=3.0).options == (0.2, 3.0)
    with pytest.raises(
        UnknownKeywordError, match=r"Derived got the unknown keyword 'scael'; it accepts: step_size, extra, scale\. Did"
    ):
        Derived(scael=3.0)


def test_boolean_positions_are_finite():
    assert ChainState(torch.tensor([[True], [False]])).finite().tolist() == [True, True]

"""The driver: what it guarantees whatever the sampler does."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from ebmcore import BaseSampler, ChainState, run, value_and_grad
from ebmcore.compiling import CompiledTransitions
from ebmcore.samplers import check_sampler, select_chains
from ebmcore.testing import Identity, Moody, Quadratic, Raising, Watched
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


def test_sampling_leaves_no_trace_on_the_energy():
    torch.manual_seed(0)
    energy = Moody()
    energy(torch.randn(8, 2)).sum().backward()
    before = Trace.of(energy)
    run(Drift(), energy, ChainState(torch.randn(4, 2)), 20, generator=torch.Generator().manual_seed(0))
    assert before.changes(energy) == []


def test_an_energy_that_raises_raises_and_is_left_as_it_was():
    energy = Watched(Quadratic(), Raising())
    before = Trace.of(energy)
    with pytest.raises(EnergyError):
        run(Drift(), energy, ChainState(torch.zeros(4, 2)), 1)
    assert before.changes(energy) == []


def test_the_energy_is_frozen_and_in_evaluation_mode_meanwhile():
    seen = []

    class Spy(BaseSampler):
        def step(self, energy, state, *, generator=None):
            seen.append((energy.training, any(p.requires_grad for p in energy.parameters())))
            return state, {}

    run(Spy(), Moody().train(), ChainState(torch.zeros(2, 2)), 1)
    assert seen == [(False, False)]


def test_flags_that_the_energy_sets_itself_are_put_back():
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


def test_a_buffer_that_the_energy_replaces_is_put_back():
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


def test_a_sampler_that_keeps_a_graph_gives_detached_results_all_the_same():
    class Graph(BaseSampler):
        def step(self, energy, state, *, generator=None):
            with torch.enable_grad():
                x = state.x.detach().requires_grad_()
                return replace(state, x=2 * x), {"energy": energy(x)}

    state, info = run(Graph(), Quadratic(), ChainState(torch.ones(4, 2)), 1)
    assert not state.x.requires_grad
    assert not info["energy"].requires_grad


def test_the_start_is_left_as_it_is():
    x = torch.randn(4, 2)
    before = x.clone()
    run(Drift(), Quadratic(), ChainState(x), 3)
    assert torch.equal(x, before)


def test_it_works_under_no_grad():
    start = ChainState(torch.ones(4, 2))
    with torch.no_grad():
        inside, _ = run(Drift(), Quadratic(), start, 3, generator=torch.Generator().manual_seed(0))
    outside, _ = run(Drift(), Quadratic(), start, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(inside.x, outside.x)


def test_inference_mode_is_refused_with_advice():
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"use torch\.no_grad\(\) instead"):
        run(Drift(), Quadratic(), ChainState(torch.ones(4, 2)), 1)


def test_a_generator_is_the_only_randomness():
    before = torch.get_rng_state()
    start = ChainState(torch.zeros(4, 2))
    first, _ = run(Drift(), Quadratic(), start, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    again, _ = run(Drift(), Quadratic(), start, 5, generator=torch.Generator().manual_seed(0))
    other, _ = run(Drift(), Quadratic(), start, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_a_chain_that_leaves_the_finite_numbers_is_marked_and_the_others_go_on():
    x = torch.tensor([[4.0, 4.0], [-1.0, 4.0], [4.0, 4.0]])
    state, _ = run(Drift(), Pole(), ChainState(x), 3)
    assert state.finite().tolist() == [True, False, True]
    assert state.x[[0, 2]].isfinite().all()


def test_a_chain_lost_in_a_cache_only_is_marked_in_its_positions():
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
def test_what_counts_is_whether_a_chain_is_finite_at_the_end(interpreted, options):
    energy, sampler = Quadratic((2,)), Returning()
    for n_steps, lost in ((2, True), (3, False), (40, False)):
        for _ in range(2):
            state, _ = run(sampler, energy, sampler.init(energy, torch.zeros(4, 2)), n_steps, **options)
        assert state.x.isnan().all().item() is lost


def test_a_condition_that_is_not_finite_is_no_lost_chain():
    mask = torch.tensor([[0.0], [-torch.inf]])
    state, _ = run(Identity(), Quadratic((2,)), ChainState(torch.zeros(2, 2), conditions={"mask": mask}), 1)
    assert state.finite().all()
    assert state.x.isfinite().all()


def test_information_is_averaged_over_the_steps():
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


def test_an_observer_that_raises_is_not_swallowed():
    def observer(i, state, info):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(Identity(), Quadratic(), ChainState(torch.zeros(2, 2)), 1, observers=[observer])


def test_conditions_reach_the_energy_and_stay_with_the_state():
    class Shifted(Quadratic):
        def forward(self, x, shift):
            return super().forward(x - shift)

    shift = torch.tensor([[5.0, 5.0], [-5.0, -5.0]])
    state, _ = run(Drift(), Shifted(), ChainState(torch.zeros(2, 2), conditions={"0": shift}), 200)
    assert torch.equal(state.x.sign(), shift.sign())
    assert torch.equal(state.conditions["0"], shift)


def test_sample_is_sugar_for_run():
    x = torch.ones(4, 1, 2)
    a = Drift().sample(Quadratic((1, 2)), x, 5, generator=torch.Generator().manual_seed(0))
    b, _ = run(Drift(), Quadratic((1, 2)), ChainState(x), 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(a, b.x)
    assert torch.equal(x, torch.ones(4, 1, 2))


def test_where_chooses_whole_chains():
    a = ChainState(torch.ones(3, 2), conditions={"0": torch.ones(3)})
    b = ChainState(torch.zeros(3, 2), conditions={"0": torch.zeros(3)})
    mixed = select_chains(torch.tensor([True, False, True]), a, b)
    assert mixed.x[:, 0].tolist() == mixed.conditions["0"].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("n_steps", [0, -1])
def test_no_steps_is_an_error(n_steps):
    with pytest.raises(ValueError, match="at least 1"):
        run(Identity(), Quadratic(), ChainState(torch.zeros(2, 2)), n_steps)


def test_a_class_in_place_of_a_sampler_is_an_error_with_advice():
    with pytest.raises(TypeError, match="pass an instance"):
        check_sampler(Identity, Quadratic())


def test_a_sampler_rejects_an_unknown_keyword_and_names_the_accepted_ones():
    class WithOption(Drift):
        def __init__(self, step_size: float):
            self.step_size = step_size

    with pytest.raises(TypeError, match=r"unknown keyword 'step_sise'; it accepts: step_size\. Did you mean 'step_size'"):
        WithOption(step_sise=1.0)


def test_a_constructor_that_ends_in_options_takes_those_of_the_one_above_it_by_name():
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
        TypeError, match=r"Derived got the unknown keyword 'scael'; it accepts: step_size, extra, scale\. Did"
    ):
        Derived(scael=3.0)

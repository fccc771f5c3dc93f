"""``run(..., compile=True)``: the same numbers from a graph, and no other graph unless something else is computed."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from ebmcore import BasePersistentContrastiveDivergence, BaseSampler, ChainState, run
from ebmcore import compiled as module
from ebmcore.compiled import ImpureStepError, traced
from ebmcore.samplers import normal_like, transitions
from ebmcore.testing import Drift, Labelled, Quadratic


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
        self.slope = 1.0

    def forward(self, x):
        return self.layers(x).squeeze(-1) + 0.5 * self.slope * x.square().sum(1)


class Noisy(BaseSampler):
    """Langevin dynamics with numbers that pass through arithmetic only."""

    def __init__(self, step_size=0.1, temperature=1.0, heavy=False):
        self.step_size, self.temperature, self.heavy = step_size, temperature, heavy

    def step(self, energy, state, *, generator=None):
        from ebmcore.energies import gradient

        mean = torch.sub(state.x, gradient(energy, state.x), alpha=self.step_size)
        x = torch.normal(mean, (2 * self.step_size * self.temperature) ** 0.5, generator=generator)
        return replace(state, x=x * 0.5 if self.heavy else x), {"moved": (x - state.x).abs().sum(1)}


@pytest.fixture
def interpreted(monkeypatch):
    """Graphs run as they were traced: what inductor makes of them is tested once."""
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)


def both(sampler, energy, x=None, n_steps=3, **options):
    """Positions and information with and without compilation, each from a generator with the same seed."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(9)) if x is None else x
    results = []
    for compile in (False, True):
        with torch.no_grad():
            state = sampler.init(energy, x.clone())
        generator = torch.Generator().manual_seed(1)
        moved, info = run(sampler, energy, replace(state, **options), n_steps, generator=generator, compile=compile)
        results.append([*moved.tensors().values(), *info.values(), torch.rand(1, generator=generator)])
    return results


def assert_same(results):
    assert len(results[0]) == len(results[1])
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(*results, strict=True))


def graphs(energy):
    return len(module._GRAPHS[energy])


def test_compiled_by_inductor_it_gives_what_it_gives_without():
    energy, sampler = Net(), Noisy()
    assert_same(both(sampler, energy))
    sampler.step_size = 0.05
    with torch.no_grad():
        energy.layers[0].weight.mul_(1.5)
    assert_same(both(sampler, energy))
    assert graphs(energy) == 1


def test_values_of_parameters_and_numbers_make_no_other_graph(interpreted):
    energy, sampler = Net(), Noisy()
    assert_same(both(sampler, energy))
    sampler.step_size, sampler.temperature = 0.02, 0.3
    for parameter in energy.parameters():
        parameter.data = parameter.data * 1.1  # another tensor, as fast weights are
    assert_same(both(sampler, energy))
    assert graphs(energy) == 1


def test_a_smaller_last_batch_makes_no_other_graph(interpreted):
    energy, sampler = Net(), Noisy()
    both(sampler, energy)
    assert_same(both(sampler, energy, torch.randn(4, 2)))
    assert graphs(energy) == 1


@pytest.mark.parametrize("change", ["energy", "sampler", "dtype", "hook"])
def test_what_is_computed_otherwise_makes_another_graph(interpreted, change):
    energy, sampler = Net(), Noisy()
    both(sampler, energy)
    if change == "energy":
        energy.slope = 3.0
    elif change == "sampler":
        sampler.heavy = True
    elif change == "hook":
        energy.layers[0].register_forward_hook(lambda layer, given, result: 2 * result)
    x = torch.randn(6, 2)
    assert_same(both(sampler, energy.double() if change == "dtype" else energy, x.double() if change == "dtype" else x))
    assert graphs(energy) == 2


def test_numbers_that_are_no_arithmetic_stay_in_the_graph(interpreted):
    class Rooted(Noisy):
        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x + math.sqrt(self.step_size) * normal_like(state.x, generator)), {}

    energy, sampler = Net(), Rooted()
    for sampler.step_size in (0.1, 0.4):
        assert_same(both(sampler, energy))
    assert graphs(energy) == 2


def impure():
    class Counting(Noisy):
        def step(self, energy, state, *, generator=None):
            self.calls = getattr(self, "calls", 0) + 1
            return super().step(energy, state, generator=generator)

    return Counting()


def reading():
    class Reading(Noisy):
        def step(self, energy, state, *, generator=None):
            moved, info = super().step(energy, state, generator=generator)
            return (moved if moved.x.sum() > 0 else state), info

    return Reading()


def computing():
    class Computing(Noisy):
        def step(self, energy, state, *, generator=None):
            return replace(state, x=torch.bernoulli(state.x.sigmoid(), generator=generator)), {}

    return Computing()


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [(impure(), "changes the sampler's attributes"), (reading(), "DataDependent"), (computing(), "bernoulli")],
    ids=["impure", "reads a value", "computes a distribution"],
)
def test_what_cannot_be_traced_runs_as_it_is_and_one_warning_says_why(interpreted, sampler, reason):
    energy = Net()
    with pytest.warns(UserWarning, match=reason):
        results = both(sampler, energy)
    assert_same(results)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(both(sampler, energy))


def test_the_gradient_is_compiled_where_the_step_cannot_be(interpreted):
    energy, sampler = Net(), reading()
    with pytest.warns(UserWarning, match="at most the energy's gradient"):
        both(sampler, energy)
    assert [type(one).__name__ for one in module._GRAPHS[energy]] == ["_GradientsAlone", "Graph"]
    assert "value_and_grad" not in vars(energy)


def test_settings_that_change_at_every_call_end_in_a_warning(interpreted, monkeypatch):
    monkeypatch.setattr(module, "MAX_GRAPHS", 3)
    energy = Net()
    for energy.slope in (1.0, 2.0, 3.0):
        both(Noisy(), energy)
    energy.slope = 4.0
    with pytest.warns(UserWarning, match="3 graphs were made for this energy"):
        assert_same(both(Noisy(), energy))


def test_without_a_compiler_it_runs_as_it_is(monkeypatch):
    def broken(graph, **options):
        def call(*inputs):
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        assert_same(both(Noisy(), Net()))


def test_an_energy_that_raises_is_not_swallowed(interpreted):
    class Broken(Net):
        def forward(self, x):
            raise ValueError("broken energy")

    with pytest.warns(UserWarning, match="broken energy"), pytest.raises(ValueError, match="broken energy"):
        run(Noisy(), Broken(), ChainState(torch.zeros(6, 2)), 2, compile=True)


def test_observers_see_every_step(interpreted):
    seen = {False: [], True: []}
    for compile, of in seen.items():
        generator = torch.Generator().manual_seed(0)
        run(
            Noisy(),
            Net(),
            ChainState(torch.zeros(6, 2)),
            3,
            generator=generator,
            compile=compile,
            observers=[lambda i, state, info, of=of: of.append((i, state.x, info["moved"]))],
        )
    assert [i for i, *_ in seen[True]] == [0, 1, 2]
    assert all(torch.allclose(a, b) for s, t in zip(*seen.values(), strict=True) for a, b in zip(s[1:], t[1:], strict=True))


def test_many_steps_are_several_calls_of_a_graph(interpreted, monkeypatch):
    monkeypatch.setattr(module, "MAX_STEPS", 4)
    energy = Net()
    assert_same(both(Noisy(), energy, n_steps=10))
    assert graphs(energy) == 2


def test_conditions_are_inputs(interpreted):
    energy, x = Labelled(), torch.randn(6, 4)
    for labels in (torch.arange(6), torch.arange(6).flip(0)):
        assert_same(both(Drift(), energy, x, conditions={"0": labels}))
    assert graphs(energy) == 1


def test_tracing_draws_no_random_number(interpreted):
    before = torch.get_rng_state()
    with torch.no_grad():
        traced(transitions, Noisy(), Net(), ChainState(torch.zeros(6, 2)), 3)
    torch.manual_seed(0)  # what Net does
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    torch.manual_seed(0)
    assert torch.equal(after, torch.get_rng_state())


def test_without_a_generator_the_numbers_are_the_global_ones(interpreted):
    states = []
    for compile in (False, True):
        energy = Net()
        torch.manual_seed(3)
        states.append(run(Noisy(), energy, ChainState(torch.zeros(6, 2)), 3, compile=compile)[0].x)
    assert torch.allclose(*states, rtol=1e-6, atol=1e-6)


def test_graphs_go_with_their_energy(interpreted):
    energy = Net()
    both(Noisy(), energy)
    gone = weakref.ref(energy)
    del energy
    gc.collect()
    assert gone() is None


def test_a_compiled_loss_draws_the_same_negatives(interpreted):
    class PCD(BasePersistentContrastiveDivergence):
        def forward(self, x):
            return self.compute_loss(x, p := self.draw_negatives(x)), p

        def compute_loss(self, x, pred_x):
            return self.energy_gap(x, pred_x)

    ends = []
    for compile in (False, True):
        energy = Net()
        loss = PCD(energy, Noisy(), 4, n_chains=12)
        if compile:
            loss.compile()
        loss.generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(energy.parameters())
        for size in (8, 8, 5):
            value, _ = loss(torch.ones(size, 2))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        ends.append([loss.chain, *energy.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*ends, strict=True))
    assert graphs(energy) == 1


def test_a_state_that_the_trace_does_not_know_is_another_graph(interpreted):
    with torch.no_grad():
        energy = Quadratic((2,))
        graph = traced(transitions, Drift(), energy, ChainState(torch.zeros(6, 2)), 2)
    assert graph.fits(Drift(), energy, ChainState(torch.ones(6, 2)), 2)
    assert not graph.fits(Drift(), energy, ChainState(torch.ones(6, 2)), 3)
    assert not graph.fits(Drift(), energy, ChainState(torch.ones(6, 3)), 2)
    assert not graph.fits(Noisy(), energy, ChainState(torch.ones(6, 2)), 2)
    with pytest.raises(ImpureStepError, match="keep what a chain carries in its state"):
        traced(transitions, impure(), energy, ChainState(torch.zeros(6, 2)), 2)

"""``run(..., compile=True)``: the same numbers from a graph, and what happens where there can be none."""

from __future__ import annotations

import gc
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from compiled_runs import Net, Noisy, assert_same, both, graphs, often
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from ebmcore import BasePersistentContrastiveDivergence, BaseSampler, ChainState, run
from ebmcore.compiling import graph as tracing
from ebmcore.compiling import transitions as module
from ebmcore.compiling.graph import Graph, ImpureStepError, traced
from ebmcore.samplers import transitions
from ebmcore.testing import Drift, Labelled, Quadratic


def test_compiled_by_inductor_it_gives_what_it_gives_without():
    energy, sampler = Net(), Noisy()
    assert_same(both(sampler, energy))
    sampler.step_size = 0.05
    with torch.no_grad():
        energy.layers[0].weight.mul_(1.5)
    assert_same(both(sampler, energy))
    assert graphs(energy) == 1


class Filling(Noisy):
    """Its uniform numbers are drawn into a part of another tensor, which is read."""

    def step(self, energy, state, *, generator=None):
        both = torch.zeros(2, *state.x.shape)
        torch.rand(state.x.shape, out=both[0], generator=generator)
        return replace(state, x=state.x + both.sum(0)), {}


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
    [(reading(), "DataDependent"), (computing(), "bernoulli"), (Filling(), "in a tensor's place")],
    ids=["reads a value", "computes a distribution", "fills a tensor"],
)
def test_what_cannot_be_traced_runs_as_it_is_and_one_warning_says_why(interpreted, sampler, reason):
    energy = Net()
    with pytest.warns(UserWarning, match=reason):
        results = both(sampler, energy)
    assert_same(results)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(both(sampler, energy))


def test_a_sampler_that_changes_at_every_call_is_left_as_it_is(interpreted):
    energy, sampler = Net(), impure()
    with pytest.warns(UserWarning, match="kinds of call were seen"):
        often(sampler, energy)
    assert_same(both(sampler, energy))
    assert not any(isinstance(one, Graph) and one.kind is type(sampler) for one in module._KNOWN[energy])


def test_the_gradient_is_compiled_where_the_step_cannot_be(interpreted):
    energy, sampler = Net(), reading()
    with pytest.warns(UserWarning, match="at most the energy's gradient"):
        both(sampler, energy)
    run(sampler, energy, ChainState(torch.zeros(6, 2)), 3, compile=True)  # three gradients: the second is compiled
    assert [type(one).__name__ for one in module._KNOWN[energy]] == ["_GradientsAlone", "Graph"]
    assert "value_and_grad" not in vars(energy)


def test_without_a_compiler_it_runs_as_it_is(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(tracing, "by_inductor", broken)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        assert_same(both(Noisy(), Net()))


def test_an_energy_that_raises_is_not_swallowed(interpreted):
    class Broken(Net):
        def forward(self, x):
            raise ValueError("broken energy")

    with pytest.raises(ValueError, match="broken energy"):
        run(Noisy(), Broken(), ChainState(torch.zeros(6, 2)), 2, compile=True)


def test_observers_see_every_step(interpreted):
    seen = {False: [], True: []}
    energy = Net()
    run(Noisy(), energy, ChainState(torch.zeros(6, 2)), 1, compile=True)
    for compile, of in seen.items():
        generator = torch.Generator().manual_seed(0)
        run(
            Noisy(),
            energy,
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
    energy = Net()
    before = torch.get_rng_state()
    with torch.no_grad():
        traced(transitions, Noisy(), energy, ChainState(torch.zeros(6, 2)), 3)
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_generator_the_numbers_are_the_global_ones(interpreted):
    states, energy = [], Net()
    for compile in (False, True, True):
        torch.manual_seed(3)
        states.append(run(Noisy(), energy, ChainState(torch.zeros(6, 2)), 3, compile=compile)[0].x)
    assert torch.allclose(states[0], states[2], rtol=1e-6, atol=1e-6)
    assert graphs(energy) == 1


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
        for size in (8, 8, 8, 5):
            value, _ = loss(torch.ones(size, 2))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        ends.append([loss.chain, *energy.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*ends, strict=True))
    assert graphs(energy) == 1


def test_the_tracer_says_what_is_not_pure():
    with torch.no_grad(), pytest.raises(ImpureStepError, match="keep what a chain carries in its state"):
        traced(transitions, impure(), Quadratic((2,)), ChainState(torch.zeros(6, 2)), 2)


def test_under_a_dispatch_mode_it_runs_as_it_was_traced(monkeypatch):
    def compiled(graph, example_inputs):
        def call(*inputs):
            assert _get_current_dispatch_mode() is None
            return graph(*inputs)

        return call

    monkeypatch.setattr(tracing, "by_inductor", compiled)

    class Passing(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    energy = Net()
    both(Noisy(), energy)
    with Passing():
        assert_same(both(Noisy(), energy))
    assert graphs(energy) == 1


def test_a_call_that_comes_once_is_not_compiled(interpreted):
    energy = Net()
    run(Noisy(), energy, ChainState(torch.zeros(50, 2)), 3, compile=True)
    assert graphs(energy) == 0
    assert_same(both(Noisy(), energy))
    assert graphs(energy) == 1


def test_what_an_energy_makes_at_its_first_call_holds_values(interpreted):
    class Lazy(Net):
        grid = None

        def forward(self, x):
            if self.grid is None:
                self.grid = torch.ones(2)
            return super().forward(x * self.grid)

    energy = Lazy()
    assert_same(both(Noisy(), energy))
    assert type(energy.grid) is torch.Tensor


def test_an_energy_that_changes_at_every_call_is_left_as_it_is(interpreted):
    class Remembering(Net):
        def forward(self, x):
            self.last = x.detach()
            return super().forward(x)

    energy = Remembering()
    with pytest.warns(UserWarning, match="kinds of call were seen"):
        often(Noisy(), energy)
    assert type(energy.last) is torch.Tensor


def test_autocast_is_in_the_graph_as_it_was(interpreted):
    class Mixed(Net):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                exact = self.layers(x).squeeze(-1)
            return exact + self.layers(x).squeeze(-1).float()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(both(Noisy(), Mixed()))


def test_random_numbers_of_the_energy_are_not_taken_for_the_samplers(interpreted):
    class Rough(Net):
        def forward(self, x):
            return super().forward(x) + torch.rand(())

    with pytest.warns(UserWarning, match="not of the step's generator"):
        both(Noisy(), Rough())


def test_noise_lies_in_memory_as_it_does_in_the_steps(interpreted):
    class Images(BaseSampler):
        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x + torch.randn_like(state.x, generator=generator)), {}

    x = torch.randn(6, 3, 4, 4).to(memory_format=torch.channels_last)
    assert_same(both(Images(), Net(), x))


@pytest.mark.parametrize(("dtype", "products"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_products_over_few_columns_are_sums_unless_they_are_added_up_in_a_wider_type(dtype, products):
    energy, x = Net().to(dtype), torch.zeros(6, 2, dtype=dtype)
    with torch.no_grad():
        graph = traced(transitions, Noisy(), energy, ChainState(x), 1)
    forward = [node for node in graph.module.graph.nodes if node.target is torch.ops.aten.addmm.default]
    assert len(forward) == products  # of two layers, the first takes two columns

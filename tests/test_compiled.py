"""``run(..., compile=True)``: the same numbers from a graph, and no other graph unless something else is computed."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from ebmcore import BasePersistentContrastiveDivergence, BaseSampler, ChainState, run, tracing
from ebmcore import compiled as module
from ebmcore.fingerprints import Fingerprint
from ebmcore.samplers import normal_like, transitions
from ebmcore.testing import Drift, Labelled, Quadratic
from ebmcore.tracing import Graph, ImpureStepError, traced


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
    monkeypatch.setattr(tracing, "by_inductor", lambda graph, inputs: graph)


def both(sampler, energy, x=None, n_steps=3, **options):
    """Positions and information with and without compilation, from generators with the same seed; the second call compiles."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(9)) if x is None else x
    results = []
    for compile in (False, True, True):
        with torch.no_grad():
            state = sampler.init(energy, x.clone())
        generator = torch.Generator().manual_seed(1)
        moved, info = run(sampler, energy, replace(state, **options), n_steps, generator=generator, compile=compile)
        results.append([*moved.tensors().values(), *info.values(), torch.rand(1, generator=generator)])
    return results[0], results[2]


def assert_same(results):
    assert len(results[0]) == len(results[1])
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(*results, strict=True))


def often(sampler, energy):
    for _ in range(module.MAX_KNOWN + 1):
        run(sampler, energy, ChainState(torch.zeros(6, 2)), 3, compile=True)


def graphs(energy):
    return sum(isinstance(one, Graph) for one in module._KNOWN[energy])


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
    [(reading(), "DataDependent"), (computing(), "bernoulli")],
    ids=["reads a value", "computes a distribution"],
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


def test_settings_that_change_at_every_call_end_in_a_warning(interpreted, monkeypatch):
    monkeypatch.setattr(module, "MAX_KNOWN", 3)
    energy = Net()
    for energy.slope in (1.0, 2.0, 3.0):
        run(Noisy(), energy, ChainState(torch.zeros(6, 2)), 3, compile=True)
    energy.slope = 4.0
    with pytest.warns(UserWarning, match="3 kinds of call were seen"):
        assert_same(both(Noisy(), energy))


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


def test_a_graph_is_of_one_kind_of_call():
    energy, x = Quadratic((2,)), torch.zeros(6, 2)

    def kind(sampler, x, n_steps):
        return Fingerprint.of(sampler, energy, ChainState(x), n_steps)

    with torch.no_grad():
        graph = traced(transitions, Noisy(), energy, ChainState(x), 2)
    assert graph.fits(Noisy(), kind(Noisy(step_size=0.3), x + 1, 2))
    assert not graph.fits(Noisy(), kind(Noisy(), x, 3))
    assert not graph.fits(Noisy(), kind(Noisy(), torch.zeros(6, 3), 2))
    assert not graph.fits(Drift(), kind(Drift(), x, 2))


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


def test_the_parameters_are_those_that_the_energy_has_now(interpreted):
    energy = Net()
    both(Noisy(), energy)
    energy.layers[0] = nn.Linear(2, 8)
    assert_same(both(Noisy(), energy))


@pytest.mark.parametrize("way", ["bound method", "slots", "list", "dict"])
def test_numbers_that_reach_the_step_by_any_way_are_noticed(interpreted, way):
    class Around(BaseSampler):
        __slots__ = ("hidden",)

        def __init__(self):
            self.h, self.hidden, self.many, self.named = 0.1, 0.1, [0.1], {"h": 0.1}
            self.scale = self.own_scale

        def own_scale(self):
            return self.h

        def step(self, energy, state, *, generator=None):
            options = {"bound method": self.scale(), "slots": self.hidden, "list": self.many[0], "dict": self.named["h"]}
            return replace(state, x=state.x + options[way] * normal_like(state.x, generator)), {}

    energy, sampler = Net(), Around()
    both(sampler, energy)
    sampler.h = sampler.hidden = sampler.many[0] = sampler.named["h"] = 0.7
    assert_same(both(sampler, energy))


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


def test_a_value_read_from_a_tensor_of_one_number_is_noticed(interpreted):
    class Reading(Net):
        def __init__(self):
            super().__init__()
            self.level = torch.tensor(1.0)

        def forward(self, x):
            return super().forward(x) * self.level.item()

    energy = Reading()
    both(Noisy(), energy)
    energy.level.fill_(3.0)
    assert_same(both(Noisy(), energy))


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
            return replace(state, x=state.x + normal_like(state.x, generator)), {}

    x = torch.randn(6, 3, 4, 4).to(memory_format=torch.channels_last)
    assert_same(both(Images(), Net(), x))


def test_what_a_state_carries_beside_tensors_may_not_change(interpreted):
    @dataclass(eq=False)
    class Counted(ChainState):
        t: int = 0

        def tensors(self):
            return {name: t for name, t in super().tensors().items() if name != "t"}

    class Counting(BaseSampler):
        def init(self, energy, x, *, generator=None):
            return Counted(x)

        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x + state.t, t=state.t + 1), {}

    with pytest.warns(UserWarning, match="make it a tensor"):
        assert_same(both(Counting(), Net()))


@pytest.mark.parametrize(("dtype", "products"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_products_over_few_columns_are_sums_unless_they_are_added_up_in_a_wider_type(dtype, products):
    energy, x = Net().to(dtype), torch.zeros(6, 2, dtype=dtype)
    with torch.no_grad():
        graph = traced(transitions, Noisy(), energy, ChainState(x), 1)
    forward = [node for node in graph.module.graph.nodes if node.target is torch.ops.aten.addmm.default]
    assert len(forward) == products  # of two layers, the first takes two columns


def test_a_constant_that_changes_in_its_place_is_noticed():
    class Scaled(Noisy):
        def __init__(self):
            super().__init__()
            self.scale = torch.ones(2)

        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x + self.scale * normal_like(state.x, generator)), {}

    energy, sampler = Net(), Scaled()
    both(sampler, energy)
    sampler.scale.mul_(0.1)
    assert_same(both(sampler, energy))


def test_a_tensor_that_stood_twice_in_a_state_may_become_two(interpreted):
    @dataclass(eq=False)
    class Started(ChainState):
        start: torch.Tensor

    class Returning(BaseSampler):
        def init(self, energy, x, *, generator=None):
            return Started(x, x)

        def step(self, energy, state, *, generator=None):
            return replace(state, x=0.5 * (state.x + state.start) + 1), {}

    energy, sampler, x = Net(), Returning(), torch.zeros(6, 2)
    for compile in (True, True):
        state, _ = run(sampler, energy, sampler.init(energy, x), 1, compile=compile)
    ends = [run(sampler, energy, state, 1, compile=compile)[0].x for compile in (False, True)]
    assert torch.equal(*ends)
    assert graphs(energy) == 1


def test_a_number_that_a_function_holds_too_is_a_constant(interpreted):
    class Around(BaseSampler):
        def __init__(self):
            self.step_size = 0.1
            self.noise = lambda: (2 * self.step_size) ** 0.5

        def step(self, energy, state, *, generator=None):
            return replace(state, x=(1 - self.step_size) * state.x + self.noise() * normal_like(state.x, generator)), {}

    energy, sampler = Net(), Around()
    both(sampler, energy)
    sampler.step_size = 0.01
    assert_same(both(sampler, energy))


def test_a_number_that_would_widen_the_positions_is_a_constant(interpreted):
    class Masked(BaseSampler):
        def __init__(self):
            self.step_size = 0.1

        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x - (state.x > 0) * self.step_size), {}

    energy = Net()
    eager, compiled = both(Masked(), energy)
    assert compiled[0].dtype == eager[0].dtype == torch.float32
    assert graphs(energy) == 1


def test_a_number_that_changes_at_every_call_makes_one_graph(interpreted):
    energy, sampler = Net(), Noisy()
    for i in range(module.MAX_KNOWN + 4):
        sampler.temperature = 1 / (1 + i)
        run(sampler, energy, ChainState(torch.zeros(6, 2)), 3, compile=True)
    assert graphs(energy) == 1


def test_what_a_dictionary_of_a_state_holds_may_not_change(interpreted):
    @dataclass(eq=False)
    class Counted(ChainState):
        clock: dict

        def tensors(self):
            return {name: t for name, t in super().tensors().items() if name != "clock"}

    class Counting(BaseSampler):
        def init(self, energy, x, *, generator=None):
            return Counted(x, {"t": 0})

        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x + state.clock["t"], clock={"t": state.clock["t"] + 1}), {}

    with pytest.warns(UserWarning, match="make it a tensor"):
        assert_same(both(Counting(), Net()))


def test_a_hook_in_another_ones_place_is_noticed(interpreted):
    energy = Net()
    for factor in (2, 3, 4, 5):
        handle = energy.layers[0].register_forward_hook(lambda layer, given, result, factor=factor: factor * result)
        assert_same(both(Noisy(), energy))
        handle.remove()

"""What makes another graph and what does not: nothing that changes in training, and whatever else a step may depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from compiled_runs import Net, Noisy, assert_same, both, graphs
from torch import nn

from ebmcore import BaseSampler, ChainState, run, tempered
from ebmcore.compiling import transitions as module
from ebmcore.compiling.graph import traced
from ebmcore.compiling.guards import Fingerprint
from ebmcore.distributions import Normal
from ebmcore.samplers import transitions
from ebmcore.testing import Drift, Quadratic


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
            return replace(state, x=state.x + math.sqrt(self.step_size) * torch.randn_like(state.x, generator=generator)), {}

    energy, sampler = Net(), Rooted()
    for sampler.step_size in (0.1, 0.4):
        assert_same(both(sampler, energy))
    assert graphs(energy) == 2


def test_settings_that_change_at_every_call_end_in_a_warning(interpreted, monkeypatch):
    monkeypatch.setattr(module, "MAX_KNOWN", 3)
    energy = Net()
    for energy.slope in (1.0, 2.0, 3.0):
        run(Noisy(), energy, ChainState(torch.zeros(6, 2)), 3, compile=True)
    energy.slope = 4.0
    with pytest.warns(UserWarning, match="3 kinds of call were seen"):
        assert_same(both(Noisy(), energy))


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
            return replace(state, x=state.x + options[way] * torch.randn_like(state.x, generator=generator)), {}

    energy, sampler = Net(), Around()
    both(sampler, energy)
    sampler.h = sampler.hidden = sampler.many[0] = sampler.named["h"] = 0.7
    assert_same(both(sampler, energy))


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


def test_a_constant_that_changes_in_its_place_is_noticed():
    class Scaled(Noisy):
        def __init__(self):
            super().__init__()
            self.scale = torch.ones(2)

        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x + self.scale * torch.randn_like(state.x, generator=generator)), {}

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
            return replace(
                state, x=(1 - self.step_size) * state.x + self.noise() * torch.randn_like(state.x, generator=generator)
            ), {}

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


class Steps(nn.Module):
    def __init__(self, n_layers):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        if n_layers == 1:
            self.b = None

    def forward(self, x):
        h = x if self.a is None else torch.tanh(self.a(x))
        return (h if self.b is None else 3 * h + self.b(h)).square().sum(1)


def test_a_module_in_another_place_makes_another_graph(interpreted):
    energy = Steps(1)
    both(Noisy(), energy)
    energy.a, energy.b = None, energy.a
    assert_same(both(Noisy(), energy))


def test_modules_in_another_order_make_another_graph(interpreted):
    energy = Steps(2)
    both(Noisy(), energy)
    a = energy.a
    del energy.a
    energy.a = a
    assert_same(both(Noisy(), energy))


def test_a_number_that_an_object_reaches_through_the_sampler_is_a_constant(interpreted):
    class Kernel:
        def __init__(self, sampler):
            self.sampler = sampler

        def mean(self, x):
            return (1 - self.sampler.step_size) * x

    class Around(BaseSampler):
        def __init__(self):
            self.step_size, self.kernel = 0.1, Kernel(self)

        def step(self, energy, state, *, generator=None):
            return replace(
                state, x=self.kernel.mean(state.x) + self.step_size * torch.randn_like(state.x, generator=generator)
            ), {}

    energy, sampler = Net(), Around()
    both(sampler, energy)
    sampler.step_size = 0.01
    assert_same(both(sampler, energy))


@pytest.mark.parametrize("place", ["closure", "list", "sampler"])
def test_weights_that_are_reached_round_the_energy_are_never_stale(interpreted, place):
    net, own = Net(), Net()

    class Reaching(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = [net] if place == "list" else []

        def forward(self, x):
            return (self.nets[0] if self.nets else net)(x)

    class Preconditioned(Noisy):
        def __init__(self):
            super().__init__()
            self.net = net

        def step(self, energy, state, *, generator=None):
            return replace(
                state, x=state.x + self.net(state.x)[:, None] * torch.randn_like(state.x, generator=generator)
            ), {}

    energy, sampler = (own, Preconditioned()) if place == "sampler" else (Reaching(), Noisy())
    with pytest.warns(UserWarning, match="a trained tensor of shape .* is no parameter of the energy"):
        both(sampler, energy)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    assert_same(both(sampler, energy))


def test_a_constant_of_somebody_else_is_compiled_and_noticed_when_it_changes(interpreted):
    base = Normal(torch.ones(2))
    energy = tempered(Net(), torch.tensor(0.5), base)
    assert_same(both(Noisy(), energy))
    base.mean.mul_(3)
    assert_same(both(Noisy(), energy))
    assert graphs(energy) == 2


def test_modules_that_take_their_shape_from_the_first_call_are_compiled_after_it(interpreted):
    energy = nn.Sequential(nn.LazyLinear(3), nn.SiLU(), nn.LazyLinear(1), nn.Flatten(0))
    for _ in range(3):
        run(Noisy(), energy, ChainState(torch.zeros(6, 2)), 3, compile=True)
    assert graphs(energy) == 1

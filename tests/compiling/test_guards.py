"""What makes another graph and what does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from compiled_runs import Net, Noisy, assert_same, both, chains, count_graphs
from torch import nn

from ebmcore import BaseSampler, ChainState, run
from ebmcore.compiling import CompiledTransitions

pytestmark = pytest.mark.usefixtures("interpreted")


class Around(BaseSampler):
    """Moves as the sampler in it does."""

    def __init__(self, inner):
        self.inner = inner

    def step(self, energy, state, *, generator=None):
        return self.inner.step(energy, state, generator=generator)


class Rooted(BaseSampler):
    """A number that passes through ``math.sqrt``."""

    def __init__(self, step_size=0.1):
        self.step_size = step_size

    def step(self, energy, state, *, generator=None):
        noise = torch.randn_like(state.x, generator=generator)
        return replace(state, x=state.x + math.sqrt(self.step_size) * noise), {}


class Steps(nn.Module):
    """Layers whose order changes the energy."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        for factor, layer in enumerate(self.children(), 1):
            x = torch.tanh(factor * layer(x))
        return x.square().sum(1)


@pytest.mark.parametrize("wrap", [lambda sampler: sampler, Around], ids=["outer", "inner"])
def test_number_is_an_input(wrap):
    """An option that a step uses by arithmetic makes no new graph when it changes."""
    sampler = Noisy()
    assert count_graphs(wrap(sampler), Net(), lambda: setattr(sampler, "step_size", 0.02)) == 1


def test_number_through_math_is_a_constant():
    """A number that leaves torch's arithmetic makes a graph for each value."""
    sampler = Rooted()
    assert count_graphs(sampler, Net(), lambda: setattr(sampler, "step_size", 0.4)) == 2


def test_number_of_a_function_is_a_constant():
    """A function that the sampler holds may read the number, and would read the sampler's own."""

    class Bound(BaseSampler):
        def __init__(self):
            self.step_size = 0.1
            self.scale = lambda: (2 * self.step_size) ** 0.5

        def step(self, energy, state, *, generator=None):
            noise = torch.randn_like(state.x, generator=generator)
            return replace(state, x=(1 - self.step_size) * state.x + self.scale() * noise), {}

    sampler = Bound()
    assert count_graphs(sampler, Net(), lambda: setattr(sampler, "step_size", 0.01)) == 2


def test_number_that_widens_is_a_constant():
    """A number that would change the type of the positions is no input."""

    class Masked(BaseSampler):
        def __init__(self):
            self.step_size = 0.1

        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x - (state.x > 0) * self.step_size), {}

    assert count_graphs(Masked(), Net()) == 1


def test_tensor_of_the_sampler_is_an_input():
    """A tensor that the sampler holds may change its values."""

    class Scaled(BaseSampler):
        def __init__(self):
            self.scale = torch.ones(2)

        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x + self.scale * torch.randn_like(state.x, generator=generator)), {}

    sampler = Scaled()
    assert count_graphs(sampler, Net(), lambda: sampler.scale.mul_(0.1)) == 1


def test_parameters_are_inputs():
    """Parameters may change in place or become other tensors."""
    energy = Net()

    def replace_tensors():
        for parameter in energy.parameters():
            parameter.data = parameter.data * 1.1

    assert count_graphs(Noisy(), energy, replace_tensors) == 1


def test_option_makes_another_graph():
    """An option that is no floating-point number is a constant."""
    sampler = Noisy()
    assert count_graphs(sampler, Net(), lambda: setattr(sampler, "heavy", True)) == 2


def test_replaced_layer_makes_another_graph():
    """Modules are compared by identity."""
    energy = Net()
    assert count_graphs(Noisy(), energy, lambda: energy.layers.__setitem__(1, nn.Tanh())) == 2


def test_module_order_makes_another_graph():
    """The same layers under the same names, in another order."""
    energy = Steps()

    def swap():
        a = energy.a
        del energy.a
        energy.a = a

    assert count_graphs(Noisy(), energy, swap) == 2


def test_module_name_makes_another_graph():
    """The same layers in the same order, under exchanged names."""

    class Named(Steps):
        def forward(self, x):
            return torch.tanh(self.a(x)).add(3 * self.b(x)).square().sum(1)

    energy = Named()

    def exchange():
        a, b = energy.a, energy.b
        del energy.a, energy.b
        energy.b, energy.a = a, b

    assert count_graphs(Noisy(), energy, exchange) == 2


def test_dtype_makes_another_graph():
    """Positions and parameters in double precision."""
    transitions, energy = CompiledTransitions(), Net()
    assert_same(both(transitions, Noisy(), energy))
    assert_same(both(transitions, Noisy(), energy.double(), chains().x.double()))
    assert len(transitions.graphs) == 2


def test_n_steps_makes_another_graph():
    """A graph has a fixed number of steps."""
    transitions, energy = CompiledTransitions(), Net()
    for n_steps in (2, 3):
        assert_same(both(transitions, Noisy(), energy, n_steps=n_steps))
    assert len(transitions.graphs) == 2


def test_autocast_makes_another_graph():
    """Casts are in the graph, those that the energy turns off too."""

    class Mixed(Net):
        def __init__(self):
            super().__init__()
            self.layers.insert(2, nn.Linear(8, 8))
            self.layers.insert(3, nn.SiLU())

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                exact = self.layers(x).squeeze(-1)
            return exact + self.layers(x).squeeze(-1).float()

    transitions, energy = CompiledTransitions(), Mixed()
    assert_same(both(transitions, Noisy(), energy))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(both(transitions, Noisy(), energy))
    assert len(transitions.graphs) == 2


def test_number_of_a_state_makes_another_graph():
    """What a state holds beside tensors is a constant."""

    @dataclass(eq=False)
    class Shifted(ChainState):
        shift: float

        def tensors(self):
            return {name: t for name, t in super().tensors().items() if name != "shift"}

    class Shifting(BaseSampler):
        def init(self, energy, x, *, generator=None):
            return Shifted(x, 1.0)

        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x + state.shift), {}

    transitions, energy = CompiledTransitions(), Net()
    for shift in (1.0, 2.0):
        assert_same(both(transitions, Shifting(), energy, shift=shift))
    assert len(transitions.graphs) == 2


def test_lazy_modules_are_compiled():
    """Modules that take their shape from the first call have it before a graph is made."""
    energy = nn.Sequential(nn.LazyLinear(3), nn.SiLU(), nn.LazyLinear(1), nn.Flatten(0))
    transitions = CompiledTransitions()
    for _ in range(3):
        run(Noisy(), energy, chains(), 3, transitions=transitions)
    assert len(transitions.graphs) == 1


def test_number_read_elsewhere_is_a_constant():
    """A step that reads its option through a variable does not get it as an input of the graph."""

    class Global(BaseSampler):
        def __init__(self):
            self.step_size = 0.1

        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x + sampler.step_size), {}

    sampler = Global()
    assert count_graphs(sampler, Net(), lambda: setattr(sampler, "step_size", 0.4)) == 2

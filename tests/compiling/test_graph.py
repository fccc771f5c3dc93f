"""From steps to a graph: its random numbers, its products, and what cannot be traced."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from compiled_runs import Net, Noisy, assert_same, both, chains
from torch import nn

from ebmcore import BaseSampler, ChainState
from ebmcore.compiling import CannotCompileError, CompiledTransitions, ImpureStepError, trace
from ebmcore.testing import Drift, Labelled


def traced(sampler, energy, state=None, n_steps=2):
    with torch.no_grad():
        return trace(sampler, energy, state or chains(), n_steps)


class Counting(Noisy):
    def step(self, energy, state, *, generator=None):
        self.calls = getattr(self, "calls", 0) + 1
        return super().step(energy, state, generator=generator)


class Reading(Noisy):
    def step(self, energy, state, *, generator=None):
        moved, info = super().step(energy, state, generator=generator)
        return (moved if moved.x.sum() > 0 else state), info


class Computing(Noisy):
    def step(self, energy, state, *, generator=None):
        return replace(state, x=torch.bernoulli(state.x.sigmoid(), generator=generator)), {}


class Filling(Noisy):
    def step(self, energy, state, *, generator=None):
        both = torch.zeros(2, *state.x.shape)
        torch.rand(state.x.shape, out=both[0], generator=generator)
        return replace(state, x=state.x + both.sum(0)), {}


class Widening(Noisy):
    def step(self, energy, state, *, generator=None):
        return replace(state, x=state.x.double()), {}


@dataclass(eq=False)
class Counted(ChainState):
    t: int = 0

    def tensors(self):
        return {name: t for name, t in super().tensors().items() if name != "t"}


class Ticking(BaseSampler):
    def step(self, energy, state, *, generator=None):
        return replace(state, x=state.x + state.t, t=state.t + 1), {}


@pytest.mark.parametrize(
    ("sampler", "error", "reason"),
    [
        (Counting(), ImpureStepError, "keep what a chain carries in its state"),
        (Reading(), ImpureStepError, "DataDependent"),
        (Computing(), CannotCompileError, "bernoulli"),
        (Filling(), CannotCompileError, "draws in place"),
        (Widening(), CannotCompileError, "changes the type"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseSampler) else "",
)
def test_step_that_cannot_be_traced(sampler, error, reason):
    """The message names the reason."""
    with pytest.raises(error, match=reason):
        traced(sampler, Net())


def test_state_that_counts_is_refused():
    """What changes in a state must be a tensor."""
    with pytest.raises(ImpureStepError, match="make it a tensor"):
        traced(Ticking(), Net(), Counted(chains().x))


def test_energy_that_changes_is_refused():
    """The forward of an energy writes no attribute; afterwards the energy is as it was."""

    class Remembering(Net):
        last = None

        def forward(self, x):
            self.last = x
            return super().forward(x)

    energy = Remembering()
    with pytest.raises(ImpureStepError, match="the forward of Remembering changes"):
        traced(Noisy(), energy)
    assert energy.last is None


def test_random_numbers_of_the_energy():
    """Numbers that are not of the step's generator are refused."""

    class Rough(Net):
        def forward(self, x):
            return super().forward(x) + torch.rand(())

    with pytest.raises(CannotCompileError, match="not of the step's generator"):
        traced(Noisy(), Rough())


@pytest.mark.parametrize("place", ["energy", "sampler"])
def test_foreign_trained_tensor_is_refused(place):
    """A trained tensor that is no parameter of the energy would be a stale constant."""
    net = Net()

    class Reaching(Net):
        def forward(self, x):
            return net(x)

    class Preconditioned(Noisy):
        def step(self, energy, state, *, generator=None):
            return replace(state, x=state.x + net(state.x)[:, None]), {}

    sampler, energy = (Noisy(), Reaching()) if place == "energy" else (Preconditioned(), Net())
    with pytest.raises(CannotCompileError, match="a trained tensor is no parameter of the energy"):
        traced(sampler, energy)


def test_tracing_draws_nothing():
    """Neither the global generator nor the energy's own tensors change."""
    energy, before = Net(), torch.get_rng_state()
    parameters = list(energy.parameters())
    traced(Noisy(), energy)
    assert torch.equal(before, torch.get_rng_state())
    assert all(a is b for a, b in zip(parameters, energy.parameters(), strict=True))


class Images(BaseSampler):
    def step(self, energy, state, *, generator=None):
        return replace(state, x=state.x + torch.randn_like(state.x, generator=generator)), {}


@pytest.mark.parametrize("kind", ["channels last", "bfloat16"])
def test_noise_is_drawn_as_in_steps(interpreted, kind):
    """Random numbers lie in memory as the positions do and have their type."""
    x = torch.randn(6, 3, 4, 4)
    x = x.to(memory_format=torch.channels_last) if kind == "channels last" else x.bfloat16()
    transitions = CompiledTransitions()
    assert_same(both(transitions, Images(), Net(), x))
    assert len(transitions.graphs) == 1


def test_all_kinds_of_draws(interpreted):
    """Uniform and normal numbers, integers and permutations, in the order in which the step asks for them."""

    class Drawing(BaseSampler):
        def step(self, energy, state, *, generator=None):
            x = state.x + torch.rand(state.x.shape, generator=generator)
            x = x + torch.randint(3, (len(state), 1), generator=generator)
            x = x[torch.randperm(len(state), generator=generator)]
            return replace(state, x=x + torch.randn(state.x.shape, generator=generator)), {}

    transitions = CompiledTransitions()
    assert_same(both(transitions, Drawing(), Net()))
    assert len(transitions.graphs) == 1


def test_conditions_are_inputs(interpreted):
    """Other labels make no other graph."""
    transitions, energy, x = CompiledTransitions(), Labelled(), torch.randn(6, 4)
    for labels in (torch.arange(6), torch.arange(6).flip(0)):
        assert_same(both(transitions, Drift(), energy, x, conditions={"0": labels}))
    assert len(transitions.graphs) == 1


@pytest.mark.parametrize(("dtype", "products"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_narrow_products_are_sums(dtype, products):
    """Unless they are summed up in a wider type; of the two layers, the first takes two columns."""
    graph = traced(Noisy(), Net().to(dtype), ChainState(torch.zeros(6, 2, dtype=dtype)), 1)
    assert sum(node.target is torch.ops.aten.addmm.default for node in graph.module.graph.nodes) == products


class Silu(nn.Module):
    """Two SiLUs, the second of which writes in place unless told otherwise."""

    def __init__(self, inplace=True):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        y = nn.functional.silu(2 * x) + 1
        nn.functional.silu(y, inplace=True) if self.inplace else None
        return y.sum(1)


@pytest.mark.parametrize(("dtype", "sigmoids"), [(torch.float32, 1), (torch.bfloat16, 0)])
def test_silu_computes_its_sigmoid_once(dtype, sigmoids):
    """Its gradient reads the sigmoid of its value, except in half precision, where silu rounds once."""
    graph = traced(Noisy(), Silu(inplace=False), ChainState(torch.zeros(6, 2, dtype=dtype)), 1)
    targets = [node.target for node in graph.module.graph.nodes]
    assert targets.count(torch.ops.aten.sigmoid.default) == sigmoids
    assert (torch.ops.aten.silu_backward.default in targets) is not bool(sigmoids)


@pytest.mark.parametrize("inplace", [True, False])
def test_silu_in_a_graph_is_silu(interpreted, inplace):
    """The steps are the same to rounding, also where the function writes in its argument's place."""
    assert_same(both(CompiledTransitions(), Noisy(), Silu(inplace)))

"""Compiled transitions: the numbers of the eager ones, when graphs are made, and what happens where there can be none."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from compiled_runs import Net, Noisy, assert_same, both, chains, count_graphs

from ebmcore import BasePersistentContrastiveDivergence, BaseSampler, ChainState, create_energy, create_sampler, run
from ebmcore.compiling import CompiledTransitions, graph, transitions

N_STEPS = 3


def often(made, sampler, energy, n=3):
    for _ in range(n):
        run(sampler, energy, chains(), N_STEPS, transitions=made)


@pytest.mark.parametrize("name", ["langevin", "mala"])
def test_inductor_agrees_with_steps(name):
    """Compiled by inductor, also after the parameters have changed."""
    energy = Net()

    def train():
        with torch.no_grad():
            energy.layers[0].weight.mul_(1.5)

    assert count_graphs(create_sampler(name, step_size=0.1), energy, train) == 1


def test_inductor_agrees_for_gibbs():
    """Binary chains of a restricted Boltzmann machine."""
    energy = create_energy("rbm", (6,), hidden=4)
    assert count_graphs(create_sampler("gibbs"), energy, x=torch.ones(6, 6)) == 1


def test_inductor_agrees_for_tempering():
    """Replicas that are exchanged between temperatures."""
    sampler = create_sampler("tempering", inner=create_sampler("langevin", step_size=0.1), n_rungs=3)
    assert count_graphs(sampler, Net()) == 1


@pytest.mark.usefixtures("interpreted")
class TestGraphs:
    """When a graph is made."""

    def test_second_call_makes_graph(self):
        """One that comes once is not worth a graph."""
        made = CompiledTransitions()
        often(made, Noisy(), Net(), n=1)
        assert not made.graphs
        often(made, Noisy(), energy := Net(), n=2)
        assert [one.n_chains for one in made.graphs] == [6]
        assert_same(both(made, Noisy(), energy))

    def test_small_last_batch_runs_eagerly(self):
        """Fewer chains than a graph has."""
        made, energy = CompiledTransitions(), Net()
        assert_same(both(made, Noisy(), energy))
        assert_same(both(made, Noisy(), energy, torch.randn(4, 2)))
        assert [one.n_chains for one in made.graphs] == [6]

    def test_many_steps_are_several_calls(self, monkeypatch):
        """No graph has more than 32 steps."""
        assert transitions.MAX_STEPS == 32
        monkeypatch.setattr(transitions, "MAX_STEPS", 4)
        assert count_graphs(Noisy(), Net(), n_steps=10) == 2

    def test_state_with_extra_tensors(self):
        """Every tensor of a state is moved."""

        @dataclass(eq=False)
        class Moving(ChainState):
            velocity: torch.Tensor

        class Momentum(BaseSampler):
            def init(self, energy, x, *, generator=None):
                return Moving(x, torch.zeros_like(x))

            def step(self, energy, state, *, generator=None):
                velocity = 0.9 * state.velocity + torch.randn_like(state.x, generator=generator)
                return replace(state, x=state.x + velocity, velocity=velocity), {}

        assert count_graphs(Momentum(), Net()) == 1

    def test_global_generator(self):
        """Without a generator the numbers are torch's own."""
        made, energy, ends = CompiledTransitions(), Net(), []
        for move in (transitions.eager_transitions, made, made):
            torch.manual_seed(3)
            ends.append([run(Noisy(), energy, chains(), N_STEPS, transitions=move)[0].x, torch.rand(1)])
        assert len(made.graphs) == 1
        assert_same([ends[0], ends[2]])

    def test_observers_see_every_step(self):
        """With observers each step is a call."""
        made, energy, seen = CompiledTransitions(), Net(), []
        for move in (transitions.eager_transitions, made):
            of = []
            run(
                Noisy(), energy, chains(), N_STEPS, generator=torch.Generator().manual_seed(0), transitions=move,
                observers=[lambda i, state, info, of=of: of.append([torch.tensor(i), state.x, info["moved"]])],
            )  # fmt: skip
            seen.append(of)
        assert len(seen[0]) == len(made.graphs) + 2 == N_STEPS
        torch.testing.assert_close(seen[1], seen[0])


@pytest.mark.usefixtures("interpreted")
class TestWithoutGraphs:
    """Where no graph can be made."""

    def test_one_warning_says_why(self):
        """A sampler that cannot be traced runs eagerly from then on."""

        class Reading(Noisy):
            def step(self, energy, state, *, generator=None):
                moved, info = super().step(energy, state, generator=generator)
                return (moved if moved.x.sum() > 0 else state), info

        made, energy = CompiledTransitions(), Net()
        with pytest.warns(UserWarning, match="the steps of Reading are not compiled: .*DataDependent") as caught:
            assert_same(both(made, Reading(), energy))
        assert len(caught) == 1
        assert_same(both(made, Reading(), energy))
        assert not made.graphs

    def test_no_compiler(self, monkeypatch):
        """Without a C++ compiler one warning says so."""

        def broken(module, inputs):
            raise RuntimeError("no C++ compiler")

        monkeypatch.setattr(graph, "compile_with_inductor", broken)
        with pytest.warns(UserWarning, match="no C\\+\\+ compiler") as caught:
            assert count_graphs(Noisy(), Net(), lambda: None) == 0
        assert len(caught) == 1

    def test_energy_that_raises(self):
        """The error of an energy is not swallowed."""

        class Broken(Net):
            def forward(self, x):
                raise ValueError("broken energy")

        with pytest.raises(ValueError, match="broken energy"):
            often(CompiledTransitions(), Noisy(), Broken())

    def test_too_many_kinds_of_call(self):
        """An option that changes at every call ends in one warning."""

        class Stamped(Noisy):
            stamp = 0

        made, energy, sampler = CompiledTransitions(), Net(), Stamped()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for sampler.stamp in range(2 * transitions.MAX_GRAPHS):
                often(made, sampler, energy, n=1)
        assert ["kinds of call were seen" in str(one.message) for one in caught] == [True]
        assert_same(both(made, sampler, energy))

    def test_too_many_graphs(self, monkeypatch):
        """A number that is a constant of every graph ends in one warning."""

        class Rooted(Noisy):
            def step(self, energy, state, *, generator=None):
                noise = torch.randn_like(state.x, generator=generator)
                return replace(state, x=state.x + math.sqrt(self.step_size) * noise), {}

        monkeypatch.setattr(transitions, "MAX_GRAPHS", 3)
        made, energy, sampler = CompiledTransitions(), Net(), Rooted()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for sampler.step_size in (0.1, 0.2, 0.3, 0.4, 0.5):
                often(made, sampler, energy)
        assert ["3 graphs were made" in str(one.message) for one in caught] == [True]
        assert len(made.graphs) == 3


class PCD(BasePersistentContrastiveDivergence):
    def forward(self, x):
        return self.compute_loss(x, p := self.draw_negatives(x)), p

    def compute_loss(self, x, pred_x):
        return self.energy_gap(x, pred_x)


def trained(loss, sizes=(8, 8, 8, 5)):
    loss.generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(loss.energy.parameters())
    for size in sizes:
        value, _ = loss(torch.ones(size, 2))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return loss


def compiled_pcd():
    loss = PCD(Net(), Noisy(), 4, n_chains=12)
    loss.compile()
    return trained(loss)


@pytest.mark.usefixtures("interpreted")
class TestOwner:
    """The object belongs to its loss."""

    def test_compiled_loss_trains_the_same(self):
        """Chains and parameters are those of an eager loss."""
        eager, compiled = trained(PCD(Net(), Noisy(), 4, n_chains=12)), compiled_pcd()
        assert len(compiled.transitions.graphs) == 1
        torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-5, atol=1e-5)

    def test_compile_again_drops_graphs(self):
        """After a change that the guards do not see."""
        loss = compiled_pcd()
        loss.compile()
        assert not loss.transitions.graphs

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
    def test_copies_have_no_graphs(self, copied):
        """A copied loss makes its own."""
        loss = compiled_pcd()
        twin = copied(loss)
        assert isinstance(twin.transitions, CompiledTransitions)
        assert not copied(loss.transitions).graphs
        assert not twin.transitions.graphs
        assert len(loss.transitions.graphs) == 1
        assert len(trained(twin).transitions.graphs) == 1

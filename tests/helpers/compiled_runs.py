"""Eager and compiled runs that should agree, for the tests of compiled transitions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ebmcore import BaseSampler, ChainState, run
from ebmcore.compiling import CompiledTransitions
from ebmcore.energies import gradient
from ebmcore.samplers import eager_transitions


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x).squeeze(-1) + 0.5 * x.square().sum(1)


class Noisy(BaseSampler):
    """Langevin dynamics whose numbers pass through arithmetic only."""

    def __init__(self, step_size=0.1, temperature=1.0, heavy=False):
        self.step_size, self.temperature, self.heavy = step_size, temperature, heavy

    def step(self, energy, state, *, generator=None):
        mean = torch.sub(state.x, gradient(energy, state.x), alpha=self.step_size)
        x = torch.normal(mean, (2 * self.step_size * self.temperature) ** 0.5, generator=generator)
        return replace(state, x=x * 0.5 if self.heavy else x), {"moved": (x - state.x).abs().sum(1)}


def chains(n=6):
    return ChainState(torch.randn(n, 2, generator=torch.Generator().manual_seed(9)))


def both(transitions, sampler, energy, x=None, n_steps=3, **options):
    """Runs eagerly, then three times by ``transitions``; returns the first run and the last two, with a number drawn after."""
    x = chains().x if x is None else x
    results = []
    for move in (eager_transitions, transitions, transitions, transitions):
        with torch.no_grad():
            state = sampler.init(energy, x.clone())
        generator = torch.Generator().manual_seed(1)
        state = replace(state, **options)
        moved, info = run(sampler, energy, state, n_steps, generator=generator, transitions=move)
        results.append([*moved.tensors().values(), *info.values(), torch.rand(1, generator=generator)])
    return results[0], *results[2:]


def assert_same(results):
    eager, *others = results
    for other in others:
        torch.testing.assert_close(other, eager, rtol=1e-5, atol=1e-5)
        assert torch.equal(other[-1], eager[-1])  # the generators are in the same state


def count_graphs(sampler, energy, *changes, transitions=None, x=None, n_steps=3):
    """Compares runs before and after each change; returns how many graphs were made."""
    transitions = transitions or CompiledTransitions()
    assert_same(both(transitions, sampler, energy, x, n_steps))
    for change in changes:
        change()
        assert_same(both(transitions, sampler, energy, x, n_steps))
    return len(transitions.graphs)

"""Runs with and without compilation, for the tests of both what is compiled and when."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ebmcore import BaseSampler, ChainState, run
from ebmcore.compiling import transitions as module
from ebmcore.compiling.graph import Graph


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

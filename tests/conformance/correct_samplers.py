"""Samplers of many kinds that are right: the kit must pass them all."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ebmcore import BaseSampler, ChainState, tempered, value_and_grad
from ebmcore.energies import SupportsBlockGibbs
from ebmcore.samplers import as_rows, select_chains


class RandomWalk(BaseSampler):
    """Metropolis sampling with a normal proposal."""

    exact = True
    reversible = True
    state_space = "continuous"

    def __init__(self, width: float = 1.0, temperature: float = 1.0):
        self.width = width
        self.temperature = temperature

    def init(self, energy, x, *, generator=None):
        return Scored(x, energy(x).detach())

    def refresh(self, energy, state):
        return self.init(energy, state.x)

    def step(self, energy, state, *, generator=None):
        y = state.x + self.width * torch.randn_like(state.x, generator=generator)
        proposal = replace(state, x=y, energy=energy(y))
        log_accept = (state.energy - proposal.energy).double() / self.temperature
        uniform = torch.rand(len(y), generator=generator, dtype=torch.float64)
        return select_chains(uniform.log() < log_accept, proposal, state), {}


@dataclass(eq=False)
class Scored(ChainState):
    """Positions and their energy."""

    energy: Tensor


class HMC(BaseSampler):
    """Hamiltonian Monte Carlo with five leapfrog steps."""

    exact = True
    reversible = True
    state_space = "continuous"

    def step(self, energy, state, *, generator=None):
        p = torch.randn_like(state.x, generator=generator)
        before, grad = value_and_grad(energy, state.x)
        x, q = state.x, p - 0.1 * grad
        for i in range(5):
            x = x + 0.2 * q
            after, grad = value_and_grad(energy, x)
            q = q - (0.1 if i == 4 else 0.2) * grad
        log_accept = (before - after + self.kinetic(p) - self.kinetic(q)).double()
        uniform = torch.rand(len(x), generator=generator, dtype=torch.float64)
        moved = select_chains(uniform.log() < log_accept, replace(state, x=x), state)
        return replace(moved, x=torch.where(as_rows(before.isnan(), x), torch.nan, moved.x)), {}

    def kinetic(self, p):
        return 0.5 * p.square().flatten(1).sum(1)


@dataclass(eq=False)
class Moving(ChainState):
    """Positions and momenta."""

    momentum: Tensor


class Underdamped(BaseSampler):
    """Underdamped Langevin dynamics (BAOAB), unadjusted: on a Gaussian its variance is right."""

    state_space = "continuous"
    has_memory = True

    def __init__(self, step_size: float = 0.3, temperature: float = 1.0):
        self.step_size = step_size
        self.temperature = temperature

    def predicted_bias(self, precision):
        return 0.0

    def init(self, energy, x, *, generator=None):
        return Moving(x, math.sqrt(self.temperature) * torch.randn_like(x, generator=generator))

    def step(self, energy, state, *, generator=None):
        h, decay = self.step_size, math.exp(-self.step_size)
        p = state.momentum - 0.5 * h * value_and_grad(energy, state.x)[1]
        x = state.x + 0.5 * h * p
        p = decay * p + math.sqrt(self.temperature * (1 - decay**2)) * torch.randn_like(p, generator=generator)
        x = x + 0.5 * h * p
        return Moving(x, p - 0.5 * h * value_and_grad(energy, x)[1]), {}


class RandomSite(BaseSampler):
    """Metropolis flips of one random binary unit, as reversible as can be."""

    exact = True
    reversible = True
    state_space = "binary"

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def step(self, energy, state, *, generator=None):
        x = state.x.flatten(1)
        site = torch.randint(x.shape[1], (len(x), 1), generator=generator)
        y = torch.where(torch.arange(x.shape[1]) == site, 1 - x, x).view_as(state.x)
        uniform = torch.rand(len(x), generator=generator, dtype=torch.float64)
        log_accept = (energy(state.x) - energy(y)).double() / self.temperature
        return select_chains(uniform.log() < log_accept, replace(state, x=y), state), {}


class Categorical(BaseSampler):
    """Gibbs sampling of one categorical unit after the other, by torch.multinomial."""

    exact = True
    state_space = "categorical"

    def step(self, energy, state, *, generator=None):
        shape = state.x.shape[-2:]
        x = state.x.reshape(len(state), *shape)
        for unit in range(shape[0]):
            choices = []
            for value in range(shape[1]):
                y = x.clone()
                y[:, unit] = torch.eye(shape[1], dtype=x.dtype)[value]
                choices.append(y)
            logits = -torch.stack([energy(y.view_as(state.x)) for y in choices], 1)
            drawn = torch.multinomial(logits.softmax(1), 1, generator=generator)
            x = x.clone()
            x[:, unit] = torch.eye(shape[1], dtype=x.dtype).index_select(0, drawn[:, 0])
        return replace(state, x=x.view_as(state.x)), {}


@dataclass(eq=False)
class Ladder(ChainState):
    """A cold chain and a hot one."""

    hot: Tensor


class Exchange(BaseSampler):
    """Replica exchange between two temperatures over block Gibbs; right."""

    requires = (SupportsBlockGibbs,)
    exact = True
    has_memory = True
    beta = 0.3

    def init(self, energy, x, *, generator=None):
        return Ladder(x, x.clone())

    def step(self, energy, state, *, generator=None):
        beta = torch.full((len(state),), self.beta, dtype=state.x.dtype)
        x = energy.sample_visible(energy.sample_hidden(state.x, generator=generator), generator=generator)
        hidden = energy.sample_hidden(state.hot, beta=beta, generator=generator)
        y = energy.sample_visible(hidden, beta=beta, generator=generator)
        uniform = torch.rand(len(x), generator=generator, dtype=x.dtype)
        swapped = uniform.log() < self.log_accept(energy, x, y)
        return select_chains(swapped, Ladder(y, x), Ladder(x, y)), {"swap_rate": swapped.to(x.dtype)}

    def log_accept(self, energy, x, y):
        hot = tempered(energy, torch.tensor(self.beta, dtype=x.dtype))
        return energy(x) + hot(y) - energy(y) - hot(x)


@dataclass(eq=False)
class WeightedState(ChainState):
    """Positions, their energy, and the logarithm of a weight that records how the parameters have changed."""

    energy: Tensor
    log_weight: Tensor
    records = ("log_weight",)


class Weighted(RandomWalk):
    """A random walk that records the change of its energy at each parameter change (Jarzynski, 1997)."""

    def init(self, energy, x, *, generator=None):
        value = energy(x).detach()
        return WeightedState(x, value, torch.zeros_like(value))

    def refresh(self, energy, state):
        value = energy(state.x).detach()
        return replace(state, energy=value, log_weight=state.log_weight + state.energy - value)

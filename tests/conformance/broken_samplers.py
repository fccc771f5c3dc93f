"""Samplers that are deliberately wrong, each in one way. The right ones from which they derive pass every check."""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass, replace

import torch
from correct_samplers import HMC, Exchange, RandomWalk, Weighted
from torch import Tensor

from ebm_plugin_langevin.langevin import Langevin
from ebm_plugin_langevin.mala import MALA
from ebm_plugin_rbm.gibbs import Gibbs
from ebmcore import ChainState, value_and_grad
from ebmcore.energies import SupportsValueAndGrad
from ebmcore.samplers import as_rows, select_chains
from ebmcore.testing import SiteGibbs


class Undamped(Langevin):
    """Noise without the square root of two."""

    noise_scale = property(lambda self: math.sqrt(self.step_size * self.temperature))


class TooHot(Langevin):
    """Temperature 10 % off."""

    noise_scale = property(lambda self: math.sqrt(2 * self.step_size * self.temperature * 1.1))


class HiddenTemperature(Langevin):
    """The noise does not depend on the temperature that it is given."""

    noise_scale = property(lambda self: math.sqrt(2 * self.step_size))


class Clipped(Langevin):
    """Clips the gradient without saying so."""

    def step(self, energy, state, *, generator=None):
        _, grad = value_and_grad(energy, state.x)
        noise = torch.randn_like(state.x, generator=generator)
        return replace(state, x=state.x - self.step_size * grad.clamp(-10, 10) + self.noise_scale * noise), {}


class WithoutReverse(MALA):
    """Acceptance without the reverse term."""

    def _log_reverse(self, state, y, grad):
        return torch.zeros(len(state), dtype=torch.float64)


class ClippedProposal(MALA):
    """Clips the force in the proposal and not in its density."""

    def step(self, energy, state, *, generator=None):
        clipped = replace(state, grad=state.grad.clamp(-0.5, 0.5))
        noise = torch.randn_like(state.x, generator=generator)
        y = clipped.x - self.step_size * clipped.grad + math.sqrt(2 * self.step_size * self.temperature) * noise
        value, grad = value_and_grad(energy, y)
        proposal = replace(state, x=y, energy=value, grad=grad)
        log_accept = (state.energy - value).double() / self.temperature
        log_accept += self._log_reverse(state, proposal.x, proposal.grad)
        uniform = torch.rand(len(state), generator=generator, dtype=torch.float64)
        return select_chains(uniform.log() < log_accept, proposal, state), {}


class ColdAcceptance(MALA):
    """Accepts as if the temperature were 10 % lower than the one of the proposal."""

    def step(self, energy, state, *, generator=None):
        scaled = replace(state, energy=state.energy * 1.1)
        after, info = super().step(lambda x: energy(x) * 1.1, scaled, generator=generator)
        return replace(after, energy=after.energy / 1.1, grad=value_and_grad(energy, after.x)[1]), info


class StaleCache(MALA):
    """Keeps energy and gradient of the old parameters."""

    def refresh(self, energy, state):
        return state


class StaleAfterRejection(MALA):
    """Keeps the proposal's energy and gradient when the proposal is rejected."""

    def step(self, energy, state, *, generator=None):
        noise = torch.randn_like(state.x, generator=generator)
        y = state.x - self.step_size * state.grad + math.sqrt(2 * self.step_size) * noise
        value, grad = value_and_grad(energy, y)
        proposal = replace(state, x=y, energy=value, grad=grad)
        log_accept = state.energy - value + self._log_reverse(state, proposal.x, proposal.grad)
        accepted = torch.rand(len(state), generator=generator, dtype=torch.float64).log() < log_accept
        return replace(proposal, x=select_chains(accepted, proposal, state).x), {}


class Accepting(MALA):
    """Accepts a proposal whose energy is not a number."""

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        noise = 0.5 * torch.randn_like(state.x, generator=generator)
        lost = energy(state.x + noise).isnan()
        return select_chains(lost, replace(state, x=state.x + noise), after), info


class GlobalNoise(Langevin):
    """Draws from the global generator."""

    def step(self, energy, state, *, generator=None):
        return super().step(energy, state, generator=None)


class GlobalPython(Langevin):
    """Draws from Python's global generator."""

    def step(self, energy, state, *, generator=None):
        return super().step(energy, replace(state, x=state.x + 0.1 * random.random()), generator=generator)


class Reseeded(Langevin):
    """Makes its own generator from a fixed seed."""

    def step(self, energy, state, *, generator=None):
        return super().step(energy, state, generator=torch.Generator().manual_seed(0))


class Unseeded(Langevin):
    """Makes its own generator from the clock."""

    def step(self, energy, state, *, generator=None):
        own = torch.Generator()
        own.seed()
        return super().step(energy, state, generator=own)


class LastAxis(HMC):
    """Kinetic energy summed over the last axis only."""

    def kinetic(self, p):
        return 0.5 * p.square().sum(-1).flatten(1).mean(1) if p.ndim > 2 else super().kinetic(p)


class Coupled(Langevin):
    """Mixes each chain with its neighbour in the batch."""

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        return replace(after, x=after.x + 0.1 * state.x.roll(1, 0)), info


class Hiding(Langevin):
    """Remembers the last positions in an attribute."""

    last = None

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        if self.last is not None and self.last.shape == after.x.shape:
            after = replace(after, x=after.x + 0.1 * self.last)
        self.last = after.x
        return after, info


class InPlace(Langevin):
    """Moves the chains in place."""

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        state.x.copy_(after.x)
        return state, info


class Swallowing(Langevin):
    """Turns every exception into noise."""

    def step(self, energy, state, *, generator=None):
        try:
            return super().step(energy, state, generator=generator)
        except Exception:
            return replace(state, x=torch.randn_like(state.x, generator=generator)), {}


class Constant(Langevin):
    """Replaces what is not a number by zero."""

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        return replace(after, x=after.x.nan_to_num()), info


class Training(Langevin):
    """Switches the energy to training mode, and does not go through the driver when it samples."""

    def init(self, energy, x, *, generator=None):
        self.energy = energy
        return ChainState(x)

    def step(self, energy, state, *, generator=None):
        for parameter in energy.parameters():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            energy(state.x.detach()).sum().backward()
        return super().step(energy, state, generator=generator)


class NoDriver(Langevin):
    """Samples without the driver, and so under inference mode too."""

    def sample(self, energy, x, n_steps, *, generator=None):
        for _ in range(n_steps):
            x = x + 0.1 * torch.randn_like(x, generator=generator)
        return x


class NeedsGrad(Langevin):
    """Takes the gradient without switching gradients on."""

    def step(self, energy, state, *, generator=None):
        x = state.x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energy(x).sum(), x)
        return replace(
            state, x=state.x - self.step_size * grad + self.noise_scale * torch.randn_like(x, generator=generator)
        ), {}


class Single(Langevin):
    """Computes in float32 for inputs of any dtype."""

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        return replace(after, x=after.x.float().to(state.x.dtype)), info


class HalfUnderAutocast(Langevin):
    """Lets autocast choose the dtype of the chains."""

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        eye = torch.eye(state.x.shape[-1], dtype=state.x.dtype)
        return replace(after, x=after.x @ eye), info


class Waiting(Langevin):
    """Reads a value in the step."""

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        return (after, info) if after.x.abs().max().item() < 1e6 else (state, info)


class Listing(Langevin):
    """Reads all values in the step."""

    def step(self, energy, state, *, generator=None):
        self.largest = max(max(row) for row in state.x.flatten(1).tolist())
        return super().step(energy, state, generator=generator)


class Hoarding(Langevin):
    """Keeps every position that it has seen."""

    def __init__(self, step_size: float, temperature: float = 1.0):
        super().__init__(step_size, temperature)
        self.history = []

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        self.history.append(after.x)
        return after, info


class Breaking(Langevin):
    """Prints in the step, which breaks the graph."""

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        if after.x.sum() > 1e9:
            after = state
        return after, info


class Keywords(Langevin):
    """Swallows typos."""


def _swallowing(self, step_size: float = 0.1, **kwargs):
    Langevin.__init__(self, step_size)


Keywords.__init__ = _swallowing  # put in afterwards, or the base would refuse what is unknown


class Lambda(Langevin):
    """Cannot be pickled."""

    def __init__(self, step_size: float = 0.1):
        super().__init__(step_size)
        self.schedule = lambda step: step_size


class Singleton(Langevin):
    """There is only one of it."""

    def __deepcopy__(self, memo):
        return self


_SCALES: dict[int, float] = {}


class Elsewhere(Langevin):
    """Keeps its options in a table of the process."""

    def __init__(self, step_size: float = 0.1, temperature: float = 1.0):
        super().__init__(step_size, temperature)
        self.key = os.getpid(), len(_SCALES)
        _SCALES[self.key] = 0.5

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        return replace(after, x=after.x * _SCALES.get(self.key, 1.0)), info


class OneNumber(Langevin):
    """Reports one number for the whole batch."""

    def step(self, energy, state, *, generator=None):
        after, _ = super().step(energy, state, generator=generator)
        return after, {"acceptance_rate": torch.ones(())}


class Undeclared(Langevin):
    """Says nothing of what it samples."""

    def predicted_bias(self, precision):
        return None


class Forgetful(Exchange):
    """Does not say that its replicas outlast a step."""

    has_memory = False


class SlowStart(Langevin):
    """Moves a thousand times less than its step size says, and predicts it."""

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        return replace(after, x=state.x + 1e-3 * (after.x - state.x)), info


class StuckBelow(SiteGibbs):
    """Never flips the first unit on."""

    def step(self, energy, state, *, generator=None):
        after, info = super().step(energy, state, generator=generator)
        x = after.x.flatten(1).clone()
        x[:, 0] = torch.minimum(x[:, 0], state.x.flatten(1)[:, 0])
        return replace(after, x=x.view_as(state.x)), info


class Sequential(SiteGibbs):
    """One unit after the other is exact, but not reversible."""

    reversible = True


class OneAfterTheOther(RandomWalk):
    """One component after the other is exact, but not reversible."""

    def step(self, energy, state, *, generator=None):
        for i in range(state.x.flatten(1).shape[1]):
            only = torch.arange(state.x[0].numel()).view(state.x.shape[1:]) == i
            proposal = replace(state, x=state.x + only * torch.randn_like(state.x, generator=generator))
            proposal = self.refresh(energy, proposal)
            uniform = torch.rand(len(state), generator=generator, dtype=torch.float64)
            state = select_chains(uniform.log() < (state.energy - proposal.energy) / self.temperature, proposal, state)
        return state, {}


class MeanField(Gibbs):
    """Hidden probabilities in place of hidden samples."""

    def step(self, energy, state, *, generator=None):
        hidden = sum(energy.sample_hidden(state.x, generator=generator) for _ in range(2)) / 2
        return replace(state, x=energy.sample_visible(hidden, generator=generator)), {}


class WrongSwap(Exchange):
    """Swaps with the free energy at beta 1 in place of that at each beta."""

    def log_accept(self, energy, x, y):
        return (1 - self.beta) * (energy(x) - energy(y))


class SharedNoise(Langevin):
    """One normal number for a chain in place of one for each component."""

    def step(self, energy, state, *, generator=None):
        _, grad = value_and_grad(energy, state.x)
        noise = torch.randn((len(state),), generator=generator, dtype=state.x.dtype)
        return replace(state, x=state.x - self.step_size * grad + self.noise_scale * as_rows(noise, state.x)), {}


class UniformNoise(Langevin):
    """Uniform noise of the right variance."""

    def step(self, energy, state, *, generator=None):
        _, grad = value_and_grad(energy, state.x)
        noise = math.sqrt(12) * (torch.rand(state.x.shape, generator=generator, dtype=state.x.dtype) - 0.5)
        return replace(state, x=state.x - self.step_size * grad + self.noise_scale * noise), {}


class LargerSteps(Langevin):
    """Steps 5 % larger than it says."""

    def __init__(self, step_size: float, temperature: float = 1.0):
        super().__init__(step_size, temperature)

    def step(self, energy, state, *, generator=None):
        return Langevin(1.05 * self.step_size, self.temperature).step(energy, state, generator=generator)


class HalfAcceptance(MALA):
    """Accepts in bfloat16."""

    def step(self, energy, state, *, generator=None):
        noise = torch.randn_like(state.x, generator=generator)
        y = state.x - self.step_size * state.grad + math.sqrt(2 * self.step_size * self.temperature) * noise
        value, grad = value_and_grad(energy, y)
        proposal = replace(state, x=y, energy=value, grad=grad)
        log_accept = (state.energy - value) / self.temperature
        log_accept = log_accept + self._log_reverse(state, proposal.x, proposal.grad)
        uniform = torch.rand(len(y), generator=generator)
        return select_chains(uniform.log() < log_accept.bfloat16(), proposal, state), {}


class TaylorAcceptance(MALA):
    """Guesses the energy's difference from the gradients, on energies that give them: right on Gaussians only."""

    requires = (SupportsValueAndGrad,)

    def step(self, energy, state, *, generator=None):
        y = state.x + 0.8 * torch.randn_like(state.x, generator=generator)
        value, grad = value_and_grad(energy, y)
        log_accept = -(0.5 * (grad + state.grad) * (y - state.x)).flatten(1).sum(1) / self.temperature
        uniform = torch.rand(len(y), generator=generator, dtype=torch.float64)
        return select_chains(uniform.log() < log_accept, replace(state, x=y, energy=value, grad=grad), state), {}


class Coin(SiteGibbs):
    """Fair coins, with a bias that means nothing for them."""

    exact = False

    def predicted_bias(self, precision):
        return 0.0

    def step(self, energy, state, *, generator=None):
        uniform = torch.rand(state.x.shape, generator=generator, dtype=state.x.dtype)
        return replace(state, x=uniform.lt(0.5).to(state.x.dtype)), {}


class NoRate(Langevin):
    """An acceptance rate of 7."""

    def step(self, energy, state, *, generator=None):
        after, _ = super().step(energy, state, generator=generator)
        return after, {"acceptance_rate": torch.full((len(state),), 7.0)}


class OwnSample(Langevin):
    """A sample() of its own, which leaves the energy frozen and draws from the global generator."""

    def sample(self, energy, x, n_steps, *, generator=None):
        energy.eval().requires_grad_(False)
        for _ in range(n_steps):
            x = x - self.step_size * value_and_grad(energy, x)[1] + self.noise_scale * torch.randn_like(x)
        return x


class UndeclaredRecord(Weighted):
    """refresh() changes a weight that the state does not name among its records."""

    def init(self, energy, x, *, generator=None):
        state = super().init(energy, x, generator=generator)
        return UndeclaredState(state.x, state.energy, state.log_weight)


@dataclass(eq=False)
class UndeclaredState(ChainState):
    """Positions, energy and a weight."""

    energy: Tensor
    log_weight: Tensor


class Renamed(RandomWalk):
    """Keeps the width of its steps under another name."""

    def __init__(self, width: float = 1.0, temperature: float = 1.0, spread: float = 1.0):
        super().__init__(width, temperature)
        self.scale = spread

"""Samplers for tests."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore.energies import value_and_grad
from ebmcore.errors import UsageError
from ebmcore.samplers import BaseSampler, ChainState, Info
from ebmcore.testing.targets import Enumerable, Gaussian, Quadratic


class Identity(BaseSampler):
    """Stays where it is: shows what happens to chains apart from sampling."""

    exact = True
    reversible = True
    deterministic = True

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        return state, {}


class ExactGaussian(BaseSampler):
    r"""The exact Ornstein-Uhlenbeck transition of a `Quadratic` or `Gaussian` energy, which leaves it invariant.

    .. math:: x' = \mu + \rho (x - \mu) + \sqrt{1 - \rho^2}\,A^{-1/2} \xi

    with :math:`A` the precision of the energy.

    Args:
        correlation: :math:`\rho` in [0, 1); 0 draws independent exact samples.
    """

    exact = True
    state_space = "continuous"

    def __init__(self, correlation: float = 0.0) -> None:
        self.correlation = correlation

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        noise = torch.randn_like(state.x, generator=generator)
        mean: Tensor
        if isinstance(energy, Quadratic):
            mean, noise = energy.mean, noise / energy.precision.sqrt()
        elif isinstance(energy, Gaussian):
            mean = energy.mean.view(state.x.shape[1:])
            # The energy depends on the symmetric part of the precision only.
            factor, wrong = torch.linalg.cholesky_ex(0.5 * (energy.precision + energy.precision.T))
            if wrong:
                raise UsageError("the precision of the Gaussian energy is not positive definite: it has no distribution")
            noise = torch.linalg.solve_triangular(factor.T, noise.flatten(1).T, upper=True).T.view_as(state.x)
        else:
            raise UsageError(
                f"ExactGaussian samples the energies Quadratic and Gaussian of ebmcore.testing, not {type(energy).__name__}"
            )
        innovation = math.sqrt(1 - self.correlation**2) * noise
        return replace(state, x=mean + self.correlation * (state.x - mean) + innovation), {}


class Affine(BaseSampler):
    """Multiplies positions and adds to them: each chain's transitions can be counted from where it is.

    Args:
        scale: Factor.
        shift: Number that is added.
    """

    deterministic = True

    def __init__(self, scale: float = 1.0, shift: float = 1.0) -> None:
        self.scale = scale
        self.shift = shift

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        return replace(state, x=self.scale * state.x + self.shift), {}


class Drift(BaseSampler):
    """Follows the gradient of any energy, with noise: for tests in which the distribution does not matter."""

    state_space = "continuous"

    def __init__(self, step_size: float = 0.05, temperature: float = 1.0) -> None:
        self.step_size = step_size
        self.temperature = temperature

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        _, grad = value_and_grad(energy, state.x)
        noise = (2 * self.step_size * self.temperature) ** 0.5 * torch.randn_like(state.x, generator=generator)
        x = state.x - self.step_size * grad + noise
        return replace(state, x=x.to(state.x.dtype)), {"moved": (x - state.x).flatten(1).square().sum(1)}


class Poison(BaseSampler):
    """Makes the first ``n`` chains NaN.

    Args:
        n: Number of chains.
    """

    deterministic = True

    def __init__(self, n: int = 1) -> None:
        self.n = n

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        lost = torch.arange(len(state), device=state.x.device) < self.n
        x = state.x.masked_fill(lost.view(-1, *(1,) * (state.x.ndim - 1)), torch.nan)
        return replace(state, x=x), {}


@dataclass(eq=False)
class CachedState(ChainState):
    """Positions with their energy under the current parameters, and the number of steps that the chain has made."""

    energy: Tensor
    steps: Tensor


class Cached(BaseSampler):
    """Stays where it is and compares the cached energy with the current one.

    Attributes:
        stale: For each step, the largest difference between the cached energy and the energy.
        steps: For each step, how many steps each chain had made.
    """

    deterministic = True

    def __init__(self) -> None:
        self.stale: list[float] = []
        self.steps: list[Tensor] = []

    def init(self, energy: nn.Module, x: Tensor, *, generator: torch.Generator | None = None) -> CachedState:
        return CachedState(x, energy(x).detach(), torch.zeros(len(x), device=x.device))

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        self.stale.append(float((state.energy - energy(state.x)).abs().max()))
        self.steps.append(state.steps.clone())
        return replace(state, steps=state.steps + 1), {}

    def refresh(self, energy: nn.Module, state: Any) -> CachedState:
        refreshed: CachedState = replace(state, energy=energy(state.x).detach())
        return refreshed


@dataclass(eq=False)
class DriftState(ChainState):
    """Positions with their energy and its gradient under the current parameters."""

    energy: Tensor
    grad: Tensor


class CachingDrift(BaseSampler):
    """`Drift` that caches energy and gradient in its state, as MALA does, and compares them with the current ones.

    Args:
        step_size: Step size.
        temperature: Temperature.

    Attributes:
        stale: For each step, the largest difference between the cached values and the current ones.
        flags: For each call of ``init`` or ``step``, what about the energy is not as a sampler must receive it.
    """

    state_space = "continuous"

    def __init__(self, step_size: float = 0.05, temperature: float = 1.0) -> None:
        self.step_size = step_size
        self.temperature = temperature
        self.stale: list[float] = []
        self.flags: list[str] = []

    def init(self, energy: nn.Module, x: Tensor, *, generator: torch.Generator | None = None) -> DriftState:
        self._note(energy, "init()")
        return DriftState(x, *value_and_grad(energy, x))

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        self._note(energy, "step()")
        value, grad = value_and_grad(energy, state.x)
        off = torch.cat([(value - state.energy).flatten(), (grad - state.grad).flatten()])
        self.stale.append(float(off.abs().max()))
        noise = (2 * self.step_size * self.temperature) ** 0.5 * torch.randn_like(state.x, generator=generator)
        x = (state.x - self.step_size * state.grad + noise).to(state.x.dtype)
        value, grad = value_and_grad(energy, x)
        return replace(state, x=x, energy=value, grad=grad), {}

    def refresh(self, energy: nn.Module, state: Any) -> DriftState:
        value, grad = value_and_grad(energy, state.x)
        refreshed: DriftState = replace(state, energy=value, grad=grad)
        return refreshed

    def _note(self, energy: nn.Module, method: str) -> None:
        if any(p.requires_grad for p in energy.parameters()):
            self.flags.append(f"{method} is called with parameters that take gradients")
        if any(module.training for module in energy.modules()):
            self.flags.append(f"{method} is called with the energy in training mode")
        if torch.is_grad_enabled():
            self.flags.append(f"{method} is called outside torch.no_grad()")


class SiteGibbs(BaseSampler):
    """Gibbs sampling of one binary unit after the other, on any energy: exact, not reversible as a whole."""

    exact = True
    state_space = "binary"

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        x = state.x.flatten(1).clone()
        for i in range(x.shape[1]):
            both = []
            for value in (0.0, 1.0):
                x[:, i] = value
                both.append(energy(x.view_as(state.x)))
            uniform = torch.rand(len(x), generator=generator, dtype=both[0].dtype, device=x.device)
            x[:, i] = uniform.lt((both[0] - both[1]).sigmoid()).to(x.dtype)
        return replace(state, x=x.view_as(state.x)), {}


class ExactSamples(BaseSampler):
    """Moves to an independent exact sample of an enumerable target in each step.

    Args:
        target: The target.
    """

    exact = True

    def __init__(self, target: Enumerable) -> None:
        self.target = target

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        return replace(state, x=self.target.sample(len(state), generator=generator).view_as(state.x)), {}


class Table(BaseSampler):
    """Moves on an enumerable target by a given matrix of transition probabilities.

    Args:
        target: Gives the states and their order.
        matrix: ``P[i, j]``, float64 ``(S, S)``.
    """

    def __init__(self, target: Enumerable, matrix: Tensor) -> None:
        self.target = target
        self.matrix = matrix

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        rows = self.matrix[self.target.codes(state.x)].cumsum(1)
        uniform = torch.rand(len(state), 1, generator=generator, dtype=torch.float64, device=rows.device)
        moved = self.target.states()[(uniform > rows[:, :-1]).sum(1)]
        return replace(state, x=moved.view_as(state.x).to(state.x.dtype)), {}

"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebmcore import BaseSampler, ChainState, value_and_grad
from ebmcore.distributions import at_least_float32
from ebmcore.samplers import Info, select_chains


@dataclass(eq=False)
class MALAState(ChainState):
    """Positions with their energy ``(N,)`` and gradient ``(N, *shape)`` under the current parameters."""

    energy: Tensor
    grad: Tensor


class MALA(BaseSampler):
    r"""Metropolis-adjusted Langevin algorithm: a Langevin proposal, accepted or rejected so that the target is exact.

    .. math:: y = x - h \nabla E(x) + \sqrt{2 h T}\,\xi, \qquad
              \alpha = \min\Big(1, \frac{e^{-E(y)/T}\, q(x \mid y)}{e^{-E(x)/T}\, q(y \mid x)}\Big), \qquad
              \log q(y \mid x) = -\frac{\|y - x + h \nabla E(x)\|^2}{4 h T} + c

    One energy gradient per step: energy and gradient of the current position are kept in the state, and recomputed by
    `refresh` after the parameters changed. The acceptance is summed up in float64. A proposal whose energy is NaN is
    rejected.

    ``info["acceptance_rate"]``: 1 where the proposal was accepted, otherwise 0. An acceptance near 0.57 is best in high
    dimensions.

    Args:
        step_size: ``h``, in squared units of ``x``, above 0.
        temperature: ``T``, above 0.

    Source: J. E. Besag (1994), comments on "Representations of knowledge in complex systems" by Grenander and Miller;
    G. O. Roberts and J. S. Rosenthal (1998), "Optimal scaling of discrete approximations to Langevin diffusions".

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> x = MALA(step_size=0.5).sample(Quadratic((2,)), torch.zeros(5000, 2), 50, generator=torch.Generator().manual_seed(0))
        >>> bool(abs(x.var() - 1) < 0.05)
        True
    """

    state_space = "continuous"
    exact = True
    reversible = True
    example_options: ClassVar[dict[str, Any]] = {"step_size": 0.5}

    def __init__(self, step_size: float, temperature: float = 1.0) -> None:
        if not step_size > 0:
            raise ValueError(f"step_size must be above 0, got {step_size!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature!r}")
        self.step_size = step_size
        self.temperature = temperature

    def init(self, energy: nn.Module, x: Tensor, *, generator: torch.Generator | None = None) -> MALAState:
        return MALAState(x, *value_and_grad(energy, x))

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        h, T = self.step_size, self.temperature
        noise = torch.randn_like(state.x, generator=generator)
        y = torch.add(state.x, state.grad, alpha=-h).add_(noise, alpha=(2 * h * T) ** 0.5)
        value, grad = value_and_grad(energy, y)
        proposal = replace(state, x=y, energy=value, grad=grad)

        log_accept = (at_least_float32(state.energy) - at_least_float32(value)).double() / T + self._log_reverse(
            state, proposal
        )
        uniform = torch.rand(len(state), generator=generator, dtype=torch.float64, device=y.device)
        accepted = uniform.log() < log_accept  # False where log_accept is not a number
        return select_chains(accepted, proposal, state), {"acceptance_rate": accepted.double()}

    def refresh(self, energy: nn.Module, state: Any) -> MALAState:
        value, grad = value_and_grad(energy, state.x)
        refreshed: MALAState = replace(state, energy=value, grad=grad)
        return refreshed

    def _log_reverse(self, state: MALAState, proposal: MALAState) -> Tensor:
        """``log q(x | y) - log q(y | x)``: with the gradient ``g``, ``(g(x) + g(y)) . (y - x + h / 2 (g(x) - g(y))) / 2 T``."""
        x, y, g_x, g_y = (at_least_float32(t).flatten(1) for t in (state.x, proposal.x, state.grad, proposal.grad))
        product = (g_x + g_y) * torch.add(y - x, g_x - g_y, alpha=self.step_size / 2)
        return product.sum(1, dtype=torch.float64) / (2 * self.temperature)

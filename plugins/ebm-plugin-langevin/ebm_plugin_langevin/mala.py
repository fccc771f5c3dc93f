"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebm_plugin_langevin.bounds import check_bounds, reflect
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

    With ``bounds`` the target is :math:`\exp(-E/T)` restricted to them, exactly. The energy is continued beyond the bounds to
    :math:`E \circ r`, where :math:`r` reflects each component at the bounds as often as it takes. The step is the one above under
    :math:`E \circ r`, from a position within the bounds to any :math:`y`, and the chain moves to :math:`r(y)`. Reflections
    change neither :math:`E \circ r` nor the law of the step. So detailed balance with every image of a point, summed over the
    images, is detailed balance with the point. Chains that start outside are reflected too.

    ``info["acceptance_rate"]``: 1 where the proposal was accepted, otherwise 0. An acceptance near 0.57 is best in high
    dimensions.

    Args:
        step_size: ``h``, in squared units of ``x``, above 0.
        temperature: ``T``, above 0.
        bounds: ``(low, high)`` of every component, such as the range of pixels; `None` for none.

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

    def __init__(self, step_size: float, temperature: float = 1.0, *, bounds: tuple[float, float] | None = None) -> None:
        if not step_size > 0:
            raise ValueError(f"step_size must be above 0, got {step_size!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature!r}")
        self.step_size = step_size
        self.temperature = temperature
        self.bounds = check_bounds(bounds)

    def init(self, energy: nn.Module, x: Tensor, *, generator: torch.Generator | None = None) -> MALAState:
        x = self._within(x)
        return MALAState(x, *value_and_grad(energy, x))

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        h, T = self.step_size, self.temperature
        noise = torch.randn_like(state.x, generator=generator)
        y = torch.add(state.x, state.grad, alpha=-h).add_(noise, alpha=(2 * h * T) ** 0.5)
        x, turn = (y, None) if self.bounds is None else reflect(y, *self.bounds)
        value, grad = value_and_grad(energy, x)
        proposal = replace(state, x=x, energy=value, grad=grad)

        log_accept = (at_least_float32(state.energy) - at_least_float32(value)).double() / T + self._log_reverse(
            state, y, grad if turn is None else turn * grad
        )
        uniform = torch.rand(len(state), generator=generator, dtype=torch.float64, device=y.device)
        accepted = uniform.log() < log_accept  # False where log_accept is not a number
        return select_chains(accepted, proposal, state), {"acceptance_rate": accepted.double()}

    def refresh(self, energy: nn.Module, state: Any) -> MALAState:
        x = self._within(state.x)  # which may be a start
        value, grad = value_and_grad(energy, x)
        refreshed: MALAState = replace(state, x=x, energy=value, grad=grad)
        return refreshed

    def _within(self, x: Tensor) -> Tensor:
        return x if self.bounds is None else reflect(x, *self.bounds)[0]

    def _log_reverse(self, state: MALAState, y: Tensor, grad: Tensor) -> Tensor:
        """``log q(x | y) - log q(y | x)``: with the gradient ``g``, ``(g(x) + g(y)) . (y - x + h / 2 (g(x) - g(y))) / 2 T``."""
        x, y, g_x, g_y = (at_least_float32(t).flatten(1) for t in (state.x, y, state.grad, grad))
        product = (g_x + g_y) * torch.add(y - x, g_x - g_y, alpha=self.step_size / 2)
        return product.sum(1, dtype=torch.float64) / (2 * self.temperature)

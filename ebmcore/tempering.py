"""An energy at an inverse temperature for each chain."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ebmcore.conditions import condition, name_conditions
from ebmcore.distributions import BaseDistribution
from ebmcore.energies import supports, value_and_grad

__all__ = ["SupportsTempering", "Tempered", "tempered"]


@runtime_checkable
class SupportsTempering(Protocol):
    """A tempered path of its own, where ``beta * E`` is not the right one."""

    def tempered(self, beta: Tensor, base: BaseDistribution | None = None) -> nn.Module:
        """Returns the energy at inverse temperatures ``beta`` ``(N,)`` or ``(K, N)``: see `tempered`."""


class Tempered(nn.Module):
    """``beta E(x) - (1 - beta) log p_0(x)``, with one ``beta`` for each chain; see `tempered`."""

    def __init__(self, energy: nn.Module, beta: Tensor, base: BaseDistribution | None = None) -> None:
        super().__init__()
        self.energy, self.beta, self.base = energy, beta, base

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        energies: Tensor = self.beta * self.energy(x, *args, **kwargs)
        if self.base is not None:
            energies = energies - (1 - self.beta) * self.base.log_prob(x)
        return energies

    def value_and_grad(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns energies ``(N,)`` and their gradient, in closed form where the energy has one."""
        value, grad = value_and_grad(condition(self.energy, name_conditions(args, kwargs, x)), x)
        beta = self.beta.expand(len(x))
        rows = beta.view(-1, *(1,) * (x.ndim - 1))
        value, grad = beta * value, (rows * grad).to(grad.dtype)
        if self.base is not None:
            base_value, base_grad = value_and_grad(self.base.log_prob, x)
            value, grad = value - (1 - beta) * base_value, (grad - (1 - rows) * base_grad).to(grad.dtype)
        return value, grad


def tempered(energy: nn.Module, beta: Tensor, base: BaseDistribution | None = None) -> nn.Module:
    """Returns the energy at inverse temperatures ``beta``, one for each chain.

    An energy with the capability `SupportsTempering` brings its own path: an RBM scales its joint energy, so that block Gibbs
    sampling stays possible. Any other energy gets ``beta E(x) - (1 - beta) log p_0(x)``.

    Args:
        energy: The energy at ``beta = 1``.
        beta: Inverse temperatures ``(N,)`` in [0, 1], or 0-dim for all chains. Several for each chain, ``(K, N)``, give energies
            ``(K, N)`` from one evaluation.
        base: The distribution ``p_0`` at ``beta = 0``; `None` for the uniform one, not normalised.

    Example:
        >>> import torch
        >>> from ebmcore.testing import Quadratic
        >>> tempered(Quadratic((2,)), torch.tensor([0.0, 0.5, 1.0]))(torch.ones(3, 2)).tolist()
        [0.0, 0.5, 1.0]
    """
    if supports(energy, SupportsTempering):
        return energy.tempered(beta, base)  # type: ignore[operator,no-any-return]
    return Tempered(energy, beta, base)

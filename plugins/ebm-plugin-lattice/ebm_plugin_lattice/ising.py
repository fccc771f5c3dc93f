"""The Ising model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ebm_plugin_lattice.base import SpinModel
from ebmcore.distributions import Bernoulli, at_least_float32


class Ising(SpinModel):
    r"""The Ising model of binary units: a spin :math:`s = 2x - 1` at each site, 1 or -1.

    .. math:: E(x) = -\sum_{i<j} J_{ij} s_i s_j - \sum_i h_i s_i

    Coupling and field are parameters; ``requires_grad_(False)`` on the energy fixes them. The critical coupling of the square
    lattice is :math:`\log(1 + \sqrt 2) / 2 \approx 0.4407`.

    ``log_partition()`` is exact up to 1,048,576 states, on a two-dimensional lattice of which one side is at most 10, and, by
    Kaufman's formula, on one of any size without a field, if the coupling is at least 0 or both sides are even. Block Gibbs
    sampling (`SupportsBlockGibbs`) works with all couplings.

    Args:
        shape: Shape of one example. Without given couplings its axes are those of a periodic lattice, so that ``(1, 8, 8)`` is a
            square of 8 by 8.
        coupling: ``J``, one number for all nearest neighbours, or a symmetric matrix of all pairs of sites.
        field: ``h``, a number for all sites, or a list with one for each; `None` for no field, and none is learnt.

    Source: E. Ising (1925), "Beitrag zur Theorie des Ferromagnetismus"; B. Kaufman (1949), "Crystal statistics. II. Partition
    function evaluated by spinor analysis".

    Example:
        >>> model = Ising((1, 16, 16), coupling=0.0)
        >>> bool(abs(model.log_partition() - 256 * math.log(2)) < 1e-10)
        True
    """

    state_space = "binary"
    base_type = Bernoulli
    unit_logit = 2.0
    closed_form = ", or on one of any size without a field, if the coupling is at least 0 or both sides are even"
    example_options: ClassVar[dict[str, Any]] = {"field": 0.2}

    def __init__(
        self,
        shape: Sequence[int],
        *,
        coupling: float | list[list[float]] = 0.4,
        field: float | list[float] | None = None,
    ) -> None:
        super().__init__(shape, shape, 2, coupling, field, 1)

    def spins(self, x: Tensor) -> Tensor:
        return 2 * x.reshape(len(x), -1, 1) - 1

    def encode(self, values: Tensor) -> Tensor:
        return values

    def draw(self, logits: Tensor, generator: Generator | None) -> Tensor:
        wide = at_least_float32(logits)  # uniform numbers in half precision are too coarse for p = 0.001
        uniform = torch.rand(wide.shape, generator=generator, dtype=wide.dtype, device=wide.device)
        return uniform < wide.sigmoid()

    def _has_closed_form(self) -> bool:
        sides = [length for length in self.sites if length > 1]
        if self.coupling.ndim or self.field is not None or len(sides) != 2:
            return False
        return bool(self.coupling >= 0) or not any(side % 2 for side in sides)

    def _by_closed_form(self) -> Tensor:
        height, width = (length for length in self.sites if length > 1)
        # On even sides a change of sign of every second spin turns the one sign of the coupling into the other.
        return kaufman_log_partition(height, width, self.coupling.double().abs())


def kaufman_log_partition(height: int, width: int, coupling: Tensor) -> Tensor:
    r"""Computes ``log Z`` of a periodic square lattice without a field, differentiable in the coupling.

    .. math:: Z = \frac12 (2 \sinh 2K)^{nm/2} \Big(
              \prod_r 2\cosh\frac{m\gamma_{2r+1}}2 + \prod_r 2\sinh\frac{m\gamma_{2r+1}}2
              + \prod_r 2\cosh\frac{m\gamma_{2r}}2 + \prod_r 2\sinh\frac{m\gamma_{2r}}2 \Big)

    for ``r`` from 0 to ``n - 1``, with :math:`\cosh\gamma_l = \cosh^2 2K / \sinh 2K - \cos(\pi l / n)` and
    :math:`\gamma_0 = 2K + \log\tanh K`.

    Args:
        height: ``n``, at least 2.
        width: ``m``, at least 2.
        coupling: ``K``, at least 0, 0-dim float64.

    Source: B. Kaufman (1949), "Crystal statistics. II. Partition function evaluated by spinor analysis".

    Example:
        >>> K = torch.tensor(0.0, dtype=torch.float64)
        >>> round(kaufman_log_partition(4, 4, K).item() / math.log(2), 10)
        16.0
    """
    if coupling == 0:
        return coupling + height * width * math.log(2)  # the spins are independent, and every factor is infinite
    angles = math.pi / height * torch.arange(1, 2 * height, dtype=torch.float64, device=coupling.device)
    cosh = torch.cosh(2 * coupling).square() / torch.sinh(2 * coupling) - angles.cos()
    gammas = torch.cat([(2 * coupling + torch.tanh(coupling).log())[None], torch.acosh(cosh)])
    halves = width / 2 * gammas
    odd, even = halves[1::2], halves[0::2]
    log_terms = torch.stack([_log_cosh(odd).sum(), _log_sinh(odd).sum(), _log_cosh(even).sum(), _log_sinh(even).sum()])
    signs = torch.ones_like(log_terms)
    signs[3] = even[0].sign()  # all others are above 0
    scale = log_terms.max().detach()
    total = (signs * (log_terms - scale).exp()).sum().log() + scale
    return total + height * width / 2 * torch.log(2 * torch.sinh(2 * coupling)) - math.log(2)


def _log_cosh(x: Tensor) -> Tensor:
    """Computes ``log 2 cosh x``."""
    return x.abs() + torch.log1p(torch.exp(-2 * x.abs()))


def _log_sinh(x: Tensor) -> Tensor:
    """Computes ``log |2 sinh x|``."""
    return x.abs() + torch.log(-torch.expm1(-2 * x.abs()))

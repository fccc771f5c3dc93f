"""Discrete energy discrepancy, Schroeder et al. 2024."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ebm_plugin_energy_discrepancy.base import BaseEnergyDiscrepancy
from ebmcore.distributions import Categorical, at_least_float32

PERTURBATIONS = ("bernoulli", "uniform", "cyclic", "grid")


class DiscreteEnergyDiscrepancy(BaseEnergyDiscrepancy):
    r"""Energy discrepancy of binary or categorical data: each example against points around a perturbed copy of it.

    .. math:: L = \frac1B\sum_i \log\Big(\frac wM + \frac1M\sum_{j=1}^M \exp\big(E(x_i) - E(\tilde x_{ij})\big)\Big),
              \qquad y_i \sim q_t(\cdot \mid x_i),\quad \tilde x_{ij} \sim q_t(\cdot \mid y_i)

    where :math:`q_t` is the heat kernel of a graph whose nodes are the values of a unit: each unit jumps to each neighbour of its
    value at rate 1, for a time ``t``, independently of the others. It needs no sampler. ``w`` and ``M`` are those of
    ``energy-discrepancy``.

    ====================  ======================================================  =====================================
    ``perturbation``      data                                                    neighbours of a value
    ====================  ======================================================  =====================================
    ``"bernoulli"``       binary                                                  the other value: a unit flips with
                                                                                  probability ``(1 - exp(-2 t)) / 2``
    ``"uniform"``         categorical, one-hot on the last axis, no order         all others
    ``"cyclic"``          categorical, in a ring, such as hours                   the next and the last one, around
    ``"grid"``            categorical, in order, such as grey levels              the next and the last one
    ====================  ======================================================  =====================================

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        perturbation: The graph, see above.
        t: Time of each of the two steps, above 0. At ``t`` of about 1 over the number of units one unit of an example changes.
        n_samples: Points for each example, ``M``, at least 1. The energy scores ``M + 1`` times the batch.
        w: Weight of the stabilising term, at least 0.

    Source: T. Schroeder, Z. Ou, Y. Li and A. B. Duncan (2024), "Energy-based modelling for discrete and mixed data via heat
    equations on structured spaces".

    Example:
        >>> from ebmcore.testing import Boltzmann, Potts
        >>> DiscreteEnergyDiscrepancy(Boltzmann(4))(torch.ones(8, 4)).shape
        torch.Size([])
        >>> x = Potts(n_units=5, n_values=3).sample(8)
        >>> DiscreteEnergyDiscrepancy(Potts(n_units=5, n_values=3), perturbation="cyclic")(x).shape
        torch.Size([])
    """

    state_space = "binary"  # that of the default; each instance has its own

    def __init__(
        self,
        energy: nn.Module,
        *,
        perturbation: Literal["bernoulli", "uniform", "cyclic", "grid"] = "bernoulli",
        t: float = 0.1,
        n_samples: int = 16,
        w: float = 1.0,
    ) -> None:
        super().__init__(energy, t, n_samples, w)
        if perturbation not in PERTURBATIONS:
            raise ValueError(f"perturbation must be 'bernoulli', 'uniform', 'cyclic' or 'grid', got {perturbation!r}")
        self.perturbation = perturbation
        self.state_space = "binary" if perturbation == "bernoulli" else "categorical"

    def perturb(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        if self.perturbation == "bernoulli":
            uniform = torch.rand(x.shape, generator=self.generator, dtype=wide.dtype, device=x.device)
            return torch.where(uniform < -0.5 * math.expm1(-2 * self.t), 1 - x, x)
        with torch.autocast(x.device.type, enabled=False):
            probabilities = wide @ self.kernel(x.shape[-1], wide)
        return Categorical.draw(probabilities.log(), self.generator).to(x.dtype)

    def kernel(self, n_values: int, like: Tensor) -> Tensor:
        """Returns ``q_t(j | i)`` ``(n_values, n_values)``, the exponential of ``-t`` times the Laplacian of the graph."""
        # By its eigenvectors, which are waves: torch.matrix_exp waits for the device.
        value = torch.arange(n_values, dtype=like.dtype, device=like.device)
        if self.perturbation == "uniform":
            stays = math.exp(-self.t * n_values)
            return stays * torch.diag(torch.ones_like(value)) + (1 - stays) / n_values
        around = self.perturbation == "cyclic" and n_values > 2
        frequency = (2 * math.pi if around else math.pi) * value / n_values
        decay = torch.exp(-self.t * (2 - 2 * frequency.cos()))
        if around:
            waves = (frequency * (value[:, None, None] - value[:, None])).cos()
        else:
            wave = (frequency * (value[:, None] + 0.5)).cos() * (1 + value.sign()).sqrt()
            waves = wave[:, None] * wave
        return (waves @ decay / n_values).clamp(min=0)

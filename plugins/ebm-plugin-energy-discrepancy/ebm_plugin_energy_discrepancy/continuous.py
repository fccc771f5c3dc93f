"""Energy discrepancy, Schroeder et al. 2023."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebm_plugin_energy_discrepancy.base import BaseEnergyDiscrepancy


class EnergyDiscrepancy(BaseEnergyDiscrepancy):
    r"""Energy discrepancy: each example against points around a noisy copy of it.

    .. math:: L = \frac1B\sum_i \log\Big(\frac wM + \frac1M\sum_{j=1}^M \exp\big(E(x_i) - E(\tilde x_{ij})\big)\Big),
              \qquad \tilde x_{ij} = x_i + \sqrt t\,a_i + \sqrt t\,b_{ij}

    with normal noise: one :math:`a_i` for each example, and a :math:`b_{ij}` for each point around its noisy copy. It needs no
    sampler and no gradient with respect to examples. As ``t`` goes to 0 it is ``t`` times score matching; as ``t`` grows its
    gradient tends to that of the likelihood, but more and more points are needed.

    With ``w = 1`` it is, up to a constant, the cross entropy of choosing the example among itself and its ``M`` points. Its
    minimum is then the distribution of the data for every ``M``. With another ``w`` this holds as ``M`` grows.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        t: Variance of the noise, of each of the two steps, above 0.
        n_samples: Points for each example, ``M``, at least 1. The energy scores ``M + 1`` times the batch.
        w: Weight of the stabilising term, at least 0.

    Source: T. Schroeder, Z. Ou, J. N. Lim, Y. Li, S. J. Vollmer and A. B. Duncan (2023), "Energy discrepancies: a
    score-independent loss for energy-based models".

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> EnergyDiscrepancy(Quadratic((2,)), t=0.1)(torch.randn(64, 2)).shape
        torch.Size([])
    """

    state_space = "continuous"
    example_options: ClassVar[dict[str, Any]] = {"n_samples": 4}

    def __init__(self, energy: nn.Module, *, t: float = 0.25, n_samples: int = 16, w: float = 1.0) -> None:
        super().__init__(energy, t, n_samples, w)

    def perturb(self, x: Tensor) -> Tensor:
        return x + math.sqrt(self.t) * torch.randn_like(x, generator=self.generator)

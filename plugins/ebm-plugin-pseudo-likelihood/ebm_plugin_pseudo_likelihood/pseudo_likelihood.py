"""Pseudo-likelihood, Besag 1975."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ebm_plugin_pseudo_likelihood.neighbours import NeighbourLoss


class PseudoLikelihood(NeighbourLoss):
    r"""The negative log pseudo-likelihood: each site is predicted from all others.

    .. math:: L = -\frac1B\sum_b \sum_i \log p(x_i \mid x_{-i}), \qquad
              -\log p(x_i \mid x_{-i}) = \log\Big(1 + \sum_{x'} e^{E(x) - E(x')}\Big)

    The inner sum is over the other values of site :math:`i`. The estimate is consistent: with enough data it ends at the
    parameters that made them. Its gradient is :math:`n` times the expected one of CD-1 whose step redraws one of the :math:`n`
    sites at random.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``; it is called with ``B (1 + n (K - 1))`` states for ``n`` sites of
            ``K`` values.
        n_sites: Number of sites that each example is compared at, drawn in each call; unbiased. `None` compares all.
        state_space: ``"binary"``, or ``"categorical"`` for examples ``(*sites, K)``, one-hot along the last axis. `None` takes
            that of the energy, ``"binary"`` where it declares none.

    Source: J. Besag (1975), "Statistical analysis of non-lattice data"; CD-1: A. Hyvarinen (2006), "Consistency of
    pseudolikelihood estimation of fully visible Boltzmann machines".

    Example:
        >>> import torch
        >>> from ebmcore.testing import Boltzmann
        >>> loss = PseudoLikelihood(Boltzmann(4, scale=0.0))
        >>> round(loss(torch.zeros(8, 4)).item(), 4)  # 4 log 2
        2.7726
    """

    def __init__(
        self, energy: nn.Module, *, n_sites: int | None = None, state_space: Literal["binary", "categorical"] | None = None
    ) -> None:
        super().__init__(energy, n_sites, state_space)

    def of_gaps(self, gaps: Tensor) -> Tensor:
        others = gaps.squeeze(2) if gaps.shape[2] == 1 else gaps.logsumexp(2)
        return F.softplus(others, threshold=40)  # log(1 + e^x); torch's own threshold costs 2e-9 in float64

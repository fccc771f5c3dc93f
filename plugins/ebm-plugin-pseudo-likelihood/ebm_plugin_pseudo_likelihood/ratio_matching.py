"""Ratio matching, Hyvarinen 2007."""

from __future__ import annotations

from torch import Tensor, nn

from ebm_plugin_pseudo_likelihood.neighbours import NeighbourLoss


class RatioMatching(NeighbourLoss):
    r"""The squared error of the ratios of probabilities of binary examples and their neighbours.

    .. math:: L = \frac1B\sum_b \sum_i g\Big(\frac{p(x)}{p(\bar x^{(i)})}\Big)^2, \qquad g(u) = \frac1{1 + u}

    with :math:`\bar x^{(i)}` the example with unit :math:`i` flipped. The function :math:`g` keeps ratios with a small
    denominator from dominating: a term is :math:`(1 - p(x_i \mid x_{-i}))^2`, at most 1, so that an example which the model
    finds very unlikely has little weight, unlike in the pseudo-likelihood.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``; it is called with ``B (1 + n)`` states for ``n`` units.
        n_sites: Number of units that each example is compared at, drawn in each call; unbiased. `None` compares all.

    Source: A. Hyvarinen (2007), "Some extensions of score matching".

    Example:
        >>> import torch
        >>> from ebmcore.testing import Boltzmann
        >>> RatioMatching(Boltzmann(4, scale=0.0))(torch.zeros(8, 4)).item()  # 4 / 2^2
        1.0
    """

    def __init__(self, energy: nn.Module, *, n_sites: int | None = None) -> None:
        super().__init__(energy, n_sites, "binary")

    def of_gaps(self, gaps: Tensor) -> Tensor:
        return gaps.squeeze(2).sigmoid().square()

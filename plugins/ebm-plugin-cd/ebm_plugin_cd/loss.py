"""CD-k, Hinton 2002."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ebmcore import BaseContrastiveDivergence


class ContrastiveDivergence(BaseContrastiveDivergence):
    r"""Contrastive divergence: the negative chains start at the data and make ``k_steps`` transitions.

    .. math:: L = \frac1B\sum_i E(x_i) - \frac1B\sum_i E(\hat x_i), \qquad \hat x_i \sim T^k(\cdot \mid x_i)

    with the negatives :math:`\hat x` held fixed in the gradient. The gradient is biased towards what the chain reaches in
    ``k_steps`` from the data; the bias vanishes as ``k_steps`` grows.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        sampler: A `Sampler` whose transitions leave ``exp(-E)`` invariant, or nearly so.
        k_steps: Transitions per call, at least 1.
        energy_l2: Weight of the mean squared energies, a regulariser; 0 turns it off.
        joint_forward: Score data and negatives in one forward of the concatenated batch.

    Source: G. E. Hinton (2002), "Training products of experts by minimizing contrastive divergence".

    Example:
        >>> import torch
        >>> from ebmcore.testing import Identity, Quadratic
        >>> cd = ContrastiveDivergence(Quadratic((2,)), Identity(), k_steps=1)
        >>> loss, pred_x = cd(torch.ones(4, 2))
        >>> loss.item()
        0.0
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        pred_x = self.draw_negatives(x, *args, **kwargs)
        return self.compute_loss(x, pred_x, *args, **kwargs), pred_x

    def compute_loss(self, x: Tensor, pred_x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.energy_gap(x, pred_x, *args, **kwargs)

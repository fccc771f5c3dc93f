"""Score matching by differences of energies, without a gradient of a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ebm_plugin_score_matching.base import BaseScoreMatching, check_positive, project
from ebmcore.conditions import name_conditions, split_conditions
from ebmcore.errors import UsageError


class FiniteDifferenceScoreMatching(BaseScoreMatching):
    r"""Finite-difference score matching: sliced score matching whose derivatives are differences of three energies.

    .. math:: L = E_{data} E_v\Big[\frac{(E(x + \epsilon v) - E(x - \epsilon v))^2}{8 \epsilon^2}
              - \frac{E(x + \epsilon v) + E(x - \epsilon v) - 2 E(x)}{\epsilon^2}\Big]

    Components of :math:`v` are 1 or -1, independently over all axes of an example. The result differs from that of
    ``sliced-score-matching`` by :math:`O(\epsilon^2)`, and not at all for a quadratic energy. Nothing differentiates a gradient:
    a step is one forward and one backward pass of three times the batch. Take it where double backward is not to be had: with
    sharded parameters (``--strategy fsdp``), a compiled energy, or operators without second derivatives.

    Rounding limits ``eps`` from below. In float32 an energy is known to :math:`u |E|` with :math:`u = 6 \cdot 10^{-8}`, so that
    the loss has an error of about :math:`4 u |E| / \epsilon^2`. For :math:`|E| = 100` this is 0.002 at :math:`\epsilon = 0.1`,
    and 24 at :math:`\epsilon = 0.001`. The default suits data of unit scale; in float64 it may be smaller. Autocast is turned off
    within the loss, and energies in half precision are refused. Leave dropout out of the energy: it would draw other units for
    each of the three energies.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        eps: Step along each component, in units of the data. The paper's :math:`\|v\|` is ``eps`` times the square root of the
            number of dimensions.

    Source: T. Pang, K. Xu, C. Li, Y. Song, S. Ermon and J. Zhu (2020), "Efficient learning of generative models via
    finite-difference score matching".

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> loss = FiniteDifferenceScoreMatching(Quadratic((3,), precision=2.0))
        >>> round(loss(torch.zeros(8, 3)).item(), 4)
        -6.0
    """

    double_backward = False

    def __init__(self, energy: nn.Module, *, eps: float = 0.1) -> None:
        super().__init__(energy)
        check_positive("eps", eps)
        self.eps = eps

    def terms(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.dtype.itemsize < 4:
            raise UsageError(
                f"differences of energies need float32 at least, got {x.dtype}: use the precision 32-true or bf16-mixed"
            )
        step = self.eps * project(x, "rademacher", self.generator)
        conditions = {name: torch.cat([t] * 3) for name, t in name_conditions(args, kwargs, x).items()}
        args, kwargs = split_conditions(conditions)
        with torch.autocast(x.device.type, enabled=False):
            ahead, behind, here = self.energies(torch.cat([x + step, x - step, x]), *args, **kwargs).chunk(3)
        slope, second = ahead - behind, (ahead - here) + (behind - here)
        return (0.125 * slope.square() - second) / self.eps**2

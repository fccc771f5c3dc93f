"""The part that all energy discrepancies share."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore import BaseLoss


class BaseEnergyDiscrepancy(BaseLoss):
    """Base of the energy discrepancies. A subclass says how an example is perturbed (`perturb`)."""

    weighted = True
    double_backward = False

    def __init__(self, energy: nn.Module, t: float, n_samples: int, w: float) -> None:
        super().__init__()
        if not t > 0:
            raise ValueError(f"t must be above 0, got {t!r}")
        if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
            raise ValueError(f"n_samples must be a whole number of at least 1, got {n_samples!r}")
        if not w >= 0:
            raise ValueError(f"w must be at least 0, got {w!r}")
        self.energy, self.t, self.n_samples, self.w = energy, t, n_samples, w

    @abstractmethod
    def perturb(self, x: Tensor) -> Tensor:
        """Draws from the heat kernel at time ``t``, one point for each row of ``x`` ``(N, *shape)``."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        m = self.n_samples
        there = self.perturb(x)
        back = self.perturb(there.repeat_interleave(m, 0))
        args = [torch.cat([label, label.repeat_interleave(m, 0)]) for label in args]
        kwargs = {name: torch.cat([label, label.repeat_interleave(m, 0)]) for name, label in kwargs.items()}
        data, around = self.energies(torch.cat([x, back]), *args, **kwargs).split([len(x), m * len(x)])
        gaps = data[:, None] - around.view(len(x), m)
        log_w = gaps.new_full((len(x), 1), math.log(self.w) if self.w else -math.inf)
        terms = torch.logsumexp(torch.cat([log_w, gaps], 1), 1) - math.log(m)
        return (terms if self.data_weights is None else self.data_weights.to(terms) * terms).mean()

r"""Base of losses that compare an example with its neighbours, the states that differ from it at one site.

A site is one unit of a binary example ``(*shape)``, whose neighbour has the unit flipped, or one categorical unit of an example
``(*sites, K)``, one-hot along the last axis, which has :math:`K - 1` neighbours. The normaliser of the model cancels in the
differences :math:`E(x) - E(x')`, so nothing is sampled.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore import BaseLoss
from ebmcore.conditions import name_conditions, split_conditions
from ebmcore.distributions import Categorical, at_least_float32
from ebmcore.errors import UsageError

SPACES = ("binary", "categorical")


class NeighbourLoss(BaseLoss):
    r"""A loss that is a sum over the sites of an example: :math:`L = \frac1B \sum_b w_b \sum_i \ell_i(x_b)`.

    A subclass gives :math:`\ell_i` as a function of the differences of energies (`of_gaps`). Example and neighbours are scored in
    one batch. An example that is a probability, and not a state, is drawn again in each call.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        n_sites: Number of sites that each example is compared at, drawn without replacement in each call; their sum is scaled so
            that its expectation is the sum over all. `None` compares all.
        state_space: ``"binary"`` or ``"categorical"``. `None` takes that of the energy, ``"binary"`` where it declares none.
    """

    state_space = "binary"
    weighted = True
    double_backward = False

    def __init__(self, energy: nn.Module, n_sites: int | None, state_space: str | None) -> None:
        super().__init__()
        if n_sites is not None and (isinstance(n_sites, bool) or not isinstance(n_sites, int) or n_sites < 1):
            raise ValueError(f"n_sites must be a whole number of at least 1, or None for all sites, got {n_sites!r}")
        if state_space not in (None, *SPACES):
            raise ValueError(f"state_space must be 'binary', 'categorical' or None, got {state_space!r}")
        known = getattr(energy, "state_space", None)
        self.energy = energy
        self.n_sites = n_sites
        self.state_space = state_space or (known if known in SPACES else "binary")

    @abstractmethod
    def of_gaps(self, gaps: Tensor) -> Tensor:
        """Computes the terms ``(B, sites)`` from ``E(x) - E(x')`` ``(B, sites, neighbours at a site)``."""

    def build(self, shape: Sequence[int]) -> None:
        """Checks that examples of ``shape`` have enough sites and values."""
        self._count_sites(shape)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        n = self._count_sites(x.shape[1:])
        conditions = name_conditions(args, kwargs, x)
        sites = self._draw_sites(x, n)
        together = self._with_neighbours(self._as_states(x), sites)
        args, kwargs = split_conditions({name: t.repeat_interleave(together.shape[1], 0) for name, t in conditions.items()})
        energies = self.energies(together.flatten(0, 1), *args, **kwargs).view(together.shape[:2])
        here, there = energies.split([1, energies.shape[1] - 1], 1)
        gaps = (here - there).view(*sites.shape, -1)
        terms = self.of_gaps(gaps)
        losses = terms.sum(1) * (n / terms.shape[1])
        return losses.mean() if self.data_weights is None else (self.data_weights * losses).mean().to(losses.dtype)

    def _count_sites(self, shape: Sequence[int]) -> int:
        shape = torch.Size(shape)
        n, values = (shape.numel(), 2) if self.state_space == "binary" else (shape[:-1].numel(), shape[-1])
        if values < 2:
            raise UsageError(
                f"categorical examples of shape {tuple(shape)} have {values} value on the last axis: encode them one-hot"
            )
        if self.n_sites is not None and self.n_sites > n:
            raise UsageError(
                f"n_sites is {self.n_sites}, but examples of shape {tuple(shape)} have {n} sites: lower it, or leave it out"
            )
        return n

    def _as_states(self, x: Tensor) -> Tensor:
        """Draws what lies strictly between 0 and 1 and so is a probability; a state stays as it is."""
        if self.state_space == "binary":
            uniform = torch.rand_like(at_least_float32(x), generator=self.generator)
            return torch.where((x > 0) & (x < 1), (uniform < x).to(x.dtype), x)
        is_state = x.amax(-1, keepdim=True) >= 1
        return torch.where(is_state, x, Categorical.draw(at_least_float32(x).log(), self.generator).to(x.dtype))

    def _draw_sites(self, x: Tensor, n: int) -> Tensor:
        """Returns the numbers ``(B, S)`` of the sites at which each example is compared."""
        if self.n_sites is None:
            return torch.arange(n, device=x.device).expand(len(x), n)
        uniform = torch.rand(len(x), n, generator=self.generator, device=x.device)
        return uniform.topk(self.n_sites, 1).indices

    def _with_neighbours(self, x: Tensor, sites: Tensor) -> Tensor:
        """Returns each example and then its neighbours at the sites, ``(B, 1 + S (K - 1), *shape)``."""
        if self.state_space == "binary":
            units = x.reshape(len(x), -1, 1)
            others = (1 - units).unsqueeze(2)
        else:
            units = x.reshape(len(x), -1, x.shape[-1])
            others = torch.stack([units.roll(shift, -1) for shift in range(1, x.shape[-1])], 2)
        # Copies of the example, of which each is changed at one site: a fourth of the time of a choice by masks of all sites.
        where = sites[:, :, None, None].expand(-1, -1, *others.shape[2:])
        changed = others.gather(1, where).flatten(1, 2).unsqueeze(2)
        together = units.unsqueeze(1).repeat(1, 1 + changed.shape[1], 1, 1)
        together[:, 1:].scatter_(2, where.flatten(1, 2).unsqueeze(2), changed)
        return together.view(len(x), -1, *x.shape[1:])

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
from torch.nn.functional import one_hot

from ebmcore import BaseLoss
from ebmcore.conditions import name_conditions, split_conditions
from ebmcore.distributions import Categorical, at_least_float32
from ebmcore.errors import UsageError

SPACES = ("binary", "categorical")


class NeighbourLoss(BaseLoss):
    r"""A loss that is a sum over the sites of an example: :math:`L = \frac1B \sum_b w_b \sum_i \ell_i(x_b)`.

    A subclass gives :math:`\ell_i` as a function of the differences of energies (`of_gaps`). Example and neighbours are scored in
    one batch. An example that is a probability, and not a state, is drawn anew in each call.

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
        self._sites_and_values(shape)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        n, _ = self._sites_and_values(x.shape[1:])
        conditions = name_conditions(args, kwargs, x)
        x = self._as_states(x)
        neighbours = self._neighbours(x, self._draw_sites(x, n))
        together = torch.cat([x.unsqueeze(1), neighbours.flatten(1, 2)], 1)  # (B, 1 + neighbours, *shape)
        args, kwargs = split_conditions({name: t.repeat_interleave(together.shape[1], 0) for name, t in conditions.items()})
        energies = self.energies(together.flatten(0, 1), *args, **kwargs).view(together.shape[:2])
        here, there = energies.split([1, energies.shape[1] - 1], 1)
        gaps = (here - there).view(neighbours.shape[:3])
        terms = self.of_gaps(gaps)
        losses = terms.sum(1) * (n / terms.shape[1])
        return losses.mean() if self.data_weights is None else (self.data_weights * losses).mean().to(losses.dtype)

    def _sites_and_values(self, shape: Sequence[int]) -> tuple[int, int]:
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
        return n, values

    def _as_states(self, x: Tensor) -> Tensor:
        """Draws what lies strictly between 0 and 1 and so is a probability; a state stays as it is."""
        if self.state_space == "binary":
            uniform = torch.rand_like(at_least_float32(x), generator=self.generator)
            return torch.where((x > 0) & (x < 1), (uniform < x).to(x.dtype), x)
        is_state = x.amax(-1, keepdim=True) >= 1
        return torch.where(is_state, x, Categorical.draw(at_least_float32(x).log(), self.generator).to(x.dtype))

    def _draw_sites(self, x: Tensor, n: int) -> Tensor:
        """Returns a mask ``(B or 1, sites that are compared, all sites)``."""
        if self.n_sites is None:
            return torch.eye(n, dtype=torch.bool, device=x.device).unsqueeze(0)
        uniform = torch.rand(len(x), n, generator=self.generator, device=x.device)
        return one_hot(uniform.topk(self.n_sites, 1).indices, n).bool()

    def _neighbours(self, x: Tensor, sites: Tensor) -> Tensor:
        """Returns all neighbours at the sites ``(B, sites that are compared, neighbours at a site, *shape)``."""
        if self.state_space == "binary":
            mask = sites.view(*sites.shape[:2], *x.shape[1:])
            return torch.where(mask, 1 - x.unsqueeze(1), x.unsqueeze(1)).unsqueeze(2)
        mask = sites.view(*sites.shape[:2], 1, *x.shape[1:-1], 1)
        others = torch.stack([x.roll(shift, -1) for shift in range(1, x.shape[-1])], 1)
        return torch.where(mask, others.unsqueeze(1), x[:, None, None])

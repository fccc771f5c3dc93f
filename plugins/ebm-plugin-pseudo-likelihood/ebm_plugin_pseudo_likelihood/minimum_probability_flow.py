"""Minimum probability flow, Sohl-Dickstein, Battaglino and DeWeese 2011."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ebm_plugin_pseudo_likelihood.neighbours import NeighbourLoss


class MinimumProbabilityFlow(NeighbourLoss):
    r"""The flow of probability out of the data, at the first moment of dynamics that end at the model.

    .. math:: L = \frac1B\sum_b \sum_{x'} e^{(E(x_b) - E(x')) / 2}

    The sum is over all states that differ from the example at one site. Terms between two examples are kept: in expectation their
    flows cancel at the parameters that made the data.

    The difference is taken before the exponential, so that no constant in the energy matters. An example that is less likely than
    a neighbour by many nats has an exponentially large gradient; start from small weights, or clip the gradient.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``; it is called with ``B (1 + n (K - 1))`` states for ``n`` sites of
            ``K`` values.
        n_sites: Number of sites that each example is compared at, drawn in each call; unbiased. `None` compares all.
        state_space: ``"binary"``, or ``"categorical"`` for examples ``(*sites, K)``, one-hot along the last axis. `None` takes
            that of the energy, ``"binary"`` where it declares none.

    Source: J. Sohl-Dickstein, P. B. Battaglino and M. R. DeWeese (2011), "Minimum probability flow learning".

    Example:
        >>> import torch
        >>> from ebmcore.testing import Boltzmann
        >>> MinimumProbabilityFlow(Boltzmann(4, scale=0.0))(torch.zeros(8, 4)).item()  # 4 neighbours of the same energy
        4.0
    """

    def __init__(
        self, energy: nn.Module, *, n_sites: int | None = None, state_space: Literal["binary", "categorical"] | None = None
    ) -> None:
        super().__init__(energy, n_sites, state_space)

    def of_gaps(self, gaps: Tensor) -> Tensor:
        return (gaps / 2).exp().sum(2)

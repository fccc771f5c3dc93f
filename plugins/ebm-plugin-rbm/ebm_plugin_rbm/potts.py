"""The restricted Boltzmann machine with categorical visible units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ebm_plugin_rbm.base import LinearRBM, binary_states
from ebmcore.distributions import Categorical
from ebmcore.errors import UsageError

_CHUNK_ELEMENTS = 2**20  # of float64: 8 MB


class PottsRBM(LinearRBM):
    r"""Restricted Boltzmann machine with categorical (Potts) visible units, one-hot, and binary hidden units.

    .. math:: E(v, h) = -\sum_{ia} b_{ia} v_{ia} - c^\top h - \sum_{iaj} v_{ia} W_{iaj} h_j, \qquad \sum_a v_{ia} = 1

    Given the hidden units the values of each visible unit have probabilities :math:`\mathrm{softmax}_a(b_{ia} + (W h)_{ia})`.
    ``forward`` is the free energy of the visible units.

    Args:
        shape: Shape of one example ``(*units, values)``: the last axis is the one-hot one.
        hidden: Number of hidden units.
        weight_std: Standard deviation of the initial weights.
        visible_bias: Where the visible biases start: ``"zero"``, or ``"data"``, the logarithms of the values' frequencies, with
            one example of each value added so that none is infinite; see `start_from_data`. Hidden biases start at 0.

    Source: R. Salakhutdinov, A. Mnih and G. Hinton (2007), "Restricted Boltzmann machines for collaborative filtering"; initial
    biases: G. E. Hinton (2010), "A practical guide to training restricted Boltzmann machines".

    Example:
        >>> rbm = PottsRBM((4, 3), hidden=2, weight_std=0.0)
        >>> bool(abs(rbm.log_partition() - 4 * math.log(3) - 2 * math.log(2)) < 1e-12)
        True
    """

    state_space = "categorical"
    base_type = Categorical

    def __init__(
        self,
        shape: Sequence[int],
        hidden: int,
        *,
        weight_std: float = 0.01,
        visible_bias: Literal["zero", "data"] = "zero",
    ) -> None:
        super().__init__(shape, hidden, weight_std, visible_bias)
        if len(self.visible_shape) < 2:
            raise UsageError(
                f"the shape of categorical examples is (*units, values), got {tuple(shape)}: encode them one-hot"
            )

    def bias_of(self, mean: Tensor, n: Tensor) -> Tensor:
        return torch.log(n * mean + 1).view(self.visible_shape).log_softmax(-1).flatten()

    def visible_given(
        self, field: Tensor, beta: Tensor | None, base: Any, share: Tensor | float, generator: torch.Generator | None
    ) -> Tensor:
        logits = field if beta is None else beta * field
        if base is not None:
            logits = logits + share * base.logits.log_softmax(-1).flatten().to(logits)
        return Categorical.draw(logits.view(-1, *self.visible_shape), generator).flatten(1)

    def initial_distribution(self, shape: Sequence[int]) -> Categorical:
        """Returns the uniform distribution over values: the model at infinite temperature."""
        return Categorical(torch.zeros(tuple(shape), dtype=self.weight.dtype, device=self.weight.device))

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """Computes the exact ``log Z`` in nats, 0-dim float64, by enumeration of the hidden layer in chunks.

        Raises:
            UsageError: If the hidden layer has more than 25 units.
        """
        self.check_enumeration()
        weight, b, c = self.weight.double(), self.visible_bias.double(), self.hidden_bias.double()
        n_low = min(len(c), max(0, int(math.log2(_CHUNK_ELEMENTS / len(b)))))
        low, parts = binary_states(n_low, c), []
        low_logits = b + low @ weight[:, :n_low].T
        for high in binary_states(len(c) - n_low, c):
            logits = (low_logits + weight[:, n_low:] @ high).view(len(low), -1, self.visible_shape[-1])
            parts.append(torch.logsumexp(low @ c[:n_low] + torch.logsumexp(logits, 2).sum(1), 0) + high @ c[n_low:])
        return torch.logsumexp(torch.stack(parts), 0)

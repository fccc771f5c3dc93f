"""The restricted Boltzmann machine with Gaussian visible units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ebm_plugin_rbm.base import BaseRBM, binary_states, softplus
from ebmcore.distributions import Normal

_CHUNK = 2**16


class GaussianRBM(BaseRBM):
    r"""Restricted Boltzmann machine with real visible units, normal given the hidden ones, and binary hidden units.

    .. math:: E(v, h) = \sum_i \frac{(v_i - b_i)^2}{2\sigma_i^2} - c^\top h - \sum_{ij} \frac{v_i}{\sigma_i^2} W_{ij} h_j

    so that :math:`v_i \mid h \sim N(b_i + (W h)_i, \sigma_i^2)` and :math:`p(h_j = 1 \mid v) = \mathrm{sigmoid}(c_j + \sum_i
    v_i W_{ij} / \sigma_i^2)`. ``forward`` is the free energy of the visible units: a mixture of :math:`2^{|h|}` normal
    distributions of one covariance. The variances are learned as their logarithms.

    Args:
        shape: Shape of one example; its units are the visible ones.
        hidden: Number of hidden units.
        weight_std: Standard deviation of the initial weights.
        visible_bias: Where the visible biases start: ``"zero"``, or ``"data"``, the data's means; see `start_from_data`.
            Hidden biases start at 0.
        std: Initial standard deviation of the visible units, above 0.
        learn_variance: Whether the variances are trained.

    Source: K. Cho, A. Ilin and T. Raiko (2011), "Improved learning of Gaussian-Bernoulli restricted Boltzmann machines";
    initial biases: G. E. Hinton (2010), "A practical guide to training restricted Boltzmann machines".

    Example:
        >>> rbm = GaussianRBM((2,), hidden=3, weight_std=0.0, std=2.0)
        >>> round(rbm(torch.tensor([[2.0, 0.0]])).item() + 3 * math.log(2), 6)
        0.5
    """

    state_space = "continuous"
    base_type = Normal

    def __init__(
        self,
        shape: Sequence[int],
        hidden: int,
        *,
        weight_std: float = 0.01,
        visible_bias: Literal["zero", "data"] = "zero",
        std: float = 1.0,
        learn_variance: bool = True,
    ) -> None:
        super().__init__(shape, hidden, weight_std, visible_bias)
        if not std > 0:
            raise ValueError(f"std must be above 0, got {std!r}")
        self.log_variance = nn.Parameter(
            torch.full_like(self.visible_bias.data, 2 * math.log(std)), requires_grad=learn_variance
        )

    def bias_of(self, mean: Tensor, n: Tensor) -> Tensor:
        return mean

    def visible_energy(self, v: Tensor) -> Tensor:
        return 0.5 * ((v - self.visible_bias).square() * self._precision()).sum(1)

    def inputs(self, v: Tensor) -> Tensor:
        return v * self._precision()

    def visible_given(
        self, field: Tensor, beta: Tensor | None, base: Any, share: Tensor | float, generator: torch.Generator | None
    ) -> Tensor:
        precision = self._precision() if beta is None else beta * self._precision()
        weighted = precision * field
        if base is not None:
            of_base = share * base.std.flatten().square().reciprocal().to(field)
            precision, weighted = precision + of_base, weighted + of_base * base.mean.flatten().to(field)
        return weighted / precision + torch.randn_like(field, generator=generator) / precision.sqrt()

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the free energy ``(N,)`` and its gradient with respect to ``x``, in closed form."""
        v, logits = x.flatten(1), self.hidden_logits(x)
        energy = self.visible_energy(v) - softplus(logits).sum(1)
        grad = self._precision() * (v - self.visible_bias - logits.sigmoid() @ self.weight.T)
        return energy, grad.view_as(x)

    def initial_distribution(self, shape: Sequence[int]) -> Normal:
        """Returns the visible units' own normal distributions, without the hidden ones."""
        std = (0.5 * self.log_variance.detach()).exp()
        return Normal(self.visible_bias.detach().clone().view(tuple(shape)), std.view(tuple(shape)))

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """Computes the exact ``log Z`` in nats, 0-dim float64, by enumeration of the hidden layer in chunks.

        Raises:
            UsageError: If the hidden layer has more than 25 units.
        """
        self.check_enumeration()
        weight, b, c = self.weight.double(), self.visible_bias.double(), self.hidden_bias.double()
        variance = self.log_variance.double().exp()
        # With the visible units integrated out, the hidden ones are a Boltzmann machine.
        coupling, bias = weight.T @ (weight / variance[:, None]), c + weight.T @ (b / variance)
        n_low = min(len(c), int(math.log2(_CHUNK)))
        low, parts = binary_states(n_low, c), []
        for high in binary_states(len(c) - n_low, c):
            h = torch.cat([low, high.expand(len(low), -1)], 1)
            parts.append(torch.logsumexp(h @ bias + 0.5 * ((h @ coupling) * h).sum(1), 0))
        return torch.logsumexp(torch.stack(parts), 0) + 0.5 * (2 * math.pi * variance).log().sum()

    def _precision(self) -> Tensor:
        return (-self.log_variance).exp()

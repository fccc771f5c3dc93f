"""The Bernoulli restricted Boltzmann machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ebm_plugin_rbm.base import LinearRBM, SumOfSoftplus, bernoulli, binary_states, check_enumerable, softplus
from ebmcore.distributed import mean_over_ranks
from ebmcore.distributions import Bernoulli

_CHUNK_ELEMENTS = 2**18  # of float64: 2 MB, which a processor's cache holds
OFFSET_RATE = 0.01  # of the sliding averages of a centred machine


class RBM(LinearRBM):
    r"""Restricted Boltzmann machine with binary visible and hidden units.

    .. math:: E(v, h) = -b^\top v - c^\top h - v^\top W h, \qquad
              E(v) = -b^\top v - \sum_j \log\big(1 + e^{c_j + (v^\top W)_j}\big)

    ``forward`` is the second, the free energy, so that ``p(v) = exp(-E(v)) / Z``. Its gradient with respect to the
    parameters holds the hidden *probabilities*, in both phases of contrastive divergence.

    With ``centered`` the model is the same, and its gradient is that of the centred machine with offsets :math:`\mu, \lambda`,

    .. math:: E(v, h) = -(v - \mu)^\top b' - (h - \lambda)^\top c' - (v - \mu)^\top W (h - \lambda),

    in the parameters ``W, b, c`` of the machine above. The offsets are sliding averages (rate 0.01) of the data, from the mean
    of the first batch on, and of the hidden probabilities given the data, from 0.5 on. Learning is then the same on data with
    all units flipped, and better conditioned on data whose mean is not 0.

    Attributes:
        training_defaults: Defaults of ``ebmcore train``: plain gradient descent with a learning rate that falls linearly to 0.

    Args:
        shape: Shape of one example; its units are the visible ones.
        hidden: Number of hidden units.
        weight_std: Standard deviation of the initial weights.
        visible_bias: Where the visible biases start: ``"zero"``, or ``"data"``, the log-odds of the data's means, with one
            example of each value added so that none is infinite; see `start_from_data`. Hidden biases start at 0.
        centered: Whether gradients are those of the centred machine.

    Source: P. Smolensky (1986), "Information processing in dynamical systems: foundations of harmony theory";
    G. E. Hinton (2010), "A practical guide to training restricted Boltzmann machines" (initial weights and biases);
    J. Melchior, A. Fischer and L. Wiskott (2016), "How to center deep Boltzmann machines" (offsets "dd").

    Example:
        >>> rbm = RBM((2, 2), hidden=3)
        >>> rbm(torch.zeros(5, 2, 2)).shape
        torch.Size([5])
        >>> bool(abs(RBM((2, 2), hidden=3, weight_std=0.0).log_partition() - 7 * math.log(2)) < 1e-12)
        True
    """

    state_space = "binary"
    base_type = Bernoulli
    training_defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd",
        "lr": 0.5,
        "schedules": {"optimizer.lr": "linear(end=0)"},
        "batch_size": 50,
    }

    def __init__(
        self,
        shape: Sequence[int],
        hidden: int,
        *,
        weight_std: float = 0.01,
        visible_bias: Literal["zero", "data"] = "zero",
        centered: bool = False,
    ) -> None:
        super().__init__(shape, hidden, weight_std, visible_bias)
        self.centered = centered
        if centered:
            self.register_buffer("visible_offset", torch.zeros_like(self.visible_bias.data))
            self.register_buffer("hidden_offset", torch.full_like(self.hidden_bias.data, 0.5))
            self.register_buffer("n_observed", torch.zeros((), dtype=torch.int64))

    def bias_of(self, mean: Tensor, n: Tensor) -> Tensor:
        return torch.log(n * mean + 1) - torch.log(n * (1 - mean) + 1)

    def visible_given(
        self, field: Tensor, beta: Tensor | None, base: Any, share: Tensor | float, generator: torch.Generator | None
    ) -> Tensor:
        logits = field if beta is None else beta * field
        if base is not None:
            logits = logits + share * base.logits.flatten().to(logits)
        return bernoulli(logits, generator)

    def forward(self, x: Tensor) -> Tensor:
        if not self.centered or not torch.is_grad_enabled():
            return super().forward(x)
        v, (weight, visible_bias, hidden_bias) = x.flatten(1), self._centered_parameters()
        return -(v @ visible_bias) - softplus(torch.addmm(hidden_bias, v, weight)).sum(1)

    def _centered_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the parameters as functions of the centred ones: equal in value, different in gradient."""
        w, b, c = self.weight, self.visible_bias, self.hidden_bias
        dw, db, dc = w - w.detach(), b - b.detach(), c - c.detach()  # zeros that carry the gradient
        mu, nu = self.visible_offset.clone(), self.hidden_offset.clone()  # copies, since the offsets move
        u = dw - torch.outer(db, nu) - torch.outer(mu, dc)
        return w.detach() + u, b.detach() + db - u @ nu, c.detach() + dc - mu @ u

    def observe_data(self, x: Tensor) -> None:
        """Moves the offsets of a centred machine towards the means of a batch of data and of its hidden probabilities."""
        if not self.centered:
            return
        with torch.no_grad():  # the offsets are data, whoever calls
            visible = mean_over_ranks(x.flatten(1).mean(0))
            hidden = mean_over_ranks(self.hidden_logits(x).sigmoid().mean(0))
        rate = torch.where(self.n_observed == 0, 1.0, OFFSET_RATE).to(visible.dtype)
        self.visible_offset.lerp_(visible.to(self.visible_offset), rate)
        self.hidden_offset.lerp_(hidden.to(self.hidden_offset), OFFSET_RATE)
        self.n_observed += 1

    def initial_distribution(self, shape: Sequence[int]) -> Bernoulli:
        """Returns fair coins: the model at infinite temperature."""
        return Bernoulli(torch.zeros(tuple(shape), dtype=self.weight.dtype, device=self.weight.device))

    def check_enumeration(self) -> None:
        """Raises `UsageError` if the smaller layer has more than 25 units."""
        check_enumerable(min(len(self.visible_bias), len(self.hidden_bias)))

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """Computes the exact ``log Z`` in nats, 0-dim float64, by enumeration of the smaller layer in chunks.

        Raises:
            UsageError: If the smaller layer has more than 25 units.
        """
        self.check_enumeration()
        weight, outer, inner = self.weight.double(), self.visible_bias.double(), self.hidden_bias.double()
        if len(inner) < len(outer):
            weight, outer, inner = weight.T, inner, outer
        # The states of the first units make one chunk; each state of the others shifts it as a whole.
        n_low = min(len(outer), max(0, int(math.log2(_CHUNK_ELEMENTS / len(inner)))))
        low = binary_states(n_low, outer)
        low_energy, low_logits = low @ outer[:n_low], inner[:, None] + weight[:n_low].T @ low.T
        sumsoftplus = SumOfSoftplus(low_logits, reach=float((inner.abs() + weight.abs().sum(0)).max()))
        chunks = []
        for high in binary_states(len(outer) - n_low, outer):
            shift = high @ weight[n_low:]
            chunks.append(torch.logsumexp(low_energy + sumsoftplus(shift), dim=0) + high @ outer[n_low:])
        return torch.logsumexp(torch.stack(chunks), dim=0)

"""The Bernoulli restricted Boltzmann machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmcore.distributions import BaseDistribution, Bernoulli
from ebmcore.errors import UsageError

MAX_ENUMERATED_UNITS = 25
_CHUNK_ELEMENTS = 2**18  # of float64: 2 MB, which a processor's cache holds
_LARGEST_EXPONENT = 700.0  # of a float64


class BernoulliPair(nn.Module):
    """Two layers of binary units, each independent given the other; a subclass gives the two sets of logits."""

    visible_shape: torch.Size

    def hidden_logits(self, x: Tensor) -> Tensor:
        """Log-odds of the hidden units ``(N, hidden)`` given ``x`` ``(N, *shape)``."""
        raise NotImplementedError

    def visible_logits(self, hidden: Tensor) -> Tensor:
        """Log-odds of the visible units ``(N, visible)``, flat, given ``hidden`` ``(N, hidden)``."""
        raise NotImplementedError

    def sample_hidden(self, x: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw the hidden units ``(N, hidden)`` given ``x``, at one inverse temperature ``beta`` ``(N,)`` per chain."""
        return _bernoulli(self.hidden_logits(x), beta, generator).to(x.dtype)

    def sample_visible(
        self, hidden: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw the visible units ``(N, *shape)`` given ``hidden``, at one inverse temperature ``beta`` ``(N,)`` per chain."""
        return _bernoulli(self.visible_logits(hidden), beta, generator).to(hidden.dtype).view(-1, *self.visible_shape)


class RBM(BernoulliPair):
    r"""Restricted Boltzmann machine with binary visible and hidden units.

    .. math:: E(v, h) = -b^\top v - c^\top h - v^\top W h, \qquad
              E(v) = -b^\top v - \sum_j \log\big(1 + e^{c_j + (v^\top W)_j}\big)

    ``forward`` is the second, the free energy, so that ``p(v) = exp(-E(v)) / Z``. Its gradient with respect to the
    parameters holds the hidden *probabilities*, in both phases of contrastive divergence.

    Attributes:
        training_defaults: How ``ebmcore train`` trains it unless told otherwise: plain gradient descent with a learning rate
            that falls linearly to 0. Persistent chains bear that rate and CD-1 does not; 0.5 gave both a better likelihood on
            8x8 digits.

    Args:
        shape: Shape of one example; its units are the visible ones.
        hidden: Number of hidden units.
        weight_std: Standard deviation of the initial weights; biases start at 0.

    Source: P. Smolensky (1986), "Information processing in dynamical systems: foundations of harmony theory";
    G. E. Hinton (2010), "A practical guide to training restricted Boltzmann machines" (initial weights).

    Example:
        >>> rbm = RBM((2, 2), hidden=3)
        >>> rbm(torch.zeros(5, 2, 2)).shape
        torch.Size([5])
        >>> bool(abs(RBM((2, 2), hidden=3, weight_std=0.0).log_partition() - 7 * math.log(2)) < 1e-12)
        True
    """

    state_space = "binary"
    example_options: ClassVar[dict[str, Any]] = {"hidden": 3}
    training_defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd",
        "lr": 1.2,
        "lr_schedule": "linear",
        "batch_size": 50,
    }

    def __init__(self, shape: Sequence[int], hidden: int, *, weight_std: float = 0.01) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden!r}")
        if not weight_std >= 0:
            raise ValueError(f"weight_std must be at least 0, got {weight_std!r}")
        self.visible_shape = torch.Size(shape)
        visible = math.prod(self.visible_shape)
        self.weight = nn.Parameter(weight_std * torch.randn(visible, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    def extra_repr(self) -> str:
        return f"shape={tuple(self.visible_shape)}, hidden={len(self.hidden_bias)}"

    def forward(self, x: Tensor) -> Tensor:
        return -(x.flatten(1) @ self.visible_bias) - _softplus(self.hidden_logits(x)).sum(1)

    def hidden_logits(self, x: Tensor) -> Tensor:
        return torch.addmm(self.hidden_bias, x.flatten(1), self.weight)

    def visible_logits(self, hidden: Tensor) -> Tensor:
        return torch.addmm(self.visible_bias, hidden, self.weight.T)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Free energy ``(N,)`` and its gradient with respect to ``x``, in closed form."""
        logits = self.hidden_logits(x)
        energy = -(x.flatten(1) @ self.visible_bias) - _softplus(logits).sum(1)
        grad = -torch.addmm(self.visible_bias, logits.sigmoid(), self.weight.T)
        return energy, grad.view_as(x)

    def initial_distribution(self, shape: Sequence[int]) -> Bernoulli:
        """Fair coins: the model at infinite temperature."""
        return Bernoulli(torch.zeros(tuple(shape), dtype=self.weight.dtype, device=self.weight.device))

    def tempered(self, beta: Tensor, base: BaseDistribution | None = None) -> TemperedRBM:
        """The RBM at inverse temperatures ``beta``; see `TemperedRBM`."""
        return TemperedRBM(self, beta, base)

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """Exact ``log Z`` in nats, 0-dim float64, by enumeration of the smaller layer in chunks.

        Raises:
            UsageError: If the smaller layer has more than 25 units.
        """
        weight, outer, inner = self.weight.double(), self.visible_bias.double(), self.hidden_bias.double()
        if len(inner) < len(outer):
            weight, outer, inner = weight.T, inner, outer
        if len(outer) > MAX_ENUMERATED_UNITS:
            raise UsageError(
                f"enumeration is possible up to {MAX_ENUMERATED_UNITS} units on the smaller side, but this RBM has "
                f"{len(outer)}: estimate the likelihood, e.g. with the metric 'ais-ll'"
            )
        # The states of the first units make one chunk; each state of the others shifts it as a whole.
        n_low = min(len(outer), max(0, int(math.log2(_CHUNK_ELEMENTS / len(inner)))))
        low = _states(n_low, outer)
        low_energy, low_logits = low @ outer[:n_low], inner[:, None] + weight[:n_low].T @ low.T
        sum_softplus = _SumOfSoftplus(low_logits, reach=float((inner.abs() + weight.abs().sum(0)).max()))
        chunks = []
        for high in _states(len(outer) - n_low, outer):
            shift = high @ weight[n_low:]
            chunks.append(torch.logsumexp(low_energy + sum_softplus(shift), dim=0) + high @ outer[n_low:])
        return torch.logsumexp(torch.stack(chunks), dim=0)


class _SumOfSoftplus:
    """``sum_i log(1 + e^(a_ij + b_i))`` for one ``a`` ``(I, J)`` and many ``b``, with one logarithm for many ``i``.

    Several factors ``1 + e^a e^b`` are multiplied before the logarithm is taken, as many as float64 bears: a tenth of the time
    that a softplus of each takes.

    Args:
        logits: ``a``.
        reach: Bound on ``|a|``, ``|b|`` and ``|a + b|``.
    """

    def __init__(self, logits: Tensor, reach: float) -> None:
        self.logits = logits
        self.together = min(len(logits), int(_LARGEST_EXPONENT / (reach + 1)))
        if self.together:
            padded = F.pad(logits.exp(), (0, 0, 0, -len(logits) % self.together))  # a factor of 1 changes nothing
            self.factors, self.products = padded, torch.empty_like(padded)

    def __call__(self, shift: Tensor) -> Tensor:
        """The sums ``(J,)`` for ``b`` ``(I,)``."""
        if not self.together:
            return _softplus(self.logits + shift[:, None]).sum(0)
        scale = F.pad(shift.exp(), (0, len(self.factors) - len(shift)))
        torch.mul(self.factors, scale[:, None], out=self.products).add_(1)
        return self.products.view(-1, self.together, self.products.shape[1]).prod(1).log().sum(0)


class TemperedRBM(BernoulliPair):
    r"""An RBM whose joint energy is mixed with that of a base, at one inverse temperature for each chain.

    .. math:: E_\beta(v, h) = \beta E(v, h) - (1 - \beta) b_0^\top v + (1 - \beta) \log Z_0, \qquad
              Z_0 = 2^{|h|} \prod_i (1 + e^{b_{0,i}})

    with ``b_0`` the logits of the base. ``forward`` is the free energy of that: at ``beta = 1`` the RBM's, at ``beta = 0``
    the base's ``-log p_0(v)``. Both conditionals stay independent, so block Gibbs sampling works at every temperature.

    Args:
        rbm: The model at ``beta = 1``.
        beta: Inverse temperatures ``(N,)``, or 0-dim for all chains, or ``(K, N)`` for ``K`` energies of each.
        base: Distribution at ``beta = 0``, a `Bernoulli`; `None` leaves it uniform and not normalised.

    Source: R. Salakhutdinov and I. Murray (2008), "On the quantitative analysis of deep belief networks".
    """

    state_space = "binary"

    def __init__(self, rbm: RBM, beta: Tensor, base: BaseDistribution | None = None) -> None:
        super().__init__()
        if base is not None and not isinstance(base, Bernoulli):
            raise UsageError(f"the base of an RBM must be a Bernoulli distribution, got {type(base).__name__}")
        self.rbm = rbm
        self.visible_shape = rbm.visible_shape
        self.beta = beta
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        v = x.flatten(1)
        energy = -self.beta * (v @ self.rbm.visible_bias) - _softplus(self.hidden_logits(x)).sum(-1)
        if self.base is None:
            return energy
        n_hidden = len(self.rbm.hidden_bias)
        log_z_0 = n_hidden * math.log(2) + _softplus(self._base_logits()).sum()
        return energy - (1 - self.beta) * (v @ self._base_logits() - log_z_0)

    def hidden_logits(self, x: Tensor) -> Tensor:
        return self._column(self.beta) * self.rbm.hidden_logits(x)

    def visible_logits(self, hidden: Tensor) -> Tensor:
        logits = self._column(self.beta) * self.rbm.visible_logits(hidden)
        if self.base is None:
            return logits
        return logits + (1 - self._column(self.beta)) * self._base_logits()

    def _base_logits(self) -> Tensor:
        assert self.base is not None  # noqa: S101
        return self.base.logits.flatten().to(self.rbm.visible_bias)

    @staticmethod
    def _column(beta: Tensor) -> Tensor:
        return beta.unsqueeze(-1)


def _bernoulli(logits: Tensor, beta: Tensor | None, generator: torch.Generator | None) -> Tensor:
    if beta is not None:
        logits = beta.unsqueeze(-1) * logits
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    return uniform.lt(logits.sigmoid()).to(logits.dtype)


def _softplus(x: Tensor) -> Tensor:
    # torch's default threshold of 20 is exact in float32, but costs 2e-9 in float64.
    return F.softplus(x, threshold=40)


def _states(n_units: int, like: Tensor) -> Tensor:
    """All binary states ``(2^n, n)``."""
    codes = torch.arange(2**n_units, device=like.device)
    return ((codes[:, None] >> torch.arange(n_units, device=like.device)) & 1).to(like.dtype)

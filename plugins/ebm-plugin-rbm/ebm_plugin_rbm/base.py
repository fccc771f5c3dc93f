"""Base of restricted Boltzmann machines: binary hidden units, both conditionals, and a tempered path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmcore.distributions import BaseDistribution, at_least_float32
from ebmcore.errors import UsageError

MAX_ENUMERATED_UNITS = 25
_LARGEST_EXPONENT = 700.0  # of a float64


class BaseRBM(nn.Module):
    r"""Visible units of some kind, binary hidden units, and no connection within either layer.

    .. math:: E(v, h) = e(v) - c^\top h - f(v)^\top W h, \qquad
              E(v) = e(v) - \sum_j \log\big(1 + e^{c_j + (f(v)^\top W)_j}\big)

    ``forward`` is the second, the free energy. A subclass gives ``e`` (`visible_energy`), ``f`` (`inputs`) and the visible units'
    conditional distribution (`visible_given`).
    """

    example_options: ClassVar[dict[str, Any]] = {"hidden": 3}
    base_type: ClassVar[type]  # distribution of independent visible units: where annealing may begin

    def __init__(
        self, shape: Sequence[int], hidden: int, weight_std: float, visible_bias: Literal["zero", "data"] = "zero"
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden!r}")
        if not weight_std >= 0:
            raise ValueError(f"weight_std must be at least 0, got {weight_std!r}")
        if visible_bias not in ("zero", "data"):
            raise ValueError(f"visible_bias must be 'zero' or 'data', got {visible_bias!r}")
        self.visible_shape = torch.Size(shape)
        self.weight = nn.Parameter(weight_std * torch.randn(self.visible_shape.numel(), hidden))
        self.visible_bias = nn.Parameter(torch.zeros(self.visible_shape.numel()))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        if visible_bias == "data":
            self.register_buffer("bias_awaits_data", torch.tensor(True))

    def extra_repr(self) -> str:
        return f"shape={tuple(self.visible_shape)}, hidden={len(self.hidden_bias)}"

    @property
    def awaits_data(self) -> bool:
        """Whether the visible biases are still to be set from the data."""
        return bool(getattr(self, "bias_awaits_data", False))

    @torch.no_grad()
    def start_from_data(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Sets the visible biases to those of independent units that fit the data.

        Args:
            x: Training examples ``(N, *shape)``.
            weights: Their weights ``(N,)``, at least 0, of any scale; `None` for equal ones.
        """
        if x.shape[1:] != self.visible_shape:
            raise UsageError(f"examples have the shape {tuple(x.shape[1:])}, but the RBM {tuple(self.visible_shape)}")
        v = at_least_float32(x.flatten(1))
        weights = v.new_ones(len(v)) if weights is None else weights.to(v)
        if weights.shape != v.shape[:1] or not (weights.isfinite() & (weights >= 0)).all() or not weights.any():
            raise UsageError(f"weights must be ({len(v)},) finite numbers of at least 0, not all of them 0")
        share = weights / weights.sum()
        n_effective = 1 / share.square().sum()  # the number of examples, where all weights are equal
        self.visible_bias.copy_(self.bias_of(share @ v, n_effective))
        if self.awaits_data:
            self.bias_awaits_data.fill_(False)  # type: ignore[operator]

    def bias_of(self, mean: Tensor, n: Tensor) -> Tensor:
        """Computes the biases ``(visible,)`` of independent units from the ``mean`` ``(visible,)`` of ``n`` examples."""
        raise NotImplementedError

    def visible_energy(self, v: Tensor) -> Tensor:
        """Computes ``e(v)`` ``(N,)`` of flat ``v`` ``(N, visible)``."""
        raise NotImplementedError

    def inputs(self, v: Tensor) -> Tensor:
        """Computes ``f(v)`` ``(N, visible)``, which the weights multiply."""
        return v

    def visible_given(
        self, field: Tensor, beta: Tensor | None, base: Any, share: Tensor | float, generator: torch.Generator | None
    ) -> Tensor:
        """Draws ``v`` ``(N, visible)`` given ``field = b + W h``, under the energy ``beta E + share E_0``.

        ``E_0 = -log p_0`` is the energy of the base. Between base and model ``share`` is how much of the base remains: at inverse
        temperature ``beta`` of a path it is ``1 - beta``, and 0 without a base.

        Args:
            field: ``(N, visible)``, a new tensor, which may be overwritten.
            beta: Inverse temperatures ``(N, 1)``; `None` for 1.
            base: A distribution of `base_type`, or `None`.
            share: Weights of the base's energy ``(N, 1)``; not read without a base.
            generator: Source of randomness.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        # Autograd's derivative of these operators is the closed form, and takes less time than a function of our own.
        return self.visible_energy(x.flatten(1)) - softplus(self.hidden_logits(x)).sum(1)

    def hidden_logits(self, x: Tensor) -> Tensor:
        """Computes the hidden units' log-odds ``(N, hidden)`` given ``x`` ``(N, *shape)``: a new tensor, free to overwrite."""
        return torch.addmm(self.hidden_bias, self.inputs(x.flatten(1)), self.weight)

    def visible_field(self, hidden: Tensor) -> Tensor:
        """Computes ``b + W h`` ``(N, visible)``, the input of the visible units from ``hidden`` ``(N, hidden)``."""
        if torch.is_autocast_enabled(hidden.device.type):  # the product may be of half precision, a bias may not
            return self.visible_bias + hidden @ self.weight.T
        return torch.addmm(self.visible_bias, hidden, self.weight.T)

    def check_enumeration(self) -> None:
        """Raises `UsageError` if the hidden layer has more than 25 units."""
        check_enumerable(len(self.hidden_bias))

    def sample_hidden(self, x: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draws the hidden units ``(N, hidden)`` given ``x``, at one inverse temperature ``beta`` ``(N,)`` per chain."""
        logits = self.hidden_logits(x)
        return bernoulli(logits if beta is None else beta.unsqueeze(-1) * logits, generator).to(x.dtype)

    def sample_visible(
        self, hidden: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws the visible units ``(N, *shape)`` given ``hidden``, at one inverse temperature ``beta`` ``(N,)`` per chain."""
        at = None if beta is None else beta.unsqueeze(-1)
        v = self.visible_given(self.visible_field(hidden), at, None, 0.0, generator)
        return v.to(hidden.dtype).view(-1, *self.visible_shape)

    def tempered(self, beta: Tensor, base: BaseDistribution | None = None) -> TemperedRBM:
        """Returns the machine at inverse temperatures ``beta``; see `TemperedRBM`."""
        return TemperedRBM(self, beta, base)


class LinearRBM(BaseRBM):
    """A machine whose visible units enter linearly: ``e(v) = -b^T v`` and ``f(v) = v``."""

    def visible_energy(self, v: Tensor) -> Tensor:
        return -(v @ self.visible_bias)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the free energy ``(N,)`` and its gradient with respect to ``x``, in closed form."""
        logits = self.hidden_logits(x)
        energy = self.visible_energy(x.flatten(1)) - softplus(logits).sum(1)
        grad = -torch.addmm(self.visible_bias, logits.sigmoid(), self.weight.T)
        return energy, grad.view_as(x)


class TemperedRBM(nn.Module):
    r"""A machine whose joint energy is mixed with that of a base, at one inverse temperature for each chain.

    .. math:: E_\beta(v, h) = \beta E(v, h) - (1 - \beta) \big(\log p_0(v) - |h| \log 2\big)

    ``forward`` is the free energy of that: at ``beta = 1`` the machine's, at ``beta = 0`` the base's ``-log p_0(v)``. Both
    conditionals stay independent, so block Gibbs sampling works at every temperature.

    Args:
        rbm: The model at ``beta = 1``.
        beta: Inverse temperatures ``(N,)``, or 0-dim for all chains, or ``(K, N)`` for ``K`` energies of each.
        base: Distribution at ``beta = 0``, of the model's ``base_type``; `None` leaves it uniform and not normalised.

    Source: R. Salakhutdinov and I. Murray (2008), "On the quantitative analysis of deep belief networks".
    """

    def __init__(self, rbm: BaseRBM, beta: Tensor, base: BaseDistribution | None = None) -> None:
        super().__init__()
        if base is not None and not isinstance(base, rbm.base_type):
            raise UsageError(
                f"the base of {type(rbm).__name__} must be a {rbm.base_type.__name__} distribution, got {type(base).__name__}"
            )
        self.rbm = rbm
        self.beta = beta
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        logits = self.beta.unsqueeze(-1) * self.rbm.hidden_logits(x)
        energy = self.beta * self.rbm.visible_energy(x.flatten(1)) - softplus(logits).sum(-1)
        if self.base is None:
            return energy
        n_hidden = len(self.rbm.hidden_bias)
        return energy - (1 - self.beta) * (self.base.log_prob(x) - n_hidden * math.log(2)).to(energy)

    def sample_hidden(self, x: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draws the hidden units ``(N, hidden)`` given ``x``."""
        return self.rbm.sample_hidden(x, beta=self._times(beta), generator=generator)

    def sample_visible(
        self, hidden: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws the visible units ``(N, *shape)`` given ``hidden``."""
        share = (1 - self.beta if beta is None else beta * (1 - self.beta)).unsqueeze(-1)
        v = self.rbm.visible_given(
            self.rbm.visible_field(hidden), self._times(beta).unsqueeze(-1), self.base, share, generator
        )
        return v.to(hidden.dtype).view(-1, *self.rbm.visible_shape)

    def _times(self, beta: Tensor | None) -> Tensor:
        return self.beta if beta is None else beta * self.beta


class SumOfSoftplus:
    """``sum_i log(1 + e^(a_ij + b_i))`` for one ``a`` ``(I, J)`` and many ``b``, with one logarithm for many ``i``.

    Several factors ``1 + e^a e^b`` are multiplied before the logarithm is taken, as many as float64 can hold: this takes
    a tenth of the time of one softplus each.

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
        """Returns the sums ``(J,)`` for ``b`` ``(I,)``."""
        if not self.together:
            return softplus(self.logits + shift[:, None]).sum(0)
        scale = F.pad(shift.exp(), (0, len(self.factors) - len(shift)))
        torch.mul(self.factors, scale[:, None], out=self.products).add_(1)
        return self.products.view(-1, self.together, self.products.shape[1]).prod(1).log().sum(0)


def check_enumerable(n_units: int) -> None:
    """Raises `UsageError` if so many binary units have too many states."""
    if n_units > MAX_ENUMERATED_UNITS:
        raise UsageError(
            f"enumeration is possible up to {MAX_ENUMERATED_UNITS} units, but this RBM has {n_units}: estimate the likelihood, "
            "e.g. with the metric 'ais-ll'"
        )


def bernoulli(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws zeros and ones with ``p(1) = sigmoid(logits)``, at least in float32; the logits are overwritten."""
    wide = at_least_float32(logits.detach())  # uniform numbers in half precision are too coarse for p = 0.001
    uniform = torch.rand(wide.shape, generator=generator, dtype=wide.dtype, device=wide.device)
    return uniform.lt_(wide.sigmoid_())  # both in the numbers' place


def softplus(x: Tensor) -> Tensor:
    """Computes ``log(1 + e^x)``; torch's default threshold of 20 is exact in float32, but costs 2e-9 in float64."""
    return F.softplus(x, threshold=40)


def binary_states(n_units: int, like: Tensor) -> Tensor:
    """Returns all binary states ``(2^n, n)``."""
    codes = torch.arange(2**n_units, device=like.device)
    return ((codes[:, None] >> torch.arange(n_units, device=like.device)) & 1).to(like.dtype)

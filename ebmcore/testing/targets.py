"""Energies whose distribution is known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from ebmcore.distributions import BaseDistribution
from ebmcore.errors import UsageError
from ebmcore.testing.devices import generator, normal

__all__ = [
    "Boltzmann", "DoubleWell", "Enumerable", "EnumerableRBM", "Gaussian", "Ising", "Mixture", "OnALine", "Potts", "Quadratic",
    "binary_states",
]  # fmt: skip


class Quadratic(nn.Module):
    r"""A Gaussian with independent components: :math:`E(x) = \frac a2 \|x - \mu\|^2`.

    Args:
        shape: Shape of one example.
        precision: ``a``, a parameter of the model.
        mean: :math:`\mu`, the same for every component.
    """

    state_space = "continuous"

    def __init__(self, shape: Sequence[int] = (2,), precision: float = 1.0, mean: float = 0.0) -> None:
        super().__init__()
        self.precision = nn.Parameter(torch.tensor(precision))
        self.mean = nn.Parameter(torch.full(tuple(shape), mean))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.precision * (x - self.mean).flatten(1).square().sum(1)


class Gaussian(nn.Module):
    r"""A Gaussian of any covariance and shape: :math:`E(x) = \frac12 (x - \mu)^\top \Sigma^{-1} (x - \mu)`.

    Its gradient is given in closed form (`SupportsValueAndGrad`).

    Args:
        covariance: :math:`\Sigma` ``(d, d)``, positive definite, of the flattened example.
        shape: Shape of one example, of ``d`` components; ``(d,)`` if not given.
        mean: :math:`\mu`, the same for every component.

    Example:
        >>> covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
        >>> x = Gaussian(covariance, shape=(1, 2)).sample(100_000, generator=torch.Generator().manual_seed(0))
        >>> bool((x.flatten(1).T.cov() - covariance).abs().max() < 0.03)
        True
    """

    state_space = "continuous"

    def __init__(self, covariance: Tensor, shape: Sequence[int] | None = None, mean: float = 0.0) -> None:
        super().__init__()
        self.shape = torch.Size(shape or covariance.shape[:1])
        if self.shape.numel() != len(covariance):
            raise UsageError(f"a covariance {tuple(covariance.shape)} does not fit examples of shape {tuple(self.shape)}")
        self.covariance: Tensor
        self.register_buffer("covariance", covariance)
        self.precision = nn.Parameter(torch.linalg.inv(covariance))
        self.mean = nn.Parameter(torch.full((len(covariance),), mean, dtype=covariance.dtype))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) - self.mean
        return 0.5 * ((z @ self.precision) * z).sum(1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(N,)`` and their gradient."""
        z = x.flatten(1) - self.mean
        grad = z @ (0.5 * (self.precision + self.precision.T))
        return 0.5 * (grad * z).sum(1), grad.view_as(x)

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent exact samples ``(n, *shape)`` of ``exp(-E / temperature)``."""
        z = torch.randn_like(self.mean.expand(n, -1), generator=generator)
        x: Tensor = self.mean + math.sqrt(temperature) * z @ torch.linalg.cholesky(self.covariance).T
        return x.view(n, *self.shape)


class OnALine(nn.Module):
    """A density whose first component is known by its distribution function on a grid; the others are standard normal.

    A subclass gives ``potential(t)``, the energy of the first component.
    """

    state_space = "continuous"
    _GRID = (-12.0, 12.0, 48_001)

    def potential(self, t: Tensor) -> Tensor:
        """Energy of the first component ``t`` ``(N,)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.potential(x[:, 0]) + 0.5 * x[:, 1:].square().sum(1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(N,)`` and their gradient."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self(x)
            (grad,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), grad

    @torch.no_grad()
    def _cdf(self, temperature: float) -> tuple[Tensor, Tensor]:
        grid = torch.linspace(*self._GRID, dtype=torch.float64)
        density = torch.exp(-self.potential(grid) / temperature)
        below = torch.cumulative_trapezoid(density, grid)
        return grid[1:], below / below[-1]

    def mass(self, low: float, high: float) -> float:
        """Probability that the first component lies in ``[low, high]``."""
        grid, cdf = self._cdf(1.0)
        ends = torch.searchsorted(grid, torch.tensor([low, high], dtype=torch.float64)).clamp(max=len(grid) - 1)
        return (cdf[ends[1]] - cdf[ends[0]]).item()

    def quantiles(self, p: Tensor, temperature: float = 1.0) -> Tensor:
        """Position at which the first component's distribution function is ``p``; float64."""
        grid, cdf = self._cdf(temperature)
        i = torch.searchsorted(cdf, p.double()).clamp(1, len(grid) - 1)
        weight = ((p - cdf[i - 1]) / (cdf[i] - cdf[i - 1])).clamp(0, 1)
        return torch.lerp(grid[i - 1], grid[i], weight)

    def sample(
        self, n: int, shape: Sequence[int] = (1,), temperature: float = 1.0, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Independent exact samples ``(n, *shape)`` of ``exp(-E / temperature)``, float64."""
        x = torch.randn(n, math.prod(shape), generator=generator, dtype=torch.float64) * math.sqrt(temperature)
        x[:, 0] = self.quantiles(torch.rand(n, generator=generator, dtype=torch.float64), temperature)
        return x.view(n, *shape)


class DoubleWell(OnALine):
    r"""Two wells at ``+- width`` in the first component: :math:`E(x) = h (x_1^2/w^2 - 1)^2 + c\,x_1/w + \dots`

    Args:
        height: Barrier between the wells, in units of the temperature.
        width: Distance of each well from the origin.
        tilt: ``c``; 0 gives both wells the same mass, see `mass`.

    Example:
        >>> round(DoubleWell().mass(0, 12), 6)
        0.5
    """

    def __init__(self, height: float = 8.0, width: float = 2.0, tilt: float = 0.0) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(height))
        self.width = width
        self.tilt = tilt

    def potential(self, t: Tensor) -> Tensor:
        t = t / self.width
        return self.height * (t.square() - 1).square() + self.tilt * t


class Mixture(OnALine):
    r"""Two normal components of known masses in the first component: :math:`E(x) = -\log \sum_i m_i N(x_1; c_i, 1) + \dots`

    Args:
        masses: The masses ``m``, which sum to 1.
        centres: Their centres ``c``.

    Example:
        >>> round(Mixture((0.3, 0.7), (-4.0, 4.0)).mass(-12, 0), 3)
        0.3
    """

    def __init__(self, masses: tuple[float, float] = (0.3, 0.7), centres: tuple[float, float] = (-1.5, 1.5)) -> None:
        super().__init__()
        self.log_masses = nn.Parameter(torch.tensor(masses).log())
        self.centres = nn.Parameter(torch.tensor(centres))

    def potential(self, t: Tensor) -> Tensor:
        return -torch.logsumexp(self.log_masses - 0.5 * (t[:, None] - self.centres).square(), dim=1)


class Enumerable(nn.Module):
    """A distribution over few enough states to list them all. A subclass gives ``states()`` and ``forward``."""

    def states(self) -> Tensor:
        """All states ``(S, *shape)``."""
        raise NotImplementedError

    @torch.no_grad()
    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Exact probability of each of `states`, float64."""
        return torch.softmax(-self(self.states()).double() / temperature, dim=0)

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """``log Z`` in nats, 0-dim float64."""
        return torch.logsumexp(-self(self.states()).double(), dim=0)

    def codes(self, x: Tensor) -> Tensor:
        """Index in `states` of each row of ``x``, ``(N,)``.

        Raises:
            UsageError: If a row is none of them.
        """
        states = self.states().flatten(1)
        radix = torch.arange(len(states), device=x.device)
        place = 2.0 ** torch.arange(states.shape[1], device=x.device, dtype=torch.float64)
        keys, order = (states.double() @ place).sort()
        found = torch.searchsorted(keys, x.flatten(1).double() @ place).clamp(max=len(keys) - 1)
        codes = radix[order[found]]
        strange = (states[codes] != x.flatten(1)).any(1)
        if strange.any():
            raise UsageError(f"{int(strange.sum())} of {len(x)} rows are no states, e.g. {x[strange][0].flatten().tolist()}")
        return codes

    def sample(self, n: int, temperature: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent exact samples ``(n, *shape)`` of ``exp(-E / temperature)``."""
        drawn = torch.multinomial(self.probabilities(temperature), n, replacement=True, generator=generator)
        return self.states()[drawn]


class Boltzmann(Enumerable):
    r"""A fully visible Boltzmann machine on binary units, small enough to enumerate.

    :math:`E(x) = -b^\top x - \sum_{i<j} W_{ij} x_i x_j`

    Args:
        n_units: Number of units, at most 16.
        scale: Standard deviation of the random biases and couplings.
        seed: Seed of the parameters.
    """

    state_space = "binary"

    def __init__(self, n_units: int = 4, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        g = generator(seed, device="cpu")
        self.bias = nn.Parameter(scale * normal(n_units, generator=g))
        self.coupling = nn.Parameter(scale * normal(n_units, n_units, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        coupling = torch.triu(self.coupling, 1)
        return -(x @ self.bias) - ((x @ coupling) * x).sum(1)

    def states(self) -> Tensor:
        """All ``2^n`` states, ``(2^n, n)``."""
        return binary_states(len(self.bias), self.bias)


class Ising(Enumerable):
    r"""An Ising model on a rectangle, with the spins :math:`s = 2x - 1` written as binary units ``x``.

    :math:`E(x) = -J \sum_{\langle ij \rangle} s_i s_j - \sum_i h_i s_i`, neighbours without periodic boundaries.

    Args:
        shape: Height and width; at most 16 units.
        coupling: ``J``.
        field: ``h``, the same for every unit at the beginning.
    """

    state_space = "binary"

    def __init__(self, shape: tuple[int, int] = (2, 2), coupling: float = 0.4, field: float = 0.2) -> None:
        super().__init__()
        self.shape = shape
        self.coupling = nn.Parameter(torch.tensor(coupling))
        self.field = nn.Parameter(torch.full(shape, field))

    def forward(self, x: Tensor) -> Tensor:
        s = 2 * x.reshape(-1, *self.shape) - 1
        bonds = (s[:, 1:] * s[:, :-1]).sum((1, 2)) + (s[:, :, 1:] * s[:, :, :-1]).sum((1, 2))
        return -self.coupling * bonds - (self.field * s).sum((1, 2))

    def states(self) -> Tensor:
        """All states ``(2^n, height, width)``."""
        return binary_states(math.prod(self.shape), self.field).view(-1, *self.shape)


class Potts(Enumerable):
    r"""Categorical units, one-hot, each coupled to each: :math:`E(x) = -\sum_i b_i^\top x_i - \sum_{i<j} x_i^\top W_{ij} x_j`

    Args:
        n_units: Number of units.
        n_values: Values of a unit; an example has the shape ``(n_units, n_values)``.
        scale: Standard deviation of the random biases and couplings.
        seed: Seed of the parameters.
    """

    state_space = "categorical"

    def __init__(self, n_units: int = 2, n_values: int = 3, scale: float = 0.7, seed: int = 0) -> None:
        super().__init__()
        g = generator(seed, device="cpu")
        self.bias = nn.Parameter(scale * normal(n_units, n_values, generator=g))
        self.coupling = nn.Parameter(scale * normal(n_units, n_values, n_units, n_values, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, *self.bias.shape)
        pairs = torch.einsum("nia,iajb,njb->nij", x, self.coupling, x)
        return -(x * self.bias).sum((1, 2)) - torch.triu(pairs, 1).sum((1, 2))

    def states(self) -> Tensor:
        """All states ``(values^units, units, values)``."""
        n_units, n_values = self.bias.shape
        values = torch.cartesian_prod(*[torch.arange(n_values, device=self.bias.device)] * n_units).view(-1, n_units)
        return one_hot(values, n_values).to(self.bias.dtype)


class EnumerableRBM(Enumerable):
    r"""A restricted Boltzmann machine small enough to enumerate, with both conditionals.

    .. math:: E(v, h) = -b^\top v - c^\top h - v^\top W h, \qquad E(v) = -\log \sum_h e^{-E(v, h)}

    Args:
        shape: Shape of the visible units, at most 16 of them.
        hidden: Number of hidden units.
        scale: Standard deviation of the random biases and weights.
        seed: Seed of the parameters.
    """

    state_space = "binary"

    def __init__(self, shape: Sequence[int] = (2, 2), hidden: int = 3, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        g = generator(seed, device="cpu")
        self.weight = nn.Parameter(scale * normal(math.prod(shape), hidden, generator=g))
        self.visible_bias = nn.Parameter(scale * normal(math.prod(shape), generator=g))
        self.hidden_bias = nn.Parameter(scale * normal(hidden, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        logits = self._hidden_logits(x)
        return -(x.flatten(1) @ self.visible_bias) - softplus(logits, threshold=40).sum(1)

    def states(self) -> Tensor:
        """All visible states ``(2^visible, *shape)``."""
        return binary_states(len(self.visible_bias), self.weight).view(-1, *self.shape)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Free energies ``(N,)`` and their gradient."""
        grad = -(self.visible_bias + self._hidden_logits(x).sigmoid() @ self.weight.T)
        return self(x), grad.view_as(x)

    def sample_hidden(self, x: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw the hidden units ``(N, hidden)`` given ``x``."""
        return self._flip(self._hidden_logits(x), beta, generator)

    def sample_visible(
        self, hidden: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw the visible units ``(N, *shape)`` given ``hidden``."""
        return self._flip(hidden @ self.weight.T + self.visible_bias, beta, generator).view(-1, *self.shape)

    def tempered(self, beta: Tensor, base: BaseDistribution | None = None) -> nn.Module:
        """The RBM whose joint energy is ``beta E(v, h)``, with one ``beta`` for each chain or one for all."""
        if base is not None:
            raise UsageError("EnumerableRBM tempers towards the uniform distribution only: leave base out")
        return _TemperedRBM(self, beta)

    def _hidden_logits(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight + self.hidden_bias

    def _flip(self, logits: Tensor, beta: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if beta is not None:
            logits = beta.unsqueeze(-1) * logits
        uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        return uniform.lt(logits.sigmoid()).to(self.weight.dtype)


class _TemperedRBM(nn.Module):
    state_space = "binary"

    def __init__(self, rbm: EnumerableRBM, beta: Tensor) -> None:
        super().__init__()
        self.rbm = rbm
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        logits = self.beta.unsqueeze(-1) * self.rbm._hidden_logits(x)
        return -self.beta * (x.flatten(1) @ self.rbm.visible_bias) - softplus(logits, threshold=40).sum(-1)

    def sample_hidden(self, x: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.rbm.sample_hidden(x, beta=self._times(beta, x), generator=generator)

    def sample_visible(
        self, hidden: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.rbm.sample_visible(hidden, beta=self._times(beta, hidden), generator=generator)

    def _times(self, beta: Tensor | None, like: Tensor) -> Tensor:
        own = self.beta.expand(len(like))
        return own if beta is None else own * beta


def binary_states(n_units: int, like: Tensor) -> Tensor:
    """All ``2^n`` binary states ``(2^n, n)``, in the dtype of ``like`` and on its device."""
    codes = torch.arange(2**n_units, device=like.device)
    return ((codes[:, None] >> torch.arange(n_units, device=like.device)) & 1).to(like.dtype)

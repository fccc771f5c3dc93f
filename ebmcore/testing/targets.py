"""Energies whose distribution is known exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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


class DoubleWell(nn.Module):
    r"""Two wells of equal mass at ``+- width`` in the first component: :math:`E(x) = h (x_1^2/w^2 - 1)^2 + \dots`

    Args:
        height: Barrier between the wells, in units of the temperature.
        width: Distance of each well from the origin.
    """

    state_space = "continuous"

    def __init__(self, height: float = 8.0, width: float = 2.0) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(height))
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        well = self.height * ((x[:, 0] / self.width).square() - 1).square()
        return well + 0.5 * x[:, 1:].square().sum(1)


class Boltzmann(nn.Module):
    r"""A fully visible Boltzmann machine on binary units, small enough to enumerate.

    :math:`E(x) = -b^\top x - \frac12 x^\top W x`, with a symmetric ``W`` of zero diagonal.

    Args:
        n_units: Number of units, at most 16.
        scale: Standard deviation of the random biases and couplings.
        seed: Seed of the parameters.
    """

    state_space = "binary"

    def __init__(self, n_units: int = 4, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.bias = nn.Parameter(scale * torch.randn(n_units, generator=generator))
        self.coupling = nn.Parameter(scale * torch.randn(n_units, n_units, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        coupling = torch.triu(self.coupling, 1)
        return -(x @ self.bias) - ((x @ coupling) * x).sum(1)

    def states(self) -> Tensor:
        """All ``2^n`` states, ``(2^n, n)``."""
        codes = torch.arange(2 ** len(self.bias), device=self.bias.device)
        bits = (codes[:, None] >> torch.arange(len(self.bias), device=self.bias.device)) & 1
        return bits.to(self.bias.dtype)

    def probabilities(self) -> Tensor:
        """Exact probability of each of `states`, float64."""
        return torch.softmax(-self(self.states()).double(), dim=0)

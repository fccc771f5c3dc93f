"""A density in the plane as binary data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ebm_plugin_datasets.checkerboard import Checkerboard
from ebm_plugin_datasets.eight_gaussians import EightGaussians
from ebm_plugin_datasets.plane import PlaneDataset, check_sizes
from ebm_plugin_datasets.rings import Rings
from ebm_plugin_datasets.spirals import Spirals
from ebm_plugin_datasets.twenty_five_gaussians import TwentyFiveGaussians

DENSITIES: dict[str, type[PlaneDataset]] = {
    "25-gaussians": TwentyFiveGaussians,
    "checkerboard": Checkerboard,
    "eight-gaussians": EightGaussians,
    "rings": Rings,
    "spirals": Spirals,
}
_POINTS = 4  # in each direction, at which the density is averaged over a cell


class GrayCode:
    """A density in the plane, each coordinate written in bits of a Gray code, in which neighbours differ in one bit.

    The square that holds the density is cut into ``2**bits`` cells in each direction. The probability of a cell is the mean
    density at 16 points in it, normalised over all cells. Examples are draws of these probabilities, which are known for all
    states: ``log_prob(x)``.

    Args:
        density: Name of the data set in the plane, with its defaults.
        bits: Bits of each coordinate, 2 to 8.
        n_train: Number of training examples.
        n_test: Number of test examples.
        seed: Seed of the examples; training and test examples are independent.

    Attributes:
        states: All ``4**bits`` states ``(S, 2 * bits)``: the bits of the first coordinate, the highest first, then those of the
            second.
        probabilities: The probability of each, ``(S,)`` float64.
        points: The centre of each one's cell, ``(S, 2)``.

    Source: H. Dai, R. Singh, B. Dai, C. Sutton and D. Schuurmans (2020), "Learning discrete energy-based models via
    auxiliary-variable local exploration".

    Example:
        >>> data = GrayCode(density="rings")
        >>> data.train.shape, len(data.states), round(data.probabilities.sum().item(), 10)
        (torch.Size([10000, 12]), 4096, 1.0)
    """

    state_space = "binary"

    def __init__(
        self,
        *,
        density: Literal["25-gaussians", "checkerboard", "eight-gaussians", "rings", "spirals"] = "eight-gaussians",
        bits: int = 6,
        n_train: int = 10_000,
        n_test: int = 2_000,
        seed: int = 0,
    ) -> None:
        if density not in DENSITIES:
            raise ValueError(f"density must be one of {', '.join(DENSITIES)}, got {density!r}")
        if not 2 <= bits <= 8:
            raise ValueError(f"bits must be from 2 to 8, got {bits!r}")
        check_sizes(n_train, n_test)
        self.bits, self.shape = bits, (2 * bits,)
        plane, n = DENSITIES[density](n_train=1, n_test=1), 2**bits
        width = 2 * plane.extent / n
        fine = -plane.extent + width / _POINTS * (torch.arange(_POINTS * n, dtype=torch.float64) + 0.5)
        on_grid = plane.log_prob(torch.cartesian_prod(fine, fine)).exp().view(n, _POINTS, n, _POINTS).mean((1, 3)).flatten()
        self.probabilities = on_grid / on_grid.sum()
        number = torch.arange(n)
        code = number ^ (number >> 1)
        as_bits = ((code[:, None] >> torch.arange(bits - 1, -1, -1)) & 1).float()
        cells = torch.cartesian_prod(number, number)
        self.states = as_bits[cells].flatten(1)
        self.points = (-plane.extent + width * (cells + 0.5)).float()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(self.probabilities, n_train + n_test, replacement=True, generator=generator)
        x = self.states[drawn]
        self.train, self.test = x[:n_train], x[n_train:]

    def cells(self, x: Tensor) -> Tensor:
        """Computes the index in `states` of each example ``(N, 2 * bits)``."""
        code = x.long().view(-1, 2, self.bits)
        binary = code.cumsum(2) % 2  # a bit of the number is the parity of the higher bits of its code
        number = (binary << torch.arange(self.bits - 1, -1, -1, device=x.device)).sum(2)
        return number[:, 0] * 2**self.bits + number[:, 1]

    def log_prob(self, x: Tensor) -> Tensor:
        """Computes the exact log-probability ``(N,)`` of examples ``(N, 2 * bits)`` in nats, float64."""
        return self.probabilities.log().to(x.device)[self.cells(x)]

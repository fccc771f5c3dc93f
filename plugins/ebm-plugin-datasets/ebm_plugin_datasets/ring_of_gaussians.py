"""Gaussians on a circle."""

from __future__ import annotations

import math

import torch

MAX_POINTS = 10_000_000  # of a toy problem; making them takes a GiB


class RingOfGaussians:
    """A mixture of equal Gaussians whose centres stand evenly on a circle.

    Args:
        n_modes: Number of Gaussians.
        radius: Radius of the circle.
        std: Standard deviation of each Gaussian.
        n_train: Number of training points.
        n_test: Number of test points.
        seed: Seed of the points; training and test points are independent.

    Attributes:
        centres: ``(n_modes, 2)``.

    Example:
        >>> RingOfGaussians(n_modes=8).centres.shape
        torch.Size([8, 2])
    """

    state_space = "continuous"
    shape = (2,)

    def __init__(
        self,
        *,
        n_modes: int = 8,
        radius: float = 2.0,
        std: float = 0.2,
        n_train: int = 10_000,
        n_test: int = 2_000,
        seed: int = 0,
    ) -> None:
        if n_modes < 1 or not radius >= 0 or not std > 0:
            raise ValueError(f"need n_modes >= 1, radius >= 0 and std > 0, got {n_modes}, {radius} and {std}")
        if not (1 <= n_train <= MAX_POINTS and 1 <= n_test <= MAX_POINTS):
            raise ValueError(f"need n_train and n_test from 1 to {MAX_POINTS:,}, got {n_train} and {n_test}")
        generator = torch.Generator().manual_seed(seed)
        angles = 2 * math.pi * torch.arange(n_modes) / n_modes
        self.centres = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
        modes = torch.randint(n_modes, (n_train + n_test,), generator=generator)
        x = self.centres[modes] + std * torch.randn(n_train + n_test, 2, generator=generator)
        self.train, self.test = x[:n_train], x[n_train:]

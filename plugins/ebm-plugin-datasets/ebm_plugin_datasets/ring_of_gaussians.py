"""Gaussians on a circle."""

from __future__ import annotations

import math

import torch

from ebm_plugin_datasets.plane import GaussianMixture


class RingOfGaussians(GaussianMixture):
    """A mixture of equal Gaussians whose centres stand evenly on a circle; ``log_prob(x)`` is its log-density.

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
        angles = 2 * math.pi * torch.arange(n_modes) / n_modes
        self.centres, self.std = radius * torch.stack([angles.cos(), angles.sin()], dim=1), std
        self.extent = radius + 5 * std
        super().__init__(n_train, n_test, seed)

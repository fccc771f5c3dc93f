"""Bases of data sets in the plane whose density is known."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor

MAX_POINTS = 10_000_000  # of a toy problem; making them takes a GiB


class PlaneDataset(ABC):
    """Independent points in the plane. A subclass gives ``sample`` and ``log_prob``.

    Args:
        n_train: Number of training points.
        n_test: Number of test points.
        seed: Seed of the points; training and test points are independent.

    Attributes:
        extent: Half the side of a square around the origin that holds all but a negligible share of the points.
    """

    state_space = "continuous"
    shape = (2,)
    extent = 4.0

    def __init__(self, n_train: int, n_test: int, seed: int) -> None:
        check_sizes(n_train, n_test)
        x = self.sample(n_train + n_test, generator=torch.Generator().manual_seed(seed))
        self.train, self.test = x[:n_train], x[n_train:]

    @abstractmethod
    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Draws independent points ``(n, 2)``, float32."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Computes the exact log-density ``(N,)`` of points ``(N, 2)`` in nats, float64."""


class GaussianMixture(PlaneDataset):
    """A mixture of equal Gaussians; a subclass sets ``centres`` ``(n_modes, 2)`` and ``std`` before it calls this constructor."""

    centres: Tensor
    std: float

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        modes = torch.randint(len(self.centres), (n,), generator=generator)
        return self.centres[modes] + self.std * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        squares = (x.double()[:, None] - self.centres.double()).square().sum(2) / self.std**2
        return torch.logsumexp(-0.5 * squares, 1) - math.log(2 * math.pi * self.std**2 * len(self.centres))


def check_sizes(n_train: int, n_test: int) -> None:
    """Raises a `ValueError` unless both numbers of points are possible."""
    if not (1 <= n_train <= MAX_POINTS and 1 <= n_test <= MAX_POINTS):
        raise ValueError(f"need n_train and n_test from 1 to {MAX_POINTS:,}, got {n_train} and {n_test}")

"""A checkerboard."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ebm_plugin_datasets.plane import PlaneDataset

SQUARE = 2.0  # side of one square of the four by four


class Checkerboard(PlaneDataset):
    """The uniform distribution on the eight dark squares of a four by four board, which covers [-4, 4] in both directions.

    ``log_prob(x)`` is ``-log 32`` on them, and minus infinity elsewhere.

    Args:
        n_train: Number of training points.
        n_test: Number of test points.
        seed: Seed of the points; training and test points are independent.

    Source: W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever and D. Duvenaud (2019), "FFJORD: free-form continuous
    dynamics for scalable reversible generative models".

    Example:
        >>> Checkerboard().log_prob(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))  # - log 32, and outside
        tensor([-3.4657,    -inf], dtype=torch.float64)
    """

    def __init__(self, *, n_train: int = 10_000, n_test: int = 2_000, seed: int = 0) -> None:
        super().__init__(n_train, n_test, seed)

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        column = torch.randint(-2, 2, (n,), generator=generator)
        row = 2 * torch.randint(-1, 1, (n,), generator=generator) + column % 2
        return SQUARE * (torch.stack([column, row], 1) + torch.rand(n, 2, generator=generator))

    def log_prob(self, x: Tensor) -> Tensor:
        cell = (x.double() / SQUARE).floor()
        dark = ((cell >= -2) & (cell < 2)).all(1) & (cell.sum(1) % 2 == 0)
        return torch.zeros_like(cell[:, 0]).where(dark, -torch.inf) - math.log(8 * SQUARE**2)

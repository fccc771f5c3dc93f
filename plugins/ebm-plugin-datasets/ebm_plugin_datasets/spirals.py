"""Two spirals."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Generator, Tensor

from ebm_plugin_datasets.plane import PlaneDataset

ANGLE = 3 * math.pi  # of one arm: one and a half turns
_NODES = 16  # of Gauss-Legendre quadrature on one piece of an arm
_CHUNK = 4096  # points at a time


class Spirals(PlaneDataset):
    r"""Two spiral arms of one and a half turns, with normal noise around them.

    The centre line is :math:`\pm\frac t3 (-\cos t, \sin t)` with :math:`t = 3\pi\sqrt u`, `u` uniform in [0, 1].
    ``log_prob(x)`` is the logarithm of the integral over `t`, by quadrature: to about 1e-10 where points lie,
    less far from the arms.

    Args:
        noise: Standard deviation of the noise, at least 0.01.
        n_train: Number of training points.
        n_test: Number of test points.
        seed: Seed of the points; training and test points are independent.

    Source: W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever and D. Duvenaud (2019), "FFJORD: free-form continuous
    dynamics for scalable reversible generative models", without its additional uniform noise.

    Example:
        >>> Spirals(n_train=100).train.shape
        torch.Size([100, 2])
    """

    def __init__(self, *, noise: float = 0.1, n_train: int = 10_000, n_test: int = 2_000, seed: int = 0) -> None:
        if not 0.01 <= noise < math.inf:
            raise ValueError(f"noise must be at least 0.01, got {noise!r}")
        self.noise = noise
        self.extent = ANGLE / 3 + 5 * noise
        super().__init__(n_train, n_test, seed)

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        t = ANGLE * torch.rand(n, generator=generator).sqrt()
        arm = 2 * torch.randint(2, (n, 1), generator=generator) - 1
        return arm * _line(t) + self.noise * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        # Pieces of an arm are at most four times as long as the noise is wide, where this quadrature is exact to rounding.
        n_pieces = math.ceil(ANGLE * (ANGLE / 3) / (4 * self.noise))
        nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(_NODES))
        t = (torch.arange(n_pieces)[:, None] + (nodes + 1) / 2).flatten() * (ANGLE / n_pieces)
        log_weights = torch.log(weights.repeat(n_pieces) / 2 * (ANGLE / n_pieces) * 2 * t / ANGLE**2 / 2)  # of each arm
        centres = torch.cat([_line(t), -_line(t)])
        # The squared distances, multiplied out, so that their largest part is a product of matrices.
        log_weights = log_weights.repeat(2) - centres.square().sum(1) / (2 * self.noise**2)
        constants = x.double().square().sum(1) / (2 * self.noise**2) + math.log(2 * math.pi * self.noise**2)
        parts = [torch.logsumexp(log_weights + part @ centres.T / self.noise**2, 1) for part in x.double().split(_CHUNK)]
        return torch.cat(parts) - constants


def _line(t: Tensor) -> Tensor:
    return (t / 3)[:, None] * torch.stack([-t.cos(), t.sin()], 1)

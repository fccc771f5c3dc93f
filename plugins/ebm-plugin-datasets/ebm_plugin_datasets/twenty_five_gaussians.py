"""Gaussians on a grid of five by five."""

from __future__ import annotations

import math

import torch

from ebm_plugin_datasets.plane import GaussianMixture


class TwentyFiveGaussians(GaussianMixture):
    """A mixture of 25 equal Gaussians whose centres stand on a square grid; ``log_prob(x)`` is its log-density.

    Args:
        spacing: Distance of neighbouring centres.
        std: Standard deviation of each Gaussian. In the source it is 0.05.
        n_train: Number of training points.
        n_test: Number of test points.
        seed: Seed of the points; training and test points are independent.

    Attributes:
        centres: ``(25, 2)``.

    Source: A. Srivastava, L. Valkov, C. Russell, M. U. Gutmann and C. Sutton (2017), "VEEGAN: reducing mode collapse in GANs
    using implicit variational learning".

    Example:
        >>> TwentyFiveGaussians().centres.aminmax()
        torch.return_types.aminmax(
        min=tensor(-4.),
        max=tensor(4.))
    """

    def __init__(
        self, *, spacing: float = 2.0, std: float = 0.2, n_train: int = 10_000, n_test: int = 2_000, seed: int = 0
    ) -> None:
        if not 0 < spacing < math.inf or not 0 < std < math.inf:
            raise ValueError(f"need spacing > 0 and std > 0, got {spacing} and {std}")
        ticks = spacing * torch.arange(-2.0, 3.0)
        self.centres, self.std = torch.cartesian_prod(ticks, ticks), std
        self.extent = 2 * spacing + 5 * std
        super().__init__(n_train, n_test, seed)

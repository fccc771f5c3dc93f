"""Concentric rings."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ebm_plugin_datasets.plane import PlaneDataset


class Rings(PlaneDataset):
    r"""Concentric circles, the outer one of radius 3, with normal noise around them; each has as many points.

    The density of a circle of radius `R` is known in closed form, with the Bessel function :math:`I_0`:

    .. math:: p(x) = \frac1{2\pi\sigma^2} e^{-(|x|^2 + R^2) / 2\sigma^2}\, I_0(|x| R / \sigma^2)

    ``log_prob(x)`` is the log-density of the mixture.

    Args:
        n_rings: Number of circles, evenly spaced.
        noise: Standard deviation of the noise.
        n_train: Number of training points.
        n_test: Number of test points.
        seed: Seed of the points; training and test points are independent.

    Attributes:
        radii: ``(n_rings,)``.

    Source: W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever and D. Duvenaud (2019), "FFJORD: free-form continuous
    dynamics for scalable reversible generative models".

    Example:
        >>> Rings().radii.tolist()
        [0.75, 1.5, 2.25, 3.0]
    """

    def __init__(
        self, *, n_rings: int = 4, noise: float = 0.08, n_train: int = 10_000, n_test: int = 2_000, seed: int = 0
    ) -> None:
        if n_rings < 1 or not 0 < noise < math.inf:
            raise ValueError(f"need n_rings >= 1 and noise > 0, got {n_rings} and {noise}")
        self.radii, self.noise = 3 * torch.arange(1.0, n_rings + 1) / n_rings, noise
        self.extent = 3 + 5 * noise
        super().__init__(n_train, n_test, seed)

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        radius = self.radii[torch.randint(len(self.radii), (n,), generator=generator)]
        ring = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        return ring + self.noise * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        radius, radii, variance = x.double().norm(dim=1, keepdim=True), self.radii.double(), self.noise**2
        # i0e(z) is exp(-z) I_0(z), which completes the square.
        log_rings = torch.special.i0e(radius * radii / variance).log() - (radius - radii).square() / (2 * variance)
        return torch.logsumexp(log_rings, 1) - math.log(2 * math.pi * variance * len(radii))

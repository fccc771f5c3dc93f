"""Denoising score matching, at one level of noise or at several."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebm_plugin_score_matching.base import BaseScoreMatching, check_positive, dot
from ebmcore.distributions import at_least_float32
from ebmcore.samplers import as_rows


class DenoisingScoreMatching(BaseScoreMatching):
    r"""Denoising score matching: the gradient of the energy at a noisy example points away from the example.

    .. math:: L = E_{data} E_\sigma E_\xi\Big[\frac{\sigma^2}2 \Big\|\nabla E(x + \sigma \xi) - \frac \xi\sigma\Big\|^2\Big],
              \qquad \xi \sim N(0, I)

    The model learns the *noisy* data: of normal data with covariance :math:`S` a Gaussian energy learns the precision
    :math:`(S + \sigma^2 I)^{-1}`. One double backward pass suffices in any number of dimensions, and the data may lie on a grid
    or on a surface. A small ``sigma`` is close to the data but gives gradients of a large variance.

    Several levels of noise, as a list or a range, are for a noise-conditional energy, whose ``forward`` has a parameter ``sigma``
    such as ``forward(self, x, *, sigma)``. It receives the level ``(B,)`` of each example by that name, beside any labels, and
    learns the noisy data of each level. The weight :math:`\sigma^2` makes all levels count alike. An energy without such a
    parameter learns a compromise of the levels.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``, or noise-conditional.
        sigma: Standard deviation of the noise, or a list of them, from which each example takes one at random.
        sigma_max: Upper end of a range of levels that begins at ``sigma``: each example takes one at random, uniform in its
            logarithm. `None` keeps to ``sigma``.

    Source: P. Vincent (2011), "A connection between score matching and denoising autoencoders"; several levels: Y. Song and S.
    Ermon (2019), "Generative modeling by estimating gradients of the data distribution"; of energies: Z. Li, Y. Chen and F. T.
    Sommer (2023), "Learning energy-based models in high-dimensional spaces with multiscale denoising-score matching".

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> loss = DenoisingScoreMatching(Quadratic((2,)), sigma=0.5)
        >>> loss(torch.randn(8, 2)).shape, loss.fitted_precision(1.0)
        (torch.Size([]), 0.8)
    """

    example_options: ClassVar = {"sigma": 0.5}
    levels: Tensor

    def __init__(self, energy: nn.Module, *, sigma: float | Sequence[float], sigma_max: float | None = None) -> None:
        super().__init__(energy)
        levels = list(sigma) if isinstance(sigma, Sequence) and not isinstance(sigma, str) else [sigma]
        if not levels:
            raise ValueError("sigma must be a number or a list of them, got an empty list")
        for level in levels:
            check_positive("sigma", level)
        if sigma_max is not None:
            check_positive("sigma_max", sigma_max)
            if levels != [sigma]:
                raise ValueError("sigma_max is the upper end of a range from one sigma: give a list or a range, not both")
            if not sigma_max > levels[0]:
                raise ValueError(f"sigma_max must be above sigma={sigma}, got {sigma_max!r}")
        self.sigma, self.sigma_max = sigma, sigma_max
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32), persistent=False)
        self.conditional = "sigma" in inspect.signature(energy.forward).parameters

    def fitted_precision(self, variance: float) -> float:
        """Returns the precision that a Gaussian energy without ``sigma`` learns from normal data of that variance.

        Of several levels this is the precision at the noise variance :math:`E[\\sigma^4] / E[\\sigma^2]`.
        """
        if isinstance(self.sigma, Sequence):
            noise = sum(s**4 for s in self.sigma) / sum(s**2 for s in self.sigma)
        elif self.sigma_max is not None:
            noise = (self.sigma**2 + self.sigma_max**2) / 2
        else:
            noise = self.sigma**2
        return 1 / (variance + noise)

    def energies(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the energies ``(B,)``, at the smallest level where a noise-conditional energy is given none."""
        if self.conditional and "sigma" not in kwargs:
            kwargs["sigma"] = self.levels.min().to(x.dtype).expand(len(x))
        return super().energies(x, *args, **kwargs)

    def draw_levels(self, x: Tensor) -> Tensor:
        """Returns a level of noise ``(B,)`` for each example."""
        n = len(x)
        if isinstance(self.sigma, Sequence):
            drawn = torch.randint(len(self.levels), (n,), generator=self.generator, device=x.device)
            return self.levels.to(x.dtype)[drawn]
        if self.sigma_max is None:
            return x.new_full((n,), self.sigma)
        uniform = torch.rand(n, generator=self.generator, dtype=x.dtype, device=x.device)
        return self.sigma * (uniform * math.log(self.sigma_max / self.sigma)).exp()

    def terms(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sigma = self.draw_levels(x)
        noise = torch.randn_like(x, generator=self.generator)
        level = {"sigma": sigma} if self.conditional else {}
        _, grad = self.gradient(x + as_rows(sigma, x) * noise, *args, **kwargs, **level)
        off = as_rows(sigma, x) * at_least_float32(grad) - noise  # times sigma, so that a small one loses no digits
        return 0.5 * dot(off, off)

"""An energy for each level of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from ebm_plugin_nets.layers import Residual, linear


class NoiseConditional(nn.Module):
    r"""Noise-conditional energy: a residual network on examples and on the level of the noise that was added to them.

    .. math:: E(x, \sigma) = \frac1\sigma f(x, \log \sigma)

    A vector made of :math:`\log\sigma` is added to the features of each block. The slope of noisy data is near :math:`1/\sigma`;
    the factor gives it to the energy, so that the network's own outputs are of one scale at all levels. Train it with
    ``denoising-score-matching`` and several levels, which hands ``sigma`` over.

    Args:
        shape: Shape of one example: ``(features,)``, or ``(channels, *size)`` with one to three spatial axes of any size.
        widths: Width of each block: units, or feature maps. The first block keeps the resolution, every further one halves it.
        spectral_norm: Normalise every layer's spectral norm to 1 (torch's own parametrization; its power iteration runs in
            training mode only).
        group_norm: Normalise groups of features before the units of each block. Unlike batch normalisation it keeps the energies
            of a batch independent of each other.

    Source: Y. Song and S. Ermon (2020), "Improved techniques for training score-based generative models": the factor
    :math:`1/\sigma`; Z. Li, Y. Chen and F. T. Sommer (2023), "Learning energy-based models in high-dimensional spaces with
    multiscale denoising-score matching".

    Example:
        >>> import torch
        >>> energy = NoiseConditional((2,), widths=(16, 16))
        >>> energy(torch.zeros(5, 2), sigma=torch.full((5,), 0.1)).shape
        torch.Size([5])
    """

    example_options: ClassVar = {"widths": (4, 4)}
    example_conditions: ClassVar = {"sigma": 0.5}

    def __init__(
        self,
        shape: Sequence[int],
        *,
        widths: Sequence[int] = (32, 64, 128),
        spectral_norm: bool = False,
        group_norm: bool = False,
    ) -> None:
        super().__init__()
        self.features = Residual(shape, widths, spectral_norm, group_norm, n_embedding=widths[0])
        self.head = linear(widths[-1], 1, spectral_norm)
        to, on = linear(1, widths[0], spectral_norm), linear(widths[0], widths[0], spectral_norm)
        self.embedding = nn.Sequential(to, nn.SiLU(), on, nn.SiLU())

    def forward(self, x: Tensor, *, sigma: Tensor) -> Tensor:
        """Returns the energies ``(B,)`` of examples ``(B, *shape)`` at levels of noise ``(B,)``, numbers above 0.

        Raises:
            ValueError: If there is not one level for each example.
        """
        if sigma.shape != x.shape[:1]:
            raise ValueError(f"sigma must be ({len(x)},), one level of noise for each example, got {tuple(sigma.shape)}")
        sigma = sigma.to(x.dtype)
        energies: Tensor = self.head(self.features(x, self.embedding(sigma.log()[:, None]))).squeeze(-1)
        return energies / sigma

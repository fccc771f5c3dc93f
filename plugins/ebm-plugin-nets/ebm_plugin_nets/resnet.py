"""A residual energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from ebm_plugin_nets.layers import Residual, linear


class ResNet(nn.Module):
    r"""Residual network with SiLU units: the energy is a linear function of the last features, summed over space.

    A block adds to its input what two layers make of it, so that networks of many blocks train. It is smooth, as score matching
    and Langevin dynamics need.

    Args:
        shape: Shape of one example: ``(features,)``, or ``(channels, *size)`` with one to three spatial axes of any size.
        widths: Width of each block: units, or feature maps. The first block keeps the resolution, every further one halves it.
        spectral_norm: Normalise every layer's spectral norm to 1 (torch's own parametrization; its power iteration runs in
            training mode only).
        group_norm: Normalise groups of features before the units of each block. Unlike batch normalisation it keeps the energies
            of a batch independent of each other.

    Source: K. He, X. Zhang, S. Ren and J. Sun (2016), "Identity mappings in deep residual networks"; Y. Wu and K. He (2018),
    "Group normalization".

    Example:
        >>> import torch
        >>> ResNet((3, 8, 8), widths=(16, 32))(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5])
    """

    example_options: ClassVar = {"widths": (4, 4)}

    def __init__(
        self,
        shape: Sequence[int],
        *,
        widths: Sequence[int] = (32, 64, 128),
        spectral_norm: bool = False,
        group_norm: bool = False,
    ) -> None:
        super().__init__()
        self.features = Residual(shape, widths, spectral_norm, group_norm)
        self.head = linear(widths[-1], 1, spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.head(self.features(x)).squeeze(-1)
        return energies

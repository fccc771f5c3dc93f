"""A convolutional energy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ebm_plugin_nets.layers import Convolutions, linear


class Conv(nn.Module):
    r"""Convolutional network with SiLU units: the energy is a linear function of the last features, summed over space.

    The first layer keeps the resolution, every further one halves it (3-wide kernels, stride 2).

    Args:
        shape: ``(channels, *size)`` of one example, with one, two or three spatial axes of any size.
        channels: Feature maps of each layer.
        spectral_norm: Normalise every layer's spectral norm to 1 (torch's own parametrization; its power iteration runs in
            training mode only).

    Source: J. Xie, Y. Lu, S.-C. Zhu and Y. N. Wu (2016), "A theory of generative ConvNet".

    Example:
        >>> import torch
        >>> Conv((1, 8, 8), channels=(16, 32))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self, shape: Sequence[int], *, channels: Sequence[int] = (32, 64, 128), spectral_norm: bool = False
    ) -> None:
        super().__init__()
        self.features = Convolutions(shape, channels, spectral_norm)
        self.head = linear(channels[-1], 1, spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.head(self.features(x)).squeeze(-1)
        return energies

"""A convolutional energy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalise

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


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
        if len(shape) - 1 not in _CONVOLUTIONS:
            raise ValueError(
                f"a convolutional energy needs examples (channels, *size) with one to three spatial axes, got shape "
                f"{tuple(shape)}: use the energy 'mlp', or data of such a shape"
            )
        if not channels or not all(width >= 1 for width in channels):
            raise ValueError(f"channels must be one or more sizes of at least 1, got {tuple(channels)}")
        convolution = _CONVOLUTIONS[len(shape) - 1]
        layers: list[nn.Module] = []
        n_in = shape[0]
        for i, n_out in enumerate(channels):
            layer = convolution(n_in, n_out, kernel_size=3, stride=1 if i == 0 else 2, padding=1)
            layers += [normalise(layer) if spectral_norm else layer, nn.SiLU()]
            n_in = n_out
        self.features = nn.Sequential(*layers)
        head = nn.Linear(n_in, 1)
        self.head = normalise(head) if spectral_norm else head

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.head(self.features(x).flatten(2).sum(2)).squeeze(-1)
        return energies

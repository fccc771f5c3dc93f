"""Layers that several energies are made of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalise

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def linear(n_in: int, n_out: int, spectral_norm: bool) -> nn.Module:
    """A linear layer, with its spectral norm bounded by 1 if requested."""
    layer = nn.Linear(n_in, n_out)
    return normalise(layer) if spectral_norm else layer


class Convolutions(nn.Sequential):
    """Convolutions with SiLU units, summed over space: ``(B, channels, *size)`` gives ``(B, channels[-1])``.

    The first layer keeps the resolution, every further one halves it (3-wide kernels, stride 2).

    Args:
        shape: ``(channels, *size)`` of one example, with one, two or three spatial axes.
        channels: Feature maps of each layer.
        spectral_norm: Whether to bound every layer's spectral norm by 1.

    Raises:
        ValueError: If the shape has another number of axes, or there are no layers.
    """

    def __init__(self, shape: Sequence[int], channels: Sequence[int], spectral_norm: bool) -> None:
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
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = super().forward(x)
        return maps.flatten(2).sum(2)

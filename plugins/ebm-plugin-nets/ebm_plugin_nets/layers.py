"""Layers that several energies are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import silu
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


class Residual(nn.Module):
    """Pre-activation residual blocks with SiLU units, summed over space: ``(B, *shape)`` gives ``(B, widths[-1])``.

    Vectors ``(features,)`` go through linear layers, and ``(channels, *size)`` through 3-wide convolutions.

    Args:
        shape: Shape of one example: ``(features,)``, or ``(channels, *size)`` with one to three spatial axes.
        widths: Width of each block; each but the first halves the resolution.
        spectral_norm: Whether to bound every layer's spectral norm by 1.
        group_norm: Whether to normalise groups of at least 8 features before each unit of a block.
        n_embedding: Size of the vector that each block adds to its features; 0 for none.

    Raises:
        ValueError: If the shape has another number of axes, or there are no blocks.
    """

    def __init__(
        self, shape: Sequence[int], widths: Sequence[int], spectral_norm: bool, group_norm: bool, n_embedding: int = 0
    ) -> None:
        super().__init__()
        n_axes = len(shape) - 1
        if n_axes not in (0, *_CONVOLUTIONS):
            raise ValueError(
                f"this energy needs examples (features,) or (channels, *size) with one to three spatial axes, got shape "
                f"{tuple(shape)}: use the energy 'mlp', or data of such a shape"
            )
        if not widths or not all(width >= 1 for width in (*widths, *shape)):
            raise ValueError(f"sizes must be at least 1, got shape={tuple(shape)} and widths={tuple(widths)}")
        if group_norm and min(widths) < 2:
            raise ValueError(f"group_norm makes a single feature 0: widths must be at least 2, got {tuple(widths)}")
        self.stem = _layer(shape[0], widths[0], n_axes, spectral_norm)
        options = (n_axes, spectral_norm, group_norm, n_embedding)
        blocks = [_Block(n_in, n_out, i > 0, *options) for i, (n_in, n_out) in enumerate(pairwise((widths[0], *widths)))]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, embedding)
        return silu(x) if x.ndim == 2 else silu(x).flatten(2).sum(2)


class _Block(nn.Module):
    def __init__(
        self, n_in: int, n_out: int, halve: bool, n_axes: int, spectral_norm: bool, group_norm: bool, n_embedding: int
    ) -> None:
        super().__init__()
        stride = 2 if halve else 1
        self.normed = nn.ModuleList([_groups(width) if group_norm else nn.Identity() for width in (n_in, n_out)])
        self.first = _layer(n_in, n_out, n_axes, spectral_norm, stride)
        self.second = _layer(n_out, n_out, n_axes, spectral_norm)
        same = n_in == n_out and stride == 1
        self.skip = nn.Identity() if same else _layer(n_in, n_out, n_axes, spectral_norm, stride, width=1)
        self.shift = linear(n_embedding, n_out, spectral_norm) if n_embedding else None

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.first(silu(self.normed[0](x)))
        if self.shift is not None:
            h = h + self.shift(embedding).view(*h.shape[:2], *(1,) * (h.ndim - 2))
        out: Tensor = self.skip(x) + self.second(silu(self.normed[1](h)))
        return out


def _layer(n_in: int, n_out: int, n_axes: int, spectral_norm: bool, stride: int = 1, width: int = 3) -> nn.Module:
    """A linear layer for vectors, otherwise a convolution that keeps the resolution or, with stride 2, halves it."""
    if not n_axes:
        return linear(n_in, n_out, spectral_norm)
    layer = _CONVOLUTIONS[n_axes](n_in, n_out, kernel_size=width, stride=stride, padding=width // 2)
    return normalise(layer) if spectral_norm else layer


def _groups(width: int) -> nn.Module:
    """Normalises groups of at least 8 features; all of them together where they are fewer than 16."""
    return nn.GroupNorm(math.gcd(width, max(1, width // 8)), width)

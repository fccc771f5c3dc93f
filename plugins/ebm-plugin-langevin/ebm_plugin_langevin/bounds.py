"""Bounds of positions, kept by reflection."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ebmcore.distributions import at_least_float32


def check_bounds(bounds: Sequence[float] | None) -> tuple[float, float] | None:
    """Returns the bounds as two numbers; raises a `ValueError` unless they are finite and ``low < high``."""
    if bounds is None:
        return None
    two = not isinstance(bounds, str) and isinstance(bounds, Sequence) and len(bounds) == 2
    if not two or not all(isinstance(b, int | float) and math.isfinite(b) for b in bounds) or not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be two finite numbers (low, high) with low < high, or None, got {bounds!r}")
    return float(bounds[0]), float(bounds[1])


def reflect(x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Returns where ``x`` comes to lie by reflections at the bounds, and the derivative of that: -1 after an odd number, else 1.

    A position within the bounds does not change, in any digit. One that is NaN or infinite becomes NaN.

    Example:
        >>> reflect(torch.tensor([0.3, 1.25, 2.75, -0.5]), 0.0, 1.0)
        (tensor([0.3000, 0.7500, 0.7500, 0.5000]), tensor([ 1., -1.,  1., -1.]))
    """
    wide, width = at_least_float32(x), high - low
    way = torch.remainder(wide - low, 2 * width)  # there and back again
    turned = (low + (width - (way - width).abs())).clamp(low, high)  # clamped because the sum is rounded
    outside = (wide < low) | (wide > high)
    return torch.where(outside, turned.to(x.dtype), x), torch.where(outside & (way > width), -1.0, 1.0)

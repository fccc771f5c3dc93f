"""What the likelihood metrics share."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

CONFIDENCE = 0.95


def float64_copy(energy: nn.Module) -> nn.Module:
    """A copy to measure with: float64, evaluation mode, no gradients. The model itself is left alone."""
    return copy.deepcopy(energy).double().eval().requires_grad_(False)


def energies(energy: nn.Module, x: Tensor, chunk: int = 65_536) -> Tensor:
    """Energies of many examples, chunk by chunk."""
    with torch.no_grad():
        return torch.cat([energy(part) for part in x.split(chunk)])


def interval(bootstrap: Tensor) -> tuple[float, float]:
    """The central 95 % of bootstrap replications."""
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(bootstrap, torch.tensor([tail, 1 - tail], dtype=bootstrap.dtype)).tolist()
    return low, high


def resample(n: int, n_bootstrap: int, generator: torch.Generator | None) -> Tensor:
    """Row numbers ``(n_bootstrap, n)`` drawn with replacement."""
    return torch.randint(n, (n_bootstrap, n), generator=generator)


def warn_of_temperature(sampler: Any) -> None:
    """Warn where the model was trained at another temperature than that at which a likelihood is measured."""
    temperature = getattr(sampler, "temperature", 1.0)
    if temperature != 1.0:
        warnings.warn(
            f"the model was trained with chains at temperature {temperature:g}, so they sampled exp(-E / {temperature:g}); "
            "this is the likelihood of exp(-E), another distribution",
            stacklevel=3,
        )

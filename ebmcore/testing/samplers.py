"""Samplers for tests."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ebmcore.samplers import BaseSampler, ChainState, Info, normal_like
from ebmcore.testing.targets import Quadratic


class Identity(BaseSampler):
    """Stays where it is: shows what happens to chains apart from sampling."""

    exact = True

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        return state, {}


class ExactGaussian(BaseSampler):
    r"""The exact Ornstein-Uhlenbeck transition of a `Quadratic` energy, which leaves it invariant at any correlation.

    .. math:: x' = \mu + \rho (x - \mu) + \sqrt{(1 - \rho^2) / a}\,\xi

    Args:
        correlation: :math:`\rho` in [0, 1); 0 draws independent exact samples.
    """

    exact = True
    state_space = "continuous"

    def __init__(self, correlation: float = 0.0) -> None:
        self.correlation = correlation

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        assert isinstance(energy, Quadratic)
        innovation = normal_like(state.x, generator) * math.sqrt(1 - self.correlation**2) / energy.precision.sqrt()
        return replace(state, x=energy.mean + self.correlation * (state.x - energy.mean) + innovation), {}

"""Samplers for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ebmcore.samplers import BaseSampler, ChainState, Info


class Identity(BaseSampler):
    """Stays where it is: shows what happens to chains apart from sampling."""

    exact = True

    def step(
        self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None
    ) -> tuple[ChainState, Info]:
        return state, {}

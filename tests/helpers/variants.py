"""Losses that several test files use: the smallest variant that starts at the data, and the smallest persistent one."""

from __future__ import annotations

from ebmcore import BaseContrastiveDivergence, BasePersistentContrastiveDivergence


class Data(BaseContrastiveDivergence):
    """Chains start at the data."""

    def forward(self, x, *args, **kwargs):
        pred_x = self.draw_negatives(x, *args, **kwargs)
        return self.compute_loss(x, pred_x, *args, **kwargs), pred_x

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return self.energy_gap(x, pred_x, *args, **kwargs)


class Persistent(BasePersistentContrastiveDivergence):
    """Ten chains persist."""

    def __init__(self, energy, sampler, k_steps=1, **options):
        super().__init__(energy, sampler, k_steps, **({"n_chains": 10} | options))

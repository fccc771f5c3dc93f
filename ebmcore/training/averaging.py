"""The moving average of an energy's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

POWER_ITERATIONS = 30  # enough, because they begin at the singular vectors of weights nearby


def moving_average(energy: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the parameters of ``energy``; its buffers are copies of the current ones.

    Buffers are not averaged: the mean of unit vectors is no unit vector, and that of indices no index.
    """
    return AveragedModel(energy, multi_avg_fn=get_ema_multi_avg_fn(decay))


@torch.no_grad()
def refresh_spectral_norms(average: nn.Module) -> None:
    """Recompute the singular vectors of averaged weights, in place of those that were copied from the trained weights."""
    for module in filter(parametrize.is_parametrized, average.modules()):
        parametrizations: Any = module.parametrizations
        for name, local in parametrizations.items():
            if any(isinstance(one, _SpectralNorm) for one in local):
                training = local.training
                local.train()
                for _ in range(POWER_ITERATIONS):
                    getattr(module, name)  # makes one iteration in training mode
                local.train(training)

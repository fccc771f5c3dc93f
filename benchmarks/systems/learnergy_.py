"""learnergy: CD-1, because it has no persistent chains."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import torch
from learnergy.models.bernoulli import RBM
from torch import Tensor
from torch.utils.data import TensorDataset


def rbm(x: Tensor, hidden: int, lr: float, batch_size: int) -> Any:
    logging.disable(logging.INFO)
    machine = RBM(n_visible=x.shape[1], n_hidden=hidden, steps=1, learning_rate=lr)
    data = TensorDataset(x, torch.zeros(len(x)))
    return SimpleNamespace(
        epoch=lambda: machine.fit(data, batch_size=batch_size, epochs=1), weights=lambda: (machine.W, machine.a, machine.b)
    )

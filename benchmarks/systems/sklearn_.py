"""scikit-learn's BernoulliRBM, which is PCD-1."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.neural_network import BernoulliRBM
from torch import Tensor


def rbm(x: Tensor, hidden: int, lr: float, batch_size: int) -> Any:
    machine, data = BernoulliRBM(hidden, learning_rate=lr, batch_size=batch_size, n_iter=1, random_state=0), x.numpy()
    machine.partial_fit(data[:batch_size])
    random = np.random.RandomState(0)

    def epoch() -> None:
        for start in range(0, len(data), batch_size):
            machine._fit(data[start : start + batch_size], random)

    def weights() -> tuple[Tensor, Tensor, Tensor]:
        found = machine.components_.T, machine.intercept_visible_, machine.intercept_hidden_
        return tuple(torch.as_tensor(w) for w in found)

    return SimpleNamespace(epoch=epoch, weights=weights)

"""rbms: its PCD step on its Bernoulli RBM, without centring."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from rbms.bernoulli_bernoulli.classes import BBRBM
from rbms.training.pcd import fit_batch_pcd
from torch import Tensor


def rbm(x: Tensor, hidden: int, lr: float, batch_size: int) -> Any:
    weights = (0.01 * torch.randn(x.shape[1], hidden), torch.zeros(x.shape[1]), torch.zeros(hidden))
    machine = BBRBM(*weights)
    chains = [machine.init_chains(batch_size)]
    for parameter in machine.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(machine.parameters(), lr=lr, maximize=True)
    ones = torch.ones(batch_size)

    @torch.no_grad()
    def epoch() -> None:
        for batch in x[torch.randperm(len(x))].split(batch_size):
            optimizer.zero_grad(set_to_none=False)
            chains[0], _ = fit_batch_pcd((batch, ones[: len(batch)]), chains[0], machine, 1, 1.0, centered=False)
            optimizer.step()

    return SimpleNamespace(epoch=epoch, weights=lambda: weights)

"""The floor: only the work that cannot be saved. It moves no chain, so there is nothing to check.

``k`` bare calls of ``autograd.grad`` with frozen parameters and a ready tensor of ones, one training forward and backward of the
concatenated batch with ready signs, and one fused Adam step. For an RBM, the five matrix products of PCD-1.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

CHECKED = False


def langevin(energy: nn.Module, x: Tensor, step_size: float) -> Callable[[int], Tensor]:
    x, ones = x.clone().requires_grad_(), torch.ones(len(x))
    for parameter in energy.parameters():
        parameter.requires_grad_(False)

    def move(n: int) -> Tensor:
        for _ in range(n):
            torch.autograd.grad(energy(x), x, ones)
        return x

    return move


mala = langevin


def cd(energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float) -> Callable[[], None]:
    parameters = list(energy.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    at, ones = x.clone().requires_grad_(), torch.ones(len(x))
    signs = torch.cat([ones, -ones]) / len(x)

    def step() -> None:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for _ in range(k_steps):
            torch.autograd.grad(energy(at), at, ones)
        for parameter in parameters:
            parameter.requires_grad_(True)
        energies = energy(torch.cat([x, x]))
        optimizer.zero_grad()
        energies.backward(signs)
        optimizer.step()

    return step


def pcd(energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float, n_chains: int) -> Callable[[], None]:
    return cd(energy, x, step_size, k_steps, lr)


def rbm(x: Tensor, hidden: int, lr: float, batch_size: int) -> Any:
    weight = torch.zeros(x.shape[1], hidden)
    batch, units = x[:batch_size].clone(), torch.zeros(batch_size, hidden)

    @torch.no_grad()
    def epoch() -> None:
        for _ in range(len(x) // batch_size):
            batch @ weight
            units @ weight.T
            batch @ weight
            batch.T @ units
            batch.T @ units

    return SimpleNamespace(epoch=epoch)

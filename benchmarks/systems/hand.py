"""The usual loop of tutorials and papers' repositories."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


def langevin(energy: nn.Module, x: Tensor, step_size: float) -> Callable[[int], Tensor]:
    positions = [x.clone()]

    def move(n: int) -> Tensor:
        positions[0] = _langevin(energy, positions[0], step_size, n)
        return positions[0]

    return move


def _langevin(energy: nn.Module, x: Tensor, step_size: float, n: int) -> Tensor:
    for _ in range(n):
        x = x.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(energy(x).sum(), x)
        x = x - step_size * grad + math.sqrt(2 * step_size) * torch.randn_like(x)
    return x.detach()


def mala(energy: nn.Module, x: Tensor, step_size: float) -> Callable[[int], Tensor]:
    positions = [x.clone()]

    def at(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        value = energy(x)
        (grad,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), grad

    def move(n: int) -> Tensor:
        x = positions[0]
        for _ in range(n):
            value, grad = at(x)
            mean = x - step_size * grad
            y = mean + math.sqrt(2 * step_size) * torch.randn_like(x)
            there, grad_there = at(y)
            back = y - step_size * grad_there
            log_q = ((y - mean) ** 2 - (x - back) ** 2).sum(1) / (4 * step_size)
            accepted = torch.log(torch.rand(len(x))) < value - there + log_q
            x = torch.where(accepted[:, None], y, x)
        positions[0] = x
        return x

    return move


def cd(energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float) -> Callable[[], None]:
    optimizer = torch.optim.Adam(energy.parameters(), lr=lr)

    def step() -> None:
        negatives = _langevin(energy, x, step_size, k_steps)
        loss = energy(x).mean() - energy(negatives).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def pcd(energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float, n_chains: int) -> Callable[[], None]:
    optimizer = torch.optim.Adam(energy.parameters(), lr=lr)
    chains = torch.randn(n_chains, *x.shape[1:])

    def step() -> None:
        drawn = torch.randint(n_chains, (len(x),))
        negatives = _langevin(energy, chains[drawn], step_size, k_steps)
        chains[drawn] = negatives
        loss = energy(x).mean() - energy(negatives).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def rbm(x: Tensor, hidden: int, lr: float, batch_size: int) -> Any:
    weight, b, c = 0.01 * torch.randn(x.shape[1], hidden), torch.zeros(x.shape[1]), torch.zeros(hidden)
    chain = [torch.rand(batch_size, x.shape[1]).round()]

    def epoch() -> None:
        for v in x[torch.randperm(len(x))].split(batch_size):
            p_data = torch.sigmoid(v @ weight + c)
            h = torch.bernoulli(torch.sigmoid(chain[0] @ weight + c))
            chain[0] = torch.bernoulli(torch.sigmoid(h @ weight.T + b))
            p_model = torch.sigmoid(chain[0] @ weight + c)
            weight.add_(lr * (v.T @ p_data / len(v) - chain[0].T @ p_model / batch_size))
            b.add_(lr * (v.mean(0) - chain[0].mean(0)))
            c.add_(lr * (p_data.mean(0) - p_model.mean(0)))

    return SimpleNamespace(epoch=epoch, weights=lambda: (weight, b, c))

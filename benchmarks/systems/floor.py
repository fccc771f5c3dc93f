"""The floor: only the work that cannot be saved. It moves no chain, so there is nothing to check.

``k`` bare calls of ``autograd.grad`` with frozen parameters and a ready tensor of ones, one training forward and backward of the
concatenated batch with ready signs, and one fused Adam step. For an RBM, the five matrix products of PCD-1. For a loss without
chains, its energy calls at ready points, its backward passes from ready weights, and one fused Adam step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


def _trained(energy: nn.Module, lr: float, backward: Callable[[], None]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(energy.parameters(), lr=lr, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    return step


def scored(energy: nn.Module, x: Tensor, lr: float, *, n_points: int) -> Callable[[], None]:
    """Scores ``n_points`` points for each example, all in one call."""
    points = torch.cat([x] * n_points)
    weights = torch.ones(len(points))
    return _trained(energy, lr, lambda: energy(points).backward(weights))


def neighbours(energy: nn.Module, x: Tensor, lr: float) -> Callable[[], None]:
    return scored(energy, x, lr, n_points=1 + x[0].numel())


def denoising(energy: nn.Module, x: Tensor, lr: float, *, sigma: float) -> Callable[[], None]:
    at, ones = x.clone().requires_grad_(), torch.ones(len(x))
    return _trained(energy, lr, lambda: torch.autograd.grad(energy(at), at, ones, create_graph=True)[0].backward(x))


def curvatures(energy: nn.Module, x: Tensor, lr: float, *, exact: bool = False) -> Callable[[], None]:
    """Differentiates the gradient along one direction, or along all dimensions in one batched call."""
    at, ones = x.clone().requires_grad_(), torch.ones(len(x))
    along = torch.eye(x.shape[1])[:, None].expand(-1, *x.shape).contiguous() if exact else x

    def backward() -> None:
        (grad,) = torch.autograd.grad(energy(at), at, ones, create_graph=True)
        (second,) = torch.autograd.grad(grad, at, along, create_graph=True, is_grads_batched=exact)
        torch.autograd.backward([grad, second], [x, along])

    return _trained(energy, lr, backward)


LOSSES = {
    "score-matching": partial(curvatures, exact=True),
    "hutchinson": curvatures,
    "sliced-score-matching": curvatures,
    "denoising-score-matching": denoising,
    "finite-difference-score-matching": lambda energy, x, lr, eps: scored(energy, x, lr, n_points=3),
    "nce": lambda energy, x, lr, noise_ratio: scored(energy, x, lr, n_points=1 + noise_ratio),
    "conditional-nce": lambda energy, x, lr, noise_scale: scored(energy, x, lr, n_points=2),
    "energy-discrepancy": lambda energy, x, lr, t, n_samples: scored(energy, x, lr, n_points=1 + n_samples),
    "discrete-energy-discrepancy": lambda energy, x, lr, t, n_samples: scored(energy, x, lr, n_points=1 + n_samples),
    "pseudo-likelihood": neighbours,
    "ratio-matching": neighbours,
    "minimum-probability-flow": neighbours,
}

"""ebmcore with its plugins, not compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import ebmcore
from ebmcore.compiling import CompiledTransitions
from ebmcore.energies import frozen
from ebmcore.samplers import eager_transitions
from systems import floor

COMPILE = False


def langevin(
    energy: nn.Module, x: Tensor, step_size: float, *, sampler: str = "langevin", compile: bool = COMPILE
) -> Callable[[int], Tensor]:
    kernel, generator = ebmcore.create_sampler(sampler, step_size=step_size), torch.Generator().manual_seed(0)
    transitions = CompiledTransitions() if compile else eager_transitions
    with frozen(energy), torch.no_grad():
        states = [kernel.init(energy, x.clone(), generator=generator)]

    def move(n: int) -> Tensor:
        states[0], _ = ebmcore.run(kernel, energy, states[0], n, generator=generator, transitions=transitions)
        return states[0].x

    return move


def mala(energy: nn.Module, x: Tensor, step_size: float, *, compile: bool = COMPILE) -> Callable[[int], Tensor]:
    return langevin(energy, x, step_size, sampler="mala", compile=compile)


def _trained(value: Callable[[], Tensor], loss: ebmcore.BaseLoss, lr: float) -> Callable[[], None]:
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr, fused=True)

    def step() -> None:
        result = value()
        optimizer.zero_grad()
        result.backward()
        optimizer.step()

    return step


def cd(
    energy: nn.Module,
    x: Tensor,
    step_size: float,
    k_steps: int,
    lr: float,
    *,
    loss: str = "cd",
    compile: bool = COMPILE,
    **options: Any,
) -> Callable[[], None]:
    kernel = ebmcore.create_loss(loss, energy, ebmcore.create_sampler("langevin", step_size=step_size), k_steps, **options)
    kernel.generator = torch.Generator().manual_seed(0)
    if compile:
        kernel.compile()
    return _trained(lambda: kernel(x)[0], kernel, lr)


def pcd(
    energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float, n_chains: int, *, compile: bool = COMPILE
) -> Callable[[], None]:
    return cd(energy, x, step_size, k_steps, lr, loss="pcd", compile=compile, n_chains=n_chains)


def rbm(x: Tensor, hidden: int, lr: float, batch_size: int) -> Any:
    energy = ebmcore.create_energy("rbm", shape=x.shape[1:], hidden=hidden)
    pcd = ebmcore.create_loss("pcd", energy, ebmcore.create_sampler("gibbs"), n_chains=batch_size)
    pcd.generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(energy.parameters(), lr=lr, fused=True)

    def epoch() -> None:
        for batch in x[torch.randperm(len(x))].split(batch_size):
            value, _ = pcd(batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return SimpleNamespace(epoch=epoch, weights=lambda: (energy.weight, energy.visible_bias, energy.hidden_bias))


def _loss(name: str, energy: nn.Module, x: Tensor, lr: float, **options: Any) -> Callable[[], None]:
    kernel = ebmcore.create_loss(name, energy, **options)
    kernel.generator = torch.Generator().manual_seed(0)
    if name == "nce":
        kernel.start_from_data(x)
    return _trained(lambda: kernel(x), kernel, lr)


LOSSES = {name: partial(_loss, name) for name in floor.LOSSES} | {"hutchinson": partial(_loss, "score-matching", n_probes=1)}

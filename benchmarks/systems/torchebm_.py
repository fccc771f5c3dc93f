"""torchebm: its contrastive divergence with its Langevin sampler; the energy regulariser off, as elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchebm.core import BaseModel
from torchebm.losses import ContrastiveDivergence, DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching
from torchebm.samplers import LangevinDynamics


class Model(BaseModel):
    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x)


def langevin(energy: nn.Module, x: Tensor, step_size: float) -> Callable[[int], Tensor]:
    sampler, positions = LangevinDynamics(Model(energy), step_size=step_size), [x.clone()]

    def move(n: int) -> Tensor:
        positions[0] = sampler.sample(x=positions[0], n_steps=n)
        return positions[0]

    return move


def _trained(value: Callable[[], Tensor], energy: nn.Module, lr: float) -> Callable[[], None]:
    optimizer = torch.optim.Adam(energy.parameters(), lr=lr)

    def step() -> None:
        result = value()
        optimizer.zero_grad()
        result.backward()
        optimizer.step()

    return step


def cd(energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float, **options: Any) -> Callable[[], None]:
    model = Model(energy)
    sampler = LangevinDynamics(model, step_size=step_size)
    loss = ContrastiveDivergence(model=model, sampler=sampler, k_steps=k_steps, energy_reg_weight=0.0, **options)
    return _trained(lambda: loss(x)[0], energy, lr)


def pcd(energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float, n_chains: int) -> Callable[[], None]:
    options = {"persistent": True, "buffer_size": n_chains, "init_steps": 0, "new_sample_ratio": 0.0}
    return cd(energy, x, step_size, k_steps, lr, **options)


def _loss(kind: Any, energy: nn.Module, x: Tensor, lr: float, **options: Any) -> Callable[[], None]:
    loss = kind(Model(energy), **options)
    return _trained(lambda: loss(x), energy, lr)


def denoising(energy: nn.Module, x: Tensor, lr: float, *, sigma: float) -> Callable[[], None]:
    return _loss(DenoisingScoreMatching, energy, x, lr, noise_scale=sigma)


LOSSES = {
    "score-matching": partial(_loss, ScoreMatching),
    "hutchinson": partial(_loss, ScoreMatching, hessian_method="approx"),
    "sliced-score-matching": partial(_loss, SlicedScoreMatching, n_projections=1),
    "denoising-score-matching": denoising,
}

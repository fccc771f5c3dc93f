"""ebmkit, which is imported as ``ebm``: its contrastive divergence begins at noise where it has no buffer, at the same cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import ebm
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, ReshapeTransform, TransformedDistribution


def langevin(energy: nn.Module, x: Tensor, step_size: float, *, kind: Any = ebm.LangevinDynamics) -> Callable[[int], Tensor]:
    sampler, positions = kind(step_size=step_size), [x.clone()]

    def move(n: int) -> Tensor:
        positions[0] = sampler.sample(energy, positions[0], steps=n)
        return positions[0]

    return move


def mala(energy: nn.Module, x: Tensor, step_size: float) -> Callable[[int], Tensor]:
    return langevin(energy, x, step_size, kind=ebm.MALA)


def _trained(loss: nn.Module, energy: nn.Module, x: Tensor, lr: float) -> Callable[[], None]:
    optimizer = torch.optim.Adam([*energy.parameters(), *loss.parameters()], lr=lr)

    def step() -> None:
        value = loss(energy, x).loss
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def cd(energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float, *, buffer: Any = None) -> Callable[[], None]:
    loss = ebm.ContrastiveDivergence(
        ebm.LangevinDynamics(step_size=step_size, steps=k_steps), buffer=buffer, init_fn=lambda shape: x.clone()
    )
    return _trained(loss, energy, x, lr)


def pcd(energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float, n_chains: int) -> Callable[[], None]:
    return cd(energy, x, step_size, k_steps, lr, buffer=ebm.ReplayBuffer(n_chains, tuple(x.shape[1:]), reinit_prob=0.0))


def rbm(x: Tensor, hidden: int, lr: float, batch_size: int) -> Any:
    energy = ebm.nets.RBM(x.shape[1], hidden)
    buffer = ebm.ReplayBuffer(
        batch_size, tuple(x.shape[1:]), reinit_prob=0.0, init_fn=lambda shape: torch.rand(shape).round()
    )
    loss = ebm.ContrastiveDivergence(ebm.GibbsSampler(steps=1), buffer=buffer)
    optimizer = torch.optim.SGD(energy.parameters(), lr=lr)

    def epoch() -> None:
        for batch in x[torch.randperm(len(x))].split(batch_size):
            value = loss(energy, batch).loss
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return SimpleNamespace(epoch=epoch, weights=lambda: (energy.W.T, energy.b, energy.c))


def _loss(make: Callable[..., nn.Module], energy: nn.Module, x: Tensor, lr: float, **options: Any) -> Callable[[], None]:
    return _trained(make(**options), energy, x, lr)


def nce(energy: nn.Module, x: Tensor, lr: float, *, noise_ratio: int) -> Callable[[], None]:
    noise = MultivariateNormal(x.flatten(1).mean(0), x.flatten(1).T.cov())
    if x.ndim > 2:
        noise = TransformedDistribution(noise, ReshapeTransform(noise.event_shape, x.shape[1:]))
    return _trained(ebm.NoiseContrastiveEstimation(noise, noise_ratio), energy, x, lr)


def energy_discrepancy(energy: nn.Module, x: Tensor, lr: float, *, t: float, n_samples: int) -> Callable[[], None]:
    return _trained(ebm.EnergyDiscrepancy(math.sqrt(t), n_samples), energy, x, lr)


LOSSES = {
    "score-matching": partial(_loss, ebm.ExactScoreMatching),
    "sliced-score-matching": partial(_loss, ebm.SlicedScoreMatching),
    "denoising-score-matching": partial(_loss, ebm.DenoisingScoreMatching),
    "nce": nce,
    "energy-discrepancy": energy_discrepancy,
    "pseudo-likelihood": partial(_loss, ebm.PseudoLikelihood),
    "ratio-matching": partial(_loss, ebm.RatioMatching),
}

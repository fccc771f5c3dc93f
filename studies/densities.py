"""Losses without a sampler on densities that are known: 25 Gaussians in the plane, and eight in Gray-coded bits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from table import Row, mean_and_error
from torch import Tensor, nn

import ebmcore
from ebmcore.training import fit

BATCH, AVERAGE = 128, 0.999  # examples in a step; decay of the moving average, whose divergence is measured


@torch.no_grad()
def divergence(log_p: Tensor, energy: nn.Module, x: Tensor) -> float:
    """``KL(data || model)`` in nats, both normalised over the points ``x``: all states, or a grid of cells of one area."""
    log_p = log_p.double().log_softmax(0)
    log_q = -torch.cat([energy(part) for part in x.split(20_000)]).double()
    terms = log_p.exp() * (log_p - log_q.log_softmax(0))
    return float(terms[log_p.isfinite()].sum())


PLANE_STEPS = 15_000
SPACING, STD = math.sqrt(2), 0.1 * math.sqrt(2)  # of the Gaussians
REACH, TICKS = 6.0, 481  # of the grid, whose cells are a sixth of a standard deviation wide
IN_PLANE: dict[str, dict[str, Any]] = {"energy-discrepancy": {"t": 1.0, "n_samples": 4, "w": 1.0}, "score-matching": {}}
FOUND, MISSED = 0.15, 0.5  # nats: at most, and above


def network() -> nn.Sequential:
    """Network of the source, 2-128-128-128-128-1 with softplus units."""
    widths = (2, 128, 128, 128, 128)
    layers = [layer for n_in, n_out in pairwise(widths) for layer in (nn.Linear(n_in, n_out), nn.Softplus())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1), nn.Flatten(0))


def in_plane(loss: str, seed: int, steps: int = PLANE_STEPS) -> float:
    """Divergence after training on points of 25 Gaussians, of which each is seen once."""
    torch.manual_seed(seed)
    data = ebmcore.create_dataset("25-gaussians", spacing=SPACING, std=STD, n_train=steps * BATCH, seed=seed)
    objective = ebmcore.create_loss(loss, network(), **IN_PLANE[loss])
    energy = trained(objective, data, seed, steps)
    ticks = torch.linspace(-REACH, REACH, TICKS)
    grid = torch.cartesian_prod(ticks, ticks)
    return divergence(data.log_prob(grid), energy, grid)


def trained(objective: Any, data: Any, seed: int, steps: int) -> nn.Module:
    """Moving average of the energy after that many steps of Adam at the rate of 1e-3."""
    options: dict[str, Any] = {"accelerator": "cpu", "progress": False, "log_every": steps}
    return fit(objective, data, steps=steps, batch_size=BATCH, lr=1e-3, ema_decay=AVERAGE, seed=seed, **options).energy


def plane_rows(found: dict[str, list[float]]) -> list[Row]:
    """Energy discrepancy finds the density in every seed, score matching in none."""
    name = f"25 Gaussians, network 2-128-128-128-128-1, {PLANE_STEPS:,} steps, KL in nats"
    told = {loss: ", ".join(f"{value:.3f}" for value in values) for loss, values in found.items()}
    discrepancy, score = found["energy-discrepancy"], found["score-matching"]
    return [
        Row(f"{name}: energy discrepancy", f"at most {FOUND}", told["energy-discrepancy"], max(discrepancy) <= FOUND),
        Row("the same, score matching", f"stays above {MISSED}", told["score-matching"], min(score) > MISSED),
    ]


BITS_STEPS, HIDDEN = 5000, 64
IN_BITS: dict[str, dict[str, Any]] = {
    "pcd": {"k_steps": 10, "n_chains": BATCH},
    "discrete-energy-discrepancy": {},
    "pseudo-likelihood": {},
}


def in_bits(loss: str, seed: int, steps: int = BITS_STEPS) -> float:
    """Divergence of an RBM after training on eight Gaussians in Gray-coded bits, from all of its 4,096 states."""
    torch.manual_seed(seed)
    data = ebmcore.create_dataset("gray-code")
    rbm = ebmcore.create_energy("rbm", data.shape, hidden=HIDDEN)
    sampler = [ebmcore.create_sampler("gibbs")] if loss == "pcd" else []
    energy = trained(ebmcore.create_loss(loss, rbm, *sampler, **IN_BITS[loss]), data, seed, steps)
    return divergence(data.log_prob(data.states), energy, data.states)


def bits_rows(found: dict[str, list[float]]) -> list[Row]:
    """The losses without a sampler end no further from the density than PCD, within two standard errors."""
    of_pcd, pcd_error = mean_and_error(found["pcd"])
    name = f"eight Gaussians in 12 Gray-coded bits, RBM 12-{HIDDEN}, {BITS_STEPS:,} steps, KL in nats"
    made = []
    for loss, study in (
        ("discrete-energy-discrepancy", f"{name}: discrete energy discrepancy"),
        ("pseudo-likelihood", "the same, pseudo-likelihood"),
    ):
        mean, error = mean_and_error(found[loss])
        ours = f"{mean:.3f} +- {error:.3f} (PCD-10 {of_pcd:.3f} +- {pcd_error:.3f})"
        holds = mean - of_pcd <= 2 * (error**2 + pcd_error**2) ** 0.5
        made.append(Row(study, "not above PCD by 2 standard errors", ours, holds))
    return made

"""Closed forms: the objectives whose gradient CD is, and how fast its bias falls; annealed importance sampling."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from machines import alone, log_partitions
from table import Row
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

import ebmcore
from ebm_plugin_likelihood.ais import AISLogLikelihood, log_mean_exp
from ebm_plugin_rbm.rbm import RBM
from ebmcore import BaseSampler
from ebmcore.distributions import Bernoulli
from ebmcore.testing import Boltzmann, EnumerableRBM, transition_matrix

Gradient = list[Tensor]


class RandomSite(BaseSampler):
    """Gibbs sampling of one unit, drawn at random."""

    state_space = "binary"
    exact = True
    reversible = True

    def step(self, energy: Any, state: Any, *, generator: torch.Generator | None = None) -> Any:
        x = state.x
        site = torch.randint(x.shape[1], (len(x), 1), generator=generator)
        flipped = x.scatter(1, site, 1 - x.gather(1, site))
        accepted = torch.rand(len(x), generator=generator, dtype=x.dtype).lt((energy(x) - energy(flipped)).sigmoid())
        return replace(state, x=torch.where(accepted[:, None], flipped, x)), {}


def gradient(value: Tensor, energy: nn.Module) -> Gradient:
    """Gradient with respect to all parameters."""
    return list(torch.autograd.grad(value, list(energy.parameters())))


def expected_cd(energy: Any, data: Tensor, matrix: Tensor, k: int) -> Gradient:
    """The gradient of the loss `cd`, averaged over everything that k transitions from the data can lead to."""
    cd = ebmcore.create_loss("cd", energy, RandomSite())
    states, start = energy.states(), torch.zeros(len(matrix), dtype=torch.float64)
    start.index_add_(0, energy.codes(data), torch.full((len(data),), 1 / len(data), dtype=torch.float64))
    law = start @ torch.linalg.matrix_power(matrix, k)
    total = [torch.zeros_like(p) for p in energy.parameters()]
    for state, weight in zip(states, law, strict=True):
        for t, g in zip(total, gradient(cd.compute_loss(data, state[None]), energy), strict=True):
            t += weight * g
    return total


def apart(a: Gradient, b: Gradient) -> float:
    """Largest difference."""
    return max(float((s - t).abs().max()) for s, t in zip(a, b, strict=True))


def norm(a: Gradient) -> float:
    """Euclidean length."""
    return float(torch.cat([t.flatten() for t in a]).norm())


def pseudo_likelihood() -> Row:
    """Hyvarinen (2007): CD-1 by a random site is the gradient of the pseudo-likelihood over n."""
    energy = Boltzmann(5, seed=1).double()
    data = energy.states()[[3, 5, 5, 12, 30]]
    found = expected_cd(energy, data, transition_matrix(RandomSite(), energy), 1)
    flips = (data.unsqueeze(1) - torch.eye(5)).abs()
    gaps = energy(flips.flatten(0, 1)).view(len(data), 5) - energy(data).unsqueeze(1)
    wanted = gradient(-logsigmoid(gaps).sum(1).mean() / 5, energy)
    off = apart(found, wanted)
    return Row(
        "CD-1 with one random-site Gibbs step = pseudo-likelihood / n", "equal, to 1e-10", f"{off:.1e} apart", off < 1e-10
    )


class Quartic(nn.Module):
    """``a x^2 / 2 + b x^4 / 4``, summed over components."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * self.a * x**2 + 0.25 * self.b * x**4).flatten(1).sum(1)


def score_matching() -> Row:
    """Hyvarinen (2007): CD-1 by Langevin over the step size tends to the gradient of score matching."""
    energy, data = Quartic(), torch.tensor([[-1.5], [-0.2], [0.4], [1.1]], dtype=torch.float64)
    grad = energy.a * data + energy.b * data**3
    curvature = energy.a + 3 * energy.b * data**2
    wanted = gradient((0.5 * grad**2 - curvature).mean(), energy)
    nodes, weights = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(20))
    weights = weights / weights.sum()
    steps, errors = (1e-2, 1e-3, 1e-4), []
    for h in steps:
        x = data.repeat_interleave(len(nodes), 0)
        with patch("torch.normal", lambda mean, std, **_: mean + std * nodes.repeat(len(data))[:, None]):
            moved = ebmcore.create_sampler("langevin", step_size=h).sample(energy, x, 1)  # every number that it could draw
        gap = energy(data).mean() - (energy(moved).view(len(data), -1) * weights).sum(1).mean()
        errors.append(apart([g / h for g in gradient(gap, energy)], wanted) / norm(wanted))
    rates = [a / b for a, b in pairwise(errors)]
    ours = "relative error " + ", ".join(f"{e:.1e}" for e in errors) + " at h = 1e-2, 1e-3, 1e-4"
    holds = errors[-1] < 1e-2 and all(9 < rate < 11 for rate in rates)
    return Row("Langevin CD-1 / h -> score matching", "error falls with h", ours, holds)


def second_eigenvalue() -> Row:
    """The bias of CD-k falls by the second eigenvalue of the chain in each further transition."""
    energy = EnumerableRBM((4,), 3, scale=1.5).double()
    matrix, p = transition_matrix(ebmcore.create_sampler("gibbs"), energy), energy.probabilities()
    root = p.sqrt()
    second = float(torch.linalg.eigvalsh(root[:, None] * matrix / root)[-2])
    data = energy.states()[[3, 5, 5, 12]]
    exact = gradient(energy(data).mean() + torch.logsumexp(-energy(energy.states()), 0), energy)

    def bias(k: int) -> float:
        return norm([a - b for a, b in zip(expected_cd(energy, data, matrix, k), exact, strict=True)])

    rate = bias(17) / bias(16)
    name = "the bias of CD-k falls by the second eigenvalue per step"
    return Row(name, f"{second:.6f}", f"{rate:.6f}, from k = 16 to 17", abs(rate / second - 1) < 1e-4)


def identities() -> list[Row]:
    """All three."""
    return [pseudo_likelihood(), score_matching(), second_eigenvalue()]


BOUNDS = {100: 0.5, 1000: 0.05, 10_000: 0.005}  # of the error in log Z, by the number of temperatures


def annealing(n_runs: int = 10) -> list[Row]:
    """Largest error of log Z by annealed importance sampling with 100 chains, of an RBM whose normaliser is enumerated."""
    torch.manual_seed(0)
    rbm = RBM((20,), hidden=20, weight_std=0.5).double()
    exact, base = float(log_partitions(alone(rbm))), Bernoulli(torch.zeros(20, dtype=torch.float64))
    rows = []
    for n_temperatures, bound in BOUNDS.items():
        metric, found = AISLogLikelihood(n_chains=100, n_temperatures=n_temperatures), []
        for seed in range(n_runs if n_temperatures < 10_000 else n_runs // 2):
            g = torch.Generator().manual_seed(seed)
            weights = metric.log_weights(rbm, base, ebmcore.create_sampler("gibbs"), generator=g)
            found.append(float(log_mean_exp(weights)) - exact)
        rows.append(annealing_row(n_temperatures, bound, found))
    return rows


def annealing_row(n_temperatures: int, bound: float, errors: list[float]) -> Row:
    """Whether the largest error is within the bound."""
    study = f"AIS, 100 chains, {n_temperatures:,} temperatures: largest error of log Z in {len(errors)} runs"
    largest = max(abs(error) for error in errors)
    return Row(study, f"under {bound}", f"{largest:.4f}", largest < bound)

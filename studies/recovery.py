"""An RBM from its samples: minimum probability flow, pseudo-likelihood and CD-1 against the exact maximum of the likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from table import Row, mean_and_error
from torch import Tensor

import ebmcore
from ebmcore.testing import EnumerableRBM

UNITS, SAMPLES = 10, 10_000  # visible units, and as many hidden ones; examples
ITERATIONS = 500  # of L-BFGS
CD_STEPS, CD_BATCH, CD_RATE = 10_000, 100, 0.01
NEAR = 0.1  # nats per example
NAMES = {"minimum-probability-flow": "minimum probability flow", "pseudo-likelihood": "pseudo-likelihood", "cd": "CD-1"}


def below_the_maximum(trial: int) -> dict[str, float]:
    """Exact log-likelihood per example that each loss leaves to gain on samples of one RBM, in nats, all from one start."""
    true = machine(4.0, seed=2 * trial)
    x = true.sample(SAMPLES, generator=torch.Generator().manual_seed(trial))
    distinct, counts = x.unique(dim=0, return_counts=True)
    weights = counts.double() * len(distinct) / SAMPLES

    found = {loss: machine(1.0, seed=2 * trial + 1) for loss in ("likelihood", *NAMES)}
    minimise(lambda: -log_likelihood(found["likelihood"], distinct, weights), found["likelihood"])
    for loss in ("minimum-probability-flow", "pseudo-likelihood"):
        objective = ebmcore.create_loss(loss, found[loss])
        objective.data_weights = weights
        minimise(lambda objective=objective: objective(distinct), found[loss])
    contrast(found["cd"], x, trial)
    with torch.no_grad():
        reached = {loss: float(log_likelihood(rbm, distinct, weights)) for loss, rbm in found.items()}
    return {loss: reached["likelihood"] - reached[loss] for loss in NAMES}


def machine(scale: float, seed: int) -> EnumerableRBM:
    """An RBM whose weights and biases are ``scale * randn / sqrt(11)``, float64."""
    return EnumerableRBM((UNITS,), UNITS, scale=scale / math.sqrt(UNITS + 1), seed=seed).double()


def log_likelihood(rbm: EnumerableRBM, x: Tensor, weights: Tensor) -> Tensor:
    """Exact weighted log-likelihood per example, in nats; the mean of the weights is 1."""
    return -(weights * rbm(x)).mean() - torch.logsumexp(-rbm(rbm.states()), 0)


def minimise(value: Callable[[], Tensor], rbm: EnumerableRBM) -> None:
    """Full-batch training by L-BFGS."""
    optimizer = torch.optim.LBFGS(rbm.parameters(), max_iter=ITERATIONS, history_size=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = value()
        loss.backward()
        return loss

    optimizer.step(closure)


def contrast(rbm: EnumerableRBM, x: Tensor, seed: int) -> None:
    """Training by CD-1, as the source did it."""
    torch.manual_seed(seed)
    cd = ebmcore.create_loss("cd", rbm, ebmcore.create_sampler("gibbs"))
    optimizer = torch.optim.SGD(rbm.parameters(), lr=CD_RATE)
    for _ in range(CD_STEPS):
        value, _ = cd(x[torch.randint(len(x), (CD_BATCH,))])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def rows(found: list[dict[str, float]]) -> list[Row]:
    """The losses without a sampler reach the maximum in every trial; CD-1 ends below them."""
    gaps = {loss: [trial[loss] for trial in found] for loss in NAMES}
    setting = f"RBM 10-10, 4 randn / sqrt(11), {SAMPLES:,} samples, nats below the maximum of the likelihood"
    made = []
    for loss in ("minimum-probability-flow", "pseudo-likelihood"):
        largest = max(abs(gap) for gap in gaps[loss])
        ours = f"{_told(gaps[loss])}, at most {largest:.4f}"
        made.append(Row(f"{setting}: {NAMES[loss]}", f"within {NEAR} in every trial", ours, largest <= NEAR))
    lead, error = mean_and_error([trial["cd"] - trial["minimum-probability-flow"] for trial in found])
    study = f"the same, {NAMES['cd']}, {CD_STEPS:,} steps"
    made.append(Row(study, "more than minimum probability flow by 2 standard errors", _told(gaps["cd"]), lead > 2 * error))
    return made


def _told(gaps: list[float]) -> str:
    mean, error = mean_and_error(gaps)
    return f"{mean:.4f} +- {error:.4f}"

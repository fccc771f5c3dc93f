"""Cost of a training step against a bare hand-written loop. Run by ``make bench``.

Workload: CD-10 with Langevin dynamics on a 2-128-128-1 SiLU MLP, Adam, one thread. The bare loop does what a careful author
writes: frozen parameters while sampling, ``k`` calls of ``autograd.grad``, and one training forward and backward on the
concatenated batch. Both run in turn in one process; the figure is the median of the ratios of paired rounds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import ebmcore

STEP_SIZE = 0.01
K_STEPS = 10
LIMITS = {64: None, 256: 1.15, 1024: None}


def network() -> nn.Module:
    """The energy, the same for both."""
    torch.manual_seed(0)
    return ebmcore.create_energy("mlp", shape=(2,), hidden=(128, 128))


def bare(x: Tensor) -> Callable[[], None]:
    """One training step, written out."""
    energy = network()
    parameters = list(energy.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    noise_scale = math.sqrt(2 * STEP_SIZE)

    def step() -> None:
        for parameter in parameters:
            parameter.requires_grad_(False)
        negatives = x.clone()
        for _ in range(K_STEPS):
            negatives.requires_grad_()
            (grad,) = torch.autograd.grad(energy(negatives).sum(), negatives)
            negatives = negatives.detach() - STEP_SIZE * grad + noise_scale * torch.randn_like(negatives)
        for parameter in parameters:
            parameter.requires_grad_(True)
        energy_data, energy_negatives = energy(torch.cat([x, negatives])).split(len(x))
        loss = energy_data.mean() - energy_negatives.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def kernel(x: Tensor) -> Callable[[], None]:
    """The same with the kernel and its plugins."""
    energy = network()
    cd = ebmcore.create_loss("cd", energy, ebmcore.create_sampler("langevin", step_size=STEP_SIZE), k_steps=K_STEPS)
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-4)

    def step() -> None:
        loss, _ = cd(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], n: int) -> float:
    """Mean time of one step."""
    start = time.perf_counter()
    for _ in range(n):
        step()
    return (time.perf_counter() - start) / n


def main() -> None:
    """Print one line for each batch size; exit with 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="paired rounds (40)")
    parser.add_argument("--steps", type=int, default=20, help="steps in a round (20)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"CD-{K_STEPS}, Langevin, MLP 2-128-128-1, Adam, one thread, torch {torch.__version__}")
    print(f"{'batch':>6} {'bare':>10} {'kernel':>10} {'ratio (quartiles)':>24}  limit")
    failed = False
    for batch, limit in LIMITS.items():
        x = torch.randn(batch, 2, generator=torch.Generator().manual_seed(0))
        steps = bare(x), kernel(x)
        for step in steps:
            seconds(step, options.steps)  # warm-up
        rounds = []
        for i in range(options.rounds):
            order = (0, 1) if i % 2 == 0 else (1, 0)
            measured = {which: seconds(steps[which], options.steps) for which in order}
            rounds.append((measured[0], measured[1]))
        low, median, high = statistics.quantiles([b / a for a, b in rounds], n=4)
        times = [1000 * statistics.median(column) for column in zip(*rounds, strict=True)]
        verdict = "" if limit is None else f"{limit} {'met' if median <= limit else 'EXCEEDED'}"
        print(f"{batch:>6} {times[0]:>7.2f} ms {times[1]:>7.2f} ms {median:>10.3f} ({low:.3f} to {high:.3f})  {verdict}")
        failed |= limit is not None and median > limit
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

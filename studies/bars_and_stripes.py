"""Exact log-likelihood of RBMs on 4x4 bars and stripes: CD with one step, persistent CD, and that with fast weights.

Run by ``make studies``.

The same RBM, optimizer and number of updates and transitions for all losses; the normaliser is enumerated. Each loss is
also given a smaller learning rate, so that neither is judged by a setting that suits the other. The best possible value
is that of the data's own distribution. The rates fall to 0: with constant ones the chains of PCD keep pushing the model around,
and its lead was not clear. The fast weights of FPCD learn at the rate that the slow ones begin with, as in its paper.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch

import ebmcore

HIDDEN = 16
UPDATES = 20_000
RATES = (0.2, 0.05)
N_CHAINS = 128
LOSSES = ("cd", "pcd", "fpcd")


def options_of(loss_name: str, lr: float) -> dict[str, float]:
    """What the loss is given besides energy and sampler."""
    persistent = {"n_chains": N_CHAINS} if loss_name != "cd" else {}
    return persistent | ({"fast_lr": lr} if loss_name == "fpcd" else {})


def trained_likelihood(loss_name: str, lr: float, seed: int) -> float:
    """Exact mean log-likelihood, in nats per pattern, at the end of training."""
    data = ebmcore.create_dataset("bars-and-stripes", side=4)
    torch.manual_seed(seed)
    rbm = ebmcore.create_energy("rbm", shape=data.shape, hidden=HIDDEN)
    loss = ebmcore.create_loss(loss_name, rbm, ebmcore.create_sampler("gibbs"), **options_of(loss_name, lr))
    x = data.train.repeat(4, 1, 1, 1)  # 128 examples, as many as there are chains
    optimizer = torch.optim.SGD(rbm.parameters(), lr=lr)
    for update in range(UPDATES):
        optimizer.param_groups[0]["lr"] = lr * (1 - update / UPDATES)
        value, _ = loss(x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    result = ebmcore.create_metric("exact-ll")(rbm, data, generator=torch.Generator().manual_seed(0))
    return float(result["log_likelihood"])


def main() -> None:
    """Print the table; exit with 1 unless PCD ends above CD-1 by more than two standard errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="repetitions (5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    best = -(28 * math.log(32) + 4 * math.log(16)) / 32  # two of the patterns stand in the data twice
    print(
        f"4x4 bars and stripes, {HIDDEN} hidden units, {UPDATES} full-batch updates at a falling rate, {options.seeds} seeds"
    )
    print(f"exact log-likelihood in nats per pattern; best possible {best:.2f}\n")
    print(f"{'loss':<6}{'lr':>6}{'mean':>9}{'std. error':>12}   seeds")
    found: dict[tuple[str, float], list[float]] = {}
    for lr in RATES:
        for name in LOSSES:
            values = [trained_likelihood(name, lr, seed) for seed in range(options.seeds)]
            found[name, lr] = values
            error = statistics.stdev(values) / math.sqrt(len(values))
            print(
                f"{name:<6}{lr:>6}{statistics.mean(values):>9.3f}{error:>12.3f}   {' '.join(f'{v:.2f}' for v in values)}",
                flush=True,
            )
    best_of = {name: max((found[name, lr] for lr in RATES), key=statistics.mean) for name in LOSSES}
    lead = statistics.mean(best_of["pcd"]) - statistics.mean(best_of["cd"])
    error = math.sqrt(sum(statistics.variance(best_of[name]) / options.seeds for name in ("pcd", "cd")))
    verdict = lead > 2 * error and min(best_of["pcd"]) > max(best_of["cd"])
    print(
        f"\nEach at the better of the two rates: pcd leads by {lead:.3f} +- {error:.3f}; "
        f"every seed of pcd above every seed of cd: {verdict}"
    )
    if not verdict:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

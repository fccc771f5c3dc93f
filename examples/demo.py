"""Train an RBM on digits with persistent contrastive divergence, beside two references. Run by ``make demo``.

Both models are trained by the command line with the same options and the same number of transitions; only the loss differs.
Since a learning rate may suit one loss better than the other, both are trained at a smaller one as well.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import torch

import ebmcore
from ebm_plugin_likelihood.ais import base_of
from ebmcore.cli import main

COMMAND = (
    "train --energy rbm --energy.hidden 64 --sampler gibbs --loss pcd --loss.n_chains 256 --data digits "
    "--metric ais-ll --epochs 30 --seed 0 --out runs/demo"
)
REFERENCE = COMMAND.replace("--loss pcd --loss.n_chains 256", "--loss cd").replace("runs/demo", "runs/demo-cd")
SMALLER_RATE = 0.5


def call(command: str) -> None:
    """Run one ``ebmcore`` command; end with its exit status if it fails."""
    print(f"$ ebmcore {command}", flush=True)
    status = main(shlex.split(command))
    if status:
        sys.exit(status)


def result(run: str) -> tuple[float, float, float]:
    """Log-likelihood and its interval, as the metric found them."""
    found = json.loads(Path(run, "evaluation.json").read_text())["ais-ll"]
    return found["log_likelihood"], found["interval_low"], found["interval_high"]


def independent_pixels(n_bootstrap: int = 1000) -> tuple[float, float, float]:
    """Test log-likelihood, with its 95 % bootstrap interval, of independent Bernoulli pixels."""
    data = ebmcore.create_dataset("digits")
    values = base_of(data).log_prob(data.test.double())
    rows = torch.randint(len(values), (n_bootstrap, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = torch.quantile(values[rows].mean(1), torch.tensor([0.025, 0.975]).double()).tolist()
    return values.mean().item(), low, high


def demo() -> None:
    """Train, compare, print."""
    start = time.perf_counter()
    call(COMMAND)
    call(REFERENCE)
    call("sample runs/demo -n 64 --out runs/demo/samples.png")
    for command in (COMMAND, REFERENCE):
        call(f"{command}-{SMALLER_RATE} --lr {SMALLER_RATE}")
    rows = [
        ("RBM, PCD-1", *result("runs/demo")),
        ("RBM, CD-1, same budget", *result("runs/demo-cd")),
        ("independent pixels", *independent_pixels()),
    ]
    slower = [
        (f"PCD-1 at --lr {SMALLER_RATE}", *result(f"runs/demo-{SMALLER_RATE}")),
        (f"CD-1 at --lr {SMALLER_RATE}", *result(f"runs/demo-cd-{SMALLER_RATE}")),
    ]
    print("\nTest log-likelihood of 8x8 binary digits, in nats per image (95 % interval)\n")
    for name, value, low, high in rows:
        print(f"  {name:<24}{value:8.2f}   [{low:.2f}, {high:.2f}]")
    print("\n  For comparison, at a smaller learning rate:")
    for name, value, low, high in slower:
        print(f"  {name:<24}{value:8.2f}   [{low:.2f}, {high:.2f}]")
    _, best, low, high = rows[0]
    width = (high - low) / 2
    margins = [best - value for _, value, _, _ in rows[1:]]
    verdict = all(margin > width for margin in margins)
    print(
        f"\nPCD leads by {margins[0]:.2f} and {margins[1]:.2f} nats; half its interval is {width:.2f}: beats both {verdict}"
    )
    left = ", ".join(sorted(path.name for path in Path("runs/demo").iterdir()))
    print(f"{time.perf_counter() - start:.0f} s; runs/demo holds {left}")
    if not verdict:
        sys.exit("the demo's model does not beat both references by more than its interval")


if __name__ == "__main__":
    demo()

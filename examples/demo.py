"""Train an RBM on digits with persistent contrastive divergence, beside two references. Run by ``make demo``.

Both models are trained by the command line with the same options and the same number of transitions; only the loss differs.
The differences are paired: both models are measured on the same test images.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import torch

import ebmcore
from ebmcore.cli import main
from ebmcore.distributions import Bernoulli

COMMAND = (
    "train --energy rbm --energy.hidden 64 --sampler gibbs --loss pcd --loss.n_chains 256 --data digits "
    "--metric ais-ll --epochs 30 --seed 0 --out runs/demo"
)
REFERENCE = COMMAND.replace("--loss pcd --loss.n_chains 256", "--loss cd").replace("runs/demo", "runs/demo-cd")


def call(command: str) -> None:
    """Run one ``ebmcore`` command; end with its exit status if it fails."""
    print(f"$ ebmcore {command}", flush=True)
    status = main(shlex.split(command))
    if status:
        sys.exit(status)


def result(run: str) -> dict[str, float]:
    """What the metric found."""
    found: dict[str, float] = json.loads(Path(run, "evaluation.json").read_text())["ais-ll"]
    return found


def independent_pixels(n_bootstrap: int = 1000) -> tuple[float, float, float]:
    """Test log-likelihood, with its 95 % bootstrap interval, of independent Bernoulli pixels."""
    data = ebmcore.create_dataset("digits")
    values = Bernoulli.from_data(data.train).log_prob(data.test.double())
    rows = torch.randint(len(values), (n_bootstrap, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = torch.quantile(values[rows].mean(1), torch.tensor([0.025, 0.975]).double()).tolist()
    return values.mean().item(), low, high


def demo() -> None:
    """Train, compare, print."""
    start = time.perf_counter()
    call(COMMAND)
    call(REFERENCE)
    call("sample runs/demo -n 64 --out runs/demo/samples.png")
    pcd, cd = result("runs/demo"), result("runs/demo-cd")
    rows = [
        ("RBM, PCD-1", pcd["log_likelihood"], pcd["interval_low"], pcd["interval_high"]),
        ("RBM, CD-1, same budget", cd["log_likelihood"], cd["interval_low"], cd["interval_high"]),
        ("independent pixels", *independent_pixels()),
    ]
    print("\nTest log-likelihood of 8x8 binary digits, in nats per image (95 % interval)\n")
    for name, value, low, high in rows:
        print(f"  {name:<24}{value:8.2f}   [{low:.2f}, {high:.2f}]")
    width = (pcd["interval_high"] - pcd["interval_low"]) / 2
    margins = [rows[0][1] - value for _, value, _, _ in rows[1:]]
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

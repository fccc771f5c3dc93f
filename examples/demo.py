"""Train an RBM on digits with persistent contrastive divergence, beside two references. Run by ``make demo``.

Both models are trained by the command line with the same options and the same number of transitions; only the loss differs.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
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
    pcd, cd, pixels = result("runs/demo"), result("runs/demo-cd"), independent_pixels()
    print("\nTest log-likelihood of 8x8 binary digits, in nats per image (95 % interval)\n")
    for name, (value, low, high) in {"RBM, PCD-1": pcd, "RBM, CD-1": cd, "independent pixels": pixels}.items():
        print(f"  {name:<24}{value:8.2f}   [{low:.2f}, {high:.2f}]")
    print(f"\n{sentence(pcd, cd, pixels)}")
    left = ", ".join(sorted(path.name for path in Path("runs/demo").iterdir()))
    print(f"{time.perf_counter() - start:.0f} s; runs/demo holds {left}")
    if not beats(pcd, pixels):
        sys.exit("the demo's model does not beat independent pixels")


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the interval of one result lies above that of the other."""
    return one[1] > other[2]


def sentence(pcd: Sequence[float], cd: Sequence[float], pixels: Sequence[float]) -> str:
    """What the three results say."""
    if beats(pcd, cd) or beats(cd, pcd):
        between = f"{'PCD-1' if beats(pcd, cd) else 'CD-1'} is ahead by {abs(pcd[0] - cd[0]):.2f} nats"
    else:
        between = f"PCD-1 and CD-1 are about equal ({abs(pcd[0] - cd[0]):.2f} nats apart)"
    both = "both beat" if beats(pcd, pixels) and beats(cd, pixels) else "not both beat"
    return f"After 30 epochs {between}; {both} independent pixels."


if __name__ == "__main__":
    demo()

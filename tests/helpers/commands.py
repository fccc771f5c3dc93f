"""Commands of the command line, for its tests."""

from __future__ import annotations

import hashlib
import json

import torch

from ebmcore.cli import main
from ebmcore.training import latest_checkpoint, read_checkpoint

RBM = "--energy rbm --energy.hidden 4 --sampler gibbs --data bars-and-stripes --data.side 2 --progress false"


MOONS = "--energy mlp --energy.hidden [8] --sampler langevin --sampler.step_size 0.01 --data two-moons --data.n_train 200"


def ebmcore(command, *paths):
    return main([*command.split(), *map(str, paths)])


def train(command, out):
    return ebmcore(f"train {command} --out", out)


def tensors(out):
    return read_checkpoint(latest_checkpoint(out / "checkpoints"))[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def forge(checkpoint, change=lambda info: None):
    """Change what a checkpoint says of itself, as somebody would who knows how its digests are made."""
    path = checkpoint / "checkpoint.json"
    info = json.loads(path.read_text())
    del info["sha256_of_this"]
    info["bytes"] = {name: (checkpoint / name).stat().st_size for name in info["bytes"]}
    info["sha256"] = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in info["sha256"]}
    info = change(info) or info
    info["sha256_of_this"] = hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(info))

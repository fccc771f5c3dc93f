"""Commands of the command line, for its tests."""

from __future__ import annotations

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

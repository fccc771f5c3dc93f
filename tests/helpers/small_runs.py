"""Runs of a few steps, for the tests of training."""

from __future__ import annotations

import csv

import torch

import ebmcore
from ebmcore.testing import Identity, Quadratic
from ebmcore.training import LabelledExamples, Run, fit


def pcd(seed=0, **options):
    torch.manual_seed(seed)
    energy = ebmcore.create_energy("mlp", (2,), hidden=(8,))
    sampler = ebmcore.create_sampler("langevin", step_size=0.05)
    return ebmcore.create_loss("pcd", energy, sampler, n_chains=20, **options)


def cd():
    return ebmcore.create_loss("cd", Quadratic((2,)), Identity())


def data(n=100):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(7))


def quiet(loss, x, **options):
    return fit(loss, x, **({"progress": False, "accelerator": "cpu", "batch_size": 16, "lr": 1e-2} | options))


def run_at(step, n_steps=10, directory=None, stop=lambda: None):
    """A run as observers see it after ``step`` steps."""
    loss = pcd()
    return Run({}, loss, loss.energy, data(), LabelledExamples(data(), {}), loss.sampler, step, n_steps, 0, directory, stop)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

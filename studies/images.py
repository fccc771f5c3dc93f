"""Images: MNIST with 16 hidden units, and scikit-learn's nudged digits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from machines import alone, summed_log_likelihoods
from scipy.ndimage import shift
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from table import Row, mean_and_error
from torch.nn.functional import logsigmoid

import ebmcore
from ebm_plugin_rbm.rbm import RBM


def mnist(loss: str, seed: int, directory: Path, epochs: int = 50) -> float:
    """Exact test log-likelihood of an RBM 784-16, in nats per image."""
    data = ebmcore.create_dataset("mnist", directory=directory)
    torch.manual_seed(seed)
    rbm = RBM(data.shape, hidden=16)
    reach = 4 * math.sqrt(6 / (784 + 16))
    with torch.no_grad():
        rbm.weight.uniform_(-reach, reach)
        rbm.visible_bias.copy_(torch.logit(data.train.flatten(1).mean(0).clamp(0.001, 0.999)))
    options = {} if loss == "cd" else {"n_chains": 100}
    cd = ebmcore.create_loss(loss, rbm, ebmcore.create_sampler("gibbs"), **options)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.01)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train)).split(100):
            value, _ = cd(data.train[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return float(summed_log_likelihoods(alone(rbm), data.test)) / len(data.test)


def mnist_rows(pcd: list[float], cd: list[float]) -> list[Row]:
    """PCD-1 against the figure of PyDeep's documentation, and CD-1 below it."""
    (mean, error), (of_cd, cd_error) = mean_and_error(pcd), mean_and_error(cd)
    return [
        Row("MNIST 784-16, PCD-1, 50 epochs, test", "-149.05", f"{mean:.2f} +- {error:.2f}", -153 < mean < -144),
        Row("the same, CD-1", "at least 12 below PCD-1", f"{of_cd:.2f} +- {cd_error:.2f}", of_cd < mean - 12),
    ]


def nudged_digits() -> torch.Tensor:
    """Training part of 8x8 digits, each also moved by a pixel in four directions, levels in [0, 1]: scikit-learn's gallery."""
    images = load_digits().images.astype(np.float32)
    moved = [images, *(shift(images, (0, *by), order=0) for by in ((-1, 0), (0, -1), (0, 1), (1, 0)))]
    x = np.concatenate(moved).reshape(-1, 64)
    low, high = x.min(0), x.max(0)
    train, _ = train_test_split((x - low) / np.where(high > low, high - low, 1), test_size=0.2, random_state=0)
    return torch.from_numpy(train.astype(np.float32))


def digits(n_seeds: int = 3) -> list[Row]:
    """Pseudo-likelihood of an RBM with 100 hidden units on nudged digits: all pixels flipped, not one at random."""
    x, found = nudged_digits(), []
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        rbm = RBM((64,), hidden=100)
        pcd = ebmcore.create_loss("pcd", rbm, ebmcore.create_sampler("gibbs"), n_chains=10)
        optimizer = torch.optim.SGD(rbm.parameters(), lr=0.06)
        for _ in range(10):
            for batch in x.split(10):
                value, _ = pcd(batch)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
        found.append(_pseudo_log_likelihood(rbm, x))
    mean, error = mean_and_error(found)
    name = "nudged digits, 100 hidden units, PCD-1, pseudo-likelihood"
    return [Row(name, "-20.09", f"{mean:.2f} +- {error:.2f}", abs(mean + 20.09) < 0.6)]


@torch.no_grad()
def _pseudo_log_likelihood(rbm: RBM, x: torch.Tensor) -> float:
    """As scikit-learn's, of grey levels too: a flip takes ``v`` to ``1 - v``."""
    unit = torch.eye(x.shape[1])
    flipped = x.unsqueeze(1) * (1 - unit) + (1 - x).unsqueeze(1) * unit
    gaps = rbm(flipped.flatten(0, 1)).view_as(x) - rbm(x).unsqueeze(1)
    return float(logsigmoid(gaps).sum(1).mean())

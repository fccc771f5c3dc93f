"""Tests of samples against known distributions, at sizes that detect an error of a few percent.

Seeds are fixed, so a component passes always or never. A comparison fails for one correct component in 100,000; a sampler
meets about a hundred of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

N = 100_000  # a chi-square test detects a temperature 10 % off at this size, and not at 5,000
SIGMAS = 4.5
P_VALUE = 1e-5


def chi_square_p(counts: Tensor, probabilities: Tensor) -> float:
    """p-value of observed ``counts`` under ``probabilities``, both 1-dim; cells expected below 5 are pooled."""
    counts, expected = counts.double(), probabilities.double() * counts.sum()
    order = expected.argsort()
    counts, expected = counts[order], expected[order]
    n_rare = int((expected < 5).sum())
    if n_rare:
        counts = torch.cat([counts[:n_rare].sum()[None], counts[n_rare:]])
        expected = torch.cat([expected[:n_rare].sum()[None], expected[n_rare:]])
    statistic = ((counts - expected).square() / expected.clamp(min=1e-12)).sum()
    degrees = max(len(expected) - 1, 1)
    p_value: Tensor = torch.special.gammaincc(torch.tensor(degrees / 2.0).double(), statistic / 2)
    return p_value.item()


def binned(x: Tensor, edges: Tensor) -> Tensor:
    """Number of ``x`` ``(N,)`` in each of the bins between ``edges``."""
    return torch.bincount(torch.bucketize(x.double(), edges.double()), minlength=len(edges) + 1)


def mean_in_sigmas(x: Tensor, expected: Tensor | float) -> Tensor:
    """Number of standard errors by which the mean over the first axis is off ``expected``."""
    x = x.double()
    error = x.std(0) / math.sqrt(len(x))
    return (x.mean(0) - expected).abs() / error.clamp(min=1e-12)

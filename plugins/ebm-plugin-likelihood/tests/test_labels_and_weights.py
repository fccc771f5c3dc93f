"""Metrics of conditional energies and of weighted examples, against enumeration and closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ebm_plugin_likelihood.ais import AISLogLikelihood, ReverseAISLogLikelihood
from ebm_plugin_likelihood.exact import ExactLogLikelihood
from ebm_plugin_likelihood.grid import GridLogLikelihood
from ebm_plugin_likelihood.out_of_range import OutOfRange
from ebm_plugin_likelihood.pseudo import PseudoLogLikelihood
from ebmcore import BaseSampler
from ebmcore.errors import UsageError
from ebmcore.testing import Identity, SiteGibbs

N = 600
LABELS = torch.arange(N) % 3
BITS = (
    torch.rand(N, 2, 2, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.2, 0.5, 0.9])[LABELS][:, None, None]
).float()
WEIGHTS = 1.0 * (LABELS == 0) + 3.0 * (LABELS == 1)
POINTS = torch.randn(N, 2, generator=torch.Generator().manual_seed(1))


class Units(nn.Module):
    """Independent units of which label ``y`` chooses the log-odds, and a normaliser that depends on it."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([-1.5, 0.0, 2.0]))

    def forward(self, x, y):
        return -(self.logits[y][:, None] * x.flatten(1)).sum(1) - y


class ByKeyword(Units):
    def forward(self, x, *, y):
        return super().forward(x, y)


class Well(nn.Module):
    """A normal law of the plane around the label, of which the mass is ``e^y``."""

    def __init__(self):
        super().__init__()
        self.center = nn.Parameter(torch.tensor([0.0, 0.5, 1.0]))

    def forward(self, x, y):
        return 0.5 * (x - self.center[y][:, None]).square().sum(1) - y


class Flip(BaseSampler):
    """Metropolis, one random unit at a time."""

    exact = True

    def step(self, energy, state, *, generator=None):
        x = state.x
        unit = torch.randint(4, (len(x), 1), generator=generator)
        flat = x.flatten(1)
        y = flat.scatter(1, unit, 1 - flat.gather(1, unit)).view_as(x)
        accept = torch.rand(len(x), generator=generator, dtype=torch.float64).log() < energy(x) - energy(y)
        return replace(state, x=torch.where(accept[:, None, None], y, x)), {}


class Moving(BaseSampler):
    """Moves every chain to the energy of its start: its label."""

    def step(self, energy, state, *, generator=None):
        return replace(state, x=energy(state.x)[:, None].expand(-1, 2)), {}


class Items(torch.utils.data.Dataset):
    """Training examples that are read one by one."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return BITS[i], LABELS[i]


def data(**more):
    return SimpleNamespace(
        **{
            "train": BITS,
            "test": BITS,
            "train_labels": LABELS,
            "test_labels": LABELS,
            "shape": (2, 2),
            "state_space": "binary",
        }
        | more
    )


def log_likelihoods():
    """Those of `Units`, for each example."""
    logits = torch.tensor([-1.5, 0.0, 2.0]).double()[LABELS][:, None]
    return (logits * BITS.flatten(1) - nn.functional.softplus(logits)).sum(1)


def seeded():
    return torch.Generator().manual_seed(0)


def named(labels):
    return {"train_labels": {"y": labels}, "test_labels": {"y": labels}}


@pytest.mark.parametrize(("energy", "more"), [(Units(), {}), (ByKeyword(), named(LABELS)), (Units(), {"train": Items()})])
@pytest.mark.parametrize(
    ("metric", "error"),
    [
        (ExactLogLikelihood(), 1e-6),
        (PseudoLogLikelihood(), 1e-6),
        (AISLogLikelihood(n_chains=400, n_temperatures=50), 0.02),
        (ReverseAISLogLikelihood(n_chains=400, n_temperatures=50, n_equilibrate=20), 0.02),
    ],
)
def test_likelihood_is_that_given_the_label(energy, more, metric, error):
    """Each label has another normaliser; independent units have equal likelihood and pseudo-likelihood."""
    result = metric(energy, data(**more), sampler=Flip(), generator=seeded())
    expected = log_likelihoods().mean().item()
    found = result.get("log_likelihood", result.get("log_pseudo_likelihood"))
    assert found == pytest.approx(expected, abs=error)
    assert result["interval_low"] < expected < result["interval_high"]


@pytest.mark.parametrize(
    ("metric", "error"),
    [
        (ExactLogLikelihood(), 1e-6),
        (PseudoLogLikelihood(), 1e-6),
        (AISLogLikelihood(n_chains=400, n_temperatures=50), 0.02),
    ],
)
def test_likelihood_is_the_weighted_mean(metric, error):
    result = metric(Units(), data(test_weights=WEIGHTS), sampler=Flip(), generator=seeded())
    expected = (WEIGHTS * log_likelihoods()).sum().item() / WEIGHTS.sum().item()
    assert result.get("log_likelihood", result.get("log_pseudo_likelihood")) == pytest.approx(expected, abs=error)
    assert result["interval_low"] < expected < result["interval_high"]


def test_grid_integrates_under_each_label():
    plane = data(train=POINTS, test=POINTS, shape=(2,), state_space="continuous")
    result = GridLogLikelihood()(Well(), plane, generator=seeded())
    assert result["log_partition"] == pytest.approx(math.log(2 * math.pi) + 1, abs=1e-3)


def test_annealing_starts_at_weighted_base_rates():
    """With no weight on labels 1 and 2 the base is that of label 0, of a rate of 0.2."""
    metric, bases = AISLogLikelihood(n_chains=2, n_temperatures=1), []
    metric.log_weights = lambda energy, base, sampler, generator: bases.append(base) or torch.zeros(2).double()
    alone = (LABELS == 0).float()
    metric(Free(), data(train_weights=alone), sampler=Flip(), generator=seeded())
    expected = (BITS[LABELS == 0].double().mean(0) * N + 1) / (N + 2)
    torch.testing.assert_close(bases[0].logits.sigmoid(), expected)


class Free(nn.Module):
    def forward(self, x):
        return 0 * x.flatten(1).sum(1)


def test_chains_keep_the_labels_and_weights_of_their_examples():
    """A chain moves to minus its label, and so for label 1, which has 3/4 of the weight, below the smallest value of -0.5."""
    train = torch.tensor([[-0.5, 0.0], [1.0, 1.0]]).repeat(N // 2, 1)
    labels = torch.arange(N) % 2

    class Label(nn.Module):
        def forward(self, x, y):
            return -y.to(x)

    weighted = data(train=train, train_labels=labels, train_weights=1.0 + 2 * labels, state_space="continuous", shape=(2,))
    result = OutOfRange(n_chains=20_000, n_steps=1)(Label(), weighted, sampler=Moving(), generator=seeded())
    assert result["chains_outside"] == pytest.approx(0.75, abs=4.5 * math.sqrt(3 / 16 / 20_000))


@pytest.mark.parametrize("metric", [ExactLogLikelihood(), PseudoLogLikelihood(), AISLogLikelihood()])
def test_missing_labels_are_refused(metric):
    with pytest.raises(
        UsageError, match="Units takes conditions .* test data have no labels .* give the data set test_labels"
    ):
        metric.check(Units(), data(test_labels=None), sampler=Flip())


def test_range_refuses_missing_labels():
    plane = data(train=POINTS, train_labels=None, state_space="continuous")
    with pytest.raises(UsageError, match="train data have no labels"):
        OutOfRange().check(Well(), plane, sampler=Identity())


def test_own_normaliser_is_not_that_of_a_label():
    """`log_partition` takes no label: a conditional energy that has one is summed label by label."""

    class Known(Units):
        def log_partition(self):
            return torch.tensor(5.0)

    result = ExactLogLikelihood()(Known(), data(), sampler=SiteGibbs(), generator=seeded())
    assert result["log_likelihood"] == pytest.approx(log_likelihoods().mean().item(), abs=1e-6)

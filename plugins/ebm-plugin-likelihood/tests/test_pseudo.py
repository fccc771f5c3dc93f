"""The pseudo-likelihood against enumeration of the conditionals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ebm_plugin_likelihood.pseudo import PseudoLogLikelihood
from ebmcore.errors import UsageError
from ebmcore.testing import Boltzmann


def data(test, state_space="binary"):
    return SimpleNamespace(test=test, state_space=state_space, shape=tuple(test.shape[1:]))


def enumerated(energy, x):
    """``sum_i log p(x_i | x_-i)`` from the table of all probabilities."""
    states, p = energy.states(), energy.probabilities()
    total = torch.zeros(len(x), dtype=torch.float64)
    for i in range(x.shape[1]):
        rest = [j for j in range(x.shape[1]) if j != i]
        for n, row in enumerate(x):
            given = (states[:, rest] == row[rest]).all(1)
            total[n] += (p[given & (states[:, i] == row[i])].sum() / p[given].sum()).log()
    return total


def test_it_is_the_enumerated_one():
    energy = Boltzmann(4, seed=3)
    x = energy.states()[[1, 6, 6, 11, 14]]
    found = PseudoLogLikelihood()(energy, data(x))["log_pseudo_likelihood"]
    assert found == pytest.approx(enumerated(energy, x.double()).mean().item(), abs=1e-6)


def test_shapes_and_chunks_change_nothing(monkeypatch):
    energy = Boltzmann(4, seed=3)
    x = energy.states()
    whole = PseudoLogLikelihood()(energy, data(x))["log_pseudo_likelihood"]
    monkeypatch.setattr("ebm_plugin_likelihood.pseudo._CHUNK", 8)
    assert PseudoLogLikelihood()(energy, data(x))["log_pseudo_likelihood"] == pytest.approx(whole, abs=1e-12)

    class Image(torch.nn.Module):
        def forward(self, images):
            return energy.double()(images.flatten(1))

    images = data(x.view(-1, 1, 2, 2))
    assert PseudoLogLikelihood()(Image(), images)["log_pseudo_likelihood"] == pytest.approx(whole, abs=1e-6)


def test_interval_holds_mean_and_repeats():
    """The interval holds the mean and repeats with its generator."""
    energy = Boltzmann(4, seed=3)
    first, second = (
        PseudoLogLikelihood(n_bootstrap=200)(energy, data(energy.states()), generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert first == second
    assert first["interval_low"] < first["log_pseudo_likelihood"] < first["interval_high"]


def test_pseudo_refuses_other_data():
    """What it cannot measure raises an error with the reason."""
    with pytest.raises(UsageError, match="flips binary units"):
        PseudoLogLikelihood()(Boltzmann(4), data(torch.zeros(3, 4), "continuous"))
    with pytest.raises(UsageError, match="at least one test example"):
        PseudoLogLikelihood()(Boltzmann(4), data(torch.zeros(0, 4)))
    with pytest.raises(ValueError, match="n_bootstrap must be at least 1"):
        PseudoLogLikelihood(n_bootstrap=0)

"""Metrics that are computed when they are read."""

from __future__ import annotations

import copy
import pickle

import torch

from ebmcore.diagnostics import Diagnostics


def counting():
    calls = []

    def mean(t):
        calls.append(1)
        return t.mean()

    return mean, calls


def test_a_value_is_computed_at_first_reading_and_once():
    mean, calls = counting()
    metrics = Diagnostics()
    metrics.later("mean", mean, torch.ones(3))
    assert list(metrics) == ["mean"]
    assert len(metrics) == 1
    assert not calls
    assert metrics["mean"] is metrics["mean"]
    assert len(calls) == 1


def test_what_is_read_is_detached():
    metrics = Diagnostics()
    metrics.later("sum", torch.sum, torch.ones(3, requires_grad=True))
    assert not metrics["sum"].requires_grad


def test_another_one_takes_over_what_nobody_has_read():
    mean, calls = counting()
    first = Diagnostics({"loss": torch.tensor(1.0)})
    first.later("mean", mean, torch.ones(3))
    second = Diagnostics(first)
    second["more"] = torch.tensor(2.0)
    del second["loss"]
    assert not calls
    assert set(first) == {"loss", "mean"}
    assert dict(second) == {"mean": 1.0, "more": 2.0}


def test_it_is_copied_and_pickled_unread():
    metrics = Diagnostics()
    metrics.later("mean", torch.mean, torch.ones(3))
    assert copy.deepcopy(metrics)["mean"] == pickle.loads(pickle.dumps(metrics))["mean"] == 1.0

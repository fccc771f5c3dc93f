"""The end of a run whose metric no longer improves."""

from __future__ import annotations

import math

import pytest

from ebm_plugin_observers.early_stopping import EarlyStopping

RISES_THEN_FALLS = [1.0, 2.0, 3.0, 2.5, 2.9, 3.0, 2.0, 1.0]


def ends_after(observer, values):
    """Number of logs after which it is exhausted."""
    return next(i for i, value in enumerate(values, 1) if observer.exhausted_by({"m": value}))


@pytest.mark.parametrize(
    ("options", "values", "logs"),
    [
        ({"patience": 1}, RISES_THEN_FALLS, 4),
        ({"patience": 3}, RISES_THEN_FALLS, 6),
        ({"patience": 2, "lower_is_better": True}, RISES_THEN_FALLS, 3),
        ({"patience": 2, "min_delta": 1.5}, [0.0, 1.0, 1.5, 2.0], 3),
        ({"patience": 2}, [math.nan, math.nan], 2),
    ],
)
def test_patience_counts_logs(options, values, logs):
    assert ends_after(EarlyStopping("m", **options), values) == logs


def test_improvement_restores_patience():
    assert ends_after(EarlyStopping("m", patience=2), [1.0, 0.5, 1.5, 1.0, 1.2]) == 5


def measured(values):
    """A measurement that gives one value after the other."""
    values = iter(values)
    return {"measure": lambda energy: {"m": next(values)}, "measure_every": 2}


def last_step(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())[-1]


def test_run_ends_when_patience_does(train, tmp_path):
    """With a measurement every second step, the sixth is at step 12; the checkpoint of that step is there."""
    train(EarlyStopping("m", patience=3), steps=100, out=tmp_path / "run", **measured(RISES_THEN_FALLS))
    assert last_step(tmp_path / "run") == "step-00000012"


def test_resumed_run_remembers(train, tmp_path):
    """A run that was interrupted ends at the step where the other one does."""
    out = tmp_path / "run"
    train(EarlyStopping("m", patience=3), steps=9, out=out, **measured(RISES_THEN_FALLS[:4]))
    train(EarlyStopping("m", patience=3), steps=100, out=out, resume=True, **measured(RISES_THEN_FALLS[4:]))
    assert last_step(out) == "step-00000012"


def test_unknown_metric_warns(train):
    with pytest.warns(UserWarning, match=r"never saw the metric 'nll'; logged were .*loss"):
        train(EarlyStopping("nll"), steps=2)


@pytest.mark.parametrize("options", [{"patience": 0}, {"min_delta": -1.0}])
def test_impossible_options_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        EarlyStopping("m", **options)

"""Snapshots of the parameters."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, load_model

from ebm_plugin_observers.archive import Archive
from ebmcore.testing import Quadratic


def steps(out):
    return [int(path.stem.removeprefix("step-")) for path in sorted((out / "archive").iterdir())]


@pytest.mark.parametrize(("log_every", "kept"), [(1, [0, 1, 2, 4, 8, 16]), (5, [0, 5, 10, 20])])
def test_snapshots_are_log_spaced(train, tmp_path, log_every, kept):
    """One for each power of the ratio, at the first logged step from it on."""
    train(Archive(ratio=2), steps=20, log_every=log_every, out=tmp_path / "run")
    assert steps(tmp_path / "run") == kept


def test_steps_are_rounded_up():
    assert [Archive(ratio=1.5).since(step) for step in (1, 2, 3, 4, 5, 6)] == [1, 2, 3, 4, 4, 6]


def test_snapshot_holds_the_parameters(train, tmp_path):
    trained = train(Archive(), steps=4, out=tmp_path / "run")
    loaded = Quadratic((2,))
    with torch.no_grad():
        next(loaded.parameters()).zero_()
    load_model(loaded, tmp_path / "run/archive/step-00000004.safetensors")
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    first = load_file(tmp_path / "run/archive/step-00000000.safetensors")
    assert any(not torch.equal(value, trained.state_dict()[name]) for name, value in first.items())


def test_resumed_run_keeps_the_same(train, tmp_path):
    """A checkpoint between two logs moves no snapshot."""
    for stops in ((20,), (7, 20)):
        for stop in stops:
            train(Archive(), steps=stop, log_every=5, out=tmp_path / str(stops[0]), resume=True)
    assert 10 in steps(tmp_path / "20")
    assert set(steps(tmp_path / "7")) - {7} == set(steps(tmp_path / "20"))


def test_ratio_of_one_is_refused():
    with pytest.raises(ValueError, match="ratio must be above 1, got 1"):
        Archive(ratio=1)

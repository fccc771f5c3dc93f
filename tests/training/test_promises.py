"""Messages that promise something: it is there, and where it is not, they do not promise it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from small_runs import data, pcd, quiet

import ebmcore
from ebmcore.errors import CheckpointError, DivergenceError, EbmcoreError, UsageError
from ebmcore.testing import Identity, Quadratic
from ebmcore.training import checkpoints, latest_checkpoint

SOURCE = Path(__file__).resolve().parents[2] / "ebmcore"
PROMISES = r"last (?:good )?(?:checkpoint|one)|is complete|to resume from|resume it with|trains it from the start"


def promised(message):
    """The checkpoints that a message names."""
    return [Path(found.rstrip(";:,.)")) for found in re.findall(r"/\S*step-\d{8}", message)]


class Fails(Quadratic):
    """An energy that fails, or is NaN, from a call on."""

    def __init__(self, error=None):
        super().__init__((2,))
        self.error = error

    def forward(self, x):
        if next(self.calls) < self.late:
            return super().forward(x)
        if self.error is not None:
            raise self.error
        return super().forward(x) * torch.nan


def run_that_fails(tmp_path, late, error=None, **options):
    energy = Fails(error)
    energy.calls, energy.late = itertools.count(), late
    loss = ebmcore.create_loss("cd", energy, Identity())
    with pytest.raises(EbmcoreError) as caught:
        quiet(loss, data(), steps=20, out=tmp_path / "run", log_every=1, **options)
    return str(caught.value)


@pytest.mark.parametrize("error", [None, MemoryError("it is full"), torch.OutOfMemoryError("it is full")])
def test_end_names_the_last_checkpoint_or_says_that_there_is_none(tmp_path, error):
    """Divergence and the end of memory, before the first checkpoint and after it."""
    early = run_that_fails(tmp_path / "early", 3, error, checkpoint_every=5)
    assert "there is no checkpoint" in early
    assert latest_checkpoint(tmp_path / "early/run/checkpoints") is None
    late = run_that_fails(tmp_path / "late", 9, error, checkpoint_every=2)
    assert promised(late) == [latest_checkpoint(tmp_path / "late/run/checkpoints")]


def test_memory_that_ends_in_a_metric_names_its_step(tmp_path):
    def measure(energy):
        raise MemoryError

    with pytest.raises(
        UsageError, match="out of memory while measuring after step 4; the last checkpoint is .*step-00000002"
    ):
        quiet(pcd(), data(), steps=8, out=tmp_path, checkpoint_every=2, measure=measure, measure_every=4)


def test_loss_that_diverges_names_the_last_checkpoint(tmp_path):
    """An error that the loss raises of itself too."""

    class Lost(ebmcore.BaseLoss):
        def __init__(self):
            super().__init__()
            self.energy = Quadratic((2,))

        def forward(self, x):
            if self.step == 3:
                raise DivergenceError("everything is lost")
            return self.energies(x).mean()

    with pytest.raises(DivergenceError, match="stopped at step 4: everything is lost; there is no checkpoint"):
        quiet(Lost(), data(), steps=8, out=tmp_path / "one")
    with pytest.raises(DivergenceError, match="everything is lost; the last checkpoint is .*step-00000002") as caught:
        quiet(Lost(), data(), steps=8, out=tmp_path / "two", checkpoint_every=2)
    assert all(path.is_dir() for path in promised(str(caught.value)))


@pytest.mark.parametrize("after", [0, 2])
def test_failed_write_names_the_last_good_checkpoint(tmp_path, monkeypatch, after):
    written = []

    def replaced(*arguments, before=checkpoints.os.replace):
        if arguments[1].name.startswith("step-"):
            written.append(arguments)
            if len(written) > after:
                raise OSError(28, "No space left on device")
        return before(*arguments)

    monkeypatch.setattr(checkpoints.os, "replace", replaced)
    with pytest.raises(CheckpointError) as caught:
        quiet(pcd(), data(), steps=8, out=tmp_path, checkpoint_every=2)
    if after:
        assert promised(str(caught.value))[1:] == [latest_checkpoint(tmp_path / "checkpoints")]
    else:
        assert "there is none before it" in str(caught.value)
        assert latest_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("n", [1, 2])
def test_damaged_checkpoint_names_another_that_is_there(tmp_path, n):
    """The advice is followed: where there is another checkpoint, the run resumes from it."""
    quiet(pcd(), data(), steps=2 * n, out=tmp_path, checkpoint_every=2)
    last = latest_checkpoint(tmp_path / "checkpoints")
    (last / "checkpoint.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        quiet(pcd(), data(), steps=8, out=tmp_path, resume=True)
    if n == 1:
        assert "start the run again with another --out" in str(caught.value)
        return
    assert "remove it to resume from step-00000002" in str(caught.value)
    checkpoints.remove(last)
    assert quiet(pcd(), data(), steps=8, out=tmp_path, resume=True).step == 8


def test_each_promise_has_a_test():
    """A message that promises a checkpoint is one of those above, of the signals' tests, or says: if there is one."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for line in path.read_text().splitlines():
            if re.search(PROMISES, line) and '"' in line and not line.strip().startswith(("#", '"""')) and 'f"' in line:
                found.add((path.relative_to(SOURCE).as_posix(), re.search(PROMISES, line)[0]))
    assert found == {
        ("training/preparation.py", "last checkpoint"),  # test_end_names_the_last_checkpoint_or_says_that_there_is_none
        ("training/fit.py", "is complete"),  # tests/training/test_stopping.py
        ("training/checkpoints.py", "last good one"),  # test_failed_write_names_the_last_good_checkpoint
        ("training/checkpoints.py", "to resume from"),  # test_damaged_checkpoint_names_another_that_is_there
        ("training/directory.py", "resume it with"),  # tests/training/test_owner.py
        ("training/runs.py", "trains it from the start"),  # tests/cli/test_evaluate.py
    }

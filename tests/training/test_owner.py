"""A run's directory has one owner, whoever comes in whatever moment, and a start that failed does not block the next one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import owners_meeting
import pytest
from broken_plugins import python
from commands import MOONS, ebmcore
from forks import ONE_THREAD

from ebmcore.errors import UsageError
from ebmcore.training import checkpoints, directory
from ebmcore.training.directory import owned


def test_one_of_two_goes_on():
    """Two start or resume in the same moment: one trains to the end, the other is told in one line.

    ``python tests/helpers/owners_meeting.py 50`` tries longer.
    """
    done = python([Path(owners_meeting.__file__), "1"], **ONE_THREAD)
    assert done.returncode == 0, done.stderr


HOLDING = """
import sys, time
from pathlib import Path
from ebmcore.training.directory import owned
with owned(Path(sys.argv[1]), new=True):
    print("owned", flush=True)
    time.sleep(60)
"""


def test_killed_owner_owns_nothing(tmp_path):
    """A directory is refused as long as its owner lives, whose process the message names, and free once that was killed."""
    owner = subprocess.Popen([sys.executable, "-c", HOLDING, tmp_path], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout.readline() == "owned\n"
        with pytest.raises(UsageError, match=f"is in use by process {owner.pid} on "), owned(tmp_path, new=True):
            raise AssertionError("two owners")
        owner.kill()
    with owned(tmp_path, new=True):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_run_that_came_before_the_lock(tmp_path, monkeypatch):
    """A new run finds the files of one that started and ended between its look into the directory and its lock."""
    lock = directory._lock

    def late(file, run):
        (run / "config.yaml").touch()
        lock(file, run)

    monkeypatch.setattr(directory, "_lock", late)
    with pytest.raises(UsageError, match="holds config.yaml: choose another directory"), owned(tmp_path, new=True):
        raise AssertionError("two runs")


TRAIN = f"train {MOONS} --loss cd --batch_size 50 --steps 4 --checkpoint_every 2 --accelerator cpu --progress false"


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name", "after"),
    [
        (directory, "_lock", 0),
        (directory.os, "replace", 0),  # config.yaml
        (directory.os, "replace", 1),  # metrics.csv
        (checkpoints, "_begin", 0),
        (checkpoints.HuggingFaceStorageWriter, "write_data", 0),
        (directory.os, "replace", 2),  # the first checkpoint
    ],
)
def test_failed_start_blocks_nothing(tmp_path, capsys, module, name, after):
    """Of a run that could not write one of its first files ``--out`` or ``--resume`` makes a whole one."""
    run, whole, calls = tmp_path / "run", getattr(module, name), []

    def fails(*arguments, **options):
        calls.append(1)
        return (whole if len(calls) <= after else full)(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, fails)
        assert ebmcore(f"{TRAIN} --out", run) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(run.rglob("*.writing"))
    again = "train --resume" if (run / "config.yaml").exists() else f"{TRAIN} --out"
    assert ebmcore(again, run) == 0
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]

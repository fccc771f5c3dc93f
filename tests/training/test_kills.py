"""Runs that are killed resume as if nothing had happened."""

from __future__ import annotations

import os
from pathlib import Path

import killed_runs
import killed_worlds
from broken_plugins import python
from forks import ONE_THREAD
from small_runs import data, pcd, quiet

from ebmcore.training import checkpoints


def test_killed_run_is_bit_for_bit():
    """A run that is killed at random moments, while it writes a checkpoint or not, ends with the same numbers bit for bit.

    ``python tests/helpers/killed_runs.py 60`` tries longer.
    """
    done = python([Path(killed_runs.__file__), "12"], **ONE_THREAD)
    assert done.returncode == 0, done.stderr


def test_each_chain_survives_kills_once():
    """A run of 2, 3, 1 and 2 processes that is killed in between keeps each chain once; checkpoints in the background or not.

    ``python tests/helpers/killed_worlds.py 10`` tries longer.
    """
    done = python([Path(killed_worlds.__file__), "2"], **ONE_THREAD)
    assert done.returncode == 0, done.stderr


def test_checkpoint_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """A checkpoint's files are on the disk before it gets its name, and the name before an older one loses its own and goes."""
    done, sync, replace, remove = [], os.fsync, os.replace, checkpoints.remove

    def note(act, what):
        def noted(*arguments):
            done.append((what, Path(os.readlink(f"/proc/self/fd/{arguments[0]}") if what == "sync" else arguments[0]).name))
            return act(*arguments)

        return noted

    quiet(pcd(), data(), steps=4, checkpoint_every=2, out=tmp_path)
    monkeypatch.setattr(os, "fsync", note(sync, "sync"))
    monkeypatch.setattr(os, "replace", note(replace, "name"))
    monkeypatch.setattr(checkpoints, "remove", note(remove, "remove"))
    quiet(pcd(), data(), steps=6, checkpoint_every=2, out=tmp_path, resume=True)
    named = next(i for i, (what, name) in enumerate(done) if what == "name" and name.startswith(".step-00000006"))
    files = {path.name for path in (tmp_path / "checkpoints" / "step-00000006").iterdir()}
    assert {name for what, name in done[:named] if what == "sync"} == {*files, done[named][1]}
    assert done[named + 1] == ("sync", "checkpoints")
    ((what, name),) = done[named + 2 :]
    assert what == "remove"
    assert name.startswith(".step-00000002."), "what is not complete any more has no name of a checkpoint"

"""Runs that are killed again and again and resumed each time: ``python killed_runs.py KILLS [SEED]``.

Half of the kills come while a checkpoint is written, before an action on the file system, each as likely as any other; half at
any moment. In every second run checkpoints are written in the background. After each kill every checkpoint that is there must be
complete; at its end a run must have the tensors and metrics of one that was not killed, bit for bit. Beforehand a process that
only writes is killed once before each of its actions.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from forks import ONE_THREAD, end_of, fork, kill
from small_runs import data, pcd, quiet, table

from ebmcore.training import checkpoints, latest_checkpoint, read_checkpoint

STEPS, EVERY = 60, 4
KILLS_PER_RUN = 3
# As audit hooks hear of them.
ACTIONS = {"open", "os.mkdir", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.rmdir"}


def train(run, *, background=False, action=None):
    """Trains; is killed before that action of the writing of checkpoints, if one is given."""
    if action is not None:
        die_at(action)
    loss = pcd(restart_prob=0.1)
    options = {"steps": STEPS, "checkpoint_every": EVERY, "log_every": 1, "ema_decay": 0.9}
    quiet(loss, data(), out=run, resume=True, checkpoint_async=background, **options)


def actions_of_writing(act):
    """Calls ``act`` before each action on the file system while a checkpoint is written, in whatever thread."""
    write, here = checkpoints._write, threading.local()

    def watched(*arguments):
        here.writing = True
        try:
            return write(*arguments)
        finally:
            here.writing = False

    def hear(event, _):
        if event in ACTIONS and getattr(here, "writing", False):
            act()

    checkpoints._write = watched
    sys.addaudithook(hear)


def die_at(number):
    """Kills this process before that action on the file system while a checkpoint is written."""
    left = [number]

    def act():
        left[0] -= 1
        if left[0] == -1:
            os.kill(os.getpid(), signal.SIGKILL)

    actions_of_writing(act)


def kill_before_each_action(folder):
    """Kills a process that writes a third checkpoint before its first action, its second and so on; returns how many there are.

    Whatever is there under the name of a checkpoint must be complete, and of the earlier ones the newer must not be lost.
    """

    def write(step):
        checkpoints.CheckpointWriter(run).write(step, {"x": torch.full((4,), float(step))}, {})

    def write_third():
        die_at(number)
        write(3)

    number, status = -1, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        run = folder / f"third-{number}"
        write(1)
        write(2)
        status = end_of(fork(write_third, folder / "third.txt"))
        found = {path.name: read_checkpoint(path)[0]["x"].unique().item() for path in run.glob("step-*")}
        assert found.items() <= {"step-00000001": 1.0, "step-00000002": 2.0, "step-00000003": 3.0}.items()
        assert "step-00000002" in found
    assert status == 0, (folder / "third.txt").read_text()
    return number


def count_actions(folder):
    """Returns the number of actions while the checkpoints of a run are written."""

    def work():
        counted = []
        actions_of_writing(lambda: counted.append(1))
        train(folder / "counted")
        (folder / "count").write_text(str(len(counted)))

    assert end_of(fork(work, folder / "counted.txt")) == 0, (folder / "counted.txt").read_text()
    return int((folder / "count").read_text())


class Kills:
    """The kills of a sequence of runs.

    Args:
        folder: Where the runs are.
        seed: Determines when they are killed.
    """

    def __init__(self, folder, seed):
        self.folder, self.rng, self.counts = folder, random.Random(seed), Counter()
        train(folder / "whole")  # imports everything
        assert len(os.listdir("/proc/self/task")) == 1, f"threads do not survive a fork: set {ONE_THREAD}"
        self.actions = count_actions(folder) * EVERY / STEPS
        start = time.monotonic()
        assert end_of(fork(lambda: train(folder / "timed"), folder / "timed.txt")) == 0
        self.seconds = time.monotonic() - start
        self.tensors, _ = read_checkpoint(latest_checkpoint(folder / "whole" / "checkpoints"))
        self.metrics = table(folder / "whole" / "metrics.csv")

    def kill(self, run, *, background, writing):
        """Resumes the run and kills it; returns whether the kill came before its end."""
        output = run.with_suffix(".txt")
        if writing:
            number = self.rng.randrange(int(3 * self.actions))  # within the next three checkpoints
            child = fork(lambda: train(run, background=background, action=number), output)
        else:
            child = fork(lambda: train(run, background=background), output)
            time.sleep(self.rng.random() * self.seconds / 2)
            kill(child)
        status = end_of(child)
        assert status in (0, -signal.SIGKILL), output.read_text()
        for checkpoint in (run / "checkpoints").glob("step-*"):
            read_checkpoint(checkpoint)
        if status == 0:
            return False
        self.counts["while writing" if writing else "at any moment", "background" if background else "foreground"] += 1
        self.counts["left something half written"] += any((run / "checkpoints").glob(".step-*"))
        return True

    def finish(self, run, *, background):
        """Resumes the run until it ends, and compares it."""
        output = run.with_suffix(".txt")
        assert end_of(fork(lambda: train(run, background=background), output)) == 0, output.read_text()
        found, info = read_checkpoint(latest_checkpoint(run / "checkpoints"))
        assert info["step"] == STEPS
        assert found.keys() == self.tensors.keys()
        different = [name for name in found if not torch.equal(found[name], self.tensors[name])]
        assert not different, f"{run.name} differs in {different}"
        assert table(run / "metrics.csv") == self.metrics, f"{run.name} has other metrics"
        assert not list(run.rglob("*.writing")), f"{run.name} has files that are not complete"


def main(n_kills, seed=0):
    with tempfile.TemporaryDirectory() as name:
        kills, done, n_runs = Kills(Path(name), int(seed)), 0, 0
        each = kill_before_each_action(Path(name))
        while done < int(n_kills):
            run, background = Path(name) / f"run-{n_runs}", n_runs % 2 == 1
            for _ in range(KILLS_PER_RUN):
                done += done < int(n_kills) and kills.kill(run, background=background, writing=done % 2 == 1)
            kills.finish(run, background=background)
            n_runs += 1
    sys.stdout.write(f"{done} kills of {n_runs} runs, each resumed bit for bit: {dict(kills.counts)}\n")
    sys.stdout.write(f"{each} kills, one before each action of the writing of a checkpoint\n")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Two processes start or resume a run in one directory in the same moment: ``python owners_meeting.py REPETITIONS``.

Of each pair of commands one must train to the end, and the other one end with one line that says why.
"""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from itertools import combinations_with_replacement
from pathlib import Path

import yaml
from commands import MOONS
from forks import ONE_THREAD, end_of, fork
from small_runs import table

from ebmcore.cli import main as ebmcore
from ebmcore.training import latest_checkpoint, read_checkpoint

fit = sys.modules["ebmcore.training.fit"]  # the module; the package's name is the function

STEPS = 8
OPTIONS = f"{MOONS} --loss pcd --loss.n_chains 12 --batch_size 20 --accelerator cpu --progress false --log_every 1"
NEW = f"train {OPTIONS} --checkpoint_every 2 --steps {STEPS} --out".split()
COMMANDS = {
    "out": lambda run: [*NEW, str(run)],
    "auto": lambda run: [*NEW, str(run), "--resume", "auto"],
    "resume": lambda run: ["train", "--resume", str(run)],
}
# The directory that is empty, or has a killed run, and the two commands; left out are the pairs of which none can go on.
MEETINGS = [
    (place, *pair)
    for place in ("empty", "killed")
    for pair in combinations_with_replacement(COMMANDS, 2)
    if (place, *pair) not in {("empty", "resume", "resume"), ("killed", "out", "out")}
]


def dying(step_of_death):
    """A run that is killed before that step."""
    step = fit._train_step

    def die(training, number, *, read):
        if number == step_of_death:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(training, number, read=read)

    fit._train_step = die


def waiting(other, seconds=10):
    """The owner of the directory stays the owner until the other process has ended, which closes its end of a pipe."""
    step = fit._train_step

    def wait(training, number, *, read):
        if number == STEPS - 1:
            select.select([other], [], [], seconds)
        return step(training, number, read=read)

    fit._train_step = wait


def killed_run(folder):
    """A run that was killed in its sixth step, after two checkpoints."""

    def work():
        dying(5)
        ebmcore(COMMANDS["out"](folder / "killed"))

    assert end_of(fork(work, folder / "killed.txt")) == -signal.SIGKILL, (folder / "killed.txt").read_text()
    return folder / "killed"


def meet(run, commands, delays):
    """Returns exit status and output of two commands that begin in the same moment, up to their delays, and their process ids."""
    start, go = os.pipe()
    pipes = [os.pipe(), os.pipe()]  # the writing end closes when its process ends
    children = []
    for i in (0, 1):

        def work(i=i):
            os.close(go)
            os.close(pipes[i][0])
            os.close(pipes[1 - i][1])
            waiting(pipes[1 - i][0])
            os.read(start, 1)
            time.sleep(delays[i])
            return ebmcore(COMMANDS[commands[i]](run))

        children.append(fork(work, run.with_name(f"{run.name}-{i}.txt")))
    for descriptor in (start, *pipes[0], *pipes[1], go):
        os.close(descriptor)
    statuses = [end_of(child) for child in children]
    return [(statuses[i], run.with_name(f"{run.name}-{i}.txt").read_text(), children[i]) for i in (0, 1)]


def wrong(run, place, results):
    """What went wrong, as a text; empty if nothing did."""
    (good, output, winner), (bad, message, _) = sorted(results, key=lambda result: result[0])
    if (good, bad) != (0, 2):
        return f"ended with {good} and {bad}: {output} | {message}"
    if f"trained {STEPS} steps" not in output:
        return f"the one says {output}"
    told = [rf"is in use by process {winner} on {re.escape(socket.gethostname())}:", r"holds .*: choose another directory"]
    told += [r"is not the directory of a run"] if place == "empty" else []
    if message.count("\n") != 1 or not any(re.search(line, message) for line in told):
        return f"the other says {message}, not that process {winner} uses the directory"
    checkpoint = latest_checkpoint(run / "checkpoints")
    if read_checkpoint(checkpoint)[1]["step"] != STEPS or not yaml.safe_load((run / "config.yaml").read_text()):
        return f"the last checkpoint is {checkpoint}"
    steps = [int(row["step"]) for row in table(run / "metrics.csv")]
    if steps != list(range(1, STEPS + 1)):
        return f"metrics.csv has the steps {steps}"
    left = [str(path) for path in run.rglob("*.writing")]
    return f"left are {left}" if left else ""


def main(repetitions, seed=0):
    rng, failures, told = random.Random(int(seed)), [], Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert ebmcore(COMMANDS["out"](folder / "first")) == 0  # imports everything
        deadline = time.monotonic() + 5  # a thread that has ended is listed a moment longer
        while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(os.listdir("/proc/self/task")) == 1, f"threads do not survive a fork: set {ONE_THREAD}"
        killed = killed_run(folder)
        for i in range(int(repetitions)):
            for place, *commands in MEETINGS:
                run = folder / f"run-{i}-{place}-{'-'.join(commands)}"
                if place == "killed":
                    shutil.copytree(killed, run)
                # In half of all repetitions one comes somewhat later, which is another moment of the other one's start.
                delays = rng.sample([0, rng.choice([0, rng.random() / 4])], 2)
                results = meet(run, commands, delays)
                problem = wrong(run, place, results)
                if problem:
                    failures.append(f"{run.name}: {problem}")
                told.update(re.findall("in use by [a-z]+|choose another directory|is not the directory", max(results)[1]))
                shutil.rmtree(run)
    sys.stdout.write(
        f"{repetitions} repetitions of {len(MEETINGS)} meetings: {len(failures)} failed; said were {dict(told)}\n"
    )
    return "\n".join(failures) or None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

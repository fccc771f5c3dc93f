"""A run of 2, 3, 1 and 2 processes, killed in between and resumed each time: ``python killed_worlds.py REPETITIONS [SEED]``.

After each kill, and at the end, every checkpoint that is there must hold each chain once. Parameters are sharded (``fsdp``) and
whole (``ddp``) in turn. In every second repetition checkpoints are written in the background.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from commands import MOONS
from forks import ONE_THREAD, end_of, fork, kill
from small_runs import table

from ebmcore.cli import main as ebmcore
from ebmcore.training import latest_checkpoint, read_checkpoint

WORLDS = (2, 3, 1, 2)
N_CHAINS = 12
OPTIONS = f"{MOONS} --loss pcd --loss.n_chains {N_CHAINS} --batch_size 20 --accelerator cpu --progress false --log_every 1"
TRAIN = f"train {OPTIONS} --checkpoint_every 3 --steps 1000000 --resume auto --out".split()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def start(n_processes, command, output):
    """Starts the processes of a run as Slurm does: each finds its rank in its environment."""
    common = {
        "SLURM_NTASKS": str(n_processes), "SLURM_NTASKS_PER_NODE": str(n_processes), "SLURM_NNODES": "1", "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }  # fmt: skip

    def work(rank):
        if n_processes > 1:
            os.environ.update(common, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
        return ebmcore(command)

    return [fork(lambda rank=rank: work(rank), output.with_suffix(f".{rank}.txt")) for rank in range(n_processes)]


def last_step(run):
    checkpoint = latest_checkpoint(run / "checkpoints")
    return 0 if checkpoint is None else int(checkpoint.name.partition("-")[2])


def wait_for_checkpoint(run, step, seconds=60):
    until = time.monotonic() + seconds
    while last_step(run) <= step:
        assert time.monotonic() < until, f"no checkpoint after step {step}: {said(run)}"
        time.sleep(0.005)


def said(run):
    return "\n".join(path.read_text() for path in sorted(run.parent.glob(f"{run.name}.*.txt")))


def check_chains(run):
    """Each chain is there once in each checkpoint, and no two are in the same place; returns the number of checkpoints."""
    found = sorted((run / "checkpoints").glob("step-*"))
    assert found
    for checkpoint in found:
        tensors, _ = read_checkpoint(checkpoint)
        assert tensors["loss.chains.id"].tolist() == list(range(N_CHAINS)), checkpoint
        assert len(tensors["loss.chains.x"].unique(dim=0)) == N_CHAINS, checkpoint
    return len(found)


def train(run, rng, *, background, strategies, counts):
    command = [*TRAIN, str(run), *(["--checkpoint_async", "true"] if background else [])]
    for n_processes, strategy in zip(WORLDS[:-1], strategies, strict=False):
        before = last_step(run) if run.exists() else 0
        children = start(n_processes, [*command, "--strategy", strategy], run)
        wait_for_checkpoint(run, before)
        time.sleep(rng.random() / 4)
        victim = rng.randrange(n_processes)
        kill(children[victim])
        statuses = [end_of(child) for child in children]
        expected = [-signal.SIGKILL if rank == victim else 1 for rank in range(n_processes)]
        assert statuses == expected, f"{statuses} after {victim} was killed: {said(run)}"
        counts[f"killed process {victim} of {n_processes}, {strategy}"] += 1
        counts["checkpoints"] += check_chains(run)
    end = last_step(run) + 7  # one checkpoint comes after six of them, another at the end
    last = [*command, "--steps", str(end), "--strategy", strategies[-1]]
    statuses = [end_of(child) for child in start(WORLDS[-1], last, run)]
    assert statuses == [0] * WORLDS[-1], said(run)
    assert f"trained {end} steps" in said(run)
    counts["checkpoints"] += check_chains(run)
    assert last_step(run) == end
    assert [int(row["step"]) for row in table(run / "metrics.csv")] == list(range(1, end + 1))


def main(repetitions, seed=0):
    rng, counts = random.Random(int(seed)), Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert ebmcore([*TRAIN, str(folder / "first"), "--steps", "2"]) == 0  # imports everything
        assert len(os.listdir("/proc/self/task")) == 1, f"threads do not survive a fork: set {ONE_THREAD}"
        for i in range(int(repetitions)):
            strategies = ("ddp", "fsdp", "ddp", "fsdp") if i % 2 else ("fsdp", "ddp", "fsdp", "ddp")
            train(folder / f"run-{i}", rng, background=i % 2 == 1, strategies=strategies, counts=counts)
    sys.stdout.write(f"{repetitions} runs of {WORLDS} processes: each chain once, {dict(counts)}\n")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

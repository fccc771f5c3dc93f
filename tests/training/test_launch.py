"""Runs of several processes: whoever starts them, there is one run of one world, and it ends as one."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from commands import MOONS, tensors

from ebmcore.cli import main
from ebmcore.errors import CheckpointError, UsageError
from ebmcore.training import InterruptedRun, launch

RUN = f"train {MOONS} --loss pcd --loss.n_chains 12 --batch_size 20 --accelerator cpu --progress false"
SLURM = {
    "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train",
    "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1",
}  # fmt: skip


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def start(*command, **environ):
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def torchrun(*options):
    return ["torch.distributed.run", "--master_addr", "127.0.0.1", "--master_port", free_port(), *options, "-m", "ebmcore"]


def by_devices(command):
    return [start("ebmcore", *command, "--devices", 2)]


def by_torchrun_on_two_nodes(command):
    launcher = torchrun("--nnodes", "2", "--nproc_per_node", "1")
    return [start(launcher[0], "--node_rank", node, *launcher[1:], *command) for node in (0, 1)]


def by_slurm(command):
    port = free_port()
    return [
        start("ebmcore", *command, **SLURM, SLURM_PROCID=rank, SLURM_LOCALID=rank, MASTER_PORT=port) for rank in ("0", "1")
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "run"
    (process,) = by_devices([*RUN.split(), "--steps", "12", "--out", str(out)])
    output = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return tensors(out)


@pytest.mark.parametrize("launcher", [by_torchrun_on_two_nodes, by_slurm])  # torchrun on one node: test_scale.py
def test_a_launchers_world_is_the_world(tmp_path, reference, launcher):
    """However two processes are started, without --devices, they train one model in one directory: the same bit for bit."""
    processes = launcher([*RUN.split(), "--steps", "12", "--out", str(tmp_path / "run")])
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    assert sum(out.count("trained 12 steps") for out, _ in outputs) == 1
    found = tensors(tmp_path / "run")
    assert found.keys() == reference.keys()
    assert all(torch.equal(found[name], reference[name]) for name in found)


@pytest.mark.parametrize(
    ("options", "environ", "message"),
    [
        ("--devices 3", {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "torchrun has 2 processes on 1 nodes.*devices=3"),
        ("--num_nodes 2", {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "torchrun has 2 processes.*num_nodes=2"),
        ("--devices 2", {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, "torchrun has 2 processes on 2 nodes.*devices=2"),
        ("--devices 3", SLURM, "Slurm has 2 processes on 1 nodes.*devices=3"),
        ("--num_nodes 2", {}, "num_nodes=2 needs a launcher on each node"),
        ("--devices 2", {"LOCAL_RANK": "1"}, "LOCAL_RANK is set, but no launcher has started this process"),
        ("--devices 2", {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK is set, but no launcher has"),
        ("", {**SLURM, "SLURM_NTASKS": "many"}, "the environment of this process is not as a launcher makes it"),
    ],
)
def test_a_contradiction_is_one_line(tmp_path, monkeypatch, capsys, options, environ, message):
    """Options that contradict what a launcher has started are refused before anything is written."""
    if "LOCAL_WORLD_SIZE" in environ:
        environ = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "0", **environ}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main([*RUN.split(), *options.split(), "--steps", "2", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "run").exists()


def test_rank_is_not_read_from_the_environment(tmp_path, monkeypatch, capsys):
    """A variable that looks like a rank does not let a run overwrite a directory."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    (tmp_path / "thesis.tex").write_text("words")
    assert main([*RUN.split(), "--steps", "2", "--out", str(tmp_path)]) == 2
    assert "holds thesis.tex: choose another directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer"), True),
        (torch.distributed.DistNetworkError("the store is closed"), True),
        (RuntimeError("a size is wrong"), False),
        (UsageError("runs/gloo/transport exists"), False),
        (OSError(2, "No such file", "gloo/transport"), False),
    ],
)
def test_lost_connections_are_told_from_other_errors(error, lost):
    """An error of a collective, or one that it has caused, is a lost connection; one whose message holds such a path is none."""
    caused = CheckpointError("cannot be written")
    caused.__cause__ = error
    assert launch.is_lost_connection(error) is launch.is_lost_connection(caused) is lost


def checkpoint_after(run, step, process):
    """Waits until a run has a checkpoint of at least that step."""
    while process.poll() is None:
        steps = [int(path.name.partition("-")[2]) for path in (run / "checkpoints").glob("step-*")]
        if max(steps, default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("killed", ["the first", "the second"])
def test_others_end_when_one_process_is_killed(tmp_path, killed):
    """One process is killed: the other ends within 10 seconds with one line and status 1; the last checkpoint is good."""
    run = tmp_path / "run"
    first, second = by_slurm([*RUN.split(), "--steps", "1000000", "--checkpoint_every", "5", "--out", str(run)])
    checkpoint_after(run, 10, first)
    victim, other = (first, second) if killed == "the first" else (second, first)
    victim.kill()
    then = time.monotonic()
    _, errors = other.communicate(timeout=60)
    assert time.monotonic() - then < 10
    assert other.returncode == 1
    assert [line for line in errors.splitlines() if "another process of the run has ended" in line]
    assert "Traceback" not in errors
    victim.communicate()
    assert len(tensors(run)["loss.chains.id"].unique()) == 12


def test_torchrun_restarts_a_killed_process(tmp_path, reference):
    """``torchrun --max-restarts`` with ``--resume auto`` survives a killed process, and ends where no kill would have."""
    run = tmp_path / "run"
    command = [*RUN.split(), "--steps", "12", "--checkpoint_every", "4", "--out", str(run), "--resume", "auto"]
    (tmp_path / "killing.py").write_text(KILLING)
    launcher = torchrun("--nproc_per_node", "2", "--max-restarts", "3")[:-2]
    process = start(*launcher, tmp_path / "killing.py", *command, DIES_AT="6")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert errors.count("failed (exitcode: ") == 1  # of the killed one, or of the other, whichever torchrun sees first
    found = tensors(run)
    assert all(torch.equal(found[name], reference[name]) for name in found)


KILLING = """
import os, signal, sys
from ebmcore.cli import main
from ebmcore.training.fit import _train_step
def step(training, step, *, read):
    if step == int(os.environ["DIES_AT"]) and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return _train_step(training, step, read=read)
sys.modules["ebmcore.training.fit"]._train_step = step
sys.exit(main(sys.argv[1:]))
"""


def test_second_run_in_the_processes_of_torchrun(tmp_path):
    """A run and its resumption in the same processes do not meet the addresses of the first, and no thread of a group is left.

    Nothing may hold the process group when training ends: its threads can abort the exit.
    """
    (tmp_path / "twice.py").write_text(TWICE)
    command = [*RUN.split(), "--out", str(tmp_path / "run"), "--resume", "auto"]
    process = start(*torchrun("--nproc_per_node", "2")[:-2], tmp_path / "twice.py", *command)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("trained 6 steps") == 1
    assert output.count("threads of gloo: 0") == 2, errors


TWICE = """
import sys
from pathlib import Path
from ebmcore.cli import main
for steps in ("4", "6"):
    assert main([*sys.argv[1:], "--steps", steps]) == 0
print("threads of gloo:", sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm")))
"""


WATCHED = """
import subprocess, sys, time
from lightning_fabric.strategies.launchers import subprocess_script
from ebmcore.training import InterruptedRun, launch

launch._NOTICING = 0
with launch._watching():
    subprocess_script._launch_process_observer([subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])])
time.sleep(60)  # as in a step that takes long
"""


def test_lost_child_ends_the_first_process_with_a_line():
    """Lightning's own watch would kill the process without a word of what there is."""
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "ebmcore: another process of the run has ended before its time" in done.stderr


def test_group_ends_after_what_holds_it(monkeypatch):
    """A model that torch wraps holds the group: as its last holder it would wait for threads that need the interpreter."""
    held, alive = [], []

    class Model:
        pass

    def train(fabric):
        model = Model()
        model.itself = model
        held.append(weakref.ref(model))
        raise InterruptedRun("ended", signal.SIGTERM)

    monkeypatch.setattr("lightning_fabric.Fabric", lambda **_: SimpleNamespace(launch=lambda: None))
    monkeypatch.setattr(launch, "shutdown", lambda: alive.append(held[0]()))
    with pytest.raises(InterruptedRun):
        launch._launch(train, "cpu", 2, 1, "auto", "32-true", False)
    assert alive == [None]

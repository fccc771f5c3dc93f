"""Training and resuming from the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest
import yaml
from commands import MOONS, RBM, ebmcore, same, tensors, train
from torch.distributed.checkpoint.api import CheckpointException

import ebmcore as ebmcore_
from ebmcore.training import checkpoints, latest_checkpoint


def test_training_writes_its_files(run):
    """Training leaves its configuration metrics checkpoint and evaluation."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["energy"] == {"name": "rbm", "hidden": 4, "weight_std": 0.01, "centered": False, "visible_bias": "zero"}
    assert config["loss"]["n_chains"] == 10
    assert config["optimizer"]["name"] == "sgd"  # recommended by the energy
    assert config["schedules"] == {"optimizer.lr": "linear(end=0)"}
    assert (run / "metrics.csv").read_text().startswith("step,loss,")
    assert latest_checkpoint(run / "checkpoints").name == "step-00000020"
    assert json.loads((run / "evaluation.json").read_text())["exact-ll"]["step"] == 20


def test_resuming_goes_on_to_a_longer_training(run, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    options = f"{RBM} --loss pcd --loss.n_chains 10 --schedules.optimizer.lr constant()"
    assert train(f"{options} --steps 30", whole) == 0
    assert train(f"{options} --steps 12", part) == 0
    assert ebmcore("train --steps 30 --resume", part) == 0
    assert same(tensors(whole), tensors(part))
    assert yaml.safe_load((part / "config.yaml").read_text())["steps"] == 30


def test_killed_run_resumes_bit_for_bit(tmp_path):
    """A run killed without warning resumes bit for bit."""
    options = f"{RBM} --loss pcd --loss.n_chains 10 --steps 1500 --checkpoint_every 20"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(options, whole) == 0
    command = [sys.executable, "-m", "ebmcore", "train", *options.split(), "--out", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while latest_checkpoint(killed / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = int(latest_checkpoint(killed / "checkpoints").name.removeprefix("step-"))
    assert 0 < reached < 1500
    assert ebmcore("train --resume", killed) == 0
    assert same(tensors(whole), tensors(killed))
    assert (whole / "metrics.csv").read_text() == (killed / "metrics.csv").read_text()


def test_two_processes_share_the_chains(tmp_path):
    """Two processes share the chains and one goes on with all of them."""
    out = tmp_path / "run"
    command = (
        f"train {MOONS} --loss pcd --loss.n_chains 12 --steps 6 --devices 2 --accelerator cpu --progress false --out {out}"
    )
    subprocess.run([sys.executable, "-m", "ebmcore", *command.split()], check=True, capture_output=True, timeout=120)
    saved = tensors(out)
    assert sorted(saved["loss.chains.id"].tolist()) == list(range(12))
    assert len(saved["loss.chains.x"].unique(dim=0)) == 12  # ranks draw different numbers
    assert ebmcore("train --devices 1 --steps 8 --resume", out) == 0
    assert sorted(tensors(out)["loss.chains.id"].tolist()) == list(range(12))


def test_an_existing_directory_is_never_overwritten(run, capsys):
    def held():  # but for the lock
        return sorted((p, p.stat().st_mtime_ns) for p in run.rglob("[!.]*"))

    before = held()
    assert train(f"{RBM} --loss cd --steps 1", run) == 2
    assert f"resume it with 'ebmcore train --resume {run}'" in capsys.readouterr().err
    assert before == held()


def test_named_change_of_a_resumed_run(tmp_path):
    """It is allowed for this command alone."""
    run = tmp_path / "run"
    assert train(f"{RBM} --loss cd --steps 1", run) == 0
    assert ebmcore(f"train --resume {run} --batch_size 7 --changed [batch_size] --steps 40") == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["batch_size"] == 7
    assert ebmcore(f"train --resume {run} --batch_size 8 --steps 41") == 2


@pytest.mark.parametrize("change", ["--loss cd", "--seed 3", "--batch_size 7", "--out elsewhere"])
def test_a_resumed_run_stays_the_same_run(run, change, capsys, monkeypatch):
    monkeypatch.chdir(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert ebmcore(f"train --resume {run} {change} --steps 40") == 2
    assert f"a resumed run keeps its {change.split()[0][2:]}" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_resumed_run_takes_epochs(tmp_path):
    """A resumed run may be given epochs in place of steps."""
    assert train(f"{RBM} --loss cd --steps 3", tmp_path / "run") == 0
    assert ebmcore(f"train --resume {tmp_path / 'run'} --epochs 5") == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["epochs"], config["steps"]) == (5, None)


def test_unwritten_checkpoint_is_one_line(tmp_path, monkeypatch, capsys):
    """A checkpoint that cannot be written is one clear line and the last one stays."""
    saved = checkpoints.save

    def full(tensors, storage_writer, **options):
        if "00000004" in str(storage_writer.path):
            raise CheckpointException("write", {0: (OSError(28, "No space left on device"), None)})
        saved(tensors, storage_writer=storage_writer, **options)

    monkeypatch.setattr(checkpoints, "save", full)
    assert train(f"{RBM} --loss pcd --steps 4 --checkpoint_every 2", tmp_path / "a") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"step-00000004 cannot be written \(.*No space left.*\); the last good one is .*step-00000002$", line)
    assert [path.name for path in (tmp_path / "a/checkpoints").iterdir()] == ["step-00000002"]


def test_run_keeps_its_components(run, tmp_path, capsys):
    """A run keeps its components beside others of the same name."""

    class Plugin:
        @ebmcore_.hookimpl
        def ebmcore_register(self, register):
            register.loss("pcd", "ebm_plugin_cd.loss:ContrastiveDivergence")

    shutil.copytree(run, tmp_path / "a")
    with ebmcore_.temporary_plugin(Plugin(), "ebm-plugin-second"):
        assert ebmcore("evaluate", tmp_path / "a", "--metric", "exact-ll") == 0
        assert train(f"{RBM} --loss pcd --steps 2", tmp_path / "b") == 2
        assert "ebm-plugin-pcd:pcd" in capsys.readouterr().err
        for option in ("", " --loss ebm-plugin-pcd:pcd"):
            assert ebmcore(f"train --resume {tmp_path / 'a'} --steps 21{option}") == 0, capsys.readouterr().err


def test_diverging_command_stops(tmp_path, capsys):
    """A run that diverges stops with step and advice."""
    command = f"{MOONS} --loss cd --steps 50 --progress false --optimizer sgd --lr 1e6"
    assert train(command, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "training stopped at step" in error
    assert "lower" in error.lower()
    assert len(error.splitlines()) == 1


def test_run_has_several_observers(tmp_path):
    """Each has its options, on the command line and in a file, and a resumed run has them again."""

    class First(ebmcore_.training.BaseObserver):
        seen: ClassVar[list] = []

        def __init__(self, mark: str = "a"):
            self.mark = mark

        def on_log(self, run, metrics):
            self.seen.append((self.mark, run.step))

    class Second(First):
        pass

    class Plugin:
        @ebmcore_.hookimpl
        def ebmcore_register(self, register):
            register.observer("first", First)
            register.observer("second", Second)

    run = tmp_path / "run"
    with ebmcore_.temporary_plugin(Plugin()):
        assert train(f"{RBM} --loss cd --steps 10 --observer first --observer second --observer.mark b", run) == 0
        assert First.seen == [("a", 10), ("b", 10)]
        assert yaml.safe_load((run / "config.yaml").read_text())["observer"][1] == {"name": "second", "mark": "b"}
        assert ebmcore(f"train --resume {run} --steps 20") == 0
        assert First.seen[2:] == [("a", 20), ("b", 20)]

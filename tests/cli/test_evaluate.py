"""Measuring a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import MOONS, RBM, ebmcore, tensors, train
from small_runs import table

import ebmcore as ebmcore_
from ebmcore.training import latest_checkpoint, load_run

DIGITS = "--energy rbm --energy.hidden 26 --sampler gibbs --loss cd --data digits --progress false"


def test_evaluating_prints_the_likelihood_with_its_interval(run, capsys):
    assert ebmcore(f"evaluate {run} --metric exact-ll --metric.n_bootstrap 50") == 0
    assert "log-likelihood -" in capsys.readouterr().out


def test_several_metrics_with_options(tmp_path):
    """Several metrics each with its options and at an interval."""
    out = tmp_path / "run"
    metrics = "--metric exact-ll --metric.n_bootstrap 20 --metric pseudo-ll --metric.n_bootstrap=30"
    assert train(f"{RBM} --loss cd --steps 10 --log_every 5 {metrics} --measure_every 4", out) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["metric"] == [{"name": "exact-ll", "n_bootstrap": 20}, {"name": "pseudo-ll", "n_bootstrap": 30}]
    assert list(json.loads((out / "evaluation.json").read_text())) == ["exact-ll", "pseudo-ll"]
    rows = table(out / "metrics.csv")
    measured = {row["step"]: row["exact-ll.log_likelihood"] for row in rows}
    assert [step for step, value in measured.items() if value] == ["4", "8"]
    assert list(measured) == ["4", "5", "8", "10"]
    assert all(float(row["pseudo-ll.log_pseudo_likelihood"]) < 0 for row in rows if row["step"] in ("4", "8"))

    assert train(f"--config {out / 'config.yaml'} --metric.n_bootstrap 9", tmp_path / "wrong") == 2
    again = f"--config {out / 'config.yaml'} --metric pseudo-ll --metric ais-ll --metric.n_chains 10 --measure_every 20"
    assert train(again, tmp_path / "again") == 0
    config = yaml.safe_load((tmp_path / "again/config.yaml").read_text())["metric"]
    assert [m["name"] for m in config] == ["pseudo-ll", "ais-ll"]
    assert (config[0]["n_bootstrap"], config[1]["n_chains"]) == (30, 10)


@pytest.mark.parametrize("content", ["{", "7"])
def test_a_damaged_evaluation_is_not_overwritten(run, tmp_path, content, capsys):

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "evaluation.json").write_text(content)
    assert ebmcore(f"evaluate {copy} --metric exact-ll") == 2
    assert "move it away" in capsys.readouterr().err
    assert (copy / "evaluation.json").read_text() == content


def test_unwritten_result_is_printed(run, tmp_path, monkeypatch, capsys):
    """A result that cannot be written is printed all the same."""

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ebmcore.cli.runs.write_text", full)
    assert ebmcore("evaluate", run, "--metric", "exact-ll") == 2
    told = capsys.readouterr()
    assert "exact-ll: log-likelihood" in told.out
    assert "No space left on device" in told.err


class Failing:
    def __init__(self, late: bool = False):
        if not late:
            raise RuntimeError("no luck")

    def __call__(self, energy, data, *, sampler, generator):
        raise RuntimeError("no luck")


@pytest.mark.parametrize(
    ("option", "doing"), [("", "making the metric 'failing'"), (" --metric.late true", "measuring with Failing")]
)
def test_component_error_names_it(tmp_path, option, doing):
    """Trouble of a component is told with its name."""

    class Plugin:
        @ebmcore_.hookimpl
        def ebmcore_register(self, register):
            register.metric("failing", Failing)

    with ebmcore_.temporary_plugin(Plugin(), "ebm-plugin-failing"), pytest.raises(RuntimeError, match="no luck") as caught:
        train(f"{RBM} --loss pcd --steps 2 --metric failing{option}", tmp_path / "a")
    assert f"while {doing}" in caught.value.__notes__[0]


def test_the_moving_average_is_what_is_evaluated(moons):
    run = load_run(moons)
    saved = tensors(moons)
    assert run.step == 5
    assert torch.equal(run.energy.net[1].weight, saved["average.module.net.1.weight"])
    assert not torch.equal(run.energy.net[1].weight, saved["loss.energy.net.1.weight"])


def test_a_damaged_checkpoint_is_one_clear_line(run, tmp_path, capsys):

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (latest_checkpoint(copy / "checkpoints") / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"")
    for command in (
        f"evaluate {copy} --metric exact-ll",
        f"train --resume {copy}",
        f"sample {copy} --out {tmp_path / 'a.png'}",
    ):
        assert ebmcore(command) == 2
        error = capsys.readouterr().err
        assert "is damaged" in error
        assert "remove it to resume from step-00000010" in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{MOONS} --loss cd --metric exact-ll", "exact-ll needs an energy with log_partition()"),
        (f"{MOONS} --loss cd --metric grid-ll --metric pseudo-ll", "pseudo-ll flips binary units"),
        (f"{MOONS} --loss cd --metric ais-ll", "ais-ll needs a sampler that leaves its target invariant"),
        (f"{DIGITS} --metric exact-ll", "enumeration is possible up to 25 units, but this RBM has 26"),
        (f"{DIGITS} --metric grid-ll", "grid-ll integrates over two real variables"),
        (
            f"{MOONS} --loss cd --metric ais-ll --metric.sampler gibbs",
            "Gibbs needs an energy with the capability SupportsBlockGibbs",
        ),
    ],
)
def test_unfit_metric_is_refused_before_training(tmp_path, capsys, command, message):
    """A metric that cannot measure the energy or the data ends the command in one line before the first step."""
    assert train(f"{command} --steps 1000000", tmp_path / "run") == 2
    told = capsys.readouterr()
    assert message in told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""
    assert not (tmp_path / "run").exists()


def test_unfit_metric_is_refused_before_others_measure(run, capsys):
    """Evaluating refuses a metric that cannot measure before another one works for hours."""
    assert ebmcore(f"evaluate {run} --metric exact-ll --metric grid-ll") == 2
    told = capsys.readouterr()
    assert "grid-ll integrates over two real variables" in told.err
    assert told.out == ""


def test_measuring_is_on_the_cpu():
    """An energy on another device is measured by a copy on the CPU, where the data are; the numbers are the same."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], env=os.environ | {"PYTHONPATH": PATH}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    here, there, device = done.stdout.splitlines()
    assert here == there
    assert device == "elsewhere:0"


PATH = os.pathsep.join([str(Path(__file__).resolve().parents[1] / "helpers"), os.environ.get("PYTHONPATH", "")])
ELSEWHERE = """
import second_device
from ebmcore.cli.runs import measuring
from ebmcore.training.configuration import create_metrics
from ebmcore.training.runs import build
config = {"data": {"name": "bars-and-stripes", "side": 2}, "energy": {"name": "rbm", "hidden": 3}, "sampler": {"name": "gibbs"},
          "loss": {"name": "cd"}, "metric": [{"name": "exact-ll"}, {"name": "ais-ll", "n_temperatures": 5}]}
parts = build(config)
measured = measuring(config, create_metrics(config), parts)
print(measured(parts.energy))
second_device.install()
with second_device.Everywhere():
    parts.energy.to(second_device.DEVICE)
    print(measured(parts.energy))
    print(parts.energy.weight.device)
"""


@pytest.mark.filterwarnings("ignore:.*of the mass lies on the rim")
def test_data_of_a_moved_run_are_found(tmp_path, monkeypatch, capsys):
    """Where they are now; other data, and a place that the data set does not take, are refused."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
    for name, array in (("old", x), ("new", x), ("other", 2 * x)):
        np.save(f"{name}.npy", array)
    assert ebmcore(f"train {MOONS.replace('two-moons --data.n_train 200', 'old.npy')} --loss cd --steps 1 --out run") == 0
    Path("old.npy").unlink()
    evaluate = "evaluate run --metric grid-ll"
    assert ebmcore(evaluate) == 2
    assert ebmcore(f"{evaluate} --data.path new.npy") == 0
    assert ebmcore("score run new.npy --data.path new.npy --out scores.csv") == 0
    capsys.readouterr()
    assert ebmcore(f"{evaluate} --data.path other.npy") == 2
    assert "is of a run on other data: use the same" in capsys.readouterr().err
    assert ebmcore(f"{evaluate} --data.directory .") == 2
    assert "the data set array of the run takes no directory: leave out --data.directory" in capsys.readouterr().err

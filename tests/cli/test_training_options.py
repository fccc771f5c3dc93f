"""Optimizers, schedules, recipes and samplers on the command line."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import yaml
from correct_losses import ScoreMatching
from small_runs import table

import ebmcore
from ebmcore import host
from ebmcore.cli import main
from ebmcore.training import BaseObserver, latest_checkpoint, read_checkpoint

MOONS = "--energy mlp --energy.hidden [8] --data two-moons --data.n_train 200 --progress false"
LANGEVIN = "--sampler langevin --sampler.step_size 0.1"


def call(command, *rest):
    return main([*command.split(), *map(str, rest)])


def train(command, out, *rest):
    return call(f"train {MOONS} {command} --out", out, *rest)


def config(out):
    return yaml.safe_load((out / "config.yaml").read_text())


def same_runs(a, b):
    a, b = (read_checkpoint(latest_checkpoint(out / "checkpoints"))[0] for out in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Rates(BaseObserver):
    """Logs the sampler's step size."""

    seen: list = []

    def on_log(self, run, metrics):
        self.seen.append((run.sampler.step_size, run.config["lr"]))


@pytest.fixture
def plugin():
    class Plugin:
        @ebmcore.hookimpl
        def ebmcore_register(self, register):
            register.loss("score", ScoreMatching)
            register.observer("rates", Rates)

    with ebmcore.temporary_plugin(Plugin()):
        yield


def test_optimizer_takes_its_options(tmp_path):
    options = ("--optimizer", "adamw", "--optimizer.betas", "[0.0, 0.999]")
    assert train(f"{LANGEVIN} --loss cd --steps 2", tmp_path / "a", *options) == 0
    saved = config(tmp_path / "a")
    assert (saved["optimizer"]["name"], saved["optimizer"]["betas"]) == ("adamw", [0.0, 0.999])
    (tmp_path / "b.yaml").write_text("optimizer: {name: adamw, betas: [0.0, 0.999]}")
    assert train(f"{LANGEVIN} --loss cd --steps 2 --config {tmp_path / 'b.yaml'}", tmp_path / "b") == 0
    assert config(tmp_path / "b")["optimizer"] == saved["optimizer"]
    assert same_runs(tmp_path / "a", tmp_path / "b")


def test_default_optimizer_takes_options_too(tmp_path):
    assert train(f"{LANGEVIN} --loss cd --steps 1 --optimizer.eps 0.5", tmp_path / "a") == 0
    optimizer = config(tmp_path / "a")["optimizer"]
    assert (optimizer["name"], optimizer["eps"]) == ("adam", 0.5)


def test_optimizer_options_appear_in_help(capsys):
    with pytest.raises(SystemExit):
        call("train --optimizer rmsprop --help")
    shown = capsys.readouterr().out
    assert "--optimizer.alpha" in shown
    assert "--optimizer.lr" not in shown


def test_schedule_is_the_same_text_everywhere(tmp_path, plugin):
    Rates.seen.clear()
    options = f"{LANGEVIN} --loss pcd --loss.n_chains 10 --steps 4 --log_every 1 --observer rates"
    text = "linear(0.1, 0.02)"
    assert train(options, tmp_path / "a", "--schedules.sampler.step_size", text) == 0
    assert [size for size, _ in Rates.seen] == pytest.approx([0.1, 0.08, 0.06, 0.04])
    assert {lr for _, lr in Rates.seen} == {1e-3}
    assert config(tmp_path / "a")["schedules"] == {"sampler.step_size": text}
    (tmp_path / "b.yaml").write_text(f'schedules: {{sampler.step_size: "{text}"}}')
    assert train(f"{options} --config {tmp_path / 'b.yaml'}", tmp_path / "b") == 0
    assert same_runs(tmp_path / "a", tmp_path / "b")


def test_scheduled_run_resumes(tmp_path):
    options = f"{LANGEVIN} --loss pcd --loss.n_chains 10 --checkpoint_every 4"
    schedule = ("--schedules.sampler.step_size=constant(0.05)", "--schedules.optimizer.lr=piecewise([0.01, 0.001], [6])")
    assert train(f"{options} --steps 8", tmp_path / "whole", *schedule) == 0
    assert train(f"{options} --steps 4", tmp_path / "part", *schedule) == 0
    assert call("train --steps 8 --resume", tmp_path / "part") == 0
    assert same_runs(tmp_path / "whole", tmp_path / "part")


def test_recommended_schedule_gives_way(tmp_path):
    rbm = "train --energy rbm --energy.hidden 4 --sampler gibbs --data bars-and-stripes --loss cd --steps 1 --progress false"
    assert (
        call(f"{rbm} --schedules.optimizer.lr constant() --schedules.loss.energy_l2 linear(0.1,0) --out", tmp_path / "a")
        == 0
    )
    assert config(tmp_path / "a")["schedules"] == {"optimizer.lr": "constant()", "loss.energy_l2": "linear(0.1,0)"}


def test_resumed_run_keeps_its_schedules(tmp_path):
    rbm = "--energy rbm --energy.hidden 4 --sampler gibbs --data bars-and-stripes --loss cd --steps 1 --progress false"
    assert call(f"train {rbm} --out", tmp_path / "a") == 0
    saved = config(tmp_path / "a")
    (tmp_path / "a/config.yaml").write_text(yaml.safe_dump(saved | {"schedules": {}}))  # of a time when none was recommended
    assert call("train --steps 2 --resume", tmp_path / "a") == 0
    assert config(tmp_path / "a")["schedules"] == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--schedules.sampler.stepsize constant(1)", "did you mean sampler.step_size"),
        ("--schedules.sampler.step_size cosinus(1)", "there is no 'cosinus', did you mean cosine"),
        ("--schedules.optimizer.lr 0.1", "it is not a name with arguments"),
        ("--schedules.optimizer.lr", "the schedule of optimizer.lr, ''"),
        ("--config list.yaml", "schedules must be a mapping"),
        ("--optimizer adamm", "did you mean adam"),
        ("--optimizer lbfgs", "calls the loss several times in a step"),
        ("--optimizer adam --optimizer.beta 1", "did you mean --optimizer.betas"),
        ("--optimizer adam --optimizer.eps much", "option --optimizer.eps: Expected a number"),
        ("--accum 2", "unknown option --accum"),
        ("--recipe nothing", "recipe"),
        ("--recipe", "needs the name of a recipe"),
        ("--accumulate 0", "accumulate must be at least 1"),
    ],
)
def test_wrong_option_is_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("schedules: [1]")
    assert call(f"train {MOONS} {LANGEVIN} --loss cd --steps 1 --out run {options}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_recipe_is_the_base(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("loss: {name: pcd, n_chains: 7, k_steps: 2}\noptimizer: sgd\nlr: 0.5\nsteps: 3")
    (tmp_path / "over.yaml").write_text("loss: {k_steps: 3}")
    load = host.load
    monkeypatch.setattr(host, "load", lambda kind, name: tmp_path / "mine.yaml" if kind == "recipe" else load(kind, name))
    command = f"{LANGEVIN} --config {tmp_path / 'over.yaml'} --recipe mine --lr 0.25"
    assert train(command, tmp_path / "run") == 0
    saved = config(tmp_path / "run")
    assert (saved["loss"]["n_chains"], saved["loss"]["k_steps"], saved["lr"], saved["steps"]) == (7, 3, 0.25, 3)
    assert saved["optimizer"]["name"] == "sgd"
    assert "recipe" not in saved


def test_loss_without_sampler_trains(tmp_path, plugin):
    assert train("--loss score --steps 2 --compile", tmp_path / "run") == 0
    assert "sampler" not in config(tmp_path / "run")
    assert call("train --steps 3 --resume", tmp_path / "run") == 0


def test_loss_without_sampler_may_be_given_one(tmp_path, plugin):
    assert train(f"--loss score --steps 2 {LANGEVIN}", tmp_path / "run") == 0
    assert config(tmp_path / "run")["sampler"]["name"] == "langevin"
    assert call(f"sample {tmp_path / 'run'} -n 3 --steps 2 --out {tmp_path / 'a.npy'}") == 0


def test_missing_sampler_is_asked_for(tmp_path, capsys):
    assert train("--loss cd --steps 2", tmp_path / "run") == 2
    assert "--sampler (the loss cd needs one) missing" in capsys.readouterr().err


def test_help_names_losses_without_sampler(plugin, capsys):
    with pytest.raises(SystemExit):
        call("train --help")
    (named,) = re.findall(r"a loss that takes none: ([\w, -]+)", " ".join(capsys.readouterr().out.split()))
    assert {"score", "nce"} <= set(named.replace(" or ", ", ").split(", "))


def test_sampling_asks_for_a_sampler(tmp_path, plugin, capsys):
    run, out = tmp_path / "run", tmp_path / "a.npy"
    assert train("--loss score --steps 2", run) == 0
    assert call(f"sample {run} -n 5 --steps 3 --out {out}") == 2
    assert f"was trained without a sampler: name one, 'ebmcore sample {run} --sampler NAME'" in capsys.readouterr().err
    assert call(f"sample {run} -n 5 --steps 3 --out {out} {LANGEVIN}") == 0
    assert np.load(out).shape == (5, 2)


def test_sampling_takes_another_sampler(tmp_path):
    run = tmp_path / "run"
    assert train(f"{LANGEVIN} --loss cd --steps 1", run) == 0
    for name, size in (("a", 0.1), ("b", 0.1), ("c", 0.2)):
        command = f"sample {run} -n 5 --steps 3 --out {tmp_path / name}.npy --sampler langevin --sampler.step_size {size}"
        assert call(command) == 0
    a, b, c = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    assert (a == b).all()
    assert (a != c).any()


def test_sampling_knows_no_abbreviation(tmp_path, capsys):
    assert call(f"sample {tmp_path} --ste 3 --out {tmp_path / 'a.npy'}") == 2
    assert "unrecognized arguments: --ste" in capsys.readouterr().err


def test_accumulated_run_logs_steps(tmp_path):
    assert train(f"{LANGEVIN} --loss cd --epochs 1 --batch_size 25 --accumulate 4 --log_every 1", tmp_path / "run") == 0
    assert [row["step"] for row in table(tmp_path / "run/metrics.csv")] == ["1", "2"]

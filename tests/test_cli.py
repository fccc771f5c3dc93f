"""The command line: what it trains, what it writes, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from small_runs import table
from torch.distributed.checkpoint.api import CheckpointException

import ebmcore as ebmcore_
from ebmcore.cli import main
from ebmcore.training import checkpoints, latest_checkpoint, read_checkpoint

RBM = "--energy rbm --energy.hidden 4 --sampler gibbs --data bars-and-stripes --data.side 2 --progress false"
MOONS = "--energy mlp --energy.hidden [8] --sampler langevin --sampler.step_size 0.01 --data two-moons --data.n_train 200"


def ebmcore(command, *paths):
    return main([*command.split(), *map(str, paths)])


def train(command, out):
    return ebmcore(f"train {command} --out", out)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small trained run."""
    out = tmp_path_factory.mktemp("runs") / "rbm"
    assert train(f"{RBM} --loss pcd --loss.n_chains 10 --steps 20 --metric exact-ll --checkpoint_every 10", out) == 0
    return out


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A small trained run in two dimensions."""
    out = tmp_path_factory.mktemp("runs") / "moons"
    assert train(f"{MOONS} --loss cd --steps 5 --ema_decay 0.9 --progress false", out) == 0
    return out


def tensors(out):
    return read_checkpoint(latest_checkpoint(out / "checkpoints"))[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_leaves_its_configuration_metrics_checkpoint_and_evaluation(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["energy"] == {"name": "rbm", "hidden": 4, "weight_std": 0.01, "centered": False}
    assert config["loss"]["n_chains"] == 10
    assert config["optimizer"] == "sgd"  # what the energy recommends
    assert (run / "metrics.csv").read_text().startswith("step,loss,")
    assert latest_checkpoint(run / "checkpoints").name == "step-00000020"
    assert json.loads((run / "evaluation.json").read_text())["exact-ll"]["step"] == 20


def test_the_same_options_in_a_file_give_the_same_run(run, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (tmp_path / "options.yaml").write_text(yaml.safe_dump({**config, "out": str(tmp_path / "again")}))
    assert ebmcore("train --config", tmp_path / "options.yaml") == 0
    assert same(tensors(run), tensors(tmp_path / "again"))


def test_the_command_line_overrides_the_file(tmp_path):
    (tmp_path / "options.yaml").write_text("energy: {name: rbm, hidden: 9}\nsampler: gibbs\nloss: cd\nsteps: 2")
    command = f"--config {tmp_path / 'options.yaml'} --data bars-and-stripes --energy.hidden 5 --progress false"
    assert train(command, tmp_path / "run") == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["energy"]["hidden"] == 5


def test_another_component_on_the_command_line_takes_none_of_the_files_options(tmp_path):
    (tmp_path / "options.yaml").write_text(
        "energy: {name: rbm, hidden: 9}\nsampler: gibbs\nloss: {name: pcd, n_chains: 3}\nsteps: 2"
    )
    command = f"--config {tmp_path / 'options.yaml'} --data bars-and-stripes --loss cd --progress false"
    assert train(command, tmp_path / "run") == 0
    assert "n_chains" not in yaml.safe_load((tmp_path / "run/config.yaml").read_text())["loss"]


def test_a_name_can_be_a_canonical_id(tmp_path):
    command = RBM.replace("rbm ", "ebm-plugin-rbm:rbm ").replace("gibbs", "ebm-plugin-rbm:gibbs")
    assert train(f"{command} --loss ebm-plugin-cd:cd --steps 2", tmp_path / "run") == 0


def test_resuming_goes_on_to_a_longer_training(run, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    options = f"{RBM} --loss pcd --loss.n_chains 10 --lr_schedule constant"
    assert train(f"{options} --steps 30", whole) == 0
    assert train(f"{options} --steps 12", part) == 0
    assert ebmcore("train --steps 30 --resume", part) == 0
    assert same(tensors(whole), tensors(part))
    assert yaml.safe_load((part / "config.yaml").read_text())["steps"] == 30


def test_a_run_killed_without_warning_resumes_bit_for_bit(tmp_path):
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


def test_two_processes_share_the_chains_and_one_goes_on_with_all_of_them(tmp_path):
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


def test_evaluating_prints_the_likelihood_with_its_interval(run, capsys):
    assert ebmcore(f"evaluate {run} --metric exact-ll --metric.n_bootstrap 50") == 0
    assert "log-likelihood -" in capsys.readouterr().out


def test_several_metrics_each_with_its_options_and_at_an_interval(tmp_path):
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


def test_a_configuration_with_one_metric_may_name_it_as_before(tmp_path):
    (tmp_path / "one.yaml").write_text("metric: {name: exact-ll, n_bootstrap: 9}")
    assert train(f"{RBM} --loss cd --steps 1 --config {tmp_path / 'one.yaml'} --metric.n_bootstrap 8", tmp_path / "run") == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["metric"] == [{"name": "exact-ll", "n_bootstrap": 8}]


def test_compile_alone_is_compile_true(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    options = f"{MOONS} --loss pcd --loss.n_chains 64 --steps 3 --progress false --seed 1"
    assert train(f"--compile {options}", tmp_path / "compiled") == 0
    assert train(options, tmp_path / "plain") == 0
    configs, rows = [], []
    for name in ("compiled", "plain"):
        configs.append(yaml.safe_load((tmp_path / name / "config.yaml").read_text())["compile"])
        rows.append((tmp_path / name / "metrics.csv").read_text().splitlines()[-1].split(","))
    assert configs == [True, False]
    assert [float(v) for v in rows[0]] == pytest.approx([float(v) for v in rows[1]], rel=1e-4)


def test_the_moving_average_is_what_is_evaluated(moons):
    from ebmcore.cli.runs import load_run

    _, parts, step = load_run(moons)
    saved = tensors(moons)
    assert step == 5
    assert torch.equal(parts.energy.net[1].weight, saved["average.module.net.1.weight"])
    assert not torch.equal(parts.energy.net[1].weight, saved["loss.energy.net.1.weight"])


@pytest.mark.parametrize("which", ["run", "moons"])
def test_samples_are_pictured(which, request, tmp_path):
    from matplotlib.image import imread

    out = tmp_path / "samples.png"
    assert ebmcore(f"sample {request.getfixturevalue(which)} -n 10 --steps 5 --out {out}") == 0
    assert imread(out).std() > 0.01
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"]


def test_samples_can_be_an_array_and_repeat(run, tmp_path):
    for name in ("a.npy", "b.npy"):
        assert ebmcore(f"sample {run} -n 7 --steps 5 --out {tmp_path / name}") == 0
    a, b = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert a.shape == (7, 1, 2, 2)
    assert (a == b).all()


def test_listings_are_tables_and_json(capsys):
    assert ebmcore("list loss") == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["KIND", "NAME", "ID", "VERSION"]
    assert ebmcore("list loss --json") == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {"cd", "pcd"}
    assert ebmcore("plugins --json") == 0
    assert "ebm-plugin-pcd" in {row["distribution"] for row in json.loads(capsys.readouterr().out)}


def test_show_tells_options_summary_and_citation(capsys):
    assert ebmcore("show pcd") == 0
    shown = capsys.readouterr().out
    for part in ("loss ebm-plugin-pcd:pcd", "Tieleman (2008)", "n_chains: int = 256", "restart_prob: float = 0.0"):
        assert part in shown
    assert ebmcore("show pcd --json") == 0
    assert json.loads(capsys.readouterr().out)[0]["summary"].startswith("Persistent contrastive divergence")


def test_the_options_of_a_component_appear_in_the_help(capsys):
    with pytest.raises(SystemExit) as end:
        ebmcore("train --loss pcd --help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "--loss.restart_prob" in shown
    assert "Probability that a drawn chain starts anew" in " ".join(shown.split())


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "ebmcore", "list", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("ebmcore: there is no kind 'nothing'")
    assert len(done.stderr.splitlines()) == 1


FULL = RBM + " --loss pcd --steps 1"
WRONG = {
    "unknown command": ("frobnicate", "the commands are train"),
    "unknown name": (f"train {FULL} --energy rmb", "did you mean rbm?"),
    "unknown name that is known elsewhere": (f"train {FULL} --loss fpcd2", "did you mean fpcd or pcd"),
    "no name": ("train --energy", "--energy needs the name of a energy"),
    "unknown option": (f"train {FULL} --bogus 3", "unknown option --bogus"),
    "unknown option of a component": (f"train {FULL} --loss.n_chain 3", "did you mean --loss.n_chains?"),
    "missing option of a component": ("train --energy rbm", "missing --energy.hidden"),
    "no list": (
        f"train {MOONS} --energy.hidden 8 --loss cd --steps 1 --out new",
        "Expected a list such as '[64, 64]'. Got value: 8",
    ),
    "no number": (f"train {FULL} --epochs x", "option --epochs: Expected a whole number or null. Got value: x"),
    "wrong type": (f"train {FULL} --energy.hidden many", "option --energy.hidden: Expected a whole number. Got value: many"),
    "wrong choice": (f"train {FULL} --precision 31", "option --precision"),
    "value a component refuses": (f"train {FULL} --loss.n_chains 0", "n_chains must be a whole number of at least 1"),
    "wrong shape": (
        "train --energy conv --sampler langevin --sampler.step_size 1 --loss cd --data two-moons --steps 1",
        "use the energy 'mlp', or data of such a shape",
    ),
    "data of the wrong kind": (
        f"train {FULL} --data two-moons",
        "the energy RBM is for binary data, but TwoMoons is continuous",
    ),
    "sampler of the wrong kind": (
        f"train {FULL} --sampler langevin --sampler.step_size 1",
        "choose a sampler for binary units",
    ),
    "capability that the energy lacks": (f"train {MOONS} --sampler gibbs --loss cd --steps 1", "SupportsBlockGibbs"),
    "no length": (f"train {RBM} --loss cd", "either as epochs or as steps"),
    "file that is not there": ("train --config nothing.yaml", "cannot read the configuration nothing.yaml"),
    "run that is not there": ("evaluate nothing --metric exact-ll", "is not the directory of a run"),
    "resume of nothing": ("train --resume nothing", "is not the directory of a run"),
    "unknown kind": ("list lose", "the kinds are loss, sampler"),
    "unknown component to show": ("show pdc", "did you mean pcd?"),
    "unknown flag": ("list --jsom", "see 'ebmcore list --help'"),
    "picture of an unknown format": ("sample nothing --out samples.gif", "must end in .png or .npy"),
    "part that is no name": ("train --config part.yaml", "the configuration's 'energy' must be a name"),
    "file that is no text": ("train --config bytes.yaml", "bytes.yaml is not YAML"),
    "resume in a file": ("train --config resume.yaml", "resume is no option of a configuration file"),
    "resume without a run": ("train --resume", "expected one argument"),
    "metric that refuses its option": (
        f"train {FULL} --metric ais-ll --metric.n_chains 1",
        "need n_chains >= 2",
    ),
    "option of no metric": (f"train {FULL} --metric.n_chains 5", "belongs to a metric: name it before, --metric NAME"),
    "metric without a name": (f"train {FULL} --metric --steps 1", "--metric needs the name of a metric"),
    "metric twice": (f"train {FULL} --metric exact-ll --metric exact-ll", "--metric exact-ll stands twice"),
    "interval without a metric": (f"train {FULL} --measure_every 5", "--measure_every needs a metric"),
    "interval of nothing": (f"train {FULL} --metric exact-ll --measure_every 0", "measure_every must be at least 1"),
    "device that is not there": (f"train {FULL} --accelerator abacus", "accelerator='abacus'"),
    "missing parts": ("train --energy rbm --energy.hidden 3", "--data, --sampler, --loss"),
}


@pytest.mark.parametrize(("command", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_clear_line_and_exit_status_2(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # The last of an option given twice counts, so a component's options may no longer fit it.
    words = command.split()
    if words[0] == "train" and "--out" not in words and message != "--data, --sampler, --loss":
        words += ["--out", "run"]
    words = drop_overridden(words)
    files = {"part.yaml": b"energy: 5", "bytes.yaml": b"\xff\xfe\x00", "resume.yaml": b"resume: runs/demo"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert main(words) == 2
    captured = capsys.readouterr()
    for name in files:
        (tmp_path / name).unlink()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def drop_overridden(words):
    """Without what a later option of the same part replaces."""
    for part in ("--energy", "--sampler", "--data"):
        places = [i for i, word in enumerate(words) if word == part]
        if len(places) == 2:
            first = places[0]
            end = first + 2
            while end < len(words) and words[end].startswith(f"{part}."):
                end += 2
            words = words[:first] + words[end:]
    return words


def test_an_existing_directory_is_never_overwritten(run, capsys):
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    assert train(f"{RBM} --loss cd --steps 1", run) == 2
    assert f"go on with 'ebmcore train --resume {run}'" in capsys.readouterr().err
    assert before == sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))


def test_an_existing_picture_is_never_overwritten(run, tmp_path, capsys):
    (tmp_path / "samples.png").write_text("mine")
    assert ebmcore(f"sample {run} --out {tmp_path / 'samples.png'}") == 2
    assert (tmp_path / "samples.png").read_text() == "mine"


@pytest.mark.parametrize("change", ["--loss cd", "--seed 3", "--batch_size 7", "--out elsewhere"])
def test_a_resumed_run_stays_the_same_run(run, change, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert ebmcore(f"train --resume {run} {change} --steps 40") == 2
    assert f"a resumed run keeps its {change.split()[0][2:]}" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_resumed_run_may_be_given_epochs_in_place_of_steps(tmp_path):
    assert train(f"{RBM} --loss cd --steps 3", tmp_path / "run") == 0
    assert ebmcore(f"train --resume {tmp_path / 'run'} --epochs 5") == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["epochs"], config["steps"]) == (5, None)


@pytest.mark.parametrize("content", ["{", "7"])
def test_a_damaged_evaluation_is_not_overwritten(run, tmp_path, content, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "evaluation.json").write_text(content)
    assert ebmcore(f"evaluate {copy} --metric exact-ll") == 2
    assert "move it away" in capsys.readouterr().err
    assert (copy / "evaluation.json").read_text() == content


def test_a_result_that_cannot_be_written_is_printed_all_the_same(run, tmp_path, monkeypatch, capsys):
    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ebmcore.cli.runs.write_text", full)
    assert ebmcore("evaluate", run, "--metric", "exact-ll") == 2
    told = capsys.readouterr()
    assert "exact-ll: log-likelihood" in told.out
    assert "No space left on device" in told.err


def test_a_checkpoint_that_cannot_be_written_is_one_clear_line_and_the_last_one_stays(tmp_path, monkeypatch, capsys):
    saved = checkpoints.save

    def full(tensors, checkpoint_id, **options):
        if "00000004" in str(checkpoint_id):
            raise CheckpointException("write", {0: (OSError(28, "No space left on device"), None)})
        saved(tensors, checkpoint_id=checkpoint_id, **options)

    monkeypatch.setattr(checkpoints, "save", full)
    assert train(f"{RBM} --loss pcd --steps 4 --checkpoint_every 2", tmp_path / "a") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"step-00000004 cannot be written \(.*No space left.*\); the last good one is .*step-00000002$", line)
    assert [path.name for path in (tmp_path / "a/checkpoints").iterdir()] == ["step-00000002"]


class Failing:
    def __init__(self, late: bool = False):
        if not late:
            raise RuntimeError("no luck")

    def __call__(self, energy, data, *, sampler, generator):
        raise RuntimeError("no luck")


@pytest.mark.parametrize(
    ("option", "doing"), [("", "making the metric 'failing'"), (" --metric.late true", "measuring with Failing")]
)
def test_trouble_of_a_component_is_told_with_its_name(tmp_path, option, doing):
    class Plugin:
        @ebmcore_.hookimpl
        def ebmcore_register(self, register):
            register.metric("failing", Failing)

    with ebmcore_.temporary_plugin(Plugin(), "ebm-plugin-failing"), pytest.raises(RuntimeError, match="no luck") as caught:
        train(f"{RBM} --loss pcd --steps 2 --metric failing{option}", tmp_path / "a")
    assert f"while {doing}" in caught.value.__notes__[0]


def test_a_run_keeps_its_components_beside_others_of_the_same_name(run, tmp_path, capsys):
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


def test_a_damaged_checkpoint_is_one_clear_line(run, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (latest_checkpoint(copy / "checkpoints") / "__0_0.distcp").write_bytes(b"")
    for command in (
        f"evaluate {copy} --metric exact-ll",
        f"train --resume {copy}",
        f"sample {copy} --out {tmp_path / 'a.png'}",
    ):
        assert ebmcore(command) == 2
        error = capsys.readouterr().err
        assert "is damaged" in error
        assert "remove it to go on from step-00000010" in error
        assert len(error.splitlines()) == 1


def test_a_run_that_diverges_stops_with_step_and_advice(tmp_path, capsys):
    command = f"{MOONS} --loss cd --steps 50 --progress false --optimizer sgd --lr 1e38"
    assert train(command, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "training stopped at step" in error
    assert "lower" in error.lower()
    assert len(error.splitlines()) == 1


def test_the_learning_rate_recommended_by_the_energy_gives_way_to_the_users(tmp_path):
    assert train(f"{RBM} --loss cd --steps 1 --lr 0.125 --optimizer adam", tmp_path / "run") == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["lr"], config["optimizer"], config["batch_size"]) == (0.125, "adam", 50)


def test_a_loss_that_needs_no_sampler_trains(tmp_path):
    from correct_losses import ScoreMatching

    class Plugin:
        @ebmcore_.hookimpl
        def ebmcore_register(self, register):
            register.loss("score", ScoreMatching)

    train = "train --energy mlp --sampler langevin --sampler.step_size 0.1 --loss score --data two-moons --steps 2 --out"
    with ebmcore_.temporary_plugin(Plugin()):
        assert main([*train.split(), str(tmp_path / "run")]) == 0

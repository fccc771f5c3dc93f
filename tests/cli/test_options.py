"""How options are read, and how wrong ones are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import yaml
from commands import MOONS, RBM, ebmcore, same, tensors, train

from ebmcore import host
from ebmcore._keywords import constructor_keywords
from ebmcore.cli import main
from ebmcore.training.configuration import PARTS

FULL = RBM + " --loss pcd --steps 1"


WRONG = {
    "unknown command": ("frobnicate", "the commands are train"),
    "unknown name": (f"train {FULL} --energy rmb", "did you mean rbm?"),
    "unknown name that is known elsewhere": (f"train {FULL} --loss fpcd2", "did you mean fpcd or pcd"),
    "no name": ("train --energy", "--energy needs the name of a component of the kind energy"),
    "unknown option": (f"train {FULL} --bogus 3", "unknown option --bogus"),
    "unknown option of a component": (f"train {FULL} --loss.n_chain 3", "did you mean --loss.n_chains?"),
    "beginning of an option": (f"train {FULL} --ene rbm", "unknown option --ene: did you mean --energy? See"),
    "unknown option with nothing like it": (
        "evaluate nothing --bogus",
        "it takes --allow-code, --checkpoint, --config, --help, --metric.",
    ),
    "option of no component": (
        "train --energy.hidden 3",
        "option --energy.hidden needs the name of the energy: --energy NAME",
    ),
    "component of a file without its name": (
        "train --config unnamed.yaml",
        "option --data.side needs the name of the dataset: --data NAME, in a file 'data: {name: NAME}'",
    ),
    "option of an inner sampler": (
        f"train {MOONS} --sampler tempering --sampler.inner langevin --sampler.inner.step_size 0.01 --loss cd --steps 1",
        "write --sampler.inner_options '{step_size: 0.01}'",
    ),
    "no list of texts": ("train --data array --data.columns a", "Expected a list such as '[a, b]' or null. Got value: a"),
    "folder that is not there": ("train --data ./digits-of-mine", "there is no file or directory ./digits-of-mine"),
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
        "the sampler Langevin is for continuous data, but BarsAndStripes is binary: choose another data set or sampler",
    ),
    "capability that the energy lacks": (
        f"train {MOONS} --sampler gibbs --loss cd --steps 1",
        "ebm-plugin-rbm:gaussian-rbm, ebm-plugin-rbm:potts-rbm, ebm-plugin-rbm:rbm",
    ),
    "no length": (f"train {RBM} --loss cd", "either as epochs or as steps"),
    "file that is not there": ("train --config nothing.yaml", "cannot read the configuration nothing.yaml"),
    "run that is not there": ("evaluate nothing --metric exact-ll", "is not the directory of a run"),
    "resume of nothing": ("train --resume nothing", "is not the directory of a run"),
    "unknown kind": ("list lose", "the kinds are loss, sampler"),
    "unknown component to show": ("show pdc", "did you mean pcd?"),
    "unknown flag": ("list --jsom", "see 'ebmcore list --help'"),
    "picture of an unknown format": ("sample nothing --out samples.gif", "must end in .png, .npy, .npz, .safetensors"),
    "part that is no name": ("train --config part.yaml", "the configuration's 'energy' must be a name"),
    "file that is no text": ("train --config bytes.yaml", "bytes.yaml is not text in UTF-8"),
    "resume in a file": ("train --config resume.yaml", "resume is no option of a configuration file"),
    "resume without a run": ("train --resume", "expected one argument"),
    "metric that refuses its option": (
        f"train {FULL} --metric ais-ll --metric.n_chains 1",
        "need n_chains >= 2",
    ),
    "option of no metric": (f"train {FULL} --metric.n_chains 5", "belongs to a metric: name it before, --metric NAME"),
    "metric without a name": (f"train {FULL} --metric --steps 1", "--metric needs the name of a metric"),
    "metric twice": (f"train {FULL} --metric exact-ll --metric exact-ll", "--metric exact-ll is given twice"),
    "interval without a metric": (f"train {FULL} --measure_every 5", "--measure_every needs a metric"),
    "interval of nothing": (f"train {FULL} --metric exact-ll --measure_every 0", "measure_every must be at least 1"),
    "device that is not there": (f"train {FULL} --accelerator abacus", "accelerator='abacus'"),
    "missing parts": ("train --energy rbm --energy.hidden 3", "--data, --loss, --out missing"),
}


@pytest.mark.parametrize(("command", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line(command, message, tmp_path, monkeypatch, capsys):
    """Wrong input is one clear line and exit status 2."""
    monkeypatch.chdir(tmp_path)
    # The last of an option given twice counts, so a component's options may no longer fit it.
    words = command.split()
    if words[0] == "train" and "--out" not in words and message != "--data, --loss, --out missing":
        words += ["--out", "run"]
    words = drop_overridden(words)
    files = {
        "part.yaml": b"energy: 5",
        "unnamed.yaml": b"data: {side: 2}",
        "bytes.yaml": b"\xff\xfe\x00",
        "resume.yaml": b"resume: runs/demo",
    }
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


def test_component_options_in_the_help(capsys):
    """The options of a component appear in the help."""
    with pytest.raises(SystemExit) as end:
        ebmcore("train --loss pcd --help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "--loss.restart_prob" in shown
    assert "Probability that a drawn chain" in " ".join(shown.split())


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "ebmcore", "list", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("ebmcore: there is no kind 'nothing'")
    assert len(done.stderr.splitlines()) == 1


def test_the_command_line_overrides_the_file(tmp_path):
    (tmp_path / "options.yaml").write_text("energy: {name: rbm, hidden: 9}\nsampler: gibbs\nloss: cd\nsteps: 2")
    command = f"--config {tmp_path / 'options.yaml'} --data bars-and-stripes --energy.hidden 5 --progress false"
    assert train(command, tmp_path / "run") == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["energy"]["hidden"] == 5


def test_other_component_drops_the_files_options(tmp_path):
    """Another component on the command line takes none of the files options."""
    (tmp_path / "options.yaml").write_text(
        "energy: {name: rbm, hidden: 9}\nsampler: gibbs\nloss: {name: pcd, n_chains: 3}\nsteps: 2"
    )
    command = f"--config {tmp_path / 'options.yaml'} --data bars-and-stripes --loss cd --progress false"
    assert train(command, tmp_path / "run") == 0
    assert "n_chains" not in yaml.safe_load((tmp_path / "run/config.yaml").read_text())["loss"]


def test_a_name_can_be_a_canonical_id(tmp_path):
    command = RBM.replace("rbm ", "ebm-plugin-rbm:rbm ").replace("gibbs", "ebm-plugin-rbm:gibbs")
    assert train(f"{command} --loss ebm-plugin-cd:cd --steps 2", tmp_path / "run") == 0


def test_file_gives_the_same_run(run, tmp_path):
    """The same options in a file give the same run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    (tmp_path / "options.yaml").write_text(yaml.safe_dump({**config, "out": str(tmp_path / "again")}))
    assert ebmcore("train --config", tmp_path / "options.yaml") == 0
    assert same(tensors(run), tensors(tmp_path / "again"))


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


def test_recommended_rate_gives_way(tmp_path):
    """The learning rate recommended by the energy gives way to the users."""
    assert train(f"{RBM} --loss cd --steps 1 --lr 0.125 --optimizer adam", tmp_path / "run") == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["lr"], config["optimizer"]["name"], config["batch_size"]) == (0.125, "adam", 50)


def test_single_metric_in_a_file(tmp_path):
    """A configuration with one metric may name it as before."""
    (tmp_path / "one.yaml").write_text("metric: {name: exact-ll, n_bootstrap: 9}")
    assert train(f"{RBM} --loss cd --steps 1 --config {tmp_path / 'one.yaml'} --metric.n_bootstrap 8", tmp_path / "run") == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["metric"] == [{"name": "exact-ll", "n_bootstrap": 8}]


def test_no_component_has_an_option_called_name():
    """The option would be that which names the component."""
    classes = [
        host.load(c.kind, c.id) for kind, _ in PARTS.values() if kind != "optimizer" for c in host.list_components(kind)
    ]
    assert len(classes) > 50
    assert [cls for cls in classes if "name" in constructor_keywords(cls)] == []

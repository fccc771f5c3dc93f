"""A user's own files, from the command line: an alignment, a folder of labelled pictures, and the page about data and model."""

from __future__ import annotations

import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ebmcore, same, tensors, train
from PIL import Image
from safetensors.torch import load_file

from ebm_plugin_files.images import Images
from ebm_plugin_files.sequences import Sequences
from ebmcore import BaseContrastiveDivergence, from_pretrained, load_run
from ebmcore.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs/your-own-data.md"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("model", None)


FAMILIES = {"ACDEFGHI": 150, "KLMNPQRS": 50}
POTTS = "--energy potts-rbm --energy.hidden 4 --sampler gibbs --loss pcd --loss.n_chains 50 --progress false"


@pytest.fixture
def alignment():
    """A large family of near copies, and a small one whose members differ in half of the positions."""
    draw = random.Random(0)
    rows = []
    for parent, n in FAMILIES.items():
        changes = 0.02 if n == 150 else 0.5
        rows += ["".join(draw.choice("TVWY") if draw.random() < changes else a for a in parent) for _ in range(n)]
    Path("alignment.fasta").write_text("".join(f">{i}\n{row}\n" for i, row in enumerate(rows)))
    return Path("alignment.fasta")


@pytest.fixture
def used(monkeypatch):
    """The weights with which each step has called the gap."""
    seen = []
    gap = BaseContrastiveDivergence.energy_gap

    def watched(self, *args, **kwargs):
        seen.append(self.data_weights)
        return gap(self, *args, **kwargs)

    monkeypatch.setattr(BaseContrastiveDivergence, "energy_gap", watched)
    return seen


def test_weights_of_an_alignment_reach_the_gap(alignment, used):
    """Each example's in each epoch; without them other parameters are learnt."""
    command = f"{POTTS} --data {alignment} --epochs 2 --batch_size 40"
    assert train(command, "weighted") == 0
    weights = Sequences(alignment).train_weights
    assert len(used) == 8
    assert weights.min() < 0.01 < 0.5 < weights.max()
    for epoch in (used[:4], used[4:]):
        assert torch.allclose(torch.cat(epoch).sort().values, (weights / weights.mean()).sort().values)
    used.clear()
    assert train(f"{command} --data.reweight null", "plain") == 0
    assert set(used) == {None}
    assert not same(tensors(Path("weighted")), tensors(Path("plain")))


def test_alignment_is_sampled(alignment):
    """Samples are one-hot, and their letters are as frequent as in the weighted data, far from those without weights."""
    assert train(f"{POTTS} --energy.visible_bias data --data {alignment} --epochs 30 --batch_size 40 --lr 0.01", "run") == 0
    assert ebmcore("sample run -n 500 --steps 100 --out x.npy") == 0
    x = torch.from_numpy(np.load("x.npy"))
    assert x.shape == (500, 8, 21)
    assert x.unique().tolist() == [0, 1]
    assert (x.sum(-1) == 1).all()
    data = Sequences(alignment)
    share = (data.train * (data.train_weights / data.train_weights.sum())[:, None, None]).sum(0)
    plain = data.train.mean(0)
    off, off_plain = ((x.mean(0) - wanted).abs().sum(-1).mean().item() for wanted in (share, plain))
    assert off < 0.25
    assert off_plain > 1


def test_each_class_of_pictures_is_sampled():
    """``sample --condition NAME`` draws pictures that are nearest to the mean of that class, by far, in the files' levels."""
    noise = np.random.default_rng(0)
    means = {"dark": np.full((8, 8), 60.0), "light": np.full((8, 8), 200.0), "stripes": np.full((8, 8), 60.0)}
    means["stripes"][:, ::2] = 200
    for name, mean in means.items():
        Path("pictures", name).mkdir(parents=True)
        for i in range(60):
            levels = (mean + noise.normal(0, 15, (8, 8))).clip(0, 255).astype(np.uint8)
            Image.fromarray(levels).save(f"pictures/{name}/{i}.png")
    energy = "--energy conditional-conv --energy.n_classes 3 --energy.channels [16,32]"
    langevin = "--sampler langevin --sampler.step_size 0.005 --sampler.bounds [-1,1]"
    pcd = "--loss pcd --loss.n_chains 60 --loss.k_steps 10 --lr 0.003 --epochs 50 --batch_size 48"
    assert train(f"{energy} {langevin} {pcd} --data pictures --progress false", "run") == 0
    data = Images(Path("pictures"))
    assert data.classes == tuple(means)
    classes = torch.stack([data.train[data.train_labels == label].mean(0) for label in range(3)])
    for label, name in enumerate(means):
        assert ebmcore(f"sample run -n 40 --steps 300 --condition {name} --out {label}.npy") == 0
        x = torch.from_numpy(np.load(f"{label}.npy") / 127.5 - 1)
        distances = (x[:, None] - classes).square().mean((2, 3, 4))
        assert (distances.argmin(1) == label).double().mean() > 0.95
        own, others = distances.mean(0)[label], distances.mean(0)[[k for k in range(3) if k != label]]
        assert 2 * own < others.min()


def test_export_names_the_classes():
    """On the model card, and in what is loaded from it; the directory of the data is not needed."""
    for name in ("cat", "dog"):
        Path("pictures", name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (4, 4), 60 * i).save(f"pictures/{name}/{i}.png")
    energy = "--energy conditional-conv --energy.n_classes 2 --energy.channels [4]"
    command = f"{energy} --sampler langevin --sampler.step_size 0.01 --loss cd --steps 1 --progress false"
    assert train(f"{command} --data pictures", "run") == 0
    Path("pictures").rename("elsewhere")
    assert ebmcore("export run --out model") == 0
    assert "names:\n\n- 0: cat\n- 1: dog\n" in Path("model/README.md").read_text()
    assert from_pretrained("model").examples.classes == ("cat", "dog")
    assert ebmcore("score run elsewhere/dog --condition dog --out scores.csv") == 0
    run, dogs = load_run("run"), Images(Path("elsewhere")).examples_of(Path("elsewhere/dog"))
    found = np.loadtxt("scores.csv", delimiter=",", skiprows=1)[:, 1]
    assert found == pytest.approx(run.score(dogs, 1).numpy())


def test_more_classes_than_outputs_are_refused(capsys):
    """Before the first step, by the option that is wrong."""
    for label in range(3):
        Path("pictures", str(label)).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (4, 4), 60 * label + i).save(f"pictures/{label}/{i}.png")
    command = "--energy conditional-conv --energy.n_classes 2 --sampler langevin --sampler.step_size 0.01 --loss cd"
    assert train(f"{command} --data pictures --steps 1", "run") == 2
    assert "has 3 classes, but the energy ConditionalConv has n_classes=2: give it n_classes=3" in capsys.readouterr().err


def blocks(kind):
    return re.findall(rf"```{re.escape(kind)}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_six_commands_of_the_page_run(folder, capsys):
    """From a table and a class of one's own to samples, scores and weights; then what the page does with them."""
    (made,) = blocks("{code-block} bash")
    program, *arguments = shlex.split(made)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    model, after = blocks("{code-block} python")
    Path("model.py").write_text(model)
    (block,) = blocks("bash")
    commands = [shlex.split(line) for line in block.splitlines()]
    assert len(commands) == 6
    for program, *arguments in commands:
        assert program == "ebmcore"
        assert main(arguments) == 0, capsys.readouterr().err
    shown = {}
    exec(after, shown)
    table = np.loadtxt("measurements.csv", delimiter=",", skiprows=1)
    measured = shown["measured"].numpy()
    assert (abs(measured.mean(0) - table.mean(0)) < 0.3 * table.std(0)).all()
    assert measured.std(0) == pytest.approx(table.std(0), rel=0.2)
    assert np.corrcoef(measured.T)[0, 1] == pytest.approx(0.8, abs=0.1)
    assert len(Path("scores.csv").read_text().splitlines()) == 1001
    weights = shown["net"].state_dict()
    assert same(load_file("net.safetensors"), weights)
    assert all(torch.equal(weights[name], t) for name, t in shown["run"].energy.state_dict().items())

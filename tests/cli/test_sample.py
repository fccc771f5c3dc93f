"""Samples of a run, as pictures and arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from commands import ebmcore, train
from safetensors.torch import load_file
from torch import nn

import ebmcore as kernel
from ebmcore import load_run


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


def test_an_existing_picture_is_never_overwritten(run, tmp_path, capsys):
    (tmp_path / "samples.png").write_text("mine")
    assert ebmcore(f"sample {run} --out {tmp_path / 'samples.png'}") == 2
    assert (tmp_path / "samples.png").read_text() == "mine"


def test_clipped_values_are_said(tmp_path, capsys):
    """One line says how much of the samples a picture clips; none where nothing is."""
    options = "--energy conv --energy.channels [4] --sampler langevin --sampler.step_size 0.5 --loss cd --data digits"
    out = tmp_path / "run"
    assert train(f"{options} --data.binary false --steps 1 --progress false", out) == 0
    capsys.readouterr()
    assert ebmcore(f"sample {out} -n 4 --steps 20 --out {tmp_path / 'far.png'}") == 0
    said = capsys.readouterr().out
    assert re.search(
        r"^\d+\.\d\d% of the values are outside the range of the data, -1 to 1: the picture clips them$", said, re.M
    )
    bounds = "--sampler langevin --sampler.step_size 0.5 --sampler.bounds [-1,1]"
    assert ebmcore(f"sample {out} {bounds} -n 4 --steps 20 --out {tmp_path / 'near.png'}") == 0
    assert "outside" not in capsys.readouterr().out


class Around(nn.Module):
    """``E(x, y) = 50 ||x - y||^2``: the samples of label y are at y, in the plane."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        return 50 * (x - y[:, None]).square().sum(1) + self.bias


class Labelled:
    state_space, shape, n_classes = "continuous", (2,), 4

    def __init__(self) -> None:
        self.train_labels = torch.arange(20) % 4
        self.train = self.train_labels[:, None].repeat(1, 2).float()
        self.test = self.train


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    class Plugin:
        @kernel.hookimpl
        def ebmcore_register(self, register):
            register.energy("around", Around)
            register.dataset("labelled", Labelled)

    out = tmp_path_factory.mktemp("runs") / "conditional"
    sampler = "--sampler langevin --sampler.step_size 0.005"
    with kernel.temporary_plugin(Plugin()):
        assert train(f"--energy around {sampler} --loss cd --data labelled --steps 1 --progress false", out) == 0
        yield out


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_labels_are_taken_in_turn(conditional, tmp_path, suffix):
    """They are in the file, beside the samples."""
    out = tmp_path / f"a.{suffix}"
    assert ebmcore(f"sample {conditional} -n 8 --steps 200 --condition 3,0,1 --out", out) == 0
    arrays = load_file(out) if suffix == "safetensors" else {name: torch.from_numpy(t) for name, t in np.load(out).items()}
    assert arrays["condition"].tolist() == [3, 0, 1, 3, 0, 1, 3, 0]
    assert (arrays["x"] - arrays["condition"][:, None]).abs().max() < 0.6
    assert arrays["condition"].dtype == torch.int64
    assert torch.equal(arrays["x"], load_run(conditional).sample(8, 200, conditions=[3, 0, 1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "the energy Around needs conditions (y)"),
        ("--condition 4", "the labels must be from 0 to 3"),
        ("--condition -1", "the labels must be from 0 to 3"),
        ("--condition 1.5", "the labels must be from 0 to 3, the classes of the run, in whole numbers, got [1.5]"),
        ("--condition nan", "hold 1 NaN"),
        ("--condition dog", "conditions of this run are numbers: got dog"),
        ("--condition 1,,2", "--condition: takes names or numbers"),
    ],
)
def test_wrong_labels_are_one_line(conditional, tmp_path, capsys, given, message):
    assert ebmcore(f"sample {conditional} -n 2 --steps 1 {given} --out", tmp_path / "a.npy") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_plane_is_pictured_under_one_label(conditional, tmp_path, capsys):
    assert ebmcore(f"sample {conditional} -n 4 --steps 2 --condition 2 --out", tmp_path / "a.png") == 0
    assert ebmcore(f"sample {conditional} -n 4 --steps 2 --condition 1,2 --out", tmp_path / "b.png") == 2
    assert "under one label" in capsys.readouterr().err


def test_earlier_checkpoint_is_sampled(run, tmp_path):
    assert ebmcore(f"sample {run} -n 5 --steps 5 --checkpoint 10 --out", tmp_path / "a.npy") == 0
    assert np.array_equal(np.load(tmp_path / "a.npy"), load_run(run, checkpoint=10).sample(5, 5).numpy())

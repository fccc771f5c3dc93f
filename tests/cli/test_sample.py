"""Samples of a run, as pictures and arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest
from commands import ebmcore, train


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

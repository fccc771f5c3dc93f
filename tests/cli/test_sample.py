"""Samples of a run, as pictures and arrays."""

from __future__ import annotations

import numpy as np
import pytest
from commands import ebmcore


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

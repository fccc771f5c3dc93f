"""Scores of examples in files."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from commands import ebmcore

from ebmcore import load_run


def scores(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == list(range(len(rows)))
    return torch.tensor([float(row["score"]) for row in rows])


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_samples_are_scored(run, tmp_path, suffix):
    """What ``ebmcore sample`` writes, ``ebmcore score`` reads: -E(x) of each row."""
    file, out = tmp_path / f"x.{suffix}", tmp_path / "new/scores.csv"
    assert ebmcore(f"sample {run} -n 7 --steps 5 --out", file) == 0
    assert ebmcore(f"score {run} {file} --out", out) == 0
    trained = load_run(run)
    torch.testing.assert_close(scores(out), trained.score(trained.sample(7, 5)))


def test_earlier_checkpoint_is_scored(run, tmp_path):
    x = np.eye(4, dtype=np.float64).reshape(4, 1, 2, 2)
    np.save(tmp_path / "x.npy", x)
    assert ebmcore(f"score {run} {tmp_path / 'x.npy'} --checkpoint 10 --out", tmp_path / "a.csv") == 0
    torch.testing.assert_close(scores(tmp_path / "a.csv"), load_run(run, checkpoint=10).score(x))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "cannot be read"),
        (b"\x93NUMPY\x01\x00", "cannot be read"),
        (np.zeros((2, 3)), "must be of shape (N, 1, 2, 2)"),
        (np.array([{}]), "cannot be read (Object arrays cannot be loaded"),
        (np.array(["a", "b"]), "cannot be read"),
    ],
)
def test_wrong_file_is_one_line(run, tmp_path, capsys, content, message):
    file = tmp_path / "x.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    assert ebmcore(f"score {run} {file} --out", tmp_path / "a.csv") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.csv").exists()


def test_several_arrays_need_a_name(run, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", a=np.zeros(2), b=np.zeros(2))
    assert ebmcore(f"score {run} {tmp_path / 'x.npz'} --out", tmp_path / "a.csv") == 2
    assert "call the examples 'x'" in capsys.readouterr().err


def test_unknown_kind_of_file_is_refused(run, tmp_path, capsys):
    (tmp_path / "x.xls").touch()
    assert ebmcore(f"score {run} {tmp_path / 'x.xls'} --out", tmp_path / "a.csv") == 2
    assert (
        "score reads .npy, .npz, .safetensors, and the data set bars-and-stripes reads no other" in capsys.readouterr().err
    )


def test_data_set_reads_its_kind_of_file(run, tmp_path, monkeypatch):
    """On the scale of the training examples, which the data set of the run knows."""
    from ebm_plugin_datasets.bars_and_stripes import BarsAndStripes

    monkeypatch.setattr(BarsAndStripes, "examples_of", lambda self, path: self.train[: int(path.read_text())], raising=False)
    (tmp_path / "x.txt").write_text("3")
    assert ebmcore(f"score {run} {tmp_path / 'x.txt'} --out", tmp_path / "a.csv") == 0
    trained = load_run(run)
    torch.testing.assert_close(scores(tmp_path / "a.csv"), trained.score(trained.data.train[:3]))


@pytest.mark.parametrize(("out", "message"), [("a.txt", "must end in .csv"), ("there.csv", "exists: choose another")])
def test_place_of_scores_is_checked_first(run, tmp_path, capsys, out, message):
    (tmp_path / "there.csv").write_text("mine")
    assert ebmcore(f"score {run} missing.npy --out", tmp_path / out) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_labels_must_be_numbers(run, tmp_path, capsys):
    assert ebmcore(f"score {run} x.npy --condition cat --out", tmp_path / "a.csv") == 2
    assert "--condition: takes numbers such as 3 or 0,1,2, got 'cat'" in capsys.readouterr().err

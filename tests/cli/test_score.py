"""Scores of examples in files."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from commands import ebmcore, forge, train
from safetensors.torch import load_file, save_file

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


TABLE = "--energy mlp --energy.hidden [4] --sampler langevin --sampler.step_size 0.01 --loss cd --steps 2 --progress false"


@pytest.fixture
def table(tmp_path):
    """A run on two columns far from 0 and 1, whose file is gone, and the rows of that file."""
    x = np.random.default_rng(0).normal((20, 300), (5, 40), (50, 2))
    np.savetxt(tmp_path / "a.csv", x, delimiter=",", header="a,b", comments="")
    assert train(f"{TABLE} --data {tmp_path / 'a.csv'} --data.scale standard", tmp_path / "run") == 0
    (tmp_path / "a.csv").unlink()
    return tmp_path / "run", x


def write(path, x):
    match path.suffix:
        case ".npy":
            np.save(path, x)
        case ".npz":
            np.savez(path, rows=x)
        case ".safetensors":
            save_file({"rows": torch.from_numpy(x)}, path)
        case ".csv":
            np.savetxt(path, np.c_[np.arange(len(x)), x[:, ::-1]], delimiter=";", header="id;b;a", comments="")


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "csv"])
def test_files_are_in_the_units_of_the_data(table, tmp_path, suffix):
    """Every kind of file is scaled as the training file was, which is not needed for it."""
    run, x = table
    file = tmp_path / f"new.{suffix}"
    write(file, x)
    assert ebmcore(f"score {run} {file} --out", tmp_path / "scores.csv") == 0
    trained = load_run(run)
    record = trained.examples.record
    scaled = torch.from_numpy((x - record["shift"]) / record["spread"]).float()
    assert abs(scaled.mean()) < 0.3
    torch.testing.assert_close(scores(tmp_path / "scores.csv"), trained.score(scaled))


@pytest.mark.parametrize("units", ["", "--units data", "--units model"])
@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_samples_keep_their_units(table, tmp_path, capsys, suffix, units):
    """Samples have the same scores in either units: a file says them, where it is no single array."""
    run, _ = table
    file, out = tmp_path / f"x.{suffix}", tmp_path / "scores.csv"
    assert ebmcore(f"sample {run} -n 50 --steps 3 {units} --out", file) == 0
    said = "on the scale of the training" if units == "--units model" else "in the units of the data's files"
    assert capsys.readouterr().out == f"50 samples in {file}, {said}\n"
    stored = load_file(file)["x"].numpy() if suffix == "safetensors" else np.load(file)
    stored = stored["x"] if suffix == "npz" else stored
    assert (abs(stored).max() > 100) == (units != "--units model")
    assert ebmcore(f"score {run} {file} {units if suffix == 'npy' else ''} --out", out) == 0
    trained = load_run(run)
    torch.testing.assert_close(scores(out), trained.score(trained.sample(50, 3)), atol=1e-4, rtol=1e-4)


CONDITIONAL = """
import torch
from torch import nn

class Around(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.center = nn.Parameter(torch.tensor([[0.0], [10.0]]))

    def forward(self, x, y):
        return (x - self.center[y]).square().sum(1)
"""


def test_labels_of_a_file_are_conditions(tmp_path, capsys):
    """As in training, by their names; ``--condition`` overrides them, and is named where there are none."""
    (tmp_path / "around.py").write_text(CONDITIONAL)
    (tmp_path / "a.csv").write_text("a,kind\n" + "".join(f"{i},{'xy'[i % 2]}\n" for i in range(10)))
    own = TABLE.replace("mlp --energy.hidden [4]", f"{tmp_path / 'around.py'}:Around")
    assert train(f"{own} --data {tmp_path / 'a.csv'} --data.labels kind", tmp_path / "run") == 0
    (tmp_path / "b.csv").write_text("kind,a\ny,1\nx,2\n")
    command, trained = (
        f"score {tmp_path / 'run'} {tmp_path / 'b.csv'} --allow-code",
        load_run(tmp_path / "run", allow_code=True),
    )
    x = torch.tensor([[1.0], [2.0]])
    assert ebmcore(f"{command} --out", tmp_path / "s.csv") == 0
    torch.testing.assert_close(scores(tmp_path / "s.csv"), trained.score(x, torch.tensor([1, 0])))
    assert ebmcore(f"{command} --condition x --out", tmp_path / "t.csv") == 0
    torch.testing.assert_close(scores(tmp_path / "t.csv"), trained.score(x, torch.tensor([0, 0])))
    capsys.readouterr()
    for text, message in (
        ("kind,a\nz,1\n", "has the label 'z', which is no class of the run"),
        ("a\n1\n", "(--condition, "),
    ):
        (tmp_path / "b.csv").write_text(text)
        assert ebmcore(f"{command} --out", tmp_path / "u.csv") == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "u.csv").exists()


def test_labels_of_a_file_are_passed_over(tmp_path):
    """By an energy that takes none, whatever they are."""
    (tmp_path / "a.csv").write_text("a,kind\n1,x\n2,y\n3,x\n")
    assert train(f"{TABLE} --data {tmp_path / 'a.csv'} --data.labels kind", tmp_path / "run") == 0
    (tmp_path / "a.csv").write_text("a,kind\n1,z\n2,\n")
    assert ebmcore(f"score {tmp_path / 'run'} {tmp_path / 'a.csv'} --out", tmp_path / "s.csv") == 0
    assert len(scores(tmp_path / "s.csv")) == 2


@pytest.fixture
def thresholded(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(5, 1, (50, 4)))
    options = "--energy rbm --energy.hidden 2 --sampler gibbs --loss cd --steps 2 --progress false --data.threshold 5"
    assert train(f"{options} --data {tmp_path / 'a.npy'}", tmp_path / "run") == 0
    return tmp_path / "run"


def test_bits_or_levels_must_be_said(thresholded, tmp_path, capsys):
    """An array may hold either; a file of samples says that it holds bits."""
    file, out = tmp_path / "x.npz", tmp_path / "scores.csv"
    assert ebmcore(f"sample {thresholded} -n 9 --steps 3 --out", file) == 0
    assert "on the scale of the training" in capsys.readouterr().out
    assert ebmcore(f"score {thresholded} {file} --out", out) == 0
    trained = load_run(thresholded)
    torch.testing.assert_close(scores(out), trained.score(trained.sample(9, 3)))
    levels = tmp_path / "a.npy"
    assert ebmcore(f"score {thresholded} {levels} --out", tmp_path / "b.csv") == 2
    assert "add --units model or --units data" in capsys.readouterr().err
    assert ebmcore(f"score {thresholded} {levels} --units data --out", tmp_path / "b.csv") == 0
    bits = torch.from_numpy(np.load(levels) > 5).float()
    torch.testing.assert_close(scores(tmp_path / "b.csv"), trained.score(bits))
    assert ebmcore(f"sample {thresholded} --units data --out", tmp_path / "y.npy") == 2
    assert "which nothing undoes: leave out --units data" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["score {run} x.npy --out a.csv", "sample {run} --out a.npy"])
def test_units_need_a_scale(run, capsys, command):
    assert ebmcore(command.format(run=run) + " --units model") == 2
    assert "the data set bars-and-stripes scales no files: leave out --units" in capsys.readouterr().err


def test_table_has_units(table, tmp_path, capsys):
    run, x = table
    write(tmp_path / "b.csv", x)
    assert ebmcore(f"score {run} {tmp_path / 'b.csv'} --units model --out", tmp_path / "s.csv") == 2
    assert "leave out --units model" in capsys.readouterr().err


def test_forged_scale_is_refused(table, capsys, tmp_path):
    run, x = table
    write(tmp_path / "b.npy", x)
    forge(run / "checkpoints/step-00000002", lambda info: info["examples"]["record"].update(spread=[[0.0, 1.0]]))
    assert ebmcore(f"score {run} {tmp_path / 'b.npy'} --out", tmp_path / "s.csv") == 2
    error = capsys.readouterr().err
    assert "does not say how Array reads files: its scale does not fit" in error
    assert error.count("\n") == 1

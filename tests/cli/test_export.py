"""Trained energies for other programs."""

from __future__ import annotations

import json

import pytest
import torch
from commands import ebmcore, same
from safetensors.torch import load_file
from torch import nn

from ebmcore import from_pretrained, load_run
from ebmcore.errors import UsageError
from ebmcore.training import pretrained
from ebmcore.training.pretrained import export, model_card


@pytest.mark.parametrize(("name", "read"), [("a.safetensors", load_file), ("a.pt", torch.load)])
def test_weights_are_a_state_dict(moons, tmp_path, name, read):
    """Of the moving average, where one is kept."""
    assert ebmcore(f"export {moons} --out", tmp_path / "new" / name) == 0
    assert same(read(tmp_path / "new" / name), load_run(moons).energy.state_dict())


def test_directory_loads_without_the_run(moons, tmp_path):
    assert ebmcore(f"export {moons} --out", tmp_path / "model") == 0
    energy, run = from_pretrained(str(tmp_path / "model")), load_run(moons)
    x = run.sample(5, 2)
    torch.testing.assert_close(-energy(x), run.score(x), rtol=0, atol=0)
    assert type(energy) is type(run.energy)
    assert not energy.training
    assert {path.name for path in tmp_path.rglob("*")} == {"model", "README.md", "config.json", "model.safetensors"}


def test_earlier_checkpoint_is_exported(run, tmp_path):
    assert ebmcore(f"export {run} --checkpoint 10 --out", tmp_path / "model") == 0
    assert json.loads((tmp_path / "model/config.json").read_text())["step"] == 10
    assert same(from_pretrained(tmp_path / "model").state_dict(), load_run(run, checkpoint=10).energy.state_dict())


def test_card_says_what_was_done(run, tmp_path):
    """Components with their options and versions, the likelihood that was measured, and the sources of the methods."""
    assert ebmcore(f"export {run} --out", tmp_path / "model") == 0
    card = (tmp_path / "model/README.md").read_text()
    measured = json.loads((run / "evaluation.json").read_text())["exact-ll"]
    assert "# rbm trained by pcd on bars-and-stripes" in card
    assert "| energy | `rbm` | `hidden=4`" in card
    assert "| ebm-plugin-rbm " in card
    assert f"| exact-ll | {measured['log_likelihood']:.2f} nats | 20 |" in card
    assert (
        'T. Tieleman (2008), "Training restricted Boltzmann machines using approximations to the likelihood gradient"'
        in card
    )
    assert "MacKay" in card  # of the data
    assert "x: (N, 1, 2, 2)" in card


def test_card_names_no_place(run, tmp_path):
    """Where the data were on the machine of the training concerns nobody."""
    trained = load_run(run)
    trained.config["data"] |= {"path": str(tmp_path / "secret.npy")}
    assert "secret" not in model_card(trained)


def test_program_takes_any_number_of_examples(moons, tmp_path):
    assert ebmcore(f"export {moons} --out", tmp_path / "a.pt2") == 0
    program = torch.export.load(tmp_path / "a.pt2").module()
    run = load_run(moons)
    for n in (2, 7):
        x = torch.randn(n, 2)
        torch.testing.assert_close(program(x), -run.score(x))


class Choosy(nn.Module):
    """An energy whose code depends on values, which torch.export refuses."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x.flatten(1).square().sum(1) * (self.scale if x.sum() > 0 else -self.scale)


class Labelled(nn.Module):
    """An energy with a condition that it needs."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, y):
        return x.flatten(1).square().sum(1) * self.scale


@pytest.mark.parametrize(
    ("cls", "message"), [(Choosy, "cannot make a program of the energy Choosy"), (Labelled, "conditions")]
)
def test_energy_without_a_program_is_one_line(moons, tmp_path, cls, message):
    run = load_run(moons)
    run.energy = cls((2,))
    with pytest.raises(UsageError, match=f"{message}.*export its weights") as caught:
        export(run, tmp_path / "a.pt2")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.pt", "model", "link"])
def test_nothing_is_overwritten(run, tmp_path, capsys, name):
    (tmp_path / "a.pt").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    assert ebmcore(f"export {run} --out", tmp_path / name) == 2
    assert "exists: choose another --out" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "link", "model"]


def test_unknown_ending_is_refused(run, tmp_path, capsys):
    assert ebmcore(f"export {run} --out", tmp_path / "a.onnx") == 2
    assert "must end in .safetensors, .pt, .pt2, or be a directory" in capsys.readouterr().err


def test_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "model_card", full)
    assert ebmcore(f"export {run} --out", tmp_path / "model") == 2
    assert not list(tmp_path.iterdir())


class Tied(nn.Module):
    """An energy whose two layers are one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = nn.Linear(2, 2)

    def forward(self, x):
        return self.b(self.a(x)).square().sum(1)


def test_tied_weights_are_exported(moons, tmp_path):
    """Two names of one tensor, which safetensors refuses, are two tensors in the file."""
    run = load_run(moons)
    run.energy = Tied()
    export(run, tmp_path / "a.safetensors")
    assert same(load_file(tmp_path / "a.safetensors"), run.energy.state_dict())

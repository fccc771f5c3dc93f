"""``--from RUN``: a new run from the weights and chains of another."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from commands import RBM, ebmcore, tensors, train

START = f"{RBM} --loss pcd --loss.n_chains 10 --batch_size 10 --steps 1 --optimizer sgd --lr 1e-30 --accelerator cpu"


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run that keeps a moving average."""
    out = tmp_path_factory.mktemp("runs") / "averaged"
    options = "--batch_size 10 --steps 6 --lr 0.5 --ema_decay 0.9 --accelerator cpu"
    assert train(f"{RBM} --loss pcd --loss.n_chains 10 {options}", out) == 0
    return out


def test_new_run_starts_from_the_average_and_the_chains(averaged, tmp_path):
    """With a rate that changes nothing, the weights are the average of the other run; chains have moved once at most."""
    assert train(f"{START} --from {averaged}", tmp_path / "run") == 0
    old, new = tensors(averaged), tensors(tmp_path / "run")
    assert torch.equal(new["loss.energy.weight"], old["average.module.weight"])
    assert not torch.equal(new["loss.energy.weight"], old["loss.energy.weight"])
    assert torch.equal(new["loss.chains.id"], old["loss.chains.id"])
    moved = new["loss.chains.age"] - old["loss.chains.age"]
    assert set(moved.tolist()) <= {0, 1}
    assert moved.any()


def test_resumed_run_needs_the_other_no_more(averaged, tmp_path):
    """The checkpoint is bound to the option, whose run may be gone."""
    shutil.copytree(averaged, tmp_path / "first")
    assert train(f"{START} --from {tmp_path / 'first'}", tmp_path / "run") == 0
    shutil.rmtree(tmp_path / "first")
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["from"] == str(tmp_path / "first")
    assert ebmcore("train --steps 2 --resume", tmp_path / "run") == 0
    assert train(f"{START} --from {tmp_path / 'first'} --steps 3 --resume auto", tmp_path / "run") == 0
    moved = tensors(tmp_path / "run")["loss.chains.age"] - tensors(averaged)["loss.chains.age"]
    assert 1 < moved.max() <= 3


def test_resumed_run_keeps_where_it_started(averaged, tmp_path, capsys):
    assert train(START, tmp_path / "run") == 0
    assert ebmcore(f"train --from {averaged} --resume", tmp_path / "run") == 2
    assert "a resumed run keeps its from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--energy.hidden 5", "its energy.hidden_bias has the shape (4,), not (5,)"),
        ("--loss.n_chains 20", "it has 10 chains, not 20"),
        ("--data.side 3", "its energy.visible_bias has the shape (4,), not (9,)"),
    ],
)
def test_other_shapes_are_refused_before_training(averaged, options, message, tmp_path, capsys):
    assert train(f"{START} --from {averaged} {options}", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_start_from_nothing_is_one_line(tmp_path, capsys):
    assert train(f"{START} --from {tmp_path / 'nothing'}", tmp_path / "run") == 2
    assert "nothing holds no checkpoint to start from" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_start_in_a_file_of_options(averaged, tmp_path):
    (tmp_path / "options.yaml").write_text(f"from: {averaged}")
    assert train(f"{START} --config {tmp_path / 'options.yaml'}", tmp_path / "run") == 0
    assert torch.equal(tensors(tmp_path / "run")["loss.energy.weight"], tensors(averaged)["average.module.weight"])

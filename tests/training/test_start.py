"""A new run from the weights and chains of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ebmcore
from ebmcore.errors import CheckpointError
from ebmcore.testing import Identity, Quadratic
from ebmcore.training import fit, latest_checkpoint, read_checkpoint, start_from


def make(name="pcd", *, shape=(2,), **options):
    persistent = {"n_chains": 6} if name == "pcd" else {}
    return ebmcore.create_loss(name, Quadratic(shape), Identity(), **persistent | options)


def train(loss, out, shape=(2,), **options):
    data = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0)) + 1
    return fit(loss, data, batch_size=4, lr=0.1, out=out, progress=False, accelerator="cpu", **{"steps": 3} | options)


def parameters(module):
    return nn.utils.parameters_to_vector(module.parameters())


def test_weights_chains_and_count_of_steps_are_the_others(tmp_path):
    first, second = make(), make()
    train(first, tmp_path / "first")
    start_from(second, str(tmp_path / "first"))
    assert torch.equal(parameters(first), parameters(second))
    assert torch.equal(first.chain, second.chain)
    assert torch.equal(first.chains.ages, second.chains.ages)
    assert second.step == 3


def test_moving_average_is_taken_where_there_is_one(tmp_path):
    """The energy starts with the weights that were measured, not with the last ones."""
    first, second = make(), make()
    result = train(first, tmp_path / "first", ema_decay=0.5)
    start_from(second, tmp_path / "first")
    assert torch.equal(parameters(result.energy), parameters(second.energy))
    assert not torch.equal(parameters(first.energy), parameters(second.energy))


def test_started_run_trains_and_resumes(tmp_path):
    """Killed and resumed, it ends as one that was not."""
    train(make(), tmp_path / "first")
    whole, halves = make(), make()
    for loss in (whole, halves):
        start_from(loss, tmp_path / "first")
    train(whole, tmp_path / "whole", steps=4)
    train(halves, tmp_path / "halves", steps=2)
    resumed = make()
    train(resumed, tmp_path / "halves", steps=4, resume=True)
    assert torch.equal(parameters(whole), parameters(resumed))
    assert torch.equal(whole.chain, resumed.chain)


def test_loss_without_chains_takes_none(tmp_path):
    first, second = make(), make("cd")
    train(first, tmp_path / "first")
    start_from(second, tmp_path / "first")
    assert torch.equal(parameters(first), parameters(second))
    assert second.chain is None


def test_chains_start_where_the_other_has_none(tmp_path):
    train(make("cd"), tmp_path / "first")
    second = make()
    start_from(second, tmp_path / "first")
    assert second.chain is None
    assert train(second, tmp_path / "second").step == 3


class Deep(Quadratic):
    def __init__(self, shape):
        super().__init__(shape)
        self.more = nn.Linear(1, 1)


def broken(loss):
    with torch.no_grad():
        loss.energy.mean[0] = float("nan")
    return loss.state_dict()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda: make(shape=(3,)), r"its energy.mean has the shape \(2,\), not \(3,\)"),
        (lambda: make(n_chains=7), "it has 6 chains, not 7"),
        (lambda: ebmcore.create_loss("pcd", Deep((2,)), Identity(), n_chains=6), "it lacks energy.more.bias"),
        (lambda: ebmcore.create_loss("fpcd", Quadratic((2,)), Identity(), n_chains=6), "it lacks fast"),
    ],
)
def test_run_that_does_not_fit_is_one_line(second, message, tmp_path):
    """And the loss is as it was."""
    train(make(), tmp_path / "first")
    loss = second()
    before = parameters(loss).clone()
    with pytest.raises(CheckpointError, match=f"a new run cannot start from .*step-00000003: {message}") as error:
        start_from(loss, tmp_path / "first")
    assert "\n" not in str(error.value)
    assert torch.equal(parameters(loss), before)


def test_further_part_of_the_other_loss_is_named(tmp_path):
    train(ebmcore.create_loss("pcd", Deep((2,)), Identity(), n_chains=6), tmp_path / "first")
    with pytest.raises(CheckpointError, match="it has energy.more.bias, which is no part of this loss and energy"):
        start_from(make(), tmp_path / "first")


def test_other_energy_is_refused(tmp_path):
    """Names and shapes alone do not make it the same energy."""
    rbm, mlp = (ebmcore.create_energy(name, shape=(2,), hidden=3) for name in ("rbm", "gaussian-rbm"))
    binary = torch.ones(8, 2)
    first = ebmcore.create_loss("cd", rbm, ebmcore.create_sampler("gibbs"))
    fit(first, binary, steps=1, out=tmp_path / "first", progress=False, accelerator="cpu")
    with pytest.raises(CheckpointError, match="was written with the energy ebm-plugin-rbm:rbm, not with"):
        start_from(ebmcore.create_loss("cd", mlp, ebmcore.create_sampler("gibbs")), tmp_path / "first")


@pytest.mark.parametrize("name", ["nothing", "."])
def test_directory_without_a_checkpoint_is_one_line(name, tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint to start from"):
        start_from(make(), tmp_path / name)


def test_damaged_checkpoint_is_refused(tmp_path):
    train(make(), tmp_path / "first")
    (file,) = Path(tmp_path / "first/checkpoints/step-00000003").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        start_from(make(), tmp_path / "first")


def test_other_run_is_left_as_it_was(tmp_path):
    train(make(), tmp_path / "first")
    before = read_checkpoint(latest_checkpoint(tmp_path / "first/checkpoints"))[1]
    second = make()
    start_from(second, tmp_path / "first")
    train(second, tmp_path / "second")
    assert read_checkpoint(latest_checkpoint(tmp_path / "first/checkpoints"))[1] == before

"""Optimizers by name, parameter groups, gradient accumulation."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest
import torch
from lightning_fabric import Fabric
from small_runs import data, pcd, quiet, same_state

import ebmcore
from ebmcore.errors import EbmcoreError, UsageError
from ebmcore.testing import Identity, Quadratic
from ebmcore.training import BaseObserver, latest_checkpoint
from ebmcore.training.optimizers import OPTIMIZERS, create_optimizer


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "muon"])
def test_each_optimizer_trains_and_resumes(name, tmp_path):
    whole, resumed = pcd(), pcd(seed=1)
    quiet(whole, data(), steps=6, optimizer=name)
    quiet(pcd(), data(), steps=3, optimizer=name, out=tmp_path)
    quiet(resumed, data(), steps=6, optimizer=name, out=tmp_path, resume=True)
    assert same_state(whole, resumed)
    assert not same_state(whole, pcd())


def test_options_reach_the_optimizer():
    made = create_optimizer({"name": "adamw", "betas": [0.0, 0.999], "weight_decay": 0.1}, pcd(), 0.02, "32-true")
    assert type(made) is torch.optim.AdamW
    (group,) = made.param_groups
    assert (group["betas"], group["weight_decay"], group["lr"], group["fused"]) == ((0.0, 0.999), 0.1, 0.02, True)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("lbfgs", "calls the loss several times in a step: choose another"),
        ("sparseadam", "takes sparse gradients only: choose another"),
        ("adamm", "did you mean adam"),
        ("Adam", "there is no optimizer 'Adam', did you mean adam"),
        ({"betas": (0.0, 0.9)}, "a mapping with one under 'name'"),
        ({"name": "adam", "lr": 0.1}, "the option lr of the training"),
        ({"name": "adam", "beta": 0.1}, "unknown keyword 'beta'.*Did you mean 'betas'"),
        ({"name": "adam", "eps": -1.0}, "the optimizer 'adam': Invalid epsilon value"),
        ("muon", "the optimizer 'muon': Muon only supports 2D parameters"),
        ({"name": "adam", "capturable": True}, "option 'capturable' cannot be used here"),
        ({"name": "rmsprop", "differentiable": True}, "option 'differentiable' cannot be used here"),
        (3, "optimizer must be a name"),
    ],
)
def test_wrong_optimizer_is_refused(optimizer, message):
    with pytest.raises(EbmcoreError, match=message) as caught:
        quiet(pcd(), data(), steps=1, optimizer=optimizer)
    assert "\n" not in str(caught.value)


def test_scaled_gradients_are_not_fused():
    (group,) = create_optimizer("adam", pcd(), 0.02, "16-mixed").param_groups
    assert group["fused"] is False


class Complex(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1 + 1j, 2 - 1j]))

    def forward(self, x):
        return (x * self.weight).abs().square().sum(1)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
@pytest.mark.filterwarnings("error:Casting complex values to real")
def test_complex_parameters_train_and_resume(name, tmp_path):
    """With an average, to the checkpoint and beyond."""
    whole, stopped, resumed = (ebmcore.create_loss("cd", Complex(), Identity()) for _ in range(3))
    options = {"optimizer": name, "ema_decay": 0.9}
    end = quiet(whole, data(), steps=4, **options).energy
    quiet(stopped, data(), steps=2, out=tmp_path, **options)
    again = quiet(resumed, data(), steps=4, out=tmp_path, resume=True, **options).energy
    assert same_state(whole, resumed)
    assert torch.equal(end.weight, again.weight)
    assert end.weight.is_complex()


@pytest.mark.parametrize("optimizer", ["muon", "adafactor", {"name": "adam", "fused": True}])
def test_optimizers_of_real_numbers_refuse_complex_ones(optimizer):
    with pytest.raises(UsageError, match="cannot train complex parameters"):
        quiet(ebmcore.create_loss("cd", Complex(), Identity()), data(), steps=1, optimizer=optimizer)


def test_groups_have_their_own_rate():
    loss = pcd()
    first, *rest = loss.parameters()
    loss.parameter_groups = lambda: [{"params": rest}, {"params": [first], "lr": 0.0}]
    before = [first.clone(), rest[0].clone()]
    quiet(loss, data(), steps=2, optimizer="sgd", lr=0.1)
    assert torch.equal(before[0], first)
    assert not torch.equal(before[1], rest[0])


class Mean(ebmcore.BaseLoss):
    """The mean of an energy; counts its calls and the numbers that they draw."""

    def __init__(self, energy):
        super().__init__()
        self.energy, self.drawn, self.steps = energy, [], []

    def forward(self, x):
        self.steps.append(self.step)
        self.drawn.append((torch.rand(()).item(), torch.rand((), generator=self.generator).item()))
        value = self.energy(x).mean()
        self.metrics = {"size": torch.tensor(float(len(x)))}
        return value


def test_accumulated_gradient_is_the_mean():
    small, large = Mean(Quadratic((2,), 2.0)), Mean(Quadratic((2,), 2.0))
    options = {"optimizer": "sgd", "lr": 0.1}
    quiet(small, data(), steps=2, batch_size=10, accumulate=5, **options)
    quiet(large, data(), steps=2, batch_size=50, **options)
    assert len(small.drawn) == 10
    torch.testing.assert_close(small.energy.state_dict(), large.energy.state_dict())


def test_micro_batches_draw_other_numbers():
    plain, accumulated = Mean(Quadratic((2,))), Mean(Quadratic((2,)))
    quiet(plain, data(), steps=2)
    quiet(accumulated, data(), steps=2, accumulate=3)
    assert accumulated.drawn[::3] == plain.drawn
    assert len(set(accumulated.drawn)) == 6
    assert accumulated.steps == [0, 0, 0, 1, 1, 1]
    assert accumulated.step == 2


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_trainings_are_one(accumulate):
    """A second call continues the streams and the order of the data: with SGD, which keeps nothing, both end alike."""
    options = {"optimizer": "sgd", "lr": 0.01, "accumulate": accumulate, "batch_size": 30}
    once, twice = Mean(Quadratic((2,), 2.0)), Mean(Quadratic((2,), 2.0))
    quiet(once, data(), steps=6, **options)
    for _ in range(3):
        quiet(twice, data(), steps=2, **options)
    assert twice.steps == once.steps
    assert twice.drawn == once.drawn
    assert same_state(twice, once)


def test_second_run_resumes_with_its_streams(tmp_path):
    """A run of a loss that was trained before resumes as if it had not been stopped, and its own steps count from 0."""

    def trained_before():
        loss = pcd()
        quiet(loss, data(), steps=5)
        return loss

    whole, stopped = trained_before(), trained_before()
    quiet(whole, data(), steps=8, schedules={"optimizer.lr": "linear(end=0)"})
    quiet(stopped, data(), steps=8, out=tmp_path, checkpoint_every=4, schedules={"optimizer.lr": "linear(end=0)"})
    shutil.rmtree(latest_checkpoint(tmp_path / "checkpoints"))
    resumed = pcd()
    result = quiet(resumed, data(), steps=8, out=tmp_path, resume=True, schedules={"optimizer.lr": "linear(end=0)"})
    assert (result.step, resumed.step) == (8, 13)
    assert same_state(whole, resumed)


def test_accumulated_metrics_are_means():
    sizes = []

    class Watch(BaseObserver):
        def on_log(self, run, metrics):
            sizes.append(metrics["size"])

    quiet(Mean(Quadratic((2,))), data(20), steps=1, batch_size=16, accumulate=2, observers=[Watch()])
    assert sizes == [(16 + 4) / 2]


def test_accumulated_run_resumes_bit_for_bit(tmp_path):
    whole, resumed = pcd(), pcd(seed=5)
    quiet(whole, data(), steps=9, accumulate=3)
    quiet(pcd(), data(), steps=4, accumulate=3, out=tmp_path)
    quiet(resumed, data(), steps=9, accumulate=3, out=tmp_path, resume=True)
    assert same_state(whole, resumed)


def test_ranks_synchronise_once_a_step(monkeypatch):
    events, loss = [], Mean(Quadratic((2,)))

    @contextmanager
    def recorded(self, module):
        events.append("alone")
        yield
        events.append(len(loss.drawn))

    monkeypatch.setattr(Fabric, "no_backward_sync", recorded)
    quiet(loss, data(), steps=2, accumulate=3)
    assert events == ["alone", 1, "alone", 2, "alone", 4, "alone", 5]


def test_epochs_count_optimizer_steps():
    loss = ebmcore.create_loss("cd", Quadratic((2,)), Identity())
    assert quiet(loss, data(100), epochs=2, batch_size=10, accumulate=4).step == 5


def test_accumulate_must_be_positive():
    with pytest.raises(UsageError, match="accumulate must be at least 1"):
        quiet(pcd(), data(), steps=1, accumulate=0)

"""What fit asks of a loss, its data and its labels, and what observers see."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_runs import data, pcd, quiet, same_state
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import ebmcore
from ebmcore.errors import UsageError
from ebmcore.testing import Identity, Quadratic
from ebmcore.training import BaseObserver


class Labelled:
    """A data set of ten examples in three classes."""

    state_space = "continuous"
    shape = (2,)
    n_classes = 3

    def __init__(self, labels):
        self.train, self.test = data(10), data(10)
        self.train_labels = self.test_labels = labels


LABELS = torch.arange(10) % 3


class Conditional(Quadratic):
    def forward(self, x, label):
        return super().forward(x - label[:, None])


class Noted(ebmcore.BaseLoss):
    """Keeps the arguments of its last call."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x, *args, **kwargs):
        self.got = (x, args, kwargs)
        return self.energy(x).mean()


class Targets(Noted):
    labels = "targets"


class Unlabelled(Noted):
    labels = None


def rows_of(x):
    """Which of the ten examples stand in a batch."""
    return [int((data(10) == row).all(1).nonzero()) for row in x]


def test_targets_never_reach_the_energy():
    loss = Targets(Quadratic((2,)))
    quiet(loss, Labelled(LABELS), steps=1)
    x, (labels,), named = loss.got
    assert torch.equal(labels, LABELS[rows_of(x)])
    assert named == {}


def test_named_labels_reach_the_loss():
    loss = Targets(Quadratic((2,)))
    quiet(loss, Labelled({"label": LABELS, "style": -LABELS}), steps=1)
    x, args, named = loss.got
    assert args == ()
    assert torch.equal(named["style"], -LABELS[rows_of(x)])


def test_unlabelled_loss_gets_examples_alone():
    for examples in (Labelled(LABELS), TensorDataset(data(10), LABELS)):
        loss = Unlabelled(Quadratic((2,)))
        quiet(loss, examples, steps=1)
        assert loss.got[1:] == ((), {})


def test_labels_reach_conditional_energies():
    loss = ebmcore.create_loss("pcd", Conditional((2,)), Identity(), n_chains=20)
    quiet(loss, Labelled(LABELS), steps=2)
    assert set(loss.state_dict()["chains.conditions.0"].tolist()) <= {0, 1, 2}


def test_labels_stay_where_nobody_takes_them():
    loss = Noted(Quadratic((2,)))
    quiet(loss, Labelled(LABELS), steps=1)
    assert loss.got[1:] == ((), {})


def test_number_of_labels_is_checked():
    with pytest.raises(UsageError, match="the data have 10 examples but 9 labels"):
        quiet(Targets(Quadratic((2,))), Labelled(LABELS[:9]), steps=1)


def test_items_may_have_named_conditions():
    class Named(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.zeros(2), {"label": i}

    loss = Targets(Quadratic((2,)))
    quiet(loss, Named(), steps=1)
    assert sorted(loss.got[2]["label"].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("sampler", [Identity(), None])
def test_loss_of_another_state_space_is_refused(sampler):
    class Binary(Noted):
        state_space = "binary"

    with pytest.raises(UsageError, match="the loss Binary is for binary data, but Labelled is continuous"):
        quiet(Binary(Quadratic((2,))), Labelled(LABELS), steps=1)


def test_space_of_the_instance_counts():
    """A loss may set its state space in its constructor, and is then held to that one."""
    loss = Noted(Quadratic((2,)))
    loss.state_space = "binary"
    with pytest.raises(UsageError, match="the loss Noted is for binary data, but Labelled is continuous"):
        quiet(loss, Labelled(LABELS), steps=1)


class Built(Noted):
    """A loss with a second part, whose shape comes from the data."""

    def build(self, shape):
        self.extra = nn.Linear(shape[0], 1)

    def forward(self, x):
        return (self.energy(x) + self.extra(x)[:, 0]).square().mean()


def test_loss_is_built_once_and_trained():
    loss = Built(Quadratic((2,)))
    quiet(loss, data(), steps=1, seed=4)
    assert loss.built
    first = loss.extra
    quiet(loss, data(), steps=1)
    assert loss.extra is first
    torch.rand(3)
    again = Built(Quadratic((2,)))
    quiet(again, data(), steps=1, seed=4)
    quiet(again, data(), steps=1)
    assert same_state(loss, again)


def test_building_leaves_the_global_generator():
    before = torch.get_rng_state()
    quiet(Built(Quadratic((2,))), data(), steps=1)
    assert torch.equal(before, torch.get_rng_state())


def test_score_matching_trains_with_compile():
    from correct_losses import ScoreMatching

    plain, compiled = (ScoreMatching(Quadratic((2,), 2.0)) for _ in range(2))
    quiet(plain, data(), steps=3)
    quiet(compiled, data(), steps=3, compile=True)
    assert same_state(plain, compiled)


class Diary(BaseObserver):
    """Keeps each event and the run that it came with."""

    def __init__(self):
        self.events = []

    def on_start(self, run):
        self.events.append(("start", run))

    def on_log(self, run, metrics):
        self.events.append(("log", run))

    def on_checkpoint(self, run, path):
        self.events.append(("checkpoint", run))

    def on_end(self, run):
        self.events.append(("end", run))


def test_observers_see_the_run(tmp_path):
    diary, loss, x = Diary(), pcd(), data()
    result = quiet(loss, x, steps=4, log_every=2, ema_decay=0.5, out=tmp_path, observers=[diary])
    assert [(event, run.step) for event, run in diary.events] == [
        ("start", 0),
        ("log", 2),
        ("log", 4),
        ("checkpoint", 4),
        ("end", 4),
    ]
    for _, run in diary.events:
        assert (run.loss, run.energy, run.data, run.sampler) == (loss, result.energy, x, loss.sampler)
        assert (run.n_steps, run.rank, run.directory) == (4, 0, tmp_path)
        assert (run.config["batch_size"], run.config["optimizer"], run.config["out"]) == (16, "adam", str(tmp_path))
        with pytest.raises(dataclasses.FrozenInstanceError):
            run.step = 3


def test_configuration_can_be_given():
    diary = Diary()
    quiet(pcd(), data(), steps=1, observers=[diary], config={"mine": 1})
    assert all(run.config == {"mine": 1} for _, run in diary.events)


def test_configuration_is_plain_data():
    diary = Diary()
    quiet(pcd(), data(), steps=1, observers=[diary], optimizer=torch.optim.Adam, measure=lambda energy: {})
    config = diary.events[0][1].config
    assert not {"optimizer", "measure", "observers"} & config.keys()
    assert config["lr"] == 1e-2


def test_sampler_is_given_where_it_is_needed():
    energy = Quadratic((2,))
    with pytest.raises(UsageError, match="the loss 'score-matching' takes no sampler: leave it out"):
        ebmcore.create_loss("score-matching", energy, Identity())
    with pytest.raises(UsageError, match="the loss 'pcd' needs a sampler: give one after the energy"):
        ebmcore.create_loss("pcd", energy)

"""Pictures of samples."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from matplotlib.image import imread
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ebm_plugin_observers.sample_grid import SampleGrid, _grid
from ebmcore import BaseSampler
from ebmcore.errors import PluginError
from ebmcore.losses import BaseLoss
from ebmcore.testing import Quadratic
from ebmcore.training import fit


def pictures(out):
    return sorted(path.name for path in (out / "samples").iterdir())


@pytest.mark.parametrize("shape", [(2,), (4, 4), (1, 4, 4), (3, 4, 4)])
def test_pictures_come_at_the_interval(train, tmp_path, shape):
    """One at the first logged step from each multiple of the interval on."""
    train(SampleGrid(every=4, n=5, n_steps=2), shape=shape, steps=12, log_every=3, out=tmp_path / "run")
    assert pictures(tmp_path / "run") == ["step-00000006.png", "step-00000009.png", "step-00000012.png"]
    assert imread(tmp_path / "run/samples/step-00000006.png").shape[2] >= 3


def test_images_stand_row_by_row():
    """Three white images of 300 pixels, the second of which is black, in a grid of two columns with grey lines."""
    images = torch.ones(3, 1, 300, 300)
    images[1] = 0
    grid = _grid(images)
    assert grid.shape == (602, 602, 3)
    assert [int(grid[row, column, 0]) for row, column in ((0, 0), (0, 301), (301, 0), (301, 301))] == [255, 0, 255, 128]
    assert (grid[300] == 128).all()


def test_tensorboard_gets_the_pictures(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(SampleGrid(every=2, n=4, n_steps=1), shape=(4, 4), steps=4, out=tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("samples")] == [2, 4]
    assert len(events.Scalars("loss")) == 4


def test_training_is_the_same_with_pictures(train, tmp_path):
    """Bit for bit."""
    plain = train(steps=6)
    watched = train(SampleGrid(every=1, n=4, n_steps=3), steps=6, out=tmp_path / "run")
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_samples_are_of_the_energy(train, tmp_path):
    """The sampler's own law: with an exact sampler, the standard normal of the untrained energy."""

    kept = Kept(every=1, n=4000, n_steps=1)
    train(kept, steps=1, lr=1e-9, out=tmp_path / "run")
    assert abs(kept.x.var() - 1) < 0.05
    assert abs(kept.x.mean()) < 0.05


class Labelled(nn.Module):
    """An energy equal to the label."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        return y + 0 * self.scale * x.sum(1)


class Named(Labelled):
    def forward(self, x, *, y):
        return super().forward(x, y)


class ToEnergy(BaseSampler):
    """Moves each chain to its energy."""

    def step(self, energy, state, *, generator=None):
        return replace(state, x=energy(state.x)[:, None].expand_as(state.x)), {}


X, Y = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 5
LABELLED = TensorDataset(X, Y)
ITEMS = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]
SOURCE = SimpleNamespace(train=X, test=X, shape=(2,), state_space="continuous", train_labels=Y, test_labels=Y, n_classes=5)


class Plain(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i]


class Dictionaries(Dataset):
    def __len__(self):
        return len(ITEMS)

    def __getitem__(self, i):
        return ITEMS[i]


class Kept(SampleGrid):
    def _draw(self, run):
        self.x = super()._draw(run)
        return self.x


@pytest.mark.parametrize("data", [X.numpy(), DataLoader(X, 8), Plain()])
def test_data_may_be_of_any_kind(train, tmp_path, data):
    train(SampleGrid(every=1, n=4, n_steps=1), data=data, steps=1, out=tmp_path / "run")
    assert pictures(tmp_path / "run") == ["step-00000001.png"]


@pytest.mark.parametrize(
    ("data", "energy"),
    [
        (LABELLED, Labelled()),
        (DataLoader(LABELLED, 12), Labelled()),
        (SOURCE, Labelled()),
        (Dictionaries(), Named()),
        (DataLoader(Dictionaries(), 12), Named()),
    ],
)
def test_samples_have_the_labels_of_examples(train, tmp_path, data, energy):
    """Of the first examples in turn; a ``Dataset`` has its own order in the first batch."""
    kept = Kept(every=1, n=24, n_steps=1)
    train(kept, data=data, energy=energy, sampler=ToEnergy(), steps=1, out=tmp_path / "run", batch_size=12)
    labels = kept.x[:, 0].long()
    assert labels[:12].sort().values.tolist() == Y.sort().values.tolist()
    assert torch.equal(labels[12:], labels[:12])


def test_other_shapes_are_refused(train):
    with pytest.raises(PluginError, match=r"draws images .* not examples of shape \(5,\): leave it out"):
        train(SampleGrid(), shape=(5,), steps=1)


def test_loss_without_a_sampler_is_refused():
    class Mean(BaseLoss):
        needs_sampler = False

        def __init__(self):
            super().__init__()
            self.energy = Quadratic((2,))

        def forward(self, x):
            return self.energies(x).mean()

    with pytest.raises(PluginError, match="this loss has none: leave it out"):
        fit(Mean(), torch.zeros(4, 2), steps=1, progress=False, accelerator="cpu", observers=[SampleGrid()])


@pytest.mark.parametrize("name", ["every", "n", "n_steps"])
def test_impossible_options_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SampleGrid(**{name: 0})

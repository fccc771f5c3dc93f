"""What a run takes from its data before the first step: initial parameters, and whether chains can reach the data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from commands import ebmcore as command
from commands import tensors
from small_runs import quiet, same_state
from torch.utils.data import Dataset

import ebmcore
from ebmcore import BaseLoss
from ebmcore.errors import CheckpointError, UsageError
from ebmcore.testing import Quadratic
from ebmcore.training.batches import Reading
from ebmcore.training.opening import open_examples

BITS = (torch.rand(60, 4, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.1, 0.4, 0.6, 0.9])).float()
LOG_ODDS = (BITS.sum(0) + 1).log() - (61 - BITS.sum(0)).log()


class Lazy(Dataset):
    """Examples that are read one by one."""

    def __init__(self, x):
        self.x, self.n_read = x, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        self.n_read += 1
        return self.x[row]


def cd(visible_bias="data"):
    torch.manual_seed(0)
    energy = ebmcore.create_energy("rbm", (4,), hidden=2, visible_bias=visible_bias)
    return ebmcore.create_loss("cd", energy, ebmcore.create_sampler("gibbs"))


def still(loss, x, **options):
    """Trains without changing a parameter."""
    quiet(loss, x, **({"steps": 1, "optimizer": "sgd", "lr": 1e-12} | options))
    return loss.energy.visible_bias.detach()


@pytest.mark.parametrize("examples", [BITS, Lazy(BITS), torch.utils.data.TensorDataset(BITS)])
def test_biases_start_from_all_examples(examples):
    torch.testing.assert_close(still(cd(), examples), LOG_ODDS)


def test_all_examples_are_read_once():
    lazy = Lazy(torch.arange(60.0).view(60, 1))
    assert torch.equal(open_examples(lazy, cd(), Reading(batch_size=7)).whole().args[0], lazy.x)
    assert lazy.n_read == 60


def test_sample_weights_count():
    weights = (BITS[:, 0] == 1).float()
    data = SimpleNamespace(train=BITS, test=BITS, shape=(4,), state_space="binary", train_weights=weights)
    bias, n = still(cd(), data), weights.sum()
    torch.testing.assert_close(bias[0], (n + 1).log())


def test_other_biases_read_no_data():
    data = Lazy(BITS)
    assert still(cd("zero"), data, batch_size=10).abs().max() < 1e-9
    assert data.n_read < 60


def test_later_fit_keeps_the_biases():
    """A second run of the same energy, also in another loss, does not set them again."""
    loss = cd()
    quiet(loss, BITS, steps=5)
    moved = loss.energy.visible_bias.detach().clone()
    assert torch.equal(still(loss, BITS), moved)
    other = ebmcore.create_loss("cd", loss.energy, loss.sampler)
    assert torch.equal(still(other, BITS), moved)


def test_resumed_run_keeps_the_biases(tmp_path):
    """A run that stopped after 3 steps and was resumed ends bit for bit as one that did not."""
    whole, first, resumed = cd(), cd(), cd()
    quiet(whole, BITS, steps=6)
    quiet(first, BITS, steps=3, out=tmp_path / "run")
    quiet(resumed, BITS, steps=6, out=tmp_path / "run", resume=True)
    assert same_state(whole, resumed)
    assert not whole.energy.awaits_data


def test_loss_starts_from_the_data():
    """A loss that asks for the data gets all of them with their weights, once, after `build`."""

    class Centred(BaseLoss):
        weighted = awaits_data = True

        def __init__(self, energy):
            super().__init__()
            self.energy = energy
            self.calls = []

        def build(self, shape):
            self.calls.append("build")

        def start_from_data(self, x, weights=None):
            self.calls.append((x, weights))
            self.awaits_data = False

        def forward(self, x):
            return self.energies(x).mean()

    loss, weights = Centred(Quadratic((4,))), torch.arange(60.0)
    for _ in range(2):
        quiet(loss, BITS, steps=1, weights=weights)
    assert len(loss.calls) == 2
    assert torch.equal(loss.calls[1][0], BITS)
    torch.testing.assert_close(loss.calls[1][1], weights / weights.mean())


def test_average_starts_from_the_data():
    loss = cd()
    average = quiet(loss, BITS, steps=1, optimizer="sgd", lr=1e-12, ema_decay=0.9).energy
    torch.testing.assert_close(average.visible_bias.detach(), LOG_ODDS)


def test_command_line_starts_from_the_data(tmp_path):
    options = "--energy rbm --energy.hidden 2 --energy.visible_bias data --sampler gibbs --loss cd --data bars-and-stripes"
    out = tmp_path / "run"
    slow = "--optimizer sgd --schedules.optimizer.lr constant(1e-9) --progress false"
    assert command(f"train {options} {slow} --steps 1 --out {out}") == 0
    x = ebmcore.create_dataset("bars-and-stripes").train
    counts = x.flatten(1).sum(0)
    expected = (counts + 1).log() - (len(x) - counts + 1).log()
    torch.testing.assert_close(tensors(out)["loss.energy.visible_bias"], expected, atol=1e-6, rtol=0)
    assert not tensors(out)["loss.energy.bias_awaits_data"]


@pytest.mark.parametrize("examples", [BITS + 3, Lazy(BITS + 3), torch.utils.data.TensorDataset(BITS + 3)])
@pytest.mark.parametrize("name", ["langevin", "mala"])
def test_data_beyond_the_bounds_are_refused(name, examples):
    """Chains could never reach them: one line before the first step."""
    sampler = ebmcore.create_sampler(name, step_size=0.1, bounds=(-1.0, 3.0))
    loss = ebmcore.create_loss("cd", Quadratic((4,)), sampler)
    message = r"go from 3 to 4, but the sampler keeps its chains in the bounds \(-1.0, 3.0\)"
    with pytest.raises(UsageError, match=message):
        quiet(loss, examples, steps=1)


def test_resumed_run_keeps_the_bounds(tmp_path):
    """A run is resumed with its own bounds only."""

    def loss(bounds):
        return ebmcore.create_loss("cd", Quadratic((4,)), ebmcore.create_sampler("langevin", step_size=0.1, bounds=bounds))

    quiet(loss((0.0, 1.0)), BITS, steps=1, out=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"sampler.bounds=\[0.0, 1.0\], not \[0.0, 2.0\]"):
        quiet(loss((0.0, 2.0)), BITS, steps=2, out=tmp_path / "run", resume=True)
    assert quiet(loss((0.0, 1.0)), BITS, steps=2, out=tmp_path / "run", resume=True).step == 2


def test_data_at_the_bounds_are_trained():
    x = torch.tensor([[-0.3, 0.3]]).repeat(16, 1)  # beyond them by rounding, in float32
    sampler = ebmcore.create_sampler("langevin", step_size=0.1, bounds=(-0.3, 0.3))
    assert quiet(ebmcore.create_loss("cd", Quadratic((2,)), sampler), x, steps=1).step == 1


def test_data_within_a_ladder_of_bounded_chains():
    """The bounds of a ladder are those of its inner sampler."""
    inner = ebmcore.create_sampler("mala", step_size=0.1, bounds=(-1.0, 1.0))
    with pytest.raises(UsageError, match=r"the sampler keeps its chains in the bounds \(-1.0, 1.0\)"):
        quiet(ebmcore.create_loss("ptcd", Quadratic((4,)), inner, n_rungs=2), BITS + 3, steps=1)

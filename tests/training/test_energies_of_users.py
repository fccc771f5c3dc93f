"""Energies of all kinds that a plain loop trains: they train in fit, and are measured, averaged and resumed."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from small_runs import data, quiet, same_state
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import ebmcore
from ebmcore.errors import UsageError
from ebmcore.training import copy_energy

DATA = SimpleNamespace(train=data(), test=data(20), shape=(2,), state_space="continuous")


class Net(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        return self.net(x).squeeze(-1)


class SquaredScore(Net):
    """Takes a gradient of its own."""

    def forward(self, x):
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        (score,) = torch.autograd.grad(super().forward(x).sum(), x, create_graph=True)
        return score.square().sum(1)


class Caching(Net):
    """Keeps results of its last forward, in a list within a mapping too."""

    def forward(self, x):
        y = super().forward(x)
        self.last, self.history = y, {"all": [(y, "text")]}
        return y


def compiled():
    return torch.compile(Net(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)), backend="eager")


def tied():
    layer = nn.Linear(2, 2)
    return Net(layer, nn.SiLU(), layer, nn.Linear(2, 1))


KINDS = {
    "spectral norm": lambda: Net(parametrizations.spectral_norm(nn.Linear(2, 8)), nn.SiLU(), nn.Linear(8, 1)),
    "old spectral norm": lambda: Net(spectral_norm(nn.Linear(2, 8)), nn.SiLU(), spectral_norm(nn.Linear(8, 1))),
    "weight norm": lambda: Net(parametrizations.weight_norm(nn.Linear(2, 8)), nn.SiLU(), nn.Linear(8, 1)),
    "old weight norm": lambda: Net(weight_norm(nn.Linear(2, 8)), nn.SiLU(), weight_norm(nn.Linear(8, 1))),
    "lazy": lambda: Net(nn.LazyLinear(8), nn.SiLU(), nn.LazyLinear(1)),
    "gradient inside": lambda: SquaredScore(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1)),
    "caching": lambda: Caching(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)),
    "compiled": compiled,
    "batch norm": lambda: Net(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 1)),
    "dropout": lambda: Net(nn.Linear(2, 8), nn.Dropout(), nn.SiLU(), nn.Linear(8, 1)),
    "tied": tied,
}
LOSSES = {"cd": {}, "pcd": {"n_chains": 20}, "ptcd": {"n_chains": 20}}


def make(kind, loss):
    torch.manual_seed(0)
    return ebmcore.create_loss(loss, KINDS[kind](), ebmcore.create_sampler("langevin", step_size=0.01), **LOSSES[loss])


def measure(energy):
    metric = ebmcore.create_metric("grid-ll", grid_points=40, n_bootstrap=10)
    found = metric(energy, DATA, generator=torch.Generator().manual_seed(0))
    return {name: value for name, value in found.items() if not isinstance(value, str)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings(
    "ignore:.*of the mass lies on the rim", "ignore:.*weight_norm.*deprecated", "ignore:Lazy modules"
)
def test_it_trains_and_resumes(kind, loss, tmp_path):
    """A run that is measured and averaged ends as one that was stopped in between, bit for bit."""
    options = {"measure": measure, "measure_every": 3, "ema_decay": 0.9}
    whole, stopped, resumed = make(kind, loss), make(kind, loss), make(kind, loss)
    ends = quiet(whole, DATA, steps=6, **options)
    quiet(stopped, DATA, steps=3, out=tmp_path, **options)
    again = quiet(resumed, DATA, steps=6, out=tmp_path, resume=True, **options)
    assert same_state(whole, resumed)
    assert same_state(ends.energy, again.energy)
    assert ends.metrics == again.metrics
    assert measure(whole.energy) == measure(resumed.energy)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated", "ignore:Lazy modules")
@pytest.mark.parametrize("kind", KINDS)
def test_copy_shares_nothing(kind):
    """A copy gives the same energies, and other ones after a change of what it was made from."""
    energy, x = KINDS[kind](), data(10)
    energy(x)
    energy.eval()
    copied, before = copy_energy(energy), energy(x).detach()
    assert torch.equal(copied(x), before)
    with torch.no_grad():
        for tensor in (*energy.parameters(), *energy.buffers()):
            tensor.add_(1)
    assert torch.equal(copied(x), before)


class Helper:
    """An object of a user beside a lock, with a tensor and a way back to the energy."""

    def __init__(self, owner):
        self.owner, self.back, self.shift = [owner], owner.forward, torch.zeros(2)
        self.lock = threading.Lock()


HELD = {
    "lock": lambda _: threading.Lock(),
    "generator": lambda _: (i for i in range(3)),
    "file": lambda _: {"log": [sys.stderr]},
    "object": Helper,
    "result": lambda energy: SimpleNamespace(last=energy(torch.ones(1, 2))),
}


@pytest.mark.parametrize("kind", HELD)
def test_what_cannot_be_copied_is_shared(kind):
    """The energy beside it is averaged: no parameter of the average is one of the trained energy."""
    energy = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    energy[0].held = HELD[kind](energy)
    loss = ebmcore.create_loss("cd", energy, ebmcore.create_sampler("langevin", step_size=0.01))
    average = quiet(loss, DATA, steps=2, ema_decay=0.9).energy
    assert not torch.equal(average[0].weight, energy[0].weight)


def test_copy_shares_the_smallest_object():
    """What lies beside a lock is copied, and refers to the copy."""
    energy = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    energy.held = Helper(energy)
    copied = copy_energy(energy)
    assert copied.held.lock is energy.held.lock
    assert copied.held.shift is not energy.held.shift
    assert copied.held.owner[0] is copied
    assert copied.held.back.__self__ is copied


def test_module_that_refuses_a_copy_is_named():
    """Before the first step where an average is kept; without one the energy trains."""

    class Alone(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is one")

    loss = ebmcore.create_loss(
        "cd", nn.Sequential(Alone(2, 1), nn.Flatten(0)), ebmcore.create_sampler("langevin", step_size=0.01)
    )
    with pytest.raises(UsageError, match=r"^the energy Sequential cannot be copied \(TypeError: there is one\)"):
        quiet(loss, DATA, steps=1, ema_decay=0.9)
    assert quiet(loss, DATA, steps=1).step == 1


def test_average_has_spectral_norms_of_its_own():
    """The older form of spectral norms too is that of the averaged weights."""
    result = quiet(make("old spectral norm", "cd"), DATA, steps=30, lr=0.3, ema_decay=0.8)
    result.energy.eval()
    for layer in (result.energy.net[0], result.energy.net[2]):
        layer(torch.zeros(1, layer.in_features))
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=1e-4)


def test_batch_statistics_of_halves_are_refused():
    """Data and negatives in two forwards would have energies of two functions under batch normalisation."""
    energy = KINDS["batch norm"]()
    loss = ebmcore.create_loss("cd", energy, ebmcore.create_sampler("langevin", step_size=0.01), joint_forward=False)
    for call in (lambda: quiet(loss, DATA, steps=1), lambda: loss(data(10)), lambda: loss.compute_loss(data(10), data(10))):
        energy.train()
        with pytest.raises(UsageError, match="joint_forward=False gives data and negatives other batch statistics"):
            call()
    energy.eval()  # of fixed statistics
    loss.compute_loss(data(10), data(10))


class Centered(nn.Module):
    """A layer that subtracts the mean of the batch, in training."""

    def forward(self, x):
        return x - x.mean(0) if self.training else x


class Functional(nn.Module):
    """Batch normalisation by a function."""

    def forward(self, x):
        return nn.functional.batch_norm(x, torch.zeros(8), torch.ones(8), training=self.training)


class Noisy(Functional):
    """The same, and a random mask by a function."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.1, self.training)


class Spread(nn.Module):
    """A feature of the spread of the batch beside those of an example."""

    def forward(self, x):
        return torch.cat([x[:, :7], x.std(0).mean().expand(len(x), 1)], 1) if self.training else x


def halves(layer):
    langevin = ebmcore.create_sampler("langevin", step_size=0.01)
    energy = Net(nn.Linear(2, 8), layer, nn.SiLU(), nn.Linear(8, 1))
    return ebmcore.create_loss("cd", energy, langevin, joint_forward=False)


@pytest.mark.parametrize("batch_size", [3, 16])
@pytest.mark.parametrize("layer", [Centered(), Functional(), Noisy(), Spread()], ids=lambda layer: type(layer).__name__)
def test_energies_that_depend_on_the_batch_are_refused(layer, batch_size):
    """Whatever computes the statistics, where data and negatives have other ones; a wide term hides nothing."""
    layer.train()
    loss = halves(layer)
    inner = loss.energy.forward
    loss.energy.forward = lambda x: inner(x) + (20 * x).square().sum(1)
    with pytest.raises(UsageError, match="joint_forward=False gives .* energies of Net depend in training"):
        quiet(loss, DATA, steps=1, batch_size=batch_size)
    layer.eval()
    assert quiet(halves(layer), DATA, steps=1, batch_size=batch_size).step == 1


@pytest.mark.parametrize("layer", [nn.Identity(), nn.Dropout(), nn.LayerNorm(8), nn.utils.parametrizations.spectral_norm])
def test_energies_of_single_examples_pass(layer):
    """Those of random masks and of layers that training changes too."""
    layer = layer(nn.Linear(8, 8)) if not isinstance(layer, nn.Module) else layer
    assert quiet(halves(layer), DATA, steps=1).step == 1


@pytest.mark.parametrize("joint", [True, False])
def test_running_statistics_of_instances_are_refused(joint):
    """Chains would follow an energy of running statistics, and gradients one of those of each example."""
    layers = nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.SiLU(), nn.Flatten(), nn.Linear(16, 1)
    langevin, x = ebmcore.create_sampler("langevin", step_size=0.01), torch.randn(20, 1, 4, 4)
    loss = ebmcore.create_loss("cd", Net(*layers), langevin, joint_forward=joint)
    with pytest.raises(UsageError, match=r"net.1 \(InstanceNorm2d\) normalises by the statistics of an example in training"):
        quiet(loss, x, steps=1)
    loss.energy.net[1].eval()
    assert quiet(loss, x, steps=1).step == 1

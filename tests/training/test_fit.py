"""The fit loop, its streams, its files."""

from __future__ import annotations

import math

import pytest
import torch
from small_runs import data, pcd, quiet, same_state
from torch.utils.data import TensorDataset

import ebmcore
from ebmcore import BaseLoss
from ebmcore.errors import DivergenceError, EbmcoreError, UsageError
from ebmcore.testing import Identity, Quadratic
from ebmcore.training import BaseObserver, latest_checkpoint, read_checkpoint, stream_seed


def test_streams_are_functions_of_all_their_names():
    arguments = [(s, n, t, r) for s in (0, 1) for n in ("init", "data") for t in (0, 1) for r in (0, 1)]
    seeds = {stream_seed(*a) for a in arguments}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_conditions_of_a_dataset_reach_the_loss():
    class Labelled(Quadratic):
        def forward(self, x, label):
            return super().forward(x - label[:, None])

    loss = ebmcore.create_loss("cd", Labelled(), Identity())
    quiet(loss, TensorDataset(data(), torch.zeros(100)), steps=2)


def test_it_trains():
    loss = ebmcore.create_loss("cd", Quadratic((2,), precision=4.0), ebmcore.create_sampler("langevin", step_size=0.05), 20)
    result = quiet(loss, data(1000), epochs=10, lr=0.05, schedules={"optimizer.lr": "linear(end=0)"})
    assert result.step == 10 * math.ceil(1000 / 16)
    assert result.energy is loss.energy
    assert result.energy.precision.item() == pytest.approx(1.0, rel=0.1)


def test_loss_without_energy_trains():
    """A loss without an energy of its own trains too."""

    class Squares(ebmcore.BaseLoss):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (x * self.weight).square().mean()

    loss = Squares()
    quiet(loss, data(), steps=50, lr=0.05)
    assert loss.weight.abs().max() < 0.2


def test_seed_repeats_a_run():
    """A seed repeats a run and another does not."""
    losses = [pcd(), pcd(), pcd()]
    for loss, seed in zip(losses, (0, 0, 1), strict=True):
        torch.rand(3)  # the global generator plays no part
        quiet(loss, data(), steps=20, seed=seed)
    assert same_state(losses[0], losses[1])
    assert not same_state(losses[0], losses[2])


def test_diverging_run_stops(tmp_path):
    """A diverging run stops with step metric and advice and keeps the last good checkpoint."""

    class Bomb(Quadratic):
        def forward(self, x):
            return super().forward(x) * (1 + 0 * self.precision)

    loss = ebmcore.create_loss("cd", Bomb((2,)), Identity())

    class Fuse(BaseObserver):
        def on_log(self, run, metrics):
            if run.step == 15:
                with torch.no_grad():
                    loss.energy.precision.fill_(torch.nan)

    with pytest.raises(DivergenceError, match=r"stopped at step 16: the loss is NaN\. Lower the learning rate"):
        quiet(loss, data(), steps=40, out=tmp_path, checkpoint_every=10, log_every=1, observers=[Fuse()])
    last = latest_checkpoint(tmp_path / "checkpoints")
    assert last.name == "step-00000010"
    assert all(t.isfinite().all() for t in read_checkpoint(last)[0].values())


def test_infinite_parameters_are_never_written(tmp_path):
    """Parameters that are not finite are never written."""
    loss = ebmcore.create_loss("cd", Quadratic((2,)), Identity())

    class Fuse(BaseObserver):
        def on_log(self, run, metrics):
            with torch.no_grad():
                loss.energy.mean[0] = torch.inf

    with pytest.raises(DivergenceError, match="norm of the parameters"):
        quiet(loss, data(), steps=10, out=tmp_path, checkpoint_every=10, log_every=10, observers=[Fuse()])
    assert latest_checkpoint(tmp_path / "checkpoints") is None


def test_infinite_chains_stop_the_run():
    """Chains that all leave the finite numbers stop the run with its step."""
    loss = ebmcore.create_loss("cd", Quadratic((2,), 1e20), ebmcore.create_sampler("langevin", step_size=1.0), 10)
    with pytest.raises(DivergenceError, match="training stopped at step 1: every negative is NaN or infinite"):
        quiet(loss, data(), steps=3)


def test_the_gradient_is_clipped():
    energy = Quadratic((2,), 1.0)
    loss = ebmcore.create_loss("cd", energy, Identity())
    loss.energy_gap = lambda x, pred_x: 1e6 * energy(x).mean()
    before = torch.cat([p.detach().flatten().clone() for p in energy.parameters()])
    quiet(loss, data(), steps=1, clip_grad=0.5, optimizer="sgd", lr=1.0)
    after = torch.cat([p.detach().flatten() for p in energy.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_moving_average_of_parameters():
    """The moving average is that of the parameters."""
    loss, seen = pcd(), []

    class Watch(BaseObserver):
        def on_log(self, run, metrics):
            seen.append(next(loss.energy.parameters()).detach().clone())

    result = quiet(loss, data(), steps=5, ema_decay=0.8, log_every=1, observers=[Watch()])
    expected = seen[0]
    for value in seen[1:]:
        expected = 0.8 * expected + 0.2 * value
    assert result.energy is not loss.energy
    torch.testing.assert_close(next(result.energy.parameters()).detach(), expected)


def test_moving_average_copies_buffers():
    """The moving average takes the buffers as they are."""
    energy = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    energy.register_buffer("right", (torch.arange(5) + 1) % 5)  # indices, whose average is none
    loss = ebmcore.create_loss("cd", energy, Identity())
    quiet(loss, data() + 3, steps=5)
    energy.right = energy.right.flip(0)
    result = quiet(loss, data() + 3, steps=5, ema_decay=0.5)
    for (name, averaged), trained in zip(result.energy.named_buffers(), energy.buffers(), strict=True):
        assert torch.equal(averaged, trained), name


def test_moving_average_keeps_modes():
    """The moving average keeps the modes of the modules."""
    energy = ebmcore.create_energy("mlp", shape=(2,), hidden=(4,), spectral_norm=True)
    energy.add_module("still", torch.nn.BatchNorm1d(2).eval())
    result = quiet(ebmcore.create_loss("cd", energy, Identity()), data(), steps=2, ema_decay=0.5)
    assert [m.training for m in result.energy.modules()] == [m.training for m in energy.modules()]


def test_moving_average_keeps_spectral_norms():
    """The moving average keeps its spectral norms."""
    torch.manual_seed(0)
    energy = ebmcore.create_energy("mlp", shape=(2,), hidden=(16, 16), spectral_norm=True)
    loss = ebmcore.create_loss("pcd", energy, ebmcore.create_sampler("langevin", step_size=0.05), n_chains=64)
    averaged = quiet(loss, 2 * data(), steps=200, ema_decay=0.99).energy.eval()
    norms = [torch.linalg.matrix_norm(m.weight, 2).item() for m in averaged.modules() if isinstance(m, torch.nn.Linear)]
    assert norms == pytest.approx([1, 1, 1], abs=0.03)


def test_dropout_repeats_with_the_seed(tmp_path):
    """Dropout repeats with the seed and leaves the global generator alone."""

    def loss():
        torch.manual_seed(0)
        energy = torch.nn.Sequential(
            torch.nn.Linear(2, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1), torch.nn.Flatten(0)
        )
        return ebmcore.create_loss("cd", energy, ebmcore.create_sampler("langevin", step_size=0.1))

    whole, first, second = loss(), loss(), loss()
    before = torch.get_rng_state()
    quiet(whole, data(), steps=20)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    quiet(first, data(), steps=9, out=tmp_path)
    quiet(second, data(), steps=20, out=tmp_path, resume=True)
    assert same_state(whole, second)


def test_generator_is_put_back():
    """The generator of the loss is its own again afterwards."""
    loss = pcd()
    own = loss.generator = torch.Generator().manual_seed(5)
    quiet(loss, data(), steps=2)
    assert loss.generator is own
    assert own.initial_seed() == 5


def test_generator_is_put_back_after_errors():
    """The generator of the loss is its own again if an observer fails at the start."""

    class Failing(BaseObserver):
        def on_start(self, run):
            raise RuntimeError("no disk")

    loss = pcd()
    loss.generator = own = torch.Generator()
    with pytest.raises(EbmcoreError, match="no disk"):
        quiet(loss, data(), steps=1, observers=[Failing()])
    assert loss.generator is own


def test_values_that_run_away_are_divergence_too():
    loss = ebmcore.create_loss("cd", Quadratic((2,), 1e15), Identity())
    loss.start_chains = lambda x: loss.new_chains(x + 1, {})
    with pytest.raises(DivergenceError, match="training stopped at step 1: the loss"):
        quiet(loss, data(), steps=3, log_every=1)


def test_a_linear_schedule_ends_at_zero():
    rates = []

    def optimizer(parameters):
        made = torch.optim.SGD(parameters, lr=1.0)
        made.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return made

    quiet(pcd(), data(), steps=4, optimizer=optimizer, schedules={"optimizer.lr": "linear(end=0)"})
    assert rates == [1.0, 0.75, 0.5, 0.25]


def test_it_runs_in_double_precision():
    loss = pcd()
    quiet(loss, data(), steps=2, precision="64-true")
    assert loss.dtype == loss.chain.dtype == torch.float64


def test_it_runs_in_mixed_precision():
    quiet(pcd(), data(), steps=2, precision="bf16-mixed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either as epochs or as steps"),
        ({"epochs": 1, "steps": 1}, "either as epochs or as steps"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 1, "optimizer": "adagradd"}, "there is no optimizer 'adagradd', did you mean adagrad"),
        ({"steps": 1, "lr": -1.0}, "lr must be above 0"),
        ({"steps": 1, "accumulate": 0}, "accumulate must be at least 1"),
        ({"steps": 1, "clip_grad": -1.0}, "clip_grad must be above 0"),
        ({"steps": 1, "ema_decay": 2.0}, "ema_decay must be at least 0 and below 1"),
        ({"steps": 1, "batch_size": 0}, "batch_size must be at least 1"),
        ({"steps": 1, "log_every": 0}, "log_every must be at least 1"),
        ({"steps": 1, "checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"steps": 1, "accelerator": "abacus"}, "accelerator='abacus'"),
        ({"steps": 1, "devices": 0}, "devices must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    """An option that cannot work raises an error with advice."""
    with pytest.raises(UsageError, match=message):
        quiet(pcd(), data(), **options)


def test_wrong_shape_is_refused():
    """Data of the wrong shape are an error before the first step."""
    with pytest.raises(UsageError, match=r"MLP cannot take examples of shape \(3,\)"):
        quiet(pcd(), torch.randn(10, 3), steps=1)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_loss_adds_a_condition():
    """Lazy layers are made and the energy is tried under the conditions that the loss adds in ``energies``."""

    class Level(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.LazyLinear(1)

        def forward(self, x, *, level):
            return self.layer(x).squeeze(1) * level

    class Leveled(BaseLoss):
        def __init__(self, energy):
            super().__init__()
            self.energy = energy

        def energies(self, x, *args, **kwargs):
            return super().energies(x, *args, level=torch.ones(len(x)), **kwargs)

        def forward(self, x):
            return self.energies(x).square().mean()

    assert quiet(Leveled(Level()), data(), steps=2).step == 2


def test_no_data_are_an_error():
    with pytest.raises(UsageError, match="at least one example"):
        quiet(pcd(), torch.zeros(0, 2), steps=1)


def test_moving_average_is_measured():
    """What is measured during training is the moving average where there is one."""
    for average in (None, 0.5):
        found, loss = [], pcd()
        result = quiet(
            loss, data(), steps=6, ema_decay=average, measure=lambda e, f=found: f.append(e) or {"a": 1.0}, measure_every=3
        )
        assert len(found) == 2
        assert all(e is result.energy for e in found)
        assert (result.energy is loss.energy) is (average is None)
        assert result.metrics["a"] == 1.0

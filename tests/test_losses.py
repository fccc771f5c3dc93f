"""The base of the contrastive-divergence family: what the conformance kit, run on variants of it, does not say already."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ebmcore import BaseContrastiveDivergence, BasePersistentContrastiveDivergence, BaseSampler, ChainState
from ebmcore.errors import DivergenceError, MissingCapabilityError, UsageError
from ebmcore.testing import Identity, Quadratic


class Data(BaseContrastiveDivergence):
    """Chains start at the data."""

    def forward(self, x, *args, **kwargs):
        pred_x = self.draw_negatives(x, *args, **kwargs)
        return self.compute_loss(x, pred_x, *args, **kwargs), pred_x

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return self.energy_gap(x, pred_x, *args, **kwargs)


class Persistent(BasePersistentContrastiveDivergence):
    """Ten chains persist."""

    forward, compute_loss = Data.forward, Data.compute_loss

    def __init__(self, energy, sampler, k_steps=1, **options):
        super().__init__(energy, sampler, k_steps, n_chains=10, **options)


class Spy(BaseSampler):
    """Notes where chains start, and moves them by one."""

    def __init__(self):
        self.starts = []

    def step(self, energy, state, *, generator=None):
        self.starts.append(state.x)
        return ChainState(state.x + 1), {"acceptance_rate": torch.ones(len(state))}


class Poison(BaseSampler):
    """Sends the first ``n`` chains out of the finite numbers."""

    def __init__(self, n):
        self.n = n

    def step(self, energy, state, *, generator=None):
        x = state.x.clone()
        x[: self.n] = torch.nan
        return ChainState(x), {}


def gradients(module):
    return [p.grad.clone() for p in module.parameters()]


def test_another_energy_can_take_the_place_of_the_first():
    loss = Data(Quadratic((2,)), Identity())
    loss.energy = other = Quadratic((2,), precision=3.0)
    loss(torch.ones(4, 2))[0].backward()
    assert loss.energy is other is dict(loss.named_children())["energy"]
    assert other.precision.grad is not None


def test_negatives_that_were_overwritten_are_looked_at_again():
    loss, x = Data(Quadratic((2,)), Identity()), torch.ones(4, 2)
    _, pred_x = loss(x)
    pred_x[0] = torch.nan
    assert loss.compute_loss(x, pred_x).isfinite()
    assert loss.metrics["quarantined"] == 1


def test_chains_start_at_a_copy_of_the_data():
    sampler, x = Spy(), torch.randn(8, 2)
    before = x.clone()
    _, pred_x = Data(Quadratic(), sampler)(x)
    assert torch.equal(sampler.starts[0], before)
    assert sampler.starts[0].data_ptr() != x.data_ptr()
    assert torch.equal(x, before)
    assert torch.equal(pred_x, before + 1)


def test_the_loss_is_a_scalar_and_the_negatives_are_detached():
    x = torch.randn(8, 2, requires_grad=True)
    loss, pred_x = Data(Quadratic(), Spy())(x)
    assert loss.shape == ()
    assert pred_x.grad_fn is None
    assert not pred_x.requires_grad


@pytest.mark.parametrize("joint_forward", [True, False])
@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_its_gradient_is_the_autograd_identity_in_float64(shape, joint_forward):
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)).double()
    x, pred_x = torch.randn(6, *shape).double(), torch.randn(9, *shape).double()
    Data(energy, Identity(), joint_forward=joint_forward).compute_loss(x, pred_x).backward()
    found = gradients(energy)
    positive = torch.autograd.grad(energy(x).mean(), list(energy.parameters()))
    negative = torch.autograd.grad(energy(pred_x).mean(), list(energy.parameters()))
    for got, p, n in zip(found, positive, negative, strict=True):
        torch.testing.assert_close(got, p - n, atol=1e-10, rtol=0)


def test_data_and_negatives_are_scored_in_the_same_mode():
    class Modes(Quadratic):
        seen = []

        def forward(self, x):
            self.seen.append((self.training, len(x)))
            return super().forward(x)

    for joint, expected in ((True, [(True, 8)]), (False, [(True, 4), (True, 4)])):
        energy = Modes().train()
        energy.seen = []
        Data(energy, Identity(), joint_forward=joint)(torch.zeros(4, 2))
        assert energy.seen == expected


def test_one_forward_for_both_halves_sees_the_same_batch_statistics():
    torch.manual_seed(0)
    energy = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.0), nn.Linear(2, 1), nn.Flatten(0)).train()
    x = torch.randn(16, 2) + 5
    loss, _ = Data(energy, Identity())(x)
    assert loss.abs().item() < 1e-5  # negatives equal to the data: no gap, whatever the statistics
    assert energy[0].num_batches_tracked == 1


def test_it_trains_under_no_grad_negatives_only():
    loss = Data(Quadratic(), Spy())
    with torch.no_grad():
        assert loss.draw_negatives(torch.zeros(2, 2)).shape == (2, 2)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        loss.draw_negatives(torch.zeros(2, 2))


@pytest.mark.parametrize("loss", [Data(Quadratic(), Poison(1)), Persistent(Quadratic(), Poison(1))])
def test_a_lost_chain_has_no_influence_and_is_counted(loss):
    torch.manual_seed(0)
    x = torch.randn(8, 2)
    value, pred_x = loss(x)
    value.backward()
    got = gradients(loss.energy)
    assert pred_x[0].isnan().all()
    assert loss.metrics["quarantined"] == 1
    reference = Data(Quadratic(), Identity())
    reference.compute_loss(x, pred_x[1:]).backward()
    for a, b in zip(got, gradients(reference.energy), strict=True):
        torch.testing.assert_close(a, b)
    assert loss.chain is None or loss.chain.isfinite().all()


def test_all_chains_lost_is_an_error_with_advice():
    with pytest.raises(DivergenceError, match="lower the step size or the learning rate"):
        Data(Quadratic(), Poison(8))(torch.zeros(8, 2))


def test_an_energy_that_raises_in_sampling_raises_and_loses_no_chain():
    class Fuse(Quadratic):
        burnt = False

        def forward(self, x):
            if self.burnt:
                raise ZeroDivisionError("burnt")
            return super().forward(x)

    class Descent(Spy):
        def step(self, energy, state, *, generator=None):
            return ChainState(state.x - energy(state.x)[:, None]), {}

    loss = Persistent(Fuse(), Descent())
    loss(torch.zeros(4, 2))
    before = copy.deepcopy(loss.state_dict())
    loss.energy.burnt = True
    with pytest.raises(ZeroDivisionError, match="burnt"):
        loss(torch.zeros(4, 2))
    assert all(torch.equal(t, loss.state_dict()[name]) for name, t in before.items())
    assert all(p.requires_grad for p in loss.energy.parameters())


def test_the_initial_distribution_is_standard_normal_unless_the_energy_has_one():
    loss = Data(Quadratic((2,)), Identity())
    loss.generator = torch.Generator().manual_seed(0)
    x = loss.initialize_persistent_chain((100_000, 2))
    assert x.mean().item() == pytest.approx(0, abs=0.01)
    assert x.std().item() == pytest.approx(1, abs=0.01)


def test_a_batch_larger_than_the_chains_moves_all_of_them():
    _, pred_x = Persistent(Quadratic(), Identity())(torch.zeros(64, 2))
    assert pred_x.shape == (10, 2)


def test_chains_of_another_shape_are_never_replaced_silently():
    loss = Persistent(Quadratic((2,)), Identity())
    loss(torch.zeros(4, 2))
    with pytest.raises(UsageError, match="the loss holds 10 chains"):
        loss(torch.zeros(4, 3))
    assert len(loss.chain) == 10


def test_each_chain_keeps_its_own_label_and_is_scored_under_it():
    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5))

        def forward(self, x, label):
            return self.weight[label] + 0 * x.sum(1)

    loss = Persistent(Labelled(), Identity())
    labels = torch.tensor([0, 1, 2, 3, 4])
    loss(torch.zeros(5, 2), labels)
    before = sorted(loss.chains.conditions["0"].tolist())
    assert before == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    tagged = {int(i): int(c) for i, c in zip(loss.chains.ids, loss.chains.conditions["0"], strict=True)}
    torch.manual_seed(0)
    for _ in range(20):
        loss.energy.zero_grad()
        value, _ = loss(torch.zeros(4, 2), torch.zeros(4).long())
        value.backward()
        drawn = loss.negatives.conditions["0"]
        expected = torch.zeros(5).index_add_(0, drawn, torch.full((4,), -0.25))
        expected[0] += 1
        torch.testing.assert_close(loss.energy.weight.grad, expected)
    assert {int(i): int(c) for i, c in zip(loss.chains.ids, loss.chains.conditions["0"], strict=True)} == tagged


def test_equal_negatives_have_equal_labels():
    class Labelled(Quadratic):
        def forward(self, x, label):
            return super().forward(x) * 0 + label

    loss = Persistent(Labelled(), Identity())
    pred_x = loss.draw_negatives(torch.zeros(4, 2), torch.ones(4))
    x, labels = torch.zeros(4, 2), torch.zeros(4)
    for same in (pred_x, pred_x.clone(), pred_x.detach(), pred_x.double().float(), pred_x.flip(0).flip(0)):
        assert loss.compute_loss(x, same, labels).item() == -1.0


def test_negatives_of_another_shape_are_an_error():
    with pytest.raises(UsageError, match=r"one shape, got \(2,\) and \(3,\)"):
        Data(Quadratic(), Identity()).compute_loss(torch.zeros(4, 2), torch.zeros(4, 3))


def test_moving_the_energy_after_the_first_step_moves_the_chains_with_it():
    energy = Quadratic()
    loss = Persistent(energy, Identity())
    loss(torch.zeros(4, 2))
    before = loss.chain.double()
    energy.double()
    value, pred_x = loss(torch.zeros(4, 2).double())
    assert value.dtype == pred_x.dtype == loss.chain.dtype == torch.float64
    assert torch.equal(loss.chain, before)


def test_a_lost_chain_does_not_reach_the_metrics_of_the_sampler():
    class Reporting(Poison):
        def step(self, energy, state, *, generator=None):
            state, _ = super().step(energy, state)
            return state, {"energy": energy(state.x)}

    loss = Data(Quadratic(), Reporting(1))
    loss(torch.ones(4, 2))
    assert loss.metrics["energy"].item() == 1.0


def test_chains_follow_to_the_device_of_the_loss_when_they_are_loaded():
    used = Persistent(Quadratic(), Identity())
    used(torch.zeros(4, 2))
    fresh = Persistent(Quadratic().double(), Identity())
    fresh.load_state_dict(used.state_dict())
    assert fresh.chain.dtype == torch.float64


def test_metrics_are_detached_scalars():
    loss = Data(Quadratic(), Spy())
    loss(torch.zeros(4, 2))
    assert set(loss.metrics) == {"acceptance_rate", "energy_data", "energy_negatives", "energy_gap", "quarantined"}
    assert all(t.shape == () and not t.requires_grad for t in loss.metrics.values())


def test_an_unknown_keyword_is_rejected_with_the_accepted_ones():
    with pytest.raises(TypeError, match=r"'energy_l3'; it accepts: energy, sampler, k_steps, energy_l2, joint_forward"):
        Data(Quadratic(), Identity(), energy_l3=1.0)


def test_means_of_half_precision_energies_are_float32():
    class Half(Quadratic):
        def forward(self, x):
            return super().forward(x).bfloat16()

    energy, x, pred_x = Half(), torch.randn(64, 2), torch.randn(64, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = Data(energy, Identity()).compute_loss(x, pred_x)
    expected = energy(x).float().mean() - energy(pred_x).float().mean()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4), "tensor"),
        (torch.zeros(0, 2), "at least one example"),
        ([[1.0, 2.0]], "got list"),
        (torch.zeros(4, 2, dtype=torch.uint8), r"x\.to\(loss\.dtype\)"),
        (torch.zeros(4, 2, dtype=torch.float64), r"x is torch\.float64 but the loss is torch\.float32"),
    ],
)
def test_a_batch_that_cannot_work_is_an_error_with_advice(x, message):
    with pytest.raises(UsageError, match=message):
        Data(Quadratic(), Identity())(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_steps": 0}, "k_steps must be a whole number of at least 1"),
        ({"k_steps": 1.5}, "k_steps must be a whole number"),
        ({"energy_l2": -1.0}, "energy_l2 must be at least 0"),
        ({"energy": torch.sum}, r"energy must be a torch\.nn\.Module"),
        ({"sampler": "gibbs"}, "expected a sampler"),
    ],
)
def test_a_value_that_cannot_work_is_an_error_with_advice(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Data(**({"energy": Quadratic(), "sampler": Identity()} | arguments))


def test_a_sampler_that_the_energy_does_not_support_is_an_error_at_once():
    from ebmcore.energies import SupportsBlockGibbs

    class Needy(Identity):
        requires = (SupportsBlockGibbs,)

    with pytest.raises(MissingCapabilityError, match="Needy needs"):
        Data(Quadratic(), Needy())


def test_an_energy_with_one_column_too_many_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"must return \(8,\)"):
        Data(nn.Linear(2, 1), Identity())(torch.zeros(4, 2))


class Counting(Quadratic):
    """Notes the data that it is told of."""

    def __init__(self):
        super().__init__((2,))
        self.observed = []

    def observe_data(self, x, *args, **kwargs):
        self.observed.append((x, torch.is_grad_enabled()))


def test_an_energy_that_keeps_statistics_is_told_of_the_data_of_each_training_step():
    energy, x = Counting(), torch.ones(4, 2)
    loss = Persistent(energy, Identity())
    loss(x)
    ((seen, graded),) = energy.observed
    assert seen is x
    assert graded is False
    with torch.no_grad():
        loss(x)
    loss.eval()(x)
    assert len(energy.observed) == 1

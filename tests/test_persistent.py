"""The base of persistent variants: negatives and their conditions, records, restarts, and chains that never change hands."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from variants import Data, Persistent

from ebmcore import BaseSampler, ChainState
from ebmcore.errors import UsageError
from ebmcore.testing import Affine, Identity, Labelled, Poison, Quadratic

X, LABELS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 0.0]]).double(), torch.tensor([0, 2, 1, 2])


def labelled():
    """An energy that tells labels apart: ``label^2 + |x|^2 / 2``, in float64."""
    energy = Labelled(4).double()
    energy.weight.data = torch.arange(4.0).double().square()
    return energy


def closed_form(x, labels):
    """The mean of that energy."""
    return (labels.double().square() + 0.5 * x.square().sum(1)).mean()


def drawn():
    """A persistent loss after a draw of four negatives whose labels are not those of the data, and the negatives."""
    loss = Persistent(labelled(), Identity(), initial="uniform")
    loss.generator = torch.Generator().manual_seed(0)
    loss.draw_negatives(torch.zeros(4, 2).double(), torch.tensor([3, 3, 0, 1]))
    return loss, loss.draw_negatives(X, LABELS)


@pytest.mark.parametrize(
    "same",
    [lambda x: x, torch.clone, lambda x: x.half().double(), lambda x: x.view(-1).view(4, 2).detach()],
    ids=["itself", "clone", "half and back", "detached view"],
)
def test_negatives_count_by_value(same):
    """The loss is that of the values of the negatives under their own labels, whichever tensor object holds them."""
    loss, pred_x = drawn()
    pred_x.copy_(pred_x.half())
    assert not torch.equal(loss.negatives.conditions["0"], LABELS)
    expected = closed_form(X, LABELS) - closed_form(pred_x, loss.negatives.conditions["0"])
    torch.testing.assert_close(loss.compute_loss(X, same(pred_x), LABELS), expected, atol=1e-12, rtol=0)


def test_negatives_of_another_number_are_refused():
    """With labels, negatives that are not as many as the last draw have unknown labels; the message says what to pass."""
    loss, pred_x = drawn()
    with pytest.raises(UsageError, match=r"these 3 negatives are not those of the last draw.*pass negative_conditions"):
        loss.compute_loss(X, pred_x[:3], LABELS)


def test_negatives_before_any_draw_are_refused():
    loss = Persistent(labelled(), Identity())
    with pytest.raises(UsageError, match=r"these 4 negatives are not those of the last draw"):
        loss.compute_loss(X, X, LABELS)


def test_unlabelled_negatives_may_be_of_any_number():
    loss = Persistent(Quadratic((2,)).double(), Identity())
    loss.draw_negatives(X)
    gap = loss.compute_loss(X, 2 * X[:3])
    torch.testing.assert_close(gap, 0.5 * (X.square().sum() / 4 - 4 * X[:3].square().sum() / 3), atol=1e-12, rtol=0)


@pytest.mark.parametrize("variant", [Data, Persistent])
@pytest.mark.parametrize("joint_forward", [True, False])
def test_negative_conditions_override(variant, joint_forward):
    """They take the place of the last draw's (persistent) and of the data's (not persistent), for any number of negatives."""
    loss = variant(labelled(), Identity(), joint_forward=joint_forward)
    loss.draw_negatives(X, LABELS)
    pred_x, labels = torch.ones(3, 2).double(), torch.tensor([3, 3, 1])
    gap = loss.energy_gap(X, pred_x, LABELS, negative_conditions={"0": labels})
    torch.testing.assert_close(gap, closed_form(X, LABELS) - closed_form(pred_x, labels), atol=1e-12, rtol=0)


@pytest.mark.parametrize("variant", [Data, Persistent])
@pytest.mark.parametrize("given", [{}, {"label": LABELS}, {"0": LABELS, "1": LABELS}], ids=["none", "another", "more"])
def test_negatives_need_the_datas_conditions(variant, given):
    with pytest.raises(UsageError, match=r"the data have the conditions \['0'\], the negatives .*: pass the same"):
        variant(labelled(), Identity()).energy_gap(X, X, LABELS, negative_conditions=given)


def test_negative_conditions_need_a_row_per_negative():
    with pytest.raises(ValueError, match="a row for each of 3 examples"):
        Data(labelled(), Identity()).energy_gap(X, X[:3], LABELS, negative_conditions={"0": LABELS})


def test_other_losses_use_the_datas_labels():
    """A loss that is not persistent scores negatives under the labels of the data, row by row."""
    loss = Data(labelled(), Identity())
    loss.draw_negatives(X, torch.tensor([3, 3, 3, 3]))
    weights = torch.tensor([0.0, 1.0, 0.0, 0.0])
    gap = loss.energy_gap(X, 0 * X, LABELS, negative_weights=weights)
    torch.testing.assert_close(gap, closed_form(X, LABELS) - 4.0, atol=1e-12, rtol=0)


@dataclass(eq=False)
class Weighted(ChainState):
    """Chains with a log-weight that records each change of the parameters."""

    energy: Tensor
    log_weight: Tensor

    records = ("log_weight",)


class Recording(BaseSampler):
    """Stays where it is; `refresh` adds the old energy minus the new one to the log-weight."""

    def init(self, energy, x, *, generator=None):
        return Weighted(x, energy(x), torch.zeros(len(x), dtype=torch.float64, device=x.device))

    def step(self, energy, state, *, generator=None):
        return state, {}

    def refresh(self, energy, state):
        now = energy(state.x)
        return replace(state, energy=now, log_weight=state.log_weight + (state.energy.double() - now))


def test_log_weights_telescope_over_training():
    """After three optimizer steps the log-weight of each chain is ``E_0(x) - E_3(x)``, also of chains not drawn in between."""
    loss = Persistent(Quadratic((2,)), Recording())
    loss.generator = torch.Generator().manual_seed(0)
    optimizer, x = torch.optim.SGD(loss.parameters(), lr=0.3), torch.full((3, 2), 0.5)
    for step in range(3):
        value, _ = loss(x)
        if step == 0:
            before = loss.energy(loss.chain).detach()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert (loss.chains.ages == 0).any()  # three draws of three of ten leave some chain out
    assert (loss.chains.ages > 1).any()
    after = loss.energy(loss.chain).detach()
    loss.draw_negatives(torch.zeros(10, 2))
    log_weight = loss.negatives.log_weight
    assert log_weight.dtype == loss.chains.tensors["log_weight"].dtype == torch.float64
    assert log_weight.abs().min() > 1e-3
    torch.testing.assert_close(log_weight, before.double() - after, atol=1e-6, rtol=0)


def test_log_weights_resume():
    """A loss that loads the state of another continues its log-weights in float64, bit for bit."""
    used, fresh = (Persistent(Quadratic((2,)), Recording()) for _ in range(2))
    used.generator = torch.Generator().manual_seed(0)
    used(torch.zeros(4, 2))
    used.energy.precision.data.fill_(1.7)
    used(torch.zeros(4, 2))
    used.chains.tensors["log_weight"] += 1e6
    fresh.load_state_dict(used.state_dict())
    for loss in (used, fresh):
        loss.energy.precision.data.fill_(0.3)
        loss.draw_negatives(torch.zeros(10, 2))
    assert fresh.negatives.log_weight.dtype == torch.float64
    assert (fresh.negatives.log_weight - 1e6).abs().min() > 0
    assert torch.equal(fresh.negatives.log_weight, used.negatives.log_weight)


def test_records_keep_float64_accuracy():
    """A small change of a large log-weight is kept in float64, where float32 would lose it."""
    loss = Persistent(Quadratic((2,)), Recording())
    loss(torch.zeros(4, 2))
    loss.chains.tensors["log_weight"].fill_(1e6)
    loss.chains.tensors["energy"] += 1e-3
    loss.draw_negatives(torch.zeros(10, 2))
    torch.testing.assert_close(loss.negatives.log_weight - 1e6, torch.full((10,), 1e-3).double(), atol=1e-6, rtol=0)


def test_chains_keep_and_score_their_labels():
    """A chain made for class 3 continues as class 3; the gradient of the negatives falls on the labels that were drawn."""
    loss = Persistent(Labelled(5), Identity())
    loss.generator = torch.Generator().manual_seed(0)
    loss(torch.zeros(5, 2), torch.arange(5))
    assert sorted(loss.chains.conditions["0"].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    tagged = {int(i): int(c) for i, c in zip(loss.chains.ids, loss.chains.conditions["0"], strict=True)}
    for _ in range(20):
        loss.energy.zero_grad()
        value, _ = loss(torch.zeros(4, 2), torch.zeros(4).long())
        value.backward()
        expected = torch.zeros(5).index_add_(0, loss.negatives.conditions["0"], torch.full((4,), -0.25))
        expected[0] += 1
        torch.testing.assert_close(loss.energy.weight.grad, expected)
    assert {int(i): int(c) for i, c in zip(loss.chains.ids, loss.chains.conditions["0"], strict=True)} == tagged


def test_conditions_keep_their_names():
    """Chains with a positional condition do not silently take over another label where a call names it otherwise."""
    loss = Persistent(labelled(), Identity())
    loss.draw_negatives(X, LABELS)
    with pytest.raises(UsageError, match="condition"):
        loss.draw_negatives(X, label=LABELS)


def test_restarts_take_the_batchs_labels():
    """A restarted chain carries the condition of its row of the batch, and starts from the initial distribution."""
    loss = Persistent(labelled(), Identity(), initial="data", restart_prob=1.0)
    loss.draw_negatives(torch.zeros(10, 2).double(), torch.full((10,), 3))
    pred_x = loss.draw_negatives(X, LABELS)
    assert torch.equal(pred_x, X)
    assert torch.equal(loss.negatives.conditions["0"], LABELS)
    kept = loss.chains.conditions["0"]
    assert torch.equal(kept[kept != 3].sort()[0], LABELS.sort()[0])
    assert (loss.chains.conditions["0"] == 3).sum() == 6


def test_a_large_batch_moves_every_chain():
    """A batch larger than the number of chains draws all of them."""
    loss = Persistent(Quadratic(), Affine())
    loss.generator = torch.Generator().manual_seed(0)
    start = loss.initialize_persistent_chain((10, 2)).clone()
    _, pred_x = loss(torch.zeros(64, 2))
    assert torch.equal(pred_x, start + 1)
    assert torch.equal(loss.chain, start + 1)


def test_a_small_batch_leaves_the_rest():
    """A last batch of three moves three chains by one and neither resizes nor destroys the others."""
    loss = Persistent(Quadratic(), Affine())
    loss.generator = torch.Generator().manual_seed(0)
    start = loss.initialize_persistent_chain((10, 2)).clone()
    loss(torch.zeros(3, 2))
    moved = (loss.chain - start).round()
    assert sorted(moved[:, 0].tolist()) == [0.0] * 7 + [1.0] * 3


def test_a_lost_chain_restarts():
    """No NaN reaches the store; the chain keeps its slot and id and is 0 writes old."""
    loss = Persistent(Quadratic(), Poison(1), initial="data")
    _, pred_x = loss(torch.full((10, 2), 7.0))
    assert pred_x[0].isnan().all()
    assert loss.chain.isfinite().all()
    assert loss.chain[0].tolist() == [7.0, 7.0]
    assert loss.chains.ages.tolist() == [0] + [1] * 9


def test_chains_of_another_shape_stay():
    """Data of another shape raise and replace no chain silently."""
    loss = Persistent(Quadratic((2,)), Identity())
    loss(torch.zeros(4, 2))
    with pytest.raises(UsageError, match=r"the loss holds chains \(10, 2\), not \(10, 3\)"):
        loss(torch.zeros(4, 3))
    assert len(loss.chain) == 10


def test_chains_follow_a_moved_energy():
    """``energy.double()`` after the first step moves the chains at the next, value by value."""
    energy = Quadratic()
    loss = Persistent(energy, Identity())
    loss(torch.zeros(4, 2))
    before = loss.chain.double()
    energy.double()
    value, pred_x = loss(torch.zeros(4, 2).double())
    assert value.dtype == pred_x.dtype == loss.chain.dtype == torch.float64
    assert torch.equal(loss.chain, before)


def test_loaded_chains_take_the_losss_dtype():
    used = Persistent(Quadratic(), Identity())
    used(torch.zeros(4, 2))
    fresh = Persistent(Quadratic().double(), Identity())
    fresh.load_state_dict(used.state_dict())
    assert fresh.chain.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_chains": 0}, "n_chains must be a whole number of at least 1"),
        ({"n_chains": 2.0}, "n_chains must be a whole number"),
        ({"restart_prob": 1.5}, r"restart_prob must be a probability in \[0, 1\]"),
        ({"initial": "noise"}, "initial must be 'model', 'data', 'uniform'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Persistent(Quadratic(), Identity(), **options)


def test_data_start_in_turn_with_labels():
    """Chains that start from data take over each row with its own label."""
    loss = Persistent(labelled(), Identity(), initial="data")
    loss.draw_negatives(X, LABELS)
    turn = torch.arange(10) % 4
    assert torch.equal(loss.chain, X[turn])
    assert torch.equal(loss.chains.conditions["0"], LABELS[turn])


def test_a_used_loss_holds_no_batch():
    """After a call neither the batch nor what started it is kept: the loss can be copied and is freed with its last name."""
    loss = Persistent(Quadratic((2,)), Identity())
    x = 2 * torch.ones(4, 2, requires_grad=True)
    loss(x)
    copy.deepcopy(loss)
    watched = weakref.ref(loss)
    gc.disable()
    try:
        del loss
        assert watched() is None
    finally:
        gc.enable()

"""The store of persistent chains: nothing is lost, doubled, stuck or mixed up."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from ebmcore.chains import PersistentChains
from ebmcore.distributions import Normal
from ebmcore.errors import EbmcoreError, UsageError
from ebmcore.samplers import ChainState
from ebmcore.testing.instruments import Synchronisations


def store(n_chains=100, dim=2, **kwargs):
    chains = PersistentChains()
    chains.allocate((n_chains, dim), Normal(torch.zeros(dim)), generator=torch.Generator().manual_seed(0), **kwargs)
    return chains


def fresh(n=64, dim=2, value=0.0):
    return ChainState(torch.full((n, dim), value))


def draw(chains, n, start=fresh, **options):
    return chains.draw(start(1), n, start, **options)


def test_updates_lose_no_chain():
    """Ten thousand draws of 64 of 100 chains leave each chain with its id and position."""
    chains = store()
    before = {int(i): x.clone() for i, x in zip(chains.ids, chains.x, strict=True)}
    generator = torch.Generator().manual_seed(1)
    for _ in range(10_000):
        chains.write(*draw(chains, 64, generator=generator))
    assert sorted(chains.ids.tolist()) == list(range(100))
    assert all(torch.equal(before[int(i)], x) for i, x in zip(chains.ids, chains.x, strict=True))


def test_id_and_age_follow_the_chain():
    """What is written back reaches the slot of the chain's id, not that of this number."""
    chains = store(10)
    chains.tensors["id"].copy_(torch.arange(10).flip(0))  # not the slot's number
    moved, slots = draw(chains, 10)
    before = chains.x.clone()
    chains.write(ChainState(moved.x + chains.ids[slots.index, None]), slots)
    assert torch.equal(chains.ids, torch.arange(10).flip(0))
    assert torch.equal(chains.x, before + chains.ids[:, None])
    assert chains.ages.tolist() == [1] * 10


def test_draw_without_replacement():
    """A draw holds no chain twice, and all slots are reached equally often, also where the batch does not divide them."""
    chains = store(100)
    chains.tensors["x"].copy_(torch.arange(100.0)[:, None].expand(100, 2))
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(100)
    for _ in range(200):
        drawn = draw(chains, 64, generator=generator)[0].x[:, 0].long()
        assert len(drawn.unique()) == 64
        seen[drawn] += 1
    # 200 draws of 64 of 100: mean 128, standard deviation 6.8; all slots alike.
    assert seen.min() > 128 - 5 * 6.8
    assert seen.max() < 128 + 5 * 6.8


def test_restarts_are_fresh_samples():
    """At the given rate, with mean and spread of the initial distribution; the others stay as they are."""
    chains = store(20_000, 1)
    initial = Normal(torch.tensor([3.0]), 2.0)
    generator = torch.Generator().manual_seed(0)
    state = ChainState(initial.sample(20_000, generator=generator))
    drawn, _ = draw(chains, 20_000, lambda n: ChainState(state.x[:n]), restart_prob=0.25, generator=generator)
    restarted = (drawn.x == state.x).squeeze(1)
    assert restarted.double().mean().item() == pytest.approx(0.25, abs=0.012)  # 4 standard errors
    assert drawn.x[restarted].mean().item() == pytest.approx(3.0, abs=0.12)
    assert drawn.x[restarted].std().item() == pytest.approx(2.0, abs=0.08)
    assert drawn.x[~restarted].mean().item() == pytest.approx(0.0, abs=0.04)


def test_restarts_reset_age_not_id():
    chains = store(10)
    for _ in range(3):
        chains.write(*draw(chains, 10))
    chains.write(*draw(chains, 10, restart_prob=1.0))
    assert chains.ages.tolist() == [1] * 10
    assert sorted(chains.ids.tolist()) == list(range(10))


@pytest.mark.parametrize("device", [nullcontext, Synchronisations], ids=["cpu", "as-on-an-accelerator"])
def test_a_lost_chain_restarts(device):
    """A chain written back as NaN becomes one of those that are started then, with age 0."""
    chains = store(10)
    state, slots = draw(chains, 10, partial(fresh, value=7.0))
    lost = torch.arange(10) == 3
    slot = slots.index[3]
    with device():
        chains.write(ChainState(state.x.masked_fill(lost[:, None], torch.nan)), slots)
    assert chains.x.isfinite().all()
    assert chains.x[slot].tolist() == [7.0, 7.0]
    assert chains.ages[slot] == 0


def test_no_chain_is_started_in_vain():
    """On a CPU new chains are made for a restart or a lost chain only: a sampler may evaluate the energy for each."""
    chains, started = store(10), []

    def start(n):
        started.append(n)
        return fresh(n)

    state, slots = chains.draw(fresh(1), 10, start)
    chains.write(state, slots)
    assert started == []
    chains.write(ChainState(state.x.index_fill(0, torch.tensor(3), torch.inf)), slots)
    assert started == [10]


def test_labels_follow_their_chain():
    """Over a hundred draws each chain keeps its own label."""
    chains = store(50)
    labels = torch.arange(50)
    chains.fill_missing(ChainState(chains.x, conditions={"0": labels}))
    tagged = chains.x.clone()

    def labelled(n):
        return ChainState(torch.zeros(n, 2), conditions={"0": torch.zeros(n).long()})

    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        state, slots = draw(chains, 16, labelled, generator=generator)
        assert torch.equal(state.x, tagged[state.conditions["0"]])
        chains.write(state, slots)
    assert sorted(chains.conditions["0"].tolist()) == list(range(50))


@pytest.mark.parametrize("n", [10, 4], ids=["all", "some"])
def test_a_drawn_state_is_a_copy(n):
    """Writing into what was drawn changes nothing in the store."""
    chains = store(10)
    before = chains.x.clone()
    draw(chains, n)[0].x.fill_(9.0)
    assert torch.equal(chains.x, before)


def test_a_full_draw_is_in_order():
    """All chains are drawn in the order of their slots, and no random number is used for it."""
    chains, generator = store(10), torch.Generator().manual_seed(0)
    before = generator.get_state()
    state, slots = draw(chains, 10, generator=generator)
    assert torch.equal(state.x, chains.x)
    assert slots.index.tolist() == list(range(10))
    assert torch.equal(before, generator.get_state())


def test_draw_returns_its_slots():
    """``slots.index`` says, row by row, in which slot of the store a drawn chain lives."""
    chains = store(10)
    state, slots = draw(chains, 4, generator=torch.Generator().manual_seed(0))
    assert slots.index.dtype == torch.int64
    assert slots.index.tolist() != sorted(slots.index.tolist())
    assert torch.equal(state.x, chains.x[slots.index])
    before = chains.x.clone()
    chains.write(ChainState(state.x + 1), slots)
    before[slots.index] += 1
    assert torch.equal(chains.x, before)
    assert chains.ages[slots.index].tolist() == [1] * 4
    assert chains.ages.sum() == 4


def test_the_live_tensor_stays():
    """The positions are the same tensor object over draws of all chains and of some, and over a resampling."""
    chains = store(10)
    live, pointer = chains.x, chains.x.data_ptr()
    for n in (10, 4, 10):
        state, slots = draw(chains, n)
        chains.write(ChainState(state.x + 1), slots)
    chains.resample(torch.arange(10.0))
    assert chains.x is chains.tensors["x"] is live
    assert live.data_ptr() == pointer
    assert torch.equal(live, draw(chains, 10)[0].x)


def test_visits_change_no_value():
    """Integer storage would floor 0.95 to 0.878 in twenty visits."""
    chains = PersistentChains()
    chains.allocate((10, 4), Normal(torch.full((4,), 0.95), 0.0))
    for _ in range(20):
        chains.write(*draw(chains, 10, partial(fresh, dim=4)))
    assert chains.x.dtype == torch.float32
    assert chains.x.mean().item() == pytest.approx(0.95, abs=1e-6)


def test_allocate_casts_to_the_dtype():
    """Chains have the dtype that is asked for, not that of the initial distribution."""
    chains = PersistentChains()
    assert chains.allocate((10, 2), Normal(torch.zeros(2).double()), dtype=torch.float32).dtype == torch.float32


def test_chains_share_no_initial_tensor():
    """An initial distribution that hands out its own tensor finds it unchanged."""

    class Own:
        x = torch.zeros(10, 2)

        def sample(self, n, *, generator=None):
            return self.x[:n]

    chains, initial = PersistentChains(), Own()
    chains.allocate((10, 2), initial)
    state, slots = draw(chains, 10)
    chains.write(ChainState(state.x + 1), slots)
    assert torch.equal(initial.x, torch.zeros(10, 2))


def test_initial_errors_reach_the_caller():
    class Broken:
        def sample(self, n, *, generator=None):
            raise ZeroDivisionError("no chains today")

    with pytest.raises(ZeroDivisionError, match="no chains today"):
        PersistentChains().allocate((10, 2), Broken())


def test_a_fresh_store_loads_a_used_one():
    """Every tensor, conditions included, by a strict load."""
    used = store(10)
    used.fill_missing(ChainState(used.x, conditions={"label": torch.arange(10)}))
    used.write(*draw(used, 4, lambda n: ChainState(torch.zeros(n, 2), conditions={"label": torch.zeros(n).long()})))
    loaded = PersistentChains()
    assert loaded.load_state_dict(used.state_dict()).missing_keys == []
    assert len(loaded) == 10
    for name, tensor in used.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_loading_shares_no_memory():
    used, loaded = store(10), PersistentChains()
    loaded.load_state_dict(used.state_dict())
    loaded.x.zero_()
    assert used.x.abs().sum() > 0


def test_loading_nothing_loses_nothing():
    """A strict load names the missing keys; one that is not strict leaves the chains."""
    chains = store(10)
    with pytest.raises(RuntimeError, match=r"Missing key.*x"):
        chains.load_state_dict({})
    assert chains.load_state_dict({}, strict=False)
    assert len(chains.x) == 10


@pytest.mark.parametrize("left_out", ["x", "id", "age"])
def test_an_incomplete_state_is_refused(left_out):
    state = store(10).state_dict()
    del state[left_out]
    with pytest.raises(RuntimeError, match="need x, id and age"):
        PersistentChains().load_state_dict(state)


def test_double_moves_floating_tensors_only():
    chains = store(10).double()
    assert chains.x.dtype == torch.float64
    assert chains.ids.dtype == chains.ages.dtype == torch.int64


def test_chains_are_no_buffers():
    """`DistributedDataParallel` would overwrite those of every rank."""
    assert list(store(10).buffers()) == []


def test_draw_refuses_too_many():
    with pytest.raises(UsageError, match="cannot draw 64 different chains from 10"):
        draw(store(10), 64)


def test_write_needs_every_drawn_chain():
    chains = store(10)
    _, slots = draw(chains, 10)
    with pytest.raises(UsageError, match="10 chains were drawn, but 9 are to be written"):
        chains.write(fresh(9), slots)


def test_draw_refuses_another_samplers_state():
    """A state with a tensor that the store does not hold."""
    with pytest.raises(UsageError, match="another sampler"):
        draw(store(10), 4, lambda n: ChainState(torch.zeros(n, 2), conditions={"0": torch.zeros(n)}))


@pytest.mark.parametrize("shape", [(0, 2), ()])
def test_allocate_refuses_no_chains(shape):
    with pytest.raises(UsageError, match="number of chains"):
        PersistentChains().allocate(shape, Normal(torch.zeros(2)))


def test_loading_refuses_doubled_chains():
    """As in one rank's file of two; the message says how to save instead."""
    saved = store(8).state_dict()
    saved["id"] = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])  # as one rank's file of two
    with pytest.raises(RuntimeError, match=r"missing, others are there twice.*torch.distributed.checkpoint on all ranks"):
        PersistentChains().load_state_dict(saved)


def test_move_to_keeps_float64_tensors():
    """What a sampler keeps wider than the positions stays so when they follow the energy to another type."""
    chains = store(4)
    chains.tensors["log_step"] = torch.zeros(4, dtype=torch.float64)
    chains.move_to(torch.bfloat16, torch.device("cpu"))
    assert chains.x.dtype == torch.bfloat16
    assert chains.tensors["log_step"].dtype == torch.float64
    assert chains.ids.dtype == torch.int64


def test_draw_refuses_another_shape():
    """The message names the tensor and both shapes."""
    chains = store(4)
    with pytest.raises(UsageError, match=r"the sampler's state has x of shape \(3,\) for each chain, the store does not"):
        draw(chains, 2, partial(fresh, dim=3))


def test_allocate_refuses_inference_mode():
    with torch.inference_mode(), pytest.raises(UsageError, match="use torch.no_grad"):
        store(4)


def test_resampling_renames_copies():
    """Chains of weight 0 give way to copies; a survivor keeps slot and id, a copy gets an id that no chain had."""
    chains = store(6)
    chains.tensors["x"].copy_(torch.arange(6.0)[:, None].expand(6, 2))
    source = chains.resample(torch.tensor([0.0, 3.0, 0.0, 1.0, 2.0, 0.0]), generator=torch.Generator().manual_seed(0))
    assert torch.equal(chains.x[:, 0].long(), source)
    assert source[[1, 3, 4]].tolist() == [1, 3, 4]
    assert sorted(source.tolist()) == [1, 1, 1, 3, 4, 4]
    assert chains.ids[[1, 3, 4]].tolist() == [1, 3, 4]
    assert len(chains.ids.unique()) == 6
    assert chains.ids[[0, 2, 5]].tolist() == [6, 8, 11]
    chains.resample(torch.tensor([1.0, 0, 0, 0, 0, 0]))
    assert chains.ids.tolist() == [6, 7, 14, 9, 10, 17]


def test_resampling_is_unbiased():
    """Over many calls a chain is kept in proportion to its weight."""
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(4)
    for _ in range(4000):
        counts += torch.bincount(store(4).resample(weights, generator=generator), minlength=4)
    # Each count is rounded up or down: its standard deviation is below 0.5.
    assert ((counts / 4000 - 4 * weights).abs() < 4 * 0.5 / 4000**0.5).all()


def test_resampling_needs_a_weight_per_chain():
    with pytest.raises(UsageError, match="one weight for each of the 4 chains"):
        store(4).resample(torch.ones(3))


def test_resampling_never_reuses_an_id():
    """Over fifty resamplings the ids are unique, and a chain that is new has an id that no chain had before."""
    chains, generator = store(8), torch.Generator().manual_seed(0)
    used = set(chains.ids.tolist())
    for _ in range(50):
        before = chains.ids.clone()
        source = chains.resample(torch.rand(8, generator=generator) ** 4, generator=generator)
        kept = source == torch.arange(8)
        assert torch.equal(chains.ids[kept], before[kept])
        assert len(chains.ids.unique()) == 8
        new = set(chains.ids[~kept].tolist())
        assert not new & used
        used |= new
    assert len(used) > 100


def test_resampling_copies_the_whole_chain():
    """State tensors, age and conditions of a copy are those of the chain that it was copied from."""
    chains = store(6)
    number = torch.arange(6)
    chains.fill_missing(ChainState(chains.x, conditions={"label": 10 * number}))
    chains.tensors["momentum"] = number[:, None].double().expand(6, 3).clone()
    chains.tensors["age"].copy_(100 * number)
    before = chains.x.clone()
    source = chains.resample(torch.tensor([0.0, 3.0, 0.0, 1.0, 2.0, 0.0]), generator=torch.Generator().manual_seed(0))
    assert len(source.unique()) < 6
    assert torch.equal(chains.x, before[source])
    assert torch.equal(chains.conditions["label"], 10 * source)
    assert torch.equal(chains.tensors["momentum"], source[:, None].double().expand(6, 3))
    assert chains.tensors["momentum"].dtype == torch.float64
    assert torch.equal(chains.ages, 100 * source)


def test_resampling_keeps_equal_weights():
    """Chains of equal weight stay as they are, each in its slot with its id."""
    chains = store(7)
    before = chains.x.clone()
    for seed in range(20):
        source = chains.resample(torch.full((7,), 0.3), generator=torch.Generator().manual_seed(seed))
        assert source.tolist() == list(range(7))
    assert torch.equal(chains.x, before)
    assert chains.ids.tolist() == list(range(7))


def test_resampling_counts_in_float64():
    """Of 100,000 chains the last, of weight 0, is never kept; positions in float32 round up to the end of the weights."""
    seed = next(s for s in range(10_000) if torch.rand((), generator=torch.Generator().manual_seed(s)) > 0.998)
    chains, weights = store(100_000, 1), torch.ones(100_000)
    weights[-1] = 0
    assert chains.resample(weights, generator=torch.Generator().manual_seed(seed))[-1] != 99_999


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [1.0, torch.nan, 1.0], [1.0, -1.0, 1.0], [1.0, torch.inf, 1.0]])
def test_resampling_refuses_impossible_weights(weights):
    """Weights that are NaN, infinite, negative or all 0 raise; they do not make every chain a copy of the last."""
    chains = store(3)
    before = chains.x.clone()
    with pytest.raises((EbmcoreError, ValueError)):
        chains.resample(torch.tensor(weights))
    assert torch.equal(chains.x, before)


@pytest.mark.parametrize("narrowed", [lambda c: c.float(), lambda c: c.to(torch.float32)], ids=["float", "to"])
def test_float_keeps_float64_records(narrowed):
    """A float32 store stays as it is under ``.float()``: a log-weight that a sampler keeps in float64 is not narrowed."""
    chains = store(4)
    chains.tensors["log_weight"] = torch.full((4,), 1e6, dtype=torch.float64) + 1e-3
    assert narrowed(chains).tensors["log_weight"].dtype == torch.float64


def test_materialising_a_loss_on_meta():
    """``to("meta")`` and ``to_empty`` move every tensor of the store, as they move parameters."""
    chains = store(4).to("meta").to_empty(device="cpu")
    assert {t.device.type for t in chains.tensors.values()} == {"cpu"}
    assert all(t.is_shared() for t in chains.share_memory().tensors.values())


def test_a_restart_starts_chains_once():
    """The states that random restarts took also replace the lost chains of that draw."""
    chains, started = store(10), []

    def start(n):
        started.append(n)
        return fresh(n)

    state, slots = chains.draw(fresh(1), 10, start, restart_prob=0.5, generator=torch.Generator().manual_seed(0))
    chains.write(ChainState(state.x.index_fill(0, torch.tensor(3), torch.inf)), slots)
    assert started == [10]


def test_half_moves_tensors_like_the_positions():
    """Tensors of the positions' dtype change with them; wider ones, such as log-weights, keep theirs."""
    chains = store(4)
    chains.tensors |= {"momentum": torch.zeros(4, 2), "log_weight": torch.zeros(4, dtype=torch.float64)}
    dtypes = {name: t.dtype for name, t in chains.half().tensors.items()}
    assert dtypes["x"] == dtypes["momentum"] == torch.float16
    assert dtypes["log_weight"] == torch.float64

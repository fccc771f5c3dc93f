"""Chains and losses in a process group: gloo, on the CPU."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from groups import run
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import ebmcore
from ebmcore import BaseSampler, distributed
from ebmcore.errors import UsageError
from ebmcore.testing import Identity, Quadratic


def pcd(n_chains=11):
    loss = ebmcore.create_loss("pcd", Quadratic((2,)), Identity(), n_chains=n_chains)
    loss.generator = torch.Generator().manual_seed(dist.get_rank() if dist.is_initialized() else 0)
    return loss


def shards_and_broadcast(rank):
    loss = pcd()
    wrapped = DistributedDataParallel(loss)
    wrapped(torch.zeros(4, 2))
    own = loss.chain.clone()
    for _ in range(3):  # the identity sampler moves nothing; neither may the wrapper
        wrapped(torch.zeros(4, 2))
    assert torch.equal(loss.chain, own)
    assert len(own) == (4, 4, 3)[rank]
    assert loss.chains.ids.tolist() == list(range(11))[4 * rank : 4 * rank + 4]
    whole = loss.state_dict()["chains.x"]
    assert isinstance(whole, DTensor)
    full = whole.full_tensor()
    assert full.shape == (11, 2)
    assert torch.equal(full[4 * rank : 4 * rank + 4], own)
    assert len(full.unique(dim=0)) == 11


def share_after_the_start(rank, loss):
    loss(torch.zeros(4, 2))
    assert len(loss.chain) == 4
    assert loss.state_dict()["chains.id"].full_tensor().tolist() == list(range(8))


def the_same_seed(rank):
    torch.manual_seed(0)
    loss = ebmcore.create_loss("pcd", Quadratic((2,)), Identity(), n_chains=8)
    loss(torch.zeros(4, 2))
    assert len(loss.state_dict()["chains.x"].full_tensor().unique(dim=0)) == 8
    first, second = loss.initialize_persistent_chain((6, 2)).clone(), loss.initialize_persistent_chain((8, 2)).clone()
    assert not torch.equal(first, second[:3])  # the numbers continue
    torch.manual_seed(0)
    again = ebmcore.create_loss("pcd", Quadratic((2,)), Identity(), n_chains=8)
    again(torch.zeros(4, 2))
    assert again.generator is None
    torch.manual_seed(0)
    loss.initialize_persistent_chain((8, 1))
    once = loss.initialize_persistent_chain((8, 2)).clone()
    torch.manual_seed(0)
    loss.initialize_persistent_chain((8, 1))
    assert torch.equal(once, loss.initialize_persistent_chain((8, 2)))  # and repeat with torch's seed


def written_by_one(rank, path):
    loss = pcd(8)
    loss(torch.zeros(4, 2))
    if rank == 0:
        torch.save(loss.state_dict(), path)
    dist.barrier()
    with pytest.raises(
        RuntimeError,
        match=r"some of its 8 chains are missing, others are there twice.*torch.distributed.checkpoint on all ranks",
    ):
        pcd(8).load_state_dict(torch.load(path, weights_only=False))


def gradients(rank, expected):
    loss = ebmcore.create_loss("cd", Quadratic((2,)), Identity())
    loss.start_chains = lambda x: loss.new_chains(2 * x, {})
    wrapped = DistributedDataParallel(loss)
    x = torch.arange(16.0).view(8, 2)
    wrapped(x[4 * rank : 4 * rank + 4])[0].backward()
    torch.testing.assert_close(loss.energy.precision.grad, expected)


class Downhill(BaseSampler):
    """Follows the gradient of the energy that it is given, without noise."""

    def step(self, energy, state, *, generator=None):
        return replace(state, x=state.x - 0.1 * ebmcore.value_and_grad(energy, state.x)[1]), {}


def two_steps_of_fpcd(rank, world):
    """Chains and fast weights after two batches, of which this process has its part."""
    loss = ebmcore.create_loss("fpcd", Quadratic((2,)), Downhill(), fast_lr=0.3, n_chains=8)
    part, x = slice(rank * 8 // world, (rank + 1) * 8 // world), torch.arange(16.0).view(8, 2) / 8
    loss.initialize_persistent_chain((8, 2)).copy_(1 - x[part])
    for batch in (x, x.square()):
        loss(batch[part])
    return loss.chain, list(loss.fast.buffers())


def fast_weights(rank, chain, fast):
    own_chain, own_fast = two_steps_of_fpcd(rank, 2)
    torch.testing.assert_close(own_fast, fast)
    torch.testing.assert_close(own_chain, chain[4 * rank : 4 * rank + 4])


def too_few(rank):
    with pytest.raises(UsageError, match="use a multiple of 3"):
        pcd(n_chains=4)(torch.zeros(2, 2))


def written(rank, path):
    loss = pcd()
    loss(torch.zeros(4, 2))
    save(loss.state_dict(), checkpoint_id=path)


def read(rank, path, expected):
    from torch.distributed.checkpoint.state_dict_loader import load

    loss = pcd()
    loss.initialize_persistent_chain((11, 2)).zero_()
    state = loss.state_dict()
    load(state, checkpoint_id=path)
    loss.load_state_dict(state)
    start = {1: (0, 11), 2: ((0, 6), (6, 11)), 3: ((0, 4), (4, 8), (8, 11))}[dist.get_world_size()]
    first, last = start if isinstance(start[0], int) else start[rank]
    assert torch.equal(loss.chain, expected[first:last])
    assert loss.chains.ids.tolist() == list(range(first, last))


def test_outside_a_group_there_is_one_rank():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_outside_a_group_nothing_waits():
    """`barrier` and `shutdown` return at once, also twice; the mean over one rank is the value itself."""
    for _ in range(2):
        assert distributed.barrier() is None
        assert distributed.shutdown() is None
    value = torch.ones(2)
    assert distributed.mean_over_ranks(value) is value


def in_a_group(rank):
    assert (distributed.rank(), distributed.world_size()) == (rank, 2)
    value = torch.tensor([1.0, 3.0])[rank].expand(3)
    assert distributed.mean_over_ranks(value).tolist() == [2.0, 2.0, 2.0]
    assert value.tolist() == [1.0 + 2 * rank] * 3
    distributed.shutdown()
    assert not dist.is_initialized()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_ranks_in_a_group():
    """Rank and number of ranks; the mean is a new tensor; after `shutdown` there is one rank again."""
    run(in_a_group, 2)


def in_turn(rank, path):
    if rank == 0:
        time.sleep(0.5)
        path.write_text("written")
    distributed.barrier()
    assert path.exists()


def test_a_barrier_waits_for_all(tmp_path):
    """A file that rank 0 writes late is there for rank 1 after the barrier."""
    run(in_turn, 2, tmp_path / "file")


def test_ranks_share_the_chains():
    """Each rank has its own chains; `DistributedDataParallel` leaves them alone."""
    run(shards_and_broadcast, 3)


def test_two_ranks_give_one_gradient():
    """That of the whole batch on one process."""
    loss = ebmcore.create_loss("cd", Quadratic((2,)), Identity())
    x = torch.arange(16.0).view(8, 2)
    loss.compute_loss(x, 2 * x).backward()
    run(gradients, 2, loss.energy.precision.grad)


def test_two_ranks_share_fast_weights():
    """They are those of the whole batch, and move the chains of both ranks."""
    run(fast_weights, 2, *two_steps_of_fpcd(0, 1))


def test_too_few_chains_are_refused():
    """The message says how many to ask for, where a rank would have none."""
    run(too_few, 3)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_chains_resume_on_other_ranks(tmp_path):
    """Saved by two ranks and read by three, two and one, each chain is there once."""
    from torch.distributed.checkpoint.state_dict_loader import load

    run(written, 2, tmp_path / "saved")
    whole = {"chains.x": torch.zeros(11, 2), "chains.id": torch.zeros(11, dtype=torch.int64)}
    load(whole, checkpoint_id=tmp_path / "saved", no_dist=True)
    assert whole["chains.id"].tolist() == list(range(11))
    assert len(whole["chains.x"].unique(dim=0)) == 11
    for world in (3, 2, 1):
        run(read, world, tmp_path / "saved", whole["chains.x"])


def test_chains_older_than_the_group():
    """Chains started before the process group are shared in it."""
    loss = pcd(8)
    loss.initialize_persistent_chain((8, 2))
    run(share_after_the_start, 2, loss)


def resamples(rank):
    loss = pcd(8)
    own = loss.initialize_persistent_chain((8, 2)).clone()
    ids = list(range(8))
    used = set(ids)
    for i in range(5):
        source = loss.chains.resample(torch.tensor([0.0, 1.0, 0.0, 2.0]).roll(i + rank))
        own = own[source]
        assert torch.equal(loss.chain, own)
        before, ids = ids, loss.state_dict()["chains.id"].full_tensor().tolist()
        new = {now for was, now in zip(before, ids, strict=True) if now != was}
        assert not new & used
        used |= new
        assert len(set(ids)) == 8


def test_ranks_resample_their_own_chains():
    """Chains stay on their rank; a copy has an id that no chain of any rank had before."""
    run(resamples, 2)


def test_equal_seeds_give_different_chains():
    """Ranks whose global seeds are equal draw different chains, and repeat with that seed."""
    run(the_same_seed, 2)


def test_one_ranks_file_is_refused(tmp_path):
    """One rank's ``torch.save`` holds its share twice and not the others'; the message says how to save."""
    run(written_by_one, 2, tmp_path / "saved")


def test_a_share_is_no_whole():
    """One rank's share is neither trained on nor saved after the process group."""
    loss = pcd(8)
    loss.initialize_persistent_chain((8, 2))
    loss.chains.tensors = {name: tensor[:4] for name, tensor in loss.chains.tensors.items()}
    with pytest.raises(UsageError, match="4 of 8 chains, one rank's share of a process group that has ended"):
        loss(torch.zeros(4, 2))
    with pytest.raises(UsageError, match="4 of 8 chains"):
        loss.state_dict()

"""Process groups: a run destroys each that it makes, and leaves each that was there before."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from forks import end_of, fork
from small_runs import data, pcd, quiet

from ebmcore.training import BaseObserver, checkpoints


def in_a_group_of_two(work, folder):
    """Runs ``work()`` on two ranks of a process group that the caller has made; returns what they print."""

    def enter(rank):
        # What torchrun would say of them; a file to meet at, as a port that is free now may be another's soon.
        os.environ.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"))
        os.environ.update(dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK"), str(rank)))
        os.environ.update(TORCHELASTIC_RUN_ID="none", MASTER_ADDR="127.0.0.1", MASTER_PORT="1", GLOO_SOCKET_IFNAME="lo")
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        work()
        sys.stdout.write(f"groups: {len(dist.distributed_c10d._world.pg_map)}")
        dist.destroy_process_group()

    children = [fork(lambda rank=rank: enter(rank), folder / f"{rank}.txt") for rank in (0, 1)]
    statuses = [end_of(child) for child in children]
    outputs = [(folder / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert statuses == [0, 0], outputs
    return outputs


def test_group_of_one_stays(tmp_path):
    """A process group of one rank that was there before a run is there after it."""

    def work():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        quiet(pcd(), data(), steps=2, out=tmp_path / "run")
        assert dist.is_initialized()

    assert end_of(fork(work, tmp_path / "0.txt")) == 0, (tmp_path / "0.txt").read_text()


def test_group_of_two_stays_alone(tmp_path):
    """The group in which checkpoints were written in the background is destroyed; that of the caller is not."""

    def work():
        quiet(pcd(), data(), steps=6, checkpoint_every=2, checkpoint_async=True, out=tmp_path / "run")

    assert in_a_group_of_two(work, tmp_path) == ["groups: 1"] * 2


def test_sharded_state_needs_no_group(tmp_path):
    """Neither the state of a loss nor a copy of it makes a group, where torch would make one for each mesh of devices."""

    def work():
        loss = pcd()
        loss.generator = torch.Generator()
        loss(data(16))
        torch.cuda.is_available = lambda: True
        for tensor in loss.state_dict().values():
            checkpoints._copy(tensor)

    assert in_a_group_of_two(work, tmp_path) == ["groups: 1"] * 2


def test_stop_ends_all_ranks(tmp_path):
    """A run that an observer on the first rank stops ends at the same step on the other."""

    class Stop(BaseObserver):
        def on_log(self, run, metrics):
            run.stop()

    def work():
        result = quiet(pcd(), data(), steps=8, log_every=2, out=tmp_path / "run", observers=[Stop()])
        sys.stdout.write(f"{result.step} {result.checkpoint.name} ")

    assert in_a_group_of_two(work, tmp_path) == ["2 step-00000002 groups: 1"] * 2

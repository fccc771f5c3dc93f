"""Functions that several processes of one group run, for tests."""

from __future__ import annotations

import os
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ebmcore import distributed


def run(function, world, *args):
    """Calls ``function(rank, *args)`` in forked processes of a gloo group; raises what one of them raises."""
    with TemporaryDirectory() as folder:  # a file to meet at: a port that is free now may be another test's soon
        mp.start_processes(enter, args=(world, f"file://{folder}/store", function, *args), nprocs=world, start_method="fork")


def enter(rank, world, meeting, function, *args):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    try:
        function(rank, *args)
        distributed.barrier()
    finally:
        distributed.shutdown()

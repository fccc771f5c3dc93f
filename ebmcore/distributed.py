"""The processes of a distributed run."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """This process's rank and the number of processes; ``(0, 1)`` outside of a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of what each process has, a new tensor; every process must call it. ``value`` itself where there is but one.

    Example:
        >>> import torch
        >>> mean_over_ranks(torch.tensor(2.0))
        tensor(2.)
    """
    n = world()[1]
    if n == 1:
        return value
    total = value.detach().clone()  # autograd may hand out one tensor twice, or an expanded one
    dist.all_reduce(total)
    return total / n

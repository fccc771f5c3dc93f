"""The processes of a distributed run: rank, number of ranks, and what they do together.

Everything here also works outside a process group, where there is one rank.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

__all__ = ["barrier", "mean_over_ranks", "rank", "shutdown", "world_size"]


def rank() -> int:
    """Returns this process's rank; 0 outside a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Returns the number of ranks; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(value: Tensor) -> Tensor:
    """Returns the mean of ``value`` over all ranks; ``value`` itself where there is one. Collective: every rank calls it.

    Example:
        >>> import torch
        >>> mean_over_ranks(torch.tensor(2.0))
        tensor(2.)
    """
    if world_size() == 1:
        return value
    total = value.detach().clone()  # autograd may hand out one tensor twice, or an expanded one
    dist.all_reduce(total)
    return total / world_size()


def barrier() -> None:
    """Waits until every rank is here. Collective."""
    if world_size() > 1:
        dist.barrier()


def shutdown() -> None:
    """Destroys the process group, if there is one; a job that ends without it may abort at exit."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()

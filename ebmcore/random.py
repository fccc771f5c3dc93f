"""Named random streams, each a pure function of (seed, stream, step, rank).

A run that is killed and resumed draws the same numbers again, because there is no generator state to lose.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Generator

__all__ = ["stream_generator", "stream_seed"]


def stream_seed(seed: int, stream: str, step: int = 0, rank: int = 0) -> int:
    """Returns a 63-bit seed; any two different sets of arguments give unrelated seeds.

    Args:
        seed: Seed of the run.
        stream: Name of what the numbers are for, such as ``"sampler"``.
        step: Training step.
        rank: Rank of the process.

    Example:
        >>> stream_seed(0, "data", step=1) == stream_seed(0, "sampler", step=1)
        False
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stream_generator(seed: int, stream: str, step: int = 0, rank: int = 0, device: torch.device | str = "cpu") -> Generator:
    """Returns a generator at the beginning of a stream; see `stream_seed` for the arguments."""
    return Generator(device=device).manual_seed(stream_seed(seed, stream, step, rank))

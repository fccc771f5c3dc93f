"""The device on which the kit works: torch's default device.

Within ``with torch.device("cuda"):`` the checks make components, targets and data on that device, draw from its generators, and
so run there. Random parameters of targets are the same on each device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def generator(seed: int = 0, device: torch.device | str | None = None) -> torch.Generator:
    """A generator with a fixed seed, on the default device unless another is given."""
    return torch.Generator(torch.get_default_device() if device is None else device).manual_seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds torch's global generators within the block; afterwards those of the CPU and the (default) device are as before."""
    device = torch.get_default_device() if device is None else device
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        yield


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of a generator of the CPU, on the default device."""
    return torch.randn(*shape, generator=generator, device="cpu").to(torch.get_default_device())

"""Running a function in other processes: freshly spawned ones, and process groups of gloo."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")
_SECONDS = 120


def spawned(function: Callable[..., Result], *args: Any) -> Result:
    """``function(*args)`` in a freshly spawned process; whatever it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet) as pool:
        return pool.submit(function, *args).result(_SECONDS)


def process_group(function: Callable[..., Result], world: int, *args: Any) -> list[Result]:
    """``function(rank, *args)`` in each of ``world`` processes that form a gloo process group."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(world, context, initializer=_quiet) as pool:
        store = str(Path(folder) / "store")
        futures = [pool.submit(_in_group, function, rank, world, store, args) for rank in range(world)]
        return [future.result(_SECONDS) for future in futures]


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def _in_group(function: Callable[..., Result], rank: int, world: int, store: str, args: tuple[Any, ...]) -> Result:
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        return function(rank, *args)
    finally:
        dist.destroy_process_group()

"""Running a function in other processes: fresh interpreters, alone or as a process group of gloo.

`multiprocessing` would run the caller's main script again in each of them, which is not the kit's to do.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")
_SECONDS = 120


def spawned(function: Callable[..., Result], *args: Any) -> Result:
    """``function(*args)`` in a fresh interpreter; function, arguments and result are pickled.

    Raises:
        RuntimeError: If it failed there, with what it said.
    """
    result: Result = _start([(function, args)])[0]
    return result


def process_group(function: Callable[..., Result], world: int, *args: Any) -> list[Result]:
    """``function(rank, *args)`` in each of ``world`` fresh interpreters that form a gloo process group."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        return _start([(_in_group, (function, rank, world, store, args)) for rank in range(world)])


def _start(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(_run, calls, [Path(folder) / str(i) for i in range(len(calls))]))


def _run(call: tuple[Callable[..., Any], tuple[Any, ...]], answer: Path) -> Any:
    code = f"import sys; sys.path[:] = {sys.path!r}; from ebmcore.testing.processes import _serve; _serve({str(answer)!r})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=pickle.dumps(call), capture_output=True, timeout=_SECONDS)
    if not answer.exists():  # the exit status would also tell of trouble after the work was done
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"another process failed: {said[-1] if said else f'exit status {done.returncode}'}")
    return pickle.loads(answer.read_bytes())  # noqa: S301 - what our own process wrote


def _serve(answer: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    function, args = pickle.load(sys.stdin.buffer)  # noqa: S301 - what the process that started this one wrote
    result = pickle.dumps(function(*args))
    whole = Path(answer + ".writing")
    whole.write_bytes(result)
    whole.replace(answer)


def _in_group(function: Callable[..., Result], rank: int, world: int, store: str, args: tuple[Any, ...]) -> Result:
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        result = function(rank, *args)
        dist.barrier()  # a rank that leaves early takes the others' connection with it
        return result
    finally:
        dist.destroy_process_group()

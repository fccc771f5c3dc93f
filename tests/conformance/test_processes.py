"""``ebmcore.testing.processes``: calls in processes of their own, which have nothing of each other."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ebmcore.testing import processes
from ebmcore.testing.processes import process_group, spawned

LEFT: list[int] = []


def leave(value):
    LEFT.append(value)
    return LEFT, os.getpid()


def where():
    return os.getcwd(), os.environ.get("EBM_TEST_HERE"), sys.path[0]


def gradient(rank, x):
    model = DistributedDataParallel(nn.Linear(3, 1, bias=False))
    model(x * (rank + 1)).sum().backward()
    return dist.get_world_size(), model.module.weight.grad


def fail(rank):
    raise ValueError(f"rank {rank} has no such thing")


def test_each_call_has_its_own_process():
    (first, a), (second, b) = spawned(leave, 1), spawned(leave, 2)
    assert (first, second, LEFT) == ([1], [2], [])
    assert len({a, b, os.getpid()}) == 3


def test_calls_see_path_folder_and_variables(tmp_path, monkeypatch):
    spawned(where)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EBM_TEST_HERE", "yes")
    monkeypatch.syspath_prepend(tmp_path)
    assert spawned(where) == (str(tmp_path), "yes", str(tmp_path))


def test_failures_are_told():
    with pytest.raises(RuntimeError, match="another process failed: TypeError: must be real number, not str"):
        spawned(math.sqrt, "x")
    with pytest.raises(RuntimeError, match="another process failed: it ended"):
        spawned(os._exit, 0)
    assert spawned(math.sqrt, 4.0) == 2.0


def test_hanging_calls_are_ended(monkeypatch):
    monkeypatch.setattr(processes, "_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"took more than 0\.5 s"):
        spawned(time.sleep, 60)
    assert time.monotonic() - started < 30


def test_ranks_share_gradients():
    for world, grad in process_group(gradient, 2, torch.arange(3.0)):
        assert world == 2
        assert torch.equal(grad, torch.tensor([[0.0, 1.5, 3.0]]))


def test_failures_of_ranks_are_told():
    with pytest.raises(RuntimeError, match="rank . has no such thing"):
        process_group(fail, 2)


def test_without_forks_an_interpreter_answers(monkeypatch):
    monkeypatch.setattr(processes, "_FORKS", False)
    assert spawned(math.sqrt, 4.0) == 2.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a server on Linux only")
def test_server_ends_with_its_owner():
    program = "import math, os; from ebmcore.testing.processes import spawned; print(spawned(os.getppid)); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for _ in range(100):
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the server still runs after 10 s")

"""Running a function in other processes: alone, or as a process group of gloo.

Each call gets a process of its own, in which nothing was imported but torch and ebmcore. On Linux it is a fork of a server that
has imported them once, where a fresh interpreter would take seconds for that in each call. `multiprocessing` would run the
caller's main script again in each of them, which is not the kit's to do.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")
_SECONDS = 120
_FORKS = sys.platform.startswith("linux")
# What DistributedDataParallel imports when one is made, for seconds; the server does so once.
_GROUP_IMPORTS = ("torch._dynamo",)


def spawned(function: Callable[..., Result], *args: Any) -> Result:
    """Run ``function(*args)`` in another process without shared state; function, arguments and result are pickled.

    Raises:
        RuntimeError: If it failed there, with the message of that error.
    """
    result: Result = _run((function, args), ())
    return result


def process_group(function: Callable[..., Result], world: int, *args: Any) -> list[Result]:
    """Run ``function(rank, *args)`` in each of ``world`` other processes that form a gloo process group."""
    if _FORKS:
        _server(os.getpid())  # one for all ranks, whose threads would each start their own
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(world) as pool:
        store = str(Path(folder) / "store")
        calls = [(_in_group, (function, rank, world, store, args)) for rank in range(world)]
        return list(pool.map(_run, calls, [_GROUP_IMPORTS] * world))


def _run(call: tuple[Callable[..., Any], tuple[Any, ...]], imports: Sequence[str]) -> Any:
    # The path comes first: what follows is found on it.
    environment = {
        "path": sys.path,
        "variables": dict(os.environ),
        "folder": os.getcwd(),
        "imports": tuple(imports),
        "device": torch.get_default_device(),
    }
    request = pickle.dumps(environment) + pickle.dumps(call)
    answer = _ask_server(request) if _FORKS else _ask_interpreter(request)
    if not answer:
        raise RuntimeError(f"another process failed: it ended, or took more than {_SECONDS} s, without an answer")
    ok, result = pickle.loads(answer)  # noqa: S301 - what our own process wrote
    if not ok:
        raise RuntimeError(f"another process failed: {result}")
    return result


def _ask_interpreter(request: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        command = [sys.executable, "-c", _code(f"_interpreter({str(answer)!r})")]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, input=request, capture_output=True, timeout=_SECONDS)
        return answer.read_bytes() if answer.exists() else b""


def _interpreter(answer: str) -> None:
    with open(answer + ".writing", "wb") as stream:
        _work(pickle.load(sys.stdin.buffer), sys.stdin.buffer, stream)  # noqa: S301 - what the process that started this one wrote
    os.replace(answer + ".writing", answer)


def _ask_server(request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(_server(os.getpid()))
        stream = connection.makefile("rwb")
        stream.write(request)
        stream.flush()
        pid = int(stream.readline() or 0)
        connection.settimeout(_SECONDS)
        try:
            return stream.read()
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            return b""


@functools.cache
def _server(owner: int) -> str:
    """The socket of the server of a process, which starts it; a fork of that process has one of its own."""
    folder = tempfile.TemporaryDirectory()
    path = str(Path(folder.name) / "socket")
    # Imports may look for CUDA: through its management library, as a fork of a process that has started CUDA cannot use it.
    environment = os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    # The server ends with this process, which closes its standard input.
    process = subprocess.Popen(
        [sys.executable, "-c", _code(f"_serve({path!r})")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdin is not None, "it is a pipe"
    assert process.stdout is not None, "it is a pipe"
    process.stdout.readline()  # it listens
    atexit.register(_stop, owner, process, folder)
    return path


def _stop(owner: int, process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    if os.getpid() == owner:
        process.kill()
        process.communicate()
        folder.cleanup()


def _code(call: str) -> str:
    return f"import sys; sys.path[:] = {sys.path!r}; from ebmcore.testing import processes; processes.{call}"


def _serve(path: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no one waits for the forks
    torch.set_num_threads(1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("listening", flush=True)  # noqa: T201 - to the process that waits for it
        while listener in select.select([listener, sys.stdin], [], [])[0]:  # or the process that started this one has gone
            connection, _ = listener.accept()
            _fork(connection)


def _fork(connection: socket.socket) -> None:
    with connection, connection.makefile("rwb") as stream:
        environment = pickle.load(stream)  # noqa: S301 - what the process that started this one wrote
        for name in environment["imports"]:
            importlib.import_module(name)
        if os.fork() == 0:
            stream.write(f"{os.getpid()}\n".encode())
            stream.flush()
            _work_and_exit(environment, stream)


def _work_and_exit(environment: dict[str, Any], stream: Any) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        _work(environment, stream, stream)
        stream.flush()
    finally:
        os._exit(0)


def _work(environment: dict[str, Any], source: Any, answer: BinaryIO) -> None:
    """Does a call that is read from a stream and writes its result, or the line that says what went wrong."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.path[:] = environment["path"]
    os.environ.clear()
    os.environ.update(environment["variables"])
    os.chdir(environment["folder"])
    if environment["device"].type != "cpu":
        torch.set_default_device(environment["device"])
    try:
        function, args = pickle.load(source)  # noqa: S301 - what the process that started this one wrote
        written = pickle.dumps((True, function(*args)))
    except BaseException as error:  # SystemExit too is a failure here
        written = pickle.dumps((False, traceback.format_exception_only(error)[-1].strip()))
    answer.write(written)


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

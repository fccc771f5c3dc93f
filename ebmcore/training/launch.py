"""The processes of a run: how many there are and where, and what the first one does for all."""

from __future__ import annotations

import atexit
import gc
import itertools
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch.distributed as dist

from ebmcore.distributed import rank, shutdown, world_size
from ebmcore.errors import EbmcoreError, LostProcessError, UsageError
from ebmcore.training.sharding import forget_meshes, shard

Strategy = Literal["auto", "ddp", "fsdp"]
Result = TypeVar("Result")
_PARENT = "_FIT_PARENT_PROCESS"  # environment variable: the process that has started this one as a further one of its run


def launch(
    train: Callable[[Any], Result],
    accelerator: str,
    devices: int | None,
    num_nodes: int | None,
    strategy: Strategy,
    precision: Any,
    *,
    may_skip_parameters: bool = False,
) -> Result:
    """Calls ``train`` with the Lightning Fabric of a run, in each of its processes; returns what it returns.

    With ``may_skip_parameters``, a step may leave parameters out, and processes that share a model look for them.

    Under ``torchrun`` or Slurm's ``srun`` the processes that they started are those of the run. Otherwise one process is started
    for each of ``devices``. A process group that is made for the run is destroyed at its end.

    Raises:
        UsageError: If the options contradict the launcher or cannot work.
        LostProcessError: If another process of the run ends before its time.
    """
    devices, num_nodes = _processes(devices, num_nodes)
    n_processes, own_group = devices * num_nodes, not dist.is_initialized()
    failure: BaseException | None = None
    try:
        return _launch(train, accelerator, devices, num_nodes, strategy, precision, may_skip_parameters)
    except BaseException as error:
        failure = error
        raise
    finally:
        if n_processes > 1 and own_group and not _lost:
            _release_group(failure)


def _launch(
    train: Callable[[Any], Result],
    accelerator: str,
    devices: int,
    num_nodes: int,
    strategy: Strategy,
    precision: Any,
    may_skip_parameters: bool,
) -> Result:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    from ebmcore.training.given import GivenGroup

    n_processes, own_group = devices * num_nodes, not dist.is_initialized()
    chosen: Any = DDPStrategy(find_unused_parameters=may_skip_parameters) if n_processes > 1 else "auto"
    if strategy == "fsdp" and n_processes > 1:
        chosen = ModelParallelStrategy(shard, data_parallel_size=n_processes, tensor_parallel_size=1)
    try:
        given = None if own_group or n_processes == 1 else GivenGroup()
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=chosen,
            precision=precision,
            plugins=given,
        )
    except (ValueError, RuntimeError, ImportError, TypeError) as error:
        raise UsageError(f"accelerator={accelerator!r}, devices={devices!r}, precision={precision!r}: {error}") from error
    try:
        _join_under_torchrun()
        with _watching():
            fabric.launch()
        return train(fabric)
    except Exception as error:
        if n_processes > 1 and is_lost_connection(error):
            own_group = False  # to free it would wait for the lost process, perhaps without end
            _lost.append(error)
            atexit.register(_leave)
            raise LostProcessError(LOST) from error
        if "Expected to have finished reduction in the prior iteration" in str(error):
            reason = "a parameter that is trained takes no part in the loss, which several processes cannot have"
            raise UsageError(f"{reason}: set its requires_grad to False") from error
        raise
    finally:
        if own_group and n_processes > 1:
            # First what torch wraps the model in: as the last holder of the group it would end the group's threads while it
            # holds the interpreter's lock, for which they may wait.
            _clear(sys.exception())
        if own_group:
            shutdown()


def _release_group(error: BaseException | None) -> None:
    """Clears what still holds the process group that has ended.

    The group holds its threads, which abort a process that ends before them, and connections whose end the others wait for.
    """
    forget_meshes()
    _clear(error)


def _clear(error: BaseException | None) -> None:
    """Clears what an error's traceback holds, and what only its own references hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


@contextmanager
def _watching() -> Iterator[None]:
    """Context in which processes that Fabric starts get a watch of ours: its own kills this process when one of them ends."""
    from lightning_fabric.strategies.launchers import subprocess_script

    class Watch(subprocess_script._ChildProcessObserver):
        def _terminate_all(self) -> None:
            time.sleep(_NOTICING)
            if not _lost:
                sys.stderr.write(f"ebmcore: {LOST}\n")
                for child in self._child_processes:
                    child.kill()
                _leave()

    fabrics = subprocess_script._launch_process_observer
    patched: Any = subprocess_script
    patched._launch_process_observer = lambda children: Watch(os.getpid(), children).start()
    try:
        yield
    finally:
        patched._launch_process_observer = fabrics


LOST = "another process of the run has ended before its time; resume from the last checkpoint, if there is one"
_NOTICING = 3  # seconds in which this process may see on its own that another was lost
_lost: list[Exception] = []


def _join_under_torchrun() -> None:
    """Makes the process group of a run that ``torchrun`` has started, under a prefix of its own.

    The store of torchrun's default rendezvous keeps the addresses that processes have left in it (so does torch 2.13). Those of a
    second group in these processes, or of processes that were started again, would meet addresses where nobody answers.
    """
    if dist.is_initialized() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    n_processes = int(os.environ["WORLD_SIZE"])
    if n_processes > 1:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), n_processes, is_master=False
        )
        prefix = f"ebmcore-{os.environ.get('TORCHELASTIC_RESTART_COUNT')}-{next(_groups)}"
        prefixed = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        own = int(os.environ["RANK"])
        dist.init_process_group(store=prefixed, rank=own, world_size=n_processes)
        # As Fabric says it where it makes the group.
        logging.getLogger("lightning_fabric").info(
            f"Initializing distributed: GLOBAL_RANK: {own}, MEMBER: {own + 1}/{n_processes}"
        )


_groups = itertools.count()  # made in this process, of which every other one of the run makes as many


def on_first_rank(function: Callable[[], Result], group: Any = None) -> Result:
    """Calls ``function`` on the first rank alone; returns its result, or raises its error, on every rank. Collective."""
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome = [function(), None]
        except (EbmcoreError, OSError) as error:
            outcome = [None, error]
        except Exception as error:
            outcome = [None, RuntimeError(f"{type(error).__name__}: {error}")]  # any other might not pickle
    dist.broadcast_object_list(outcome, group=group)  # the others wait for it, and stop with it
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result


def _processes(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Returns the processes per node and the nodes."""
    launcher = _launcher()
    if launcher is None:
        if num_nodes is not None and num_nodes > 1:
            raise UsageError(f"num_nodes={num_nodes} needs a launcher on each node: use torchrun or srun, see docs/scale.md")
        if (devices or 1) > 1:
            if "LOCAL_RANK" in os.environ and os.environ.get(_PARENT) != str(os.getppid()):
                if _PARENT in os.environ and os.environ["LOCAL_RANK"] != "0":  # started for a process that is gone by now
                    raise LostProcessError(LOST)
                raise UsageError("LOCAL_RANK is set, but no launcher has started this process: unset it")
            os.environ[_PARENT] = str(os.getpid())  # Fabric starts the others with this environment
        return 1 if devices is None else devices, 1
    name, n_processes, n_nodes = launcher
    if n_processes % n_nodes:
        raise UsageError(f"{name} has {n_processes} processes on {n_nodes} nodes: start as many on each")
    for option, asked, there in (("devices", devices, n_processes // n_nodes), ("num_nodes", num_nodes, n_nodes)):
        if asked not in (None, there):
            raise UsageError(
                f"{name} has {n_processes} processes on {n_nodes} nodes, which contradicts {option}={asked}: leave it out"
            )
    return n_processes // n_nodes, n_nodes


def _launcher() -> tuple[str, int, int] | None:
    """Returns name, number of processes and number of nodes of what started this process; `None` if it was started alone."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    try:
        if dist.is_initialized():
            n_processes = dist.get_world_size()
            return "the process group", n_processes, n_processes // int(os.environ.get("LOCAL_WORLD_SIZE", n_processes)) or 1
        if TorchElasticEnvironment.detect():
            n_processes = int(os.environ["WORLD_SIZE"])
            return "torchrun", n_processes, n_processes // int(os.environ["LOCAL_WORLD_SIZE"]) or 1
        if SLURMEnvironment.detect():
            return "Slurm", int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", 1))
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"the environment of this process is not as a launcher makes it ({error}): start it again"
        ) from error
    return None


def is_lost_connection(error: BaseException | None) -> bool:
    """Whether a collective failed, here or in what an error was caused by."""
    if error is None:
        return False
    # Gloo's errors have no class of their own. Our own messages may hold any path.
    of_gloo = "gloo/transport" in str(error) and not isinstance(error, EbmcoreError | OSError)
    return of_gloo or isinstance(error, dist.DistError) or is_lost_connection(error.__cause__)


def _leave() -> None:
    """Ends the process at once, as its status 1; at the usual end the threads of a broken group may wait without end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)

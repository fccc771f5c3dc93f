"""Sharded parameters, by torch's FSDP2: each process keeps a part of the energy and of the optimizer's state.

The parameters are gathered once for each training step, before its first transition, and freed after its backward pass: a step
with ``k`` transitions costs one gathering. So a step needs the memory of all parameters; between steps, and for the
optimizer, a process has its part alone.
"""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _composable_state
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, _redistribute, distribute_tensor

from ebmcore.distributed import world_size
from ebmcore.errors import UsageError
from ebmcore.losses import BaseLoss
from ebmcore.training.averaging import copy_energy, tensors_within

_BLOCK = 2**20  # parameters from which a module is gathered alone, where the energy names no blocks


def check_shardable(loss: BaseLoss, *, ema_decay: float | None, compile: bool) -> None:
    """Raise `UsageError`, with the reason and what to do, for a training that cannot have sharded parameters."""
    name = type(loss).__name__
    alternative = "use strategy='ddp'"
    if loss.double_backward:
        reason = f"{name} differentiates a gradient (double_backward), which sharded parameters cannot carry"
        alternative += ", or a loss of differences of energies"
    elif any(not key.startswith("energy.") for key, _ in loss.named_parameters()):
        reason = f"{name} trains parameters beside the energy's, which are not sharded"
    elif fault := _fault(loss.energy):
        reason = f"{type(loss.energy).__name__} {fault}"
    elif ema_decay is not None:
        reason = "a moving average is kept of whole parameters"
    elif compile:
        reason = "a compiled graph holds whole parameters"
    else:
        return
    raise UsageError(f"strategy='fsdp' cannot train this: {reason}; {alternative}")


def _fault(energy: nn.Module) -> str | None:
    """Why the parameters of an energy cannot be cut; `None` if they can."""
    parameters, blocks = list(energy.parameters()), list(getattr(energy, "blocks", ()))
    held = [id(p) for block in blocks for p in block.parameters()]
    outside = ({k: v for k, v in vars(m).items() if k not in ("_parameters", "_buffers")} for m in energy.modules())
    if any(not p.ndim for p in parameters):
        return "has a 0-dim parameter, which cannot be cut (make it of one element)"
    if any(not p.is_contiguous() for p in parameters):
        return "has a parameter that is not contiguous, such as a transposed one"
    if len({p.dtype for p in parameters if p.requires_grad}) > 1:
        return "has parameters of several types"
    if len(set(held)) < len(held):
        return "has a parameter in two of its blocks (leave one out of blocks)"
    if any(isinstance(t, nn.Parameter) for attributes in outside for t in tensors_within(attributes)):
        return "keeps a parameter in a list or a mapping, which would stay whole (use a ParameterList or a ParameterDict)"
    return None


def shard(loss: nn.Module, mesh: Any) -> nn.Module:
    """Shards the energy of a loss over the processes of a device mesh; Fabric calls it.

    The blocks are the modules that the energy gives as ``blocks``, otherwise those of at least 2^20 parameters. A loss names its
    modules whose buffers have the shapes of parameters in ``sharded_like_parameters``: these become DTensors, too.
    """
    energy, over = loss.energy, mesh["data_parallel"]
    assert isinstance(energy, nn.Module)  # noqa: S101 - `check_shardable` has seen to it
    loss.to(mesh.device_type)
    for tensor in (*energy.parameters(), *energy.buffers()):
        dist.broadcast(tensor.detach(), 0)  # the parts of one model, not of as many as there are processes
    for block in (*getattr(energy, "blocks", _large_modules(energy)), energy):
        fully_shard(block, mesh=over, reshard_after_forward=False)
    for part in _sharded(energy):
        part.set_reshard_after_backward(False)
    for name in getattr(loss, "sharded_like_parameters", ()):
        owner = loss.get_submodule(name)
        for key, buffer in owner.named_buffers(recurse=False):
            setattr(owner, key, distribute_tensor(buffer, over, [Shard(0)], src_data_rank=None))
    return loss


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Context in which the parameters of ``module`` are whole; nothing where they are not sharded. Collective."""
    parts = _sharded(module)
    for part in parts:
        part.unshard()
    try:
        with warnings.catch_warnings():
            # It is for code that changes energies in place, which this does not.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
            yield
    finally:
        for part in parts:
            part.reshard()


def without_parameters(energy: nn.Module) -> nn.Module:
    """Returns a copy of an energy with all but the values of its parameters, for `make_whole`.

    Raises:
        UsageError: If it cannot be copied.
    """
    memo = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in energy.parameters()}
    return copy_energy(energy, memo)


@contextmanager
def put_back_on_error(loss: nn.Module, bare: nn.Module | None) -> Iterator[None]:
    """Context in which the energy of a loss is sharded: if it fails, the loss is what it was, and of no further memory."""
    if bare is None:
        yield
        return
    energy: Any = loss.energy
    parameters = dict(energy.named_parameters(remove_duplicate=False))
    buffers = {name: dict(loss.get_submodule(name).named_buffers()) for name in getattr(loss, "sharded_like_parameters", ())}
    try:
        yield
    except BaseException:
        for name, parameter in parameters.items():
            owner, _, leaf = name.rpartition(".")
            bare.get_submodule(owner)._parameters[leaf] = parameter
        _replace(loss, energy, bare, lambda name, key, _: buffers[name][key])
        raise


def make_whole(loss: nn.Module, bare: nn.Module) -> None:
    """Makes the energy of a loss what ``bare`` is, the module before it was sharded, with the trained parameters. Collective."""
    energy = loss.energy
    assert isinstance(energy, nn.Module)  # noqa: S101 - `check_shardable` has seen to it
    fill(bare, energy)
    _replace(loss, energy, bare, lambda _, __, buffer: whole(buffer))


def give_up(loss: nn.Module, bare: nn.Module) -> None:
    """Makes the energy of a loss ``bare``, whose parameters have no values: where a run failed, the others do not gather them.

    A sharded energy would hold the process group, whose end the other processes wait for.
    """
    _replace(loss, loss.energy, bare.to("meta"), lambda _, __, buffer: torch.empty(buffer.shape, device="meta"))


def _replace(loss: nn.Module, energy: Any, bare: nn.Module, of_buffer: Callable[[str, str, Any], Any]) -> None:
    # In place, as others hold the object; FSDP has changed its class, and its hooks are among its attributes.
    energy.__class__, energy.__dict__ = type(bare), bare.__dict__
    _composable_state._module_state_mapping.pop(energy, None)  # so that it can be sharded again
    for name in getattr(loss, "sharded_like_parameters", ()):
        owner = loss.get_submodule(name)
        for key, buffer in owner.named_buffers(recurse=False):
            setattr(owner, key, of_buffer(name, key, buffer))


def fill(bare: nn.Module, energy: nn.Module, *, copy_to: str | None = None, keep: bool = True) -> None:
    """Gives ``bare`` the whole parameters and the buffers of a sharded energy. Collective.

    Args:
        bare: What `without_parameters` has returned.
        energy: The sharded energy.
        copy_to: Device of copies; `None` gives it tensors of the energy itself.
        keep: Whether this process wants them. If not, it only does its part in gathering.
    """
    parts = dict(energy.named_parameters(remove_duplicate=False)) | dict(energy.named_buffers(remove_duplicate=False))
    own = [*bare.named_parameters(remove_duplicate=False), *bare.named_buffers(remove_duplicate=False)]
    made: dict[int, Tensor] = {}  # parameters that are one stay one
    for name, old in own:
        if id(old) not in made:
            new = whole(parts[name].detach())
            new = new if copy_to is None else new.to(copy_to, copy=True)
            made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        if keep:
            owner, _, leaf = name.rpartition(".")
            module = bare.get_submodule(owner)
            held: dict[str, Any] = module._parameters if isinstance(old, nn.Parameter) else module._buffers
            held[leaf] = made[id(old)]


def share_buffers(module: nn.Module) -> None:
    """Gives all processes the buffers of the first one, such as the statistics of batches. Collective."""
    if world_size() > 1:
        for buffer in module.buffers():
            if not isinstance(buffer, DTensor):
                dist.broadcast(buffer, 0)


def whole(value: Any) -> Any:
    """Returns a DTensor as a plain tensor; all else as it is. Collective."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, own: Any) -> Tensor:
    """Returns this process's part of a whole tensor where ``own`` is a DTensor of its shape; otherwise the tensor."""
    if not isinstance(own, DTensor) or own.shape != value.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def forget_meshes() -> None:
    """Empties the caches in which torch keeps the meshes of DTensors, and with them a process group that has ended."""
    from torch.distributed.tensor import debug  # which needs numpy

    debug._clear_sharding_prop_cache()
    _redistribute._planner_cache.clear()
    for cached in gc.get_objects():
        if type(cached) is functools._lru_cache_wrapper and cached.__module__.startswith("torch.distributed.tensor"):
            cached.cache_clear()


def _sharded(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _large_modules(energy: nn.Module) -> list[nn.Module]:
    """The outermost modules within the energy that have at least 2^20 parameters and are not nearly all of it."""
    found, seen = [], set[str]()
    total = sum(p.numel() for p in energy.parameters())
    for name, module in energy.named_modules():
        size = sum(p.numel() for p in module.parameters())
        if name and _BLOCK <= size <= total // 2 and not any(name.startswith(f"{other}.") for other in seen):
            seen.add(name)
            found.append(module)
    return found

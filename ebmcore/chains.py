"""The store of long-lived Markov chains of a persistent loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ebmcore.distributed import world
from ebmcore.distributions import InitialDistribution
from ebmcore.energies import set_plainly
from ebmcore.errors import UsageError
from ebmcore.samplers import ChainState, select_chains, tensors_where

State = TypeVar("State", bound=ChainState)


class _Drawn(NamedTuple):
    slots: Tensor
    fresh: ChainState
    ages: Tensor


class PersistentChains(nn.Module):
    """Markov chains that live from one training step to the next, more of them than a batch holds.

    `draw` takes chains without replacement; `write` puts them back into the very slots that they came from, so no lineage
    is lost or duplicated, whatever the batch size. The store holds whole sampler states (`ChainState.tensors`), conditions
    included, and for each chain its ``id``, which never changes, and its ``age``, the number of times it was written back
    since it was last started from the initial distribution.

    The tensors are in ``state_dict()``. They are no buffers: `DistributedDataParallel` would overwrite every rank's chains
    with those of rank 0. In a process group the chains are sharded over the ranks, and ``state_dict()`` gives DTensors
    (sharded over dim 0), so that ``torch.distributed.checkpoint`` writes each chain once and reads them back on any number
    of ranks.

    Example:
        >>> from ebmcore.distributions import Normal
        >>> chains = PersistentChains()
        >>> x = chains.allocate((100, 2), Normal(torch.zeros(2)))
        >>> state = chains.draw(ChainState(torch.zeros(64, 2)))
        >>> chains.write(state)
        >>> int(chains.ages.sum())
        64
    """

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[str, Tensor] = {}
        self._n_chains = 0
        self._drawn: _Drawn | None = None

    @property
    def x(self) -> Tensor | None:
        """Positions ``(chains, *shape)``, live; in a process group, this rank's. `None` before `allocate`."""
        return self._tensors.get("x")

    @property
    def ids(self) -> Tensor:
        """Identity of the chain in each slot, int64."""
        return self._tensors["id"]

    @property
    def ages(self) -> Tensor:
        """How often the chain in each slot was written back since it was started, int64."""
        return self._tensors["age"]

    @property
    def conditions(self) -> dict[str, Tensor]:
        """The conditions of the chain in each slot, by name."""
        prefix = "conditions."
        return {n.removeprefix(prefix): t for n, t in self._tensors.items() if n.startswith(prefix)}

    def __len__(self) -> int:
        """Number of chains, over all ranks."""
        return self._n_chains

    def __bool__(self) -> bool:
        return True  # an empty store is still a module

    def extra_repr(self) -> str:
        return f"{self._n_chains} chains" if self._tensors else "not allocated"

    def allocate(
        self,
        shape: Sequence[int],
        initial: InitialDistribution,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Start ``shape[0]`` new chains of ``shape[1:]`` from ``initial`` and return their live positions.

        In a process group ``shape[0]`` counts the chains of all ranks, and the result holds this rank's share.
        """
        _refuse_inference_mode()
        n_chains, *event = shape or (0,)
        if n_chains < 1:
            raise UsageError(f"the first size of a chain shape is the number of chains, at least 1; got {tuple(shape)}")
        start, stop = _shard(n_chains)
        x = initial.sample(stop - start, generator=generator)
        if tuple(x.shape[1:]) != tuple(event):
            raise UsageError(
                f"the initial distribution gives examples of shape {tuple(x.shape[1:])}, but chains of shape "
                f"{tuple(event)} were asked for: pass data of the energy's shape"
            )
        x = x.to(device=device, dtype=dtype, copy=True).contiguous()  # the store writes in place
        self._n_chains = n_chains
        self._drawn = None
        ids = torch.arange(start, stop, device=x.device)
        self._tensors = {"x": x, "id": ids, "age": torch.zeros_like(ids)}
        return x

    def hold(self, shape: Sequence[int]) -> bool:
        """Whether these are ``shape[0]`` chains of ``shape[1:]``."""
        return self.x is not None and (self._n_chains, *self.x.shape[1:]) == tuple(shape)

    def share(self) -> None:
        """Keep this rank's chains alone, where all were started before the process group was."""
        start, stop = _shard(self._n_chains)
        n = self.ids.shape[0]
        if n == stop - start:
            return
        if n != self._n_chains:
            raise UsageError(
                f"these are {n} of {self._n_chains} chains, one rank's share of a process group that is no more: load the "
                "checkpoint of all ranks, or initialize_persistent_chain() to start new ones; to keep weights, save the energy"
            )
        self._drawn = None
        self._tensors = {name: tensor[start:stop].clone() for name, tensor in self._tensors.items()}

    def follow(self, dtype: torch.dtype, device: torch.device) -> None:
        """Go to a device, and take positions, and what is of their type, to another; what is of a wider type stays so."""
        x = self.x
        if x is None or (x.dtype, x.device) == (dtype, device):
            return
        self._drawn = None
        self._tensors = {
            name: t.to(device=device, dtype=dtype if t.dtype == x.dtype else None) for name, t in self._tensors.items()
        }

    def missing(self, like: ChainState) -> list[str]:
        """Which tensors of a state like this the chains do not hold yet."""
        return [name for name in like.tensors() if name not in self._tensors]

    def complete(self, state: ChainState) -> None:
        """Take over whatever tensors of ``state``, one row for each chain, are missing."""
        for name in self.missing(state):
            self._tensors[name] = state.tensors()[name].clone()

    def draw(self, fresh: State, *, restart_prob: float = 0.0, generator: torch.Generator | None = None) -> State:
        """Draw as many different chains as ``fresh`` has, each started anew with probability ``restart_prob``.

        Args:
            fresh: Newly started chains: what a restarted chain becomes, now or when it turns out not to be finite.
            restart_prob: Probability of a restart, for each drawn chain.
            generator: Source of randomness.

        Returns:
            The drawn states, copies. Hand them to `write` after the transitions.
        """
        if self.missing(fresh):
            raise UsageError(
                f"the chains hold {sorted(self._tensors)} but the sampler's state also needs {self.missing(fresh)}: "
                "they were made by another sampler; use that one, or allocate new chains"
            )
        for name, tensor in fresh.tensors().items():
            own, needed = self._tensors[name].shape[1:], tensor.shape[1:]
            if own != needed:
                raise UsageError(
                    f"{name} of the chains has the shape {tuple(own)} for each, of the sampler's state {tuple(needed)}: "
                    "they were made by a sampler with other options; use that one, or allocate new chains"
                )
        n = len(fresh)
        local = self._tensors["x"].shape[0]
        if n > local:
            raise UsageError(f"cannot draw {n} different chains from {local}")
        slots = torch.randperm(local, generator=generator, device=fresh.x.device)[:n]
        state = fresh.with_tensors({name: self._tensors[name].index_select(0, slots) for name in fresh.tensors()})
        ages = self.ages.index_select(0, slots)
        if restart_prob:
            restarted = torch.rand(n, generator=generator, device=fresh.x.device) < restart_prob
            state = select_chains(restarted, fresh, state)
            ages = ages.masked_fill(restarted, 0)
        set_plainly(self, "_drawn", _Drawn(slots, fresh, ages))
        return state

    def write(self, state: ChainState) -> None:
        """Put the drawn chains back into their slots; those that are not finite are started anew instead."""
        if self._drawn is None or self._drawn.slots.shape[0] != len(state):
            raise UsageError("write() puts back the chains of the last draw(): draw them first, and write all of them")
        slots, fresh, ages = self._drawn
        set_plainly(self, "_drawn", None)
        finite = state.finite()
        kept = tensors_where(finite, state, fresh) | {"age": (ages + 1) * finite}  # the slot's chain keeps its id
        for name, tensor in kept.items():
            self._tensors[name].index_copy_(0, slots, tensor.to(self._tensors[name].dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PersistentChains:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tensors = {name: fn(tensor) for name, tensor in self._tensors.items()}
        self._drawn = None
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._tensors:
            self.share()
        for name, tensor in self._tensors.items():
            destination[prefix + name] = _as_sharded(tensor, self._n_chains)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        loaded = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if not loaded:
            if self._tensors and strict:
                missing_keys.extend(prefix + name for name in self._tensors)
            return
        _refuse_inference_mode()
        if not {"x", "id", "age"} <= set(loaded):
            error_msgs.append(f"{prefix}: holds {sorted(loaded)}, but chains need x, id and age")
            return
        sizes = {len(value) for value in loaded.values()}
        if len(sizes) > 1:
            error_msgs.append(f"{prefix}: its tensors disagree about the number of chains: {sorted(sizes)}")
            return
        try:
            whole = {name: _whole(value) for name, value in loaded.items()}
        except RuntimeError as error:
            error_msgs.append(f"{prefix}: its chains cannot be gathered ({error}): {_SAVE_TOGETHER}")
            return
        n_chains = sizes.pop()
        if not whole["id"].is_meta and len(whole["id"].unique()) < n_chains:
            error_msgs.append(
                f"{prefix}: some of its {n_chains} chains are missing and others there twice: {_SAVE_TOGETHER}"
            )
            return
        self._n_chains = n_chains
        self._drawn = None
        start, stop = _shard(n_chains)
        self._tensors = {name: tensor[start:stop].clone() for name, tensor in whole.items()}


def _shard(n_chains: int) -> tuple[int, int]:
    """This rank's chains ``[start, stop)``, cut as DTensor cuts dimension 0: like ``torch.chunk``."""
    rank, n_ranks = world()
    size = -(-n_chains // n_ranks)
    if (n_ranks - 1) * size >= n_chains:
        raise UsageError(f"{n_chains} chains leave one of {n_ranks} ranks without any: use a multiple of {n_ranks}")
    return rank * size, min((rank + 1) * size, n_chains)


def _as_sharded(tensor: Tensor, n_chains: int) -> Tensor:
    if world()[1] == 1:
        return tensor.detach()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh(tensor.device.type, (world()[1],))
    size = torch.Size((n_chains, *tensor.shape[1:]))
    stride = torch.empty(size, device="meta").stride()
    sharded: Tensor = DTensor.from_local(tensor.detach(), mesh, [Shard(0)], shape=size, stride=stride)
    return sharded


def _refuse_inference_mode() -> None:
    if torch.is_inference_mode_enabled():
        raise UsageError("chains made under torch.inference_mode() could never be moved: use torch.no_grad() instead")


def _whole(value: Tensor) -> Tensor:
    gathered: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return gathered.detach()


_SAVE_TOGETHER = (
    "a state_dict() of a process group holds this rank's share, and one rank's torch.save() no other; save it by "
    "torch.distributed.checkpoint on all ranks"
)

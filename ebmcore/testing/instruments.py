"""Instruments of the checks: traces on an energy, synchronisations, memory, randomness."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


@dataclass(frozen=True)
class Trace:
    """All of a module that sampling must leave as it was."""

    tensors: dict[str, Tensor]
    training: dict[str, bool]
    requires_grad: dict[str, bool]
    grads: dict[str, Tensor | None]

    @classmethod
    def of(cls, module: nn.Module) -> Trace:
        """Record the current state."""
        return cls(
            {name: t.detach().clone() for name, t in (*module.named_parameters(), *module.named_buffers())},
            {name or "the energy": m.training for name, m in module.named_modules()},
            {name: p.requires_grad for name, p in module.named_parameters()},
            {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()},
        )

    def changes(self, module: nn.Module, ignore: Sequence[str] = ()) -> list[str]:
        """Describe what has changed in ``module``."""
        now = Trace.of(module)
        changed = [f"{n} changed" for n, t in self.tensors.items() if not _same(t, now.tensors.get(n))]
        changed += [
            f"training of {n} is {now.training[n]}, was {t}" for n, t in self.training.items() if now.training[n] != t
        ]
        flags = self.requires_grad.items()
        changed += [
            f"requires_grad of {n} is {now.requires_grad[n]}, was {t}" for n, t in flags if now.requires_grad[n] != t
        ]
        changed += [f"grad of {n} changed" for n, t in self.grads.items() if not _same(t, now.grads[n])]
        return [change for change in changed if not change.startswith(tuple(ignore))] if ignore else changed


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())


def largest(*differences: Tensor) -> float:
    """The largest absolute value in some tensors; NaN if any is NaN."""
    return float(torch.cat([d.detach().double().abs().flatten() for d in differences] or [torch.zeros(1)]).max())


def global_random_state() -> dict[str, Any]:
    """The state of every global generator that a component could have drawn from."""
    state: dict[str, Any] = {"torch": torch.get_rng_state().tolist(), "random": random.getstate()}
    device = torch.get_default_device()
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(device).tolist()
    if "numpy" in sys.modules:
        algorithm, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy"] = (algorithm, keys.tolist(), *rest)
    return state


class HalfPrecisionComparisons(TorchDispatchMode):
    """Notes comparisons of numbers in bfloat16 or float16.

    Attributes:
        found: The operations, in order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.__name__.partition(".")[0]
        half = any(isinstance(a, Tensor) and a.dtype in (torch.bfloat16, torch.float16) for a in args)
        if half and name in ("lt", "le", "gt", "ge"):
            self.found.append(f"{name}()")
        return func(*args, **(kwargs or {}))


class Synchronisations(TorchDispatchMode):
    """Notes what would make the host wait for a device: reading a value, or a result whose size depends on values.

    Attributes:
        found: The operations, in order.
    """

    _WAITING = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "is_nonzero", "_unique", "unique_")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self._reads = _Reads(self.found)

    def __enter__(self) -> Synchronisations:
        self._reads.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._reads.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.__name__.partition(".")[0]
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]
        )
        if (name.startswith(self._WAITING) or masked) and not self._reads.harmless:
            self.found.append("indexing with a mask" if masked else _SPOKEN.get(name, f"{name}()"))
        return func(*args, **(kwargs or {}))


_SPOKEN = {"_local_scalar_dense": ".item() or bool(), int(), float() of a tensor"}


class _Reads(TorchFunctionMode):
    """Notes reads that never reach the dispatcher on the CPU, but wait for the device elsewhere."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found
        self.harmless = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == Tensor.is_cpu.__get__:  # type: ignore[attr-defined]
            return False  # what is read on a CPU alone makes no accelerator wait
        name = getattr(func, "__name__", "")
        if name in ("tolist", "numpy", "__array__", "cpu", "allclose", "bincount"):
            self._found.append(f".{name}()")
        if name == "to" and "cpu" in (*args[1:], *(kwargs or {}).values()):
            self._found.append('.to("cpu")')
        if name == "repeat_interleave" and isinstance(args[1], Tensor) and "output_size" not in (kwargs or {}):
            self._found.append(".repeat_interleave() without output_size")
        # With the number of classes given it looks at the values on the CPU alone.
        self.harmless = name == "one_hot" and (len(args) > 1 or "num_classes" in (kwargs or {}))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.harmless = False


class Storages(TorchDispatchMode):
    """Follows every storage that is allocated while it is active, also those that only an autograd graph holds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())
                self._seen[reference.cdata] = (reference, leaf.untyped_storage().nbytes())
        return out

    def living(self) -> int:
        """Bytes of the storages that still exist."""
        self._seen = {key: (ref, size) for key, (ref, size) in self._seen.items() if not ref.expired()}
        return sum(size for _, size in self._seen.values())


class PermutedRandomness(TorchDispatchMode):
    """Permutes the random numbers along the axis that has as many entries as there are chains.

    Where no axis has, but the first has several for each chain (its replicas, one after the other), these move together.

    Args:
        order: The permutation: chain ``i`` gets what chain ``order[i]`` would have had.
    """

    def __init__(self, order: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._order = order

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        # What is drawn from given probabilities must meet them in the order in which they would have come.
        back = self._order.argsort()
        in_place = func.__name__.partition(".")[0].endswith("_")
        given = [self._rows(a, back) if i or not in_place else a for i, a in enumerate(args)]
        out = func(*given, **(kwargs or {}))
        if in_place:
            return out.copy_(self._rows(out, self._order).clone())
        return tree_map(lambda drawn: self._rows(drawn, self._order), out)

    def _rows(self, value: Any, order: Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        axes = [i for i, n in enumerate(value.shape) if n == len(order)]
        if not axes and value.ndim and len(value) and len(value) % len(order) == 0:
            return value.view(len(order), -1, *value.shape[1:]).index_select(0, order).view_as(value)
        return value.index_select(axes[0], order) if len(axes) == 1 else value

"""What traced code depends on apart from values of tensors: whether a graph still is what a call would do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

CLOSED_FORM = "value_and_grad"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OF_EVERY_MODULE = frozenset((*vars(nn.Module()), CLOSED_FORM))


class Layout(NamedTuple):
    """What traced code knows of a tensor beside its values."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, name: str, t: Tensor, first: int = 0) -> Layout:
        """That of a tensor, its shape from dimension ``first`` on."""
        return cls(name, t.shape[first:] if first else t.shape, t.stride(), t.dtype, t.device)


class Fingerprint(NamedTuple):
    """What traced code may depend on apart from values of tensors and the number of chains; made anew at each call."""

    numbers: list[float]
    others: list[Any]

    @classmethod
    def of(cls, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Fingerprint:
        """That of a call."""
        device = device_of(state).type
        others: list[Any] = [n_steps, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)]
        others += [Layout.of(name, t, 1) for name, t in state.tensors().items()]
        others += beside_tensors(state)
        modules = list(energy.modules())
        place: dict[nn.Module | None, int] = {module: i for i, module in enumerate(modules)}
        for module in modules:
            _add_code(others, module)
            others += [(name, place.get(child)) for name, child in module._modules.items()]
            for tensors in (module._parameters, module._buffers):
                others += [Layout.of(name, t) for name, t in tensors.items() if t is not None and not is_lazy(t)]
        numbers: list[float] = []
        _add_settings(others, sampler, numbers)
        return cls(numbers, others)

    def equals(self, other: Fingerprint, *, whatever_numbers: bool) -> bool:
        """Whether both are the same, the sampler's numbers apart if so wished."""
        return (whatever_numbers or self.numbers == other.numbers) and self.others == other.others


class _Object:
    """In a fingerprint, what is the same only if it is that very object."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Object) and self.value is other.value


def device_of(state: Any) -> torch.device:
    """Where the chains are."""
    device: torch.device = next(iter(state.tensors().values())).device
    return device


def tensors_of(energy: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Every parameter and buffer, with the dictionary that holds it and its name there."""
    owners: list[dict[str, Any]] = [owner for m in list(energy.modules()) for owner in (m._parameters, m._buffers) if owner]
    return [(owner, name, tensor) for owner in owners for name, tensor in owner.items() if tensor is not None]


def numbers_of(sampler: Any) -> list[float]:
    """The numbers that a sampler, and those that it is made of, are set to."""
    numbers: list[float] = []
    _add_settings([], sampler, numbers)
    return numbers


def settings(sampler: Any) -> list[Any]:
    """Whatever a sampler, and those that it is made of, are set to."""
    found: list[Any] = []
    _add_settings(found, sampler)
    return found


def _add_settings(found: list[Any], sampler: Any, numbers: list[float] | None = None) -> None:
    found.append(type(sampler))
    for name in attribute_names(sampler):
        found.append(name)
        _add(found, getattr(sampler, name, None), numbers)


def attribute_names(sampler: Any) -> list[str]:
    """Those of its dictionary, and of slots."""
    kind: Any = type(sampler)
    return [*getattr(sampler, "__dict__", ()), *_slots(kind)]


@lru_cache  # of bounded size: classes that are made anew, in a notebook, may go
def _slots(kind: type) -> tuple[str, ...]:
    return tuple(_as_found(name, cls) for cls in kind.__mro__ for name in _own_slots(cls))


def _own_slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _as_found(name: str, cls: type) -> str:
    private = name.startswith("__") and not name.endswith("__")
    return f"_{cls.__name__.lstrip('_')}{name}" if private else name


_COMPARED_BY_VALUE = frozenset((int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device))


def _add(found: list[Any], value: Any, numbers: list[float] | None = None) -> None:
    """A value; of containers what they hold, for that can change where it is. Floats go to ``numbers`` where that is given."""
    kind = type(value)
    found.append(kind)  # for 1 == 1.0 == True
    if kind is float and numbers is not None:
        numbers.append(value)
    elif kind in _COMPARED_BY_VALUE:
        found.append(value)
    elif isinstance(value, list | tuple):
        found.append(len(value))
        for item in value:
            _add(found, item, numbers)
    elif isinstance(value, dict):
        found.append(len(value))
        for key, item in value.items():
            _add(found, key)
            _add(found, item, numbers)
    elif is_sampler(value):
        _add_settings(found, value, numbers)
    else:
        found.append(_Object(value))
        if isinstance(value, Tensor):  # a constant of the graph
            found.append(version_of(value))


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written; those of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def is_sampler(value: Any) -> bool:
    """Whether it is one that another sampler may be made of."""
    return not isinstance(value, type) and hasattr(value, "step") and hasattr(value, "refresh")


def calls_back(sampler: Any) -> bool:
    """Whether an attribute of a sampler is a function or another object, which may use attributes of that very sampler."""
    return any(isinstance(value, _Object) and not isinstance(value.value, (Tensor, type)) for value in settings(sampler))


def beside_tensors(state: Any) -> list[Any]:
    """What a state carries that is no tensor."""
    found: list[Any] = [type(state)]
    for name in attribute_names(state):
        value = getattr(state, name, None)
        if hasattr(value, "with_tensors"):
            found += beside_tensors(value)
            continue
        for key, item in value.items() if isinstance(value, Mapping) else [(name, value)]:
            if not isinstance(item, Tensor):
                found.append(key)
                _add(found, item)
    return found


def _add_code(found: list[Any], module: nn.Module) -> None:
    """What the forward of a module, apart from its tensors, may depend on."""
    found.append(type(module))
    attributes = vars(module)
    for name in sorted(attributes.keys() - _OF_EVERY_MODULE):
        found.append(name)
        _add(found, attributes[name])
    for name in _HOOKS:
        if attributes[name]:
            found += attributes[name]  # the numbers that torch gives to hooks, for a hook may hold the energy


def attributes_of(module: nn.Module) -> list[Any]:
    """All attributes of a module, to see whether its forward changes one."""
    found: list[Any] = []
    for value in vars(module).values():
        _add(found, value)
    return found

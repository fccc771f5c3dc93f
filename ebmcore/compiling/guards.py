"""What a graph depends on beside the values of tensors: compared at every call, so few things and cheap ones.

A graph is of what was there when it was made. What lies deeper, such as an attribute of a layer, a hook or a variable in a
closure, is not seen.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_BY_VALUE = (int, str, type(None), type, torch.Size, torch.dtype, torch.device)  # int includes bool


class Guard(NamedTuple):
    """What a call's graph depends on, apart from the number of chains and the values of tensors.

    Args:
        numbers: The sampler's floating-point options.
        modules: Every module of the energy, in order. Compared by identity, so that a replaced layer is noticed.
        rest: Number of steps, autocast, the other options of the sampler, and the layout of every tensor.
    """

    numbers: list[float]
    modules: list[nn.Module]
    rest: list[Any]

    @classmethod
    def of(cls, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Guard:
        """Returns the guard of one call."""
        device, options, modules = state.x.device.type, Options.of(sampler), list(energy.modules())
        rest: list[Any] = [n_steps, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)]
        rest += [type(state), options.structure, [_layout(t) for t in options.tensors]]
        rest += [(name, t.shape[1:], t.stride(), t.dtype, t.device) for name, t in state.tensors().items()]
        for module in modules:
            rest += module._modules  # their names
            for tensors in (module._parameters, module._buffers):
                rest += [(name, _layout(t)) for name, t in tensors.items() if t is not None and not is_lazy(t)]
        return cls(options.numbers, modules, rest)

    def matches(self, other: Guard, *, any_numbers: bool) -> bool:
        """Whether both calls have the same graph, of which numbers are inputs where ``any_numbers`` says so."""
        same_modules = len(self.modules) == len(other.modules) and all(map(operator.is_, self.modules, other.modules))
        return same_modules and (any_numbers or self.numbers == other.numbers) and self.rest == other.rest


def _layout(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.dtype, t.device


class Options(NamedTuple):
    """What a sampler or a state holds, inner samplers included: Python floats, tensors, and names and values of all else."""

    numbers: list[float]
    tensors: list[Tensor]
    structure: list[Any]

    @classmethod
    def of(cls, holder: Any) -> Options:
        """Returns the options of ``holder``."""
        options = cls([], [], [])
        for path, value in _leaves(holder):
            options.structure.append((path, type(value)))  # for 1 == 1.0 == True
            if type(value) is float:
                options.numbers.append(value)
            elif isinstance(value, Tensor):
                options.tensors.append(value)
            else:
                options.structure.append(value if isinstance(value, _BY_VALUE) else _Object(value))
        return options

    @property
    def has_objects(self) -> bool:
        """Whether a function or another object is among them, whose code may read the holder's numbers."""
        return any(isinstance(item, _Object) for item in self.structure)


class _Object:
    """Equal only to itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Object) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = _items(value)
    yield path, value if items is None else type(value)
    for name, item in (items or {}).items():
        yield from _leaves(item, (*path, name))


def _items(value: Any) -> dict[Any, Any] | None:
    """Returns what lists, mappings, samplers and states hold, by name; `None` for anything else."""
    if type(value) in (list, tuple):
        return dict(enumerate(value))
    if type(value) is dict:
        return value
    sampler = hasattr(value, "step") and hasattr(value, "refresh")
    if isinstance(value, type) or not (sampler or hasattr(value, "with_tensors")):
        return None
    slots = (name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()))
    names = dict.fromkeys((*getattr(value, "__dict__", ()), *slots))
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def map_options(function: Callable[[Any], Any], value: Any) -> Any:
    """Returns a copy of ``value`` and of all that it holds, with ``function`` applied to each leaf, in the order of `Options`."""
    items = _items(value)
    if items is None:
        return function(value)
    mapped = {name: map_options(function, item) for name, item in items.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped.values())
    if type(value) is dict:
        return mapped
    twin = copy.copy(value)
    for name, item in mapped.items():
        object.__setattr__(twin, name, item)
    return twin


def tensors_of(energy: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Returns every parameter and buffer, with the dictionary that holds it and its name there."""
    owners: list[dict[str, Any]] = [owner for m in energy.modules() for owner in (m._parameters, m._buffers) if owner]
    return [(owner, name, tensor) for owner in owners for name, tensor in owner.items() if tensor is not None]

"""What a graph depends on beside the values of tensors: compared at every call, so few things and cheap ones."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_BY_VALUE = (int, str, type(None), type, torch.Size, torch.dtype, torch.device)  # int includes bool


class Guard(NamedTuple):
    """What a call's graph depends on, apart from the number of chains and the values of tensors.

    Args:
        numbers: The sampler's floating-point options.
        objects: Every module of the energy, in order, and what else is compared by identity.
        rest: Number of steps, autocast, other options of the sampler, what the state holds, and the layout of every tensor.
    """

    numbers: list[float]
    objects: list[Any]
    rest: list[Any]

    @classmethod
    def of(cls, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Guard:
        """Returns the guard of one call."""
        device, modules = state.x.device.type, list(energy.modules())
        options, held = Options.of(sampler), Options.of(state)
        rest: list[Any] = [n_steps, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)]
        rest += [options.structure, [_layout(t) for t in options.tensors], held.structure, held.numbers]
        rest += [(name, t.shape[1:], t.stride(), t.dtype, t.device) for name, t in state.tensors().items()]
        for module in modules:
            rest += module._modules  # their names
            for tensors in (module._parameters, module._buffers):
                rest += [(name, _layout(t)) for name, t in tensors.items() if t is not None and not is_lazy(t)]
        return cls(options.numbers, [*modules, *options.objects, *held.objects], rest)

    def matches(self, other: Guard, lifted: Sequence[int]) -> bool:
        """Whether both calls have the same graph, of which the numbers at the places ``lifted`` are inputs."""
        same_objects = len(self.objects) == len(other.objects) and all(map(operator.is_, self.objects, other.objects))
        numbers = enumerate(zip(self.numbers, other.numbers, strict=False))
        return same_objects and self.rest == other.rest and all(a == b or i in lifted for i, (a, b) in numbers)


def _layout(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.dtype, t.device


class Options(NamedTuple):
    """What a sampler or a state holds, inner samplers included: floats, tensors, functions and other objects, and the rest."""

    numbers: list[float]
    tensors: list[Tensor]
    objects: list[Any]
    structure: list[Any]

    @classmethod
    def of(cls, holder: Any) -> Options:
        """Returns the options of ``holder``."""
        options = cls([], [], [], [])
        for path, value in _leaves(holder):
            options.structure.append((path, type(value)))  # for 1 == 1.0 == True
            if type(value) is float:
                options.numbers.append(value)
            elif isinstance(value, Tensor):
                options.tensors.append(value)
            else:
                (options.structure if isinstance(value, _BY_VALUE) else options.objects).append(value)
        return options

    def constants(self) -> tuple[list[Any], list[int]]:
        """Returns what differs where something other than numbers or the values of tensors has changed."""
        return self.structure, list(map(id, self.objects))


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

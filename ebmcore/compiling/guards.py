"""What a graph depends on beside the values of tensors. It is compared at every call, so it is cheap and short.

A graph is of what was there when it was made. What lies deeper than these guards, such as an attribute of a layer, a variable in a
closure or an attribute of a class, is not seen.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["Guard", "Options", "device_of", "tensors_of", "with_options"]

_BY_VALUE = (int, str, type(None), type, torch.Size, torch.dtype, torch.device)  # int includes bool
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Guard(NamedTuple):
    """Properties of a call that its graph depends on, apart from the number of chains and the values of tensors.

    Args:
        numbers: The sampler's floating-point options.
        modules: Every module of the energy, by place. Compared by identity, so that a replaced layer is noticed.
        rest: Everything else, compared by value.
    """

    numbers: list[float]
    modules: list[nn.Module]
    rest: list[Any]

    @classmethod
    def of(cls, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Guard:
        """Build the guard of one call."""
        device = device_of(state).type
        options, carried = Options.of(sampler), Options.of(state)
        rest: list[Any] = [n_steps, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)]
        rest += [(name, t.shape[1:], t.stride(), t.dtype, t.device) for name, t in state.tensors().items()]
        rest += [carried.structure, carried.numbers, options.structure]
        rest += [(t.shape, t.stride(), t.dtype, t.device) for t in options.tensors]
        rest.append(vars(energy).get("value_and_grad"))  # a closed form that was set on the object
        modules = []
        for place, module in energy.named_modules(remove_duplicate=False):
            modules.append(module)
            rest += (place, type(module), module.training)
            for hooks in _HOOKS:
                rest += getattr(module, hooks)  # the numbers that torch gives to hooks
            for tensors in (module._parameters, module._buffers):
                for name, t in tensors.items():
                    if t is not None and not is_lazy(t):
                        rest.append((name, t.shape, t.stride(), t.dtype, t.device))
        return cls(options.numbers, modules, rest)

    def matches(self, other: Guard, *, any_numbers: bool) -> bool:
        """Return whether both calls have the same graph; ``any_numbers`` says that numbers are inputs of it."""
        same_places = len(self.modules) == len(other.modules) and all(map(operator.is_, self.modules, other.modules))
        return same_places and (any_numbers or self.numbers == other.numbers) and self.rest == other.rest


class Options(NamedTuple):
    """What a sampler, or a state, holds: lists, mappings, inner samplers and inner states are walked through.

    Args:
        structure: Types, names, and what is neither number nor tensor.
        numbers: Python floats.
        tensors: Tensors.
    """

    structure: list[Any]
    numbers: list[float]
    tensors: list[Tensor]

    @classmethod
    def of(cls, holder: Any) -> Options:
        """Read the attributes of ``holder``."""
        options = cls([], [], [])
        options._add(holder)
        return options

    def equals(self, other: Options) -> bool:
        """Return whether both hold the same; tensors are compared by identity."""
        same_tensors = len(self.tensors) == len(other.tensors) and all(map(operator.is_, self.tensors, other.tensors))
        return same_tensors and self.numbers == other.numbers and self.structure == other.structure

    @property
    def has_objects(self) -> bool:
        """Whether it holds a function or another object, whose code may read the holder's numbers."""
        return any(isinstance(item, _Identity) for item in self.structure)

    def _add(self, value: Any) -> None:
        kind = type(value)
        self.structure.append(kind)  # for 1 == 1.0 == True
        if kind is float:
            self.numbers.append(value)
        elif isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, _BY_VALUE):
            self.structure.append(value)
        elif kind in (list, tuple):
            self.structure.append(len(value))
            for item in value:
                self._add(item)
        elif kind is dict or _is_walked(value):
            items = value if kind is dict else _attributes(value)
            self.structure.append(list(items))
            for item in items.values():
                self._add(item)
        else:
            self.structure.append(_Identity(value))


class _Identity:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _is_walked(value: Any) -> bool:
    return hasattr(value, "with_tensors") or (hasattr(value, "step") and hasattr(value, "refresh"))


def _attributes(holder: Any) -> dict[str, Any]:
    slots = (name for cls in type(holder).__mro__ for name in getattr(cls, "__slots__", ()))
    names = dict.fromkeys((*getattr(holder, "__dict__", ()), *slots))
    return {name: getattr(holder, name) for name in names if hasattr(holder, name) and name[:2] != "__"}


def with_options(sampler: Any, numbers: Iterator[Any] | None, tensors: Iterator[Tensor]) -> Any:
    """Copy a sampler, with other numbers (if given) and tensors in place of its own, in the order of `Options`."""
    if type(sampler) is float:
        return sampler if numbers is None else next(numbers)
    if isinstance(sampler, Tensor):
        return next(tensors)
    if type(sampler) in (list, tuple):
        return type(sampler)(with_options(item, numbers, tensors) for item in sampler)
    if type(sampler) is dict:
        return {key: with_options(item, numbers, tensors) for key, item in sampler.items()}
    if not _is_walked(sampler) or isinstance(sampler, type):
        return sampler
    twin = copy.copy(sampler)
    for name, value in _attributes(sampler).items():
        object.__setattr__(twin, name, with_options(value, numbers, tensors))
    return twin


def device_of(state: Any) -> torch.device:
    """Return the device of the chains."""
    device: torch.device = next(iter(state.tensors().values())).device
    return device


def tensors_of(energy: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return every parameter and buffer, with the dictionary that holds it and its name there."""
    owners: list[dict[str, Any]] = [owner for m in energy.modules() for owner in (m._parameters, m._buffers) if owner]
    return [(owner, name, tensor) for owner in owners for name, tensor in owner.items() if tensor is not None]

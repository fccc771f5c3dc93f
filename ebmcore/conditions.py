"""Labels and other conditions that travel with examples and chains.

``energy(x, labels)`` may take further arguments with one row for each row of ``x``. The kernel names them, keeps them with each
chain, and hands the energy to samplers as a function of ``x`` alone: `condition`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

__all__ = ["Conditioned", "condition", "name_conditions", "repeat_conditions", "split_conditions"]


def name_conditions(args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor) -> dict[str, Tensor]:
    """Names the further arguments of ``forward``: positional ones by their number, the others by their keyword.

    Raises:
        ValueError: If one of them is no tensor with a row for each row of ``x``.

    Example:
        >>> import torch
        >>> name_conditions((torch.tensor([3, 7]),), {}, torch.zeros(2, 4))
        {'0': tensor([3, 7])}
    """
    conditions = {str(i): value for i, value in enumerate(args)} | dict(kwargs)
    for name, value in conditions.items():
        if not isinstance(value, Tensor) or value.shape[:1] != x.shape[:1]:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"condition {name!r} must be a tensor with a row for each of {len(x)} examples, not {given}")
    return conditions


def split_conditions(conditions: Mapping[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Returns positional and keyword arguments: the inverse of `name_conditions`."""
    args = [conditions[name] for name in sorted((n for n in conditions if n.isdigit()), key=int)]
    return args, {name: value for name, value in conditions.items() if not name.isdigit()}


def condition(energy: nn.Module, conditions: Mapping[str, Tensor]) -> nn.Module:
    """Returns ``energy`` as a function of the positions alone; ``energy`` itself where there are no conditions."""
    return Conditioned(energy, conditions) if conditions else energy


def repeat_conditions(energy: nn.Module, n: int) -> nn.Module:
    """Returns ``energy`` for ``n`` rows of each chain: row ``i * n + j`` has the conditions of chain ``i``."""
    if not isinstance(energy, Conditioned):
        return energy
    return Conditioned(energy.energy, {name: t.repeat_interleave(n, 0) for name, t in energy.conditions.items()})


class Conditioned(nn.Module):
    """An energy with its conditions filled in: ``x -> E(x, labels)``.

    Every attribute and capability of the energy is forwarded. A method that takes the conditions after its first argument, as
    ``forward`` does, receives them: ``conditioned.score(x)`` is ``energy.score(x, labels)``. Options of a method should be
    keyword-only or have a default other than `None`, so that they are not taken for conditions.
    """

    def __init__(self, energy: nn.Module, conditions: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.energy, self.conditions = energy, conditions
        self.args, self.kwargs = split_conditions(conditions)

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x, *self.args, **self.kwargs)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules or "energy" not in modules:  # the latter while it is being copied
            return super().__getattr__(name)
        if name.startswith("__"):  # protocols of Python, such as __deepcopy__, are the wrapper's own
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        attribute = getattr(modules["energy"], name)
        if not callable(attribute) or isinstance(attribute, nn.Module):
            return attribute
        if name == "tempered":  # another energy, under the same conditions
            return lambda *args, **kwargs: Conditioned(attribute(*args, **kwargs), self.conditions)
        called = attribute if inspect.isroutine(attribute) else attribute.__call__
        function = getattr(called, "__func__", called)
        if not _takes_conditions(function, function is not called, len(self.args), tuple(self.kwargs)):
            return attribute
        return lambda first, *args, **kwargs: attribute(first, *self.args, *args, **self.kwargs, **kwargs)


@lru_cache  # every step of a chain asks; bounded, so that classes made in a notebook can be freed
def _takes_conditions(function: Callable[..., Any], bound: bool, n_args: int, names: tuple[str, ...]) -> bool:
    """Whether a method takes ``n_args`` conditions after its first argument, and those of ``names`` by keyword."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[bound:]  # without self
        given = inspect.Signature(parameters).bind(None, *[None] * n_args, **dict.fromkeys(names))
    except (TypeError, ValueError):
        return False
    accepted = [p for p in parameters if p.name in given.arguments][1:]
    return all(p.name in names or p.default in (p.empty, None) for p in accepted)

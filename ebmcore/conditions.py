"""Labels and other conditions that travel with examples and chains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Conditioned(nn.Module):
    """An energy with its conditions filled in, capabilities included: ``x -> E(x, labels)``."""

    _CONDITIONED_METHODS = ("value_and_grad", "sample_hidden", "sample_visible")

    def __init__(self, energy: nn.Module, conditions: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.energy = energy
        self.conditions = conditions
        self.args, self.kwargs = split_conditions(conditions)

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.energy(x, *self.args, **self.kwargs)
        return energies

    def around(self, energy: nn.Module) -> Conditioned:
        """Another energy under the same conditions."""
        return Conditioned(energy, self.conditions)

    def repeated(self, n: int) -> Conditioned:
        """See `repeat_conditions`."""
        return Conditioned(self.energy, {name: t.repeat_interleave(n, 0) for name, t in self.conditions.items()})

    def __getattr__(self, name: str) -> Any:
        if name not in self._CONDITIONED_METHODS:
            return super().__getattr__(name)
        method = getattr(self.energy, name)

        def conditioned(first: Tensor, **kwargs: Any) -> Any:
            return method(first, *self.args, **self.kwargs, **kwargs)

        return conditioned


def name_conditions(args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor) -> dict[str, Tensor]:
    """Name the further arguments of ``forward``: positional ones by their number, the others by their keyword."""
    conditions = {str(i): value for i, value in enumerate(args)} | dict(kwargs)
    for name, value in conditions.items():
        if not isinstance(value, Tensor) or value.shape[:1] != x.shape[:1]:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"condition {name!r} must be a tensor with one row for each of the {len(x)} examples, but is {given}"
            )
    return conditions


def split_conditions(conditions: Mapping[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The inverse of `name_conditions`."""
    args = [conditions[name] for name in sorted((n for n in conditions if n.isdigit()), key=int)]
    return args, {name: value for name, value in conditions.items() if not name.isdigit()}


def condition(energy: nn.Module, conditions: Mapping[str, Tensor]) -> nn.Module:
    """``energy`` as a function of the positions alone; itself where there are no conditions."""
    return Conditioned(energy, conditions) if conditions else energy


def repeat_conditions(energy: nn.Module, n: int) -> nn.Module:
    """``energy`` for ``n`` rows of each chain in place of one, row ``i * n + j`` under the conditions of chain ``i``."""
    return energy.repeated(n) if isinstance(energy, Conditioned) else energy

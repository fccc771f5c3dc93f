"""The cases of the other kinds: energies, data sets, metrics, observers, recipes and commands."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ebmcore.conditions import Conditioned, condition
from ebmcore.energies import supports
from ebmcore.testing.cases.base import Case
from ebmcore.testing.devices import generator, seeded


class _UnderExampleConditions(Conditioned):
    """A conditional energy as a function of any number of positions, each under the same conditions."""

    def forward(self, x: Tensor) -> Tensor:
        rows = {name: t.expand(len(x), *t.shape) for name, t in self.conditions.items()}
        energies: Tensor = condition(self.energy, rows)(x)
        return energies


class EnergyCase(Case):
    """An energy under test."""

    kind = "energy"

    @property
    def obstacle(self) -> str | None:
        return self.missing((1, 2, 2), **self.options)

    def make(self, shape: tuple[int, ...] = (1, 2, 2), **options: Any) -> Any:
        """An energy on examples of a shape, with the same random parameters each time, under its example conditions."""
        with seeded(0):
            energy = self.construct(shape, **self.options | options)
            with torch.no_grad():
                for parameter in energy.parameters():
                    parameter.add_(0.5 * torch.randn_like(parameter))
        conditions = getattr(self.component, "example_conditions", {})
        rows = {name: torch.as_tensor(value) for name, value in conditions.items()}
        return _UnderExampleConditions(energy, rows) if rows else energy

    def batch(self, n: int = 5) -> Tensor:
        """Examples ``(n, 1, 2, 2)`` in its state space."""
        x = torch.randn(n, 1, 2, 2, generator=generator(1))
        if self.space == "categorical":
            return one_hot(x.argmax(-1), 2).to(x.dtype)
        return (x > 0).to(x.dtype) if self.space == "binary" else x

    @property
    def space(self) -> str | None:
        """The state space that it declares."""
        space: str | None = getattr(self.component, "state_space", None)
        return space

    @property
    def discrete(self) -> bool:
        """Whether it is an energy of binary or categorical units."""
        return self.space in ("binary", "categorical")

    def can(self, capability: type) -> bool:
        """Whether it has a capability."""
        return supports(self.component, capability)


class DatasetCase(Case):
    """A data set under test."""

    kind = "dataset"


class MetricCase(Case):
    """A metric under test."""

    kind = "metric"


class ObserverCase(Case):
    """An observer under test."""

    kind = "observer"


class RecipeCase(Case):
    """A recipe under test: the path of its file."""

    kind = "recipe"

    @property
    def obstacle(self) -> str | None:
        return None

    @cached_property
    def settings(self) -> Any:
        """Content of the file."""
        import yaml  # comes with the extra train, as recipes do

        return yaml.safe_load(Path(self.component).read_text(encoding="utf-8"))


class CommandCase(Case):
    """A command under test: its function."""

    kind = "command"

    @property
    def obstacle(self) -> str | None:
        return None

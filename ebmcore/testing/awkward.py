"""Energies that are hard to handle: they watch, raise, return NaN or carry state that sampling must not touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_AT_POSITIONS = ("value_and_grad", "sample_hidden")


class Moody(nn.Module):
    """Batch norm, dropout and spectral norm, with mixed modes and flags: everything that sampling could leave a trace on.

    Args:
        shape: Shape of one example.
    """

    def __init__(self, shape: Sequence[int] = (2,)) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        self.normed = nn.utils.parametrizations.spectral_norm(nn.Linear(size, 8))
        self.batch_norm = nn.BatchNorm1d(8)
        self.still = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Linear(8, 1)
        self.out.bias.requires_grad_(False)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.train()

    def train(self, mode: bool = True) -> Moody:
        super().train(mode)
        self.still.eval()  # a layer that its author froze
        return self

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Energies ``(N,)``; conditions are ignored."""
        self.calls.add_(1)
        h = self.still(self.batch_norm(self.normed(x.flatten(1))))
        energy: Tensor = self.out(self.dropout(nn.functional.silu(h))).squeeze(-1)
        return energy + 0.5 * x.flatten(1).square().sum(1)


class Watched(nn.Module):
    """An energy that calls ``watch`` before each evaluation at positions, through any method.

    Args:
        energy: The energy.
        watch: Called with the positions before each evaluation; it may raise.
    """

    def __init__(self, energy: nn.Module, watch: Callable[..., Any]) -> None:
        super().__init__()
        self.energy = energy
        self.watch = watch

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.watch(x, *args, **kwargs)
        energies: Tensor = self.energy(x, *args, **kwargs)
        return energies

    def __getattr__(self, name: str) -> Any:
        if name == "sample_visible":
            return self.energy.sample_visible
        if name == "tempered":
            own: Any = self.energy.tempered
            return lambda beta, base=None: Watched(own(beta, base), self.watch)
        if name in _AT_POSITIONS:
            method = getattr(self.energy, name)

            def watched(first: Tensor, **kwargs: Any) -> Any:
                self.watch(first)
                return method(first, **kwargs)

            return watched
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "energy" not in self._modules or hasattr(nn.Module, name):
                raise
            return getattr(self.energy, name)  # what else the energy gives, such as the logits of a classifier


class Raising:
    """A ``watch`` that raises `EnergyError` from the given evaluation on.

    Args:
        after: Evaluations that still work.
    """

    def __init__(self, after: int = 0) -> None:
        self.left = after

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise EnergyError("the energy raised this, and nothing may swallow it")


class EnergyError(Exception):
    """What an energy that raises raises."""


class Holed(nn.Module):
    """An energy that is NaN for some chains: those whose first component is above ``edge``.

    Args:
        energy: The energy elsewhere.
        edge: Where the hole begins.
    """

    def __init__(self, energy: nn.Module, edge: float = 2.0) -> None:
        super().__init__()
        self.energy = energy
        self.edge = edge

    def inside(self, x: Tensor) -> Tensor:
        """Which positions ``(N,)`` lie in the hole."""
        return x.flatten(1)[:, 0] > self.edge

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.energy(x)
        return energies + torch.sqrt(self.edge - x.flatten(1)[:, 0]) * 0


class Labelled(nn.Module):
    """One parameter for each label, and a weak dependence on the position: the energies show who is scored under which label.

    Args:
        n_labels: Labels are whole numbers below it.
    """

    def __init__(self, n_labels: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_labels))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.weight[label] + 0.5 * self.scale * x.flatten(1).square().sum(1)


class Shifted(nn.Module):
    """The same energy plus a constant.

    Args:
        energy: The energy.
        constant: What is added.
    """

    def __init__(self, energy: nn.Module, constant: float = 1000.0) -> None:
        super().__init__()
        self.energy = energy
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.energy(x)
        return energies + self.constant

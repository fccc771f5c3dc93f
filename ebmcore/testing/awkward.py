"""Energies that are hard to handle: they record their calls, raise, return NaN or hold state that sampling must not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_AT_POSITIONS = ("value_and_grad", "sample_hidden")


class Moody(nn.Module):
    """Energy with batch norm, dropout and spectral norm, and with mixed modes and flags: state that sampling could change.

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
            return getattr(self.energy, name)  # other attributes of the energy, such as the logits of a classifier


class Raising:
    """Callback ``watch`` that raises `EnergyError` after a given number of evaluations.

    Args:
        after: Number of evaluations that succeed.
    """

    def __init__(self, after: int = 0) -> None:
        self.left = after

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise EnergyError("the energy raised this, and nothing may swallow it")


class EnergyError(Exception):
    """Error that `Raising` raises."""


class Holed(nn.Module):
    """An energy that is NaN where the first component is above ``edge``.

    Args:
        energy: The energy elsewhere.
        edge: Value of the first component above which the energy is NaN.
    """

    def __init__(self, energy: nn.Module, edge: float = 2.0) -> None:
        super().__init__()
        self.energy = energy
        self.edge = edge

    def inside(self, x: Tensor) -> Tensor:
        """Mask ``(N,)`` of the positions at which the energy is NaN."""
        return x.flatten(1)[:, 0] > self.edge

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.energy(x)
        return energies + torch.sqrt(self.edge - x.flatten(1)[:, 0]) * 0


class Labelled(nn.Module):
    """Energy ``w[label] + s |x|^2 / 2``, with one parameter for each label.

    Args:
        n_labels: Number of labels, which are 0 to ``n_labels - 1``.
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
        constant: Number that is added.
    """

    def __init__(self, energy: nn.Module, constant: float = 1000.0) -> None:
        super().__init__()
        self.energy = energy
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.energy(x)
        return energies + self.constant

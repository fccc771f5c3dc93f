"""Energies that are right in unusual ways: the kit must not take them for wrong."""

from __future__ import annotations

import torch
from torch import nn

from ebm_plugin_nets.mlp import MLP


class OnStates(nn.Module):
    """Defined on binary states alone, which lie on the kinks of its activations."""

    state_space = "binary"

    def __init__(self, shape):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.ReLU(), nn.Linear(torch.Size(shape).numel(), 8), nn.PReLU(), nn.Linear(8, 1)
        )

    def forward(self, x):
        if not ((x == 0) | (x == 1)).all():
            raise ValueError("binary units only")
        return self.layers(x).squeeze(-1)


class Hinge(nn.Module):
    """Without a slope at most examples."""

    def __init__(self, shape):
        super().__init__()
        self.layer = nn.Linear(torch.Size(shape).numel(), 1)

    def forward(self, x):
        return (self.layer(x.flatten(1)).squeeze(-1) - 1).relu() + 0.5 * x.flatten(1).square().sum(1)


class Ball(MLP):
    """Not a number outside of a ball."""

    def forward(self, x):
        return super().forward(x) + (25 - x.flatten(1).square().sum(1)).log()


class Table(MLP):
    """Makes a buffer at its first call."""

    def __init__(self, shape):
        super().__init__(shape)
        self.register_buffer("table", torch.zeros(0), persistent=False)

    def forward(self, x):
        if not self.table.numel():
            self.table = torch.linspace(0, 1, x[0].numel(), dtype=x.dtype)
        return super().forward(x) + x.flatten(1) @ self.table


class InSinglePrecision(MLP):
    """Adds up in float32."""

    def forward(self, x):
        return super().forward(x) + torch.logsumexp(x.flatten(1).float(), 1).to(x.dtype)


class Regularised(MLP):
    """Has a parameter for training mode alone."""

    def __init__(self, shape):
        super().__init__(shape)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        energies = super().forward(x)
        return energies + self.scale * x.flatten(1).square().sum(1) if self.training else energies


class Conditional(MLP):
    """Has a scale for each label, which is no label of the kit's choice, and a temperature by keyword."""

    example_conditions = {"label": 5, "temperature": 0.5}

    def __init__(self, shape):
        super().__init__(shape)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x, label, *, temperature):
        if (label != 5).any():
            raise ValueError("label 5 only")
        return (super().forward(x) + self.scale[label] * x.flatten(1).square().sum(1)) / temperature

"""A classifier as an energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ebm_plugin_nets.layers import Residual, linear


class Classifier(nn.Module):
    r"""Classifier whose logits are also an energy: a residual network with one output for each class.

    .. math:: E(x) = -\log \sum_y \exp(f(x)_y), \qquad p(y \mid x) = \mathrm{softmax}_y(f(x)_y)

    The energy takes no labels. A loss whose labels are targets trains the density and, through `logits`, the classification.
    ``conditional-conv`` is the energy of one class in place of their sum.

    Args:
        shape: Shape of one example: ``(features,)``, or ``(channels, *size)`` with one to three spatial axes of any size.
        n_classes: Number of classes, at least 2.
        widths: Width of each block: units, or feature maps. The first block keeps the resolution, every further one halves it.
        spectral_norm: Normalise every layer's spectral norm to 1 (torch's own parametrization; its power iteration runs in
            training mode only).
        group_norm: Normalise groups of features before the units of each block. Unlike batch normalisation it keeps the energies
            of a batch independent of each other.

    Source: W. Grathwohl, K.-C. Wang, J.-H. Jacobsen, D. Duvenaud, M. Norouzi and K. Swersky (2020), "Your classifier is secretly
    an energy based model and you should treat it like one".

    Example:
        >>> energy = Classifier((1, 8, 8), n_classes=10, widths=(16, 32))
        >>> energy.logits(torch.zeros(5, 1, 8, 8)).shape, energy(torch.zeros(5, 1, 8, 8)).shape
        (torch.Size([5, 10]), torch.Size([5]))
    """

    example_options: ClassVar = {"n_classes": 3, "widths": (4, 4)}

    def __init__(
        self,
        shape: Sequence[int],
        n_classes: int,
        *,
        widths: Sequence[int] = (32, 64, 128),
        spectral_norm: bool = False,
        group_norm: bool = False,
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}: for one class use the energy 'resnet'")
        self.n_classes = n_classes
        self.features = Residual(shape, widths, spectral_norm, group_norm)
        self.head = linear(widths[-1], n_classes, spectral_norm)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits ``(B, n_classes)`` of examples ``(B, *shape)``."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self.logits(x), 1)

"""A convolutional energy for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ebm_plugin_nets.layers import Convolutions, linear


class ConditionalConv(nn.Module):
    r"""Class-conditional `conv`: a convolutional network with one output for each class, which is the energy under that label.

    .. math:: E(x, y) = f(x)_y, \qquad p(x \mid y) = \frac{\exp(-f(x)_y)}{Z_y}

    The classes share all features. The network reads as a classifier, too: its logits are :math:`-f(x)`, and
    :math:`p(y \mid x) = \mathrm{softmax}_y(-f(x)_y)` where all :math:`Z_y` are equal or are meant to be the classes' shares.
    Training on labelled examples with contrastive divergence compares energies under one label only, so that it learns
    :math:`p(x \mid y)` and leaves a constant for each class open.

    Args:
        shape: ``(channels, *size)`` of one example, with one, two or three spatial axes of any size.
        n_classes: Number of classes, at least 2. Labels are class numbers from 0.
        channels: Feature maps of each layer; the first layer keeps the resolution, every further one halves it.
        spectral_norm: Normalise every layer's spectral norm to 1 (torch's own parametrization; its power iteration runs in
            training mode only).

    Source: W. Grathwohl, K.-C. Wang, J.-H. Jacobsen, D. Duvenaud, M. Norouzi and K. Swersky (2020), "Your classifier is secretly
    an energy based model and you should treat it like one": logits as energies, :math:`E(x, y) = -f(x)_y`.

    Example:
        >>> energy = ConditionalConv((1, 8, 8), n_classes=3, channels=(16, 32))
        >>> energy(torch.zeros(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5])
    """

    example_options: ClassVar = {"n_classes": 3}
    example_conditions: ClassVar = {"y": 1}

    def __init__(
        self,
        shape: Sequence[int],
        n_classes: int,
        *,
        channels: Sequence[int] = (32, 64, 128),
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}: for one class use the energy 'conv'")
        self.n_classes = n_classes
        self.features = Convolutions(shape, channels, spectral_norm)
        self.head = linear(channels[-1], n_classes, spectral_norm)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the energies ``(B,)`` of examples ``(B, *shape)`` under their labels ``(B,)`` int64.

        Raises:
            ValueError: If the labels are others. On an accelerator, where reading them would wait for the device, a class number
                that does not exist is the device's own error.
        """
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise ValueError(
                f"labels must be class numbers ({len(x)},) int64, one for each example, got {tuple(y.shape)} {y.dtype}"
            )
        outputs = self.head(self.features(x))
        try:
            energies: Tensor = outputs.gather(1, y[:, None]).squeeze(1)
        except RuntimeError as error:  # of the CPU, which looks at the numbers in any case
            raise ValueError(
                f"labels must be from 0 to {self.n_classes - 1}, got {y.min()} to {y.max()}: set n_classes to their number"
            ) from error
        return energies

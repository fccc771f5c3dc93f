"""A fully connected energy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ebm_plugin_nets.layers import linear


class MLP(nn.Module):
    r"""Multilayer perceptron with SiLU units and a linear output: :math:`E(x) = w^\top \phi_L(\dots\phi_1(x)) + b`.

    Args:
        shape: Shape of one example, any; it is flattened.
        hidden: Widths of the hidden layers.
        spectral_norm: Bound every layer's spectral norm by 1, which bounds the energy's gradient and so steadies Langevin
            dynamics (torch's own parametrization; its power iteration runs in training mode only).

    Source: S. Elfwing, E. Uchibe and K. Doya (2018), "Sigmoid-weighted linear units for neural network function
    approximation in reinforcement learning"; T. Miyato et al. (2018), "Spectral normalization for generative adversarial
    networks".

    Example:
        >>> import torch
        >>> MLP((2,), hidden=(128, 128))(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, shape: Sequence[int], *, hidden: Sequence[int] = (128, 128), spectral_norm: bool = False) -> None:
        super().__init__()
        if not all(width >= 1 for width in (*hidden, *shape)):
            raise ValueError(f"sizes must be at least 1, got shape={tuple(shape)} and hidden={tuple(hidden)}")
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in pairwise((math.prod(shape), *hidden)):
            layers += [linear(n_in, n_out, spectral_norm), nn.SiLU()]
        layers.append(linear((math.prod(shape), *hidden)[-1], 1, spectral_norm))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.net(x).squeeze(-1)
        return energies

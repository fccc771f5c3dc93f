"""Equilibrium matching with an explicit energy, Wang and Du 2025."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebmcore import BaseLoss
from ebmcore.samplers import as_rows


class EquilibriumMatching(BaseLoss):
    r"""Equilibrium matching: the gradient of the energy points from the data to noise, and vanishes at the data.

    .. math:: L = \frac1B\sum_i \big|\nabla E(x_\gamma) - (\epsilon - x_i)\,c(\gamma)\big|^2,
              \qquad x_\gamma = \gamma x_i + (1 - \gamma)\,\epsilon,\quad \epsilon \sim N(0, I),\ \gamma \sim U(0, 1)

    .. math:: c(\gamma) = s\,\min\Big(1, \frac{1 - \gamma}{1 - a}\Big)

    One landscape serves all noise levels: the energy does not take :math:`\gamma`. Samples are found by descending it from noise,
    as ``langevin`` does at a small temperature. The minimum of the loss is not the density of the data: energies rank examples,
    but are no likelihoods. Data should have about the scale of the noise.

    The gradient of the loss differentiates the energy twice.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``, twice differentiable.
        scale: Size ``s`` of the gradient away from the data, above 0.
        cutoff: Share ``a`` of the way from noise to data after which the gradient decays to 0, at least 0 and below 1.

    Source: R. Wang and Y. Du (2025), "Equilibrium matching: generative modeling with implicit energy-based models".

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> EquilibriumMatching(Quadratic((2,)))(torch.randn(64, 2)).shape
        torch.Size([])
    """

    state_space = "continuous"
    weighted = True
    interpolates: ClassVar[bool] = True  # its minimum is a landscape whose valleys are the data, not their density

    def __init__(self, energy: nn.Module, *, scale: float = 4.0, cutoff: float = 0.8) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale!r}")
        if not 0 <= cutoff < 1:
            raise ValueError(f"cutoff must be at least 0 and below 1, got {cutoff!r}")
        self.energy, self.scale, self.cutoff = energy, scale, cutoff

    def decay(self, gamma: Tensor) -> Tensor:
        """Returns the size ``c`` of the gradient at each ``gamma``, the share of the data."""
        return self.scale * ((1 - gamma) / (1 - self.cutoff)).clamp(max=1)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        noise = torch.randn_like(x, generator=self.generator)
        gamma = torch.rand(len(x), generator=self.generator, dtype=x.dtype, device=x.device)
        with torch.enable_grad():
            mixed = torch.lerp(noise, x.detach(), as_rows(gamma, x)).requires_grad_()
            (grad,) = torch.autograd.grad(self.energies(mixed, *args, **kwargs).sum(), mixed, create_graph=True)
        target = as_rows(self.decay(gamma), x) * (noise - x)
        terms = (grad - target).flatten(1).square().sum(1)
        return (terms if self.data_weights is None else self.data_weights.to(terms) * terms).mean()

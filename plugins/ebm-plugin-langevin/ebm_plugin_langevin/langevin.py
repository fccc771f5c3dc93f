"""The unadjusted Langevin algorithm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from ebmcore import BaseSampler, ChainState
from ebmcore.energies import gradient
from ebmcore.samplers import Info


class Langevin(BaseSampler):
    r"""Unadjusted Langevin algorithm (ULA).

    .. math:: x' = x - h\,\nabla E(x) + \sqrt{2 h T}\,\xi, \qquad \xi \sim N(0, I)

    For small ``h`` the chain samples :math:`\exp(-E/T)`. Without a Metropolis correction it has a bias of order ``h``: on a
    Gaussian of precision ``a`` its variance is :math:`\frac{T}{a (1 - a h / 2)}`, and it diverges for :math:`h \ge 2/a`.

    Args:
        step_size: ``h``, in squared units of ``x``, above 0.
        temperature: ``T``, at least 0; 1 samples the model, 0 descends its gradient.
        clip_grad: Bound on the absolute value of each component of the gradient; `None` does not clip. Clipping keeps chains
            of a steep energy from running away, but the chain then samples another distribution wherever the bound applies.

    Source: G. Parisi (1981), "Correlation functions and computer simulations"; G. O. Roberts and R. L. Tweedie (1996),
    "Exponential convergence of Langevin distributions and their discrete approximations".

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> sampler = Langevin(step_size=0.1)
        >>> x = sampler.sample(Quadratic((2,)), torch.zeros(5000, 2), 100, generator=torch.Generator().manual_seed(0))
        >>> bool(abs(x.var() / (1 + sampler.predicted_bias(1.0)) - 1) < 0.05)
        True
    """

    state_space = "continuous"
    example_options: ClassVar[dict[str, Any]] = {"step_size": 0.1}

    def __init__(self, step_size: float, temperature: float = 1.0, *, clip_grad: float | None = None) -> None:
        if not step_size > 0:
            raise ValueError(f"step_size must be above 0, got {step_size!r}")
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature!r}")
        if clip_grad is not None and not clip_grad > 0:
            raise ValueError(f"clip_grad must be above 0, or None for no clipping, got {clip_grad!r}")
        self.step_size = step_size
        self.temperature = temperature
        self.clip_grad = clip_grad

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise of one step."""
        return (2 * self.step_size * self.temperature) ** 0.5

    def predicted_bias(self, precision: float) -> float:
        """Relative error of the stationary variance on a Gaussian of that precision: ``1 / (1 - a h / 2) - 1``."""
        return 1 / (1 - precision * self.step_size / 2) - 1

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        grad = gradient(energy, state.x)
        if self.clip_grad is not None:
            grad = grad.clamp(-self.clip_grad, self.clip_grad)
        mean = torch.sub(state.x, grad, alpha=self.step_size)
        return replace(state, x=torch.normal(mean, self.noise_scale, generator=generator)), {}

"""The unadjusted Langevin algorithm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebm_plugin_langevin.bounds import check_bounds, reflect
from ebmcore import BaseSampler, ChainState
from ebmcore.energies import gradient
from ebmcore.samplers import Info


class Langevin(BaseSampler):
    r"""Unadjusted Langevin algorithm (ULA).

    .. math:: x' = x - h\,\nabla E(x) + \sqrt{2 h T}\,\xi, \qquad \xi \sim N(0, I)

    For small ``h`` the chain samples :math:`\exp(-E/T)`. Without a Metropolis correction it has a bias of order ``h``: on a
    Gaussian of precision ``a`` its variance is :math:`\frac{T}{a (1 - a h / 2)}`, and it diverges for :math:`h \ge 2/a`.

    Published recipes often choose step size and noise apart, :math:`x' = x - h\,\nabla E(x) + \sigma\,\xi`. That is a
    temperature: :math:`\sigma^2 = 2 h T`, so ``noise`` :math:`= \sigma` samples :math:`\exp(-E/T)` at

    .. math:: T = \frac{\sigma^2}{2 h}

    and changes it wherever a schedule changes ``h``. Where a paper writes :math:`\frac\lambda2 \nabla E`, ``h`` is
    :math:`\lambda / 2`. The published step size 1 and noise 0.01 are ``T = 5e-5``: the chain is nearly a descent.

    With ``bounds`` each component of the new position is reflected at them, as often as it takes: the chain is the one above
    under the energy that is continued beyond the bounds by reflection. It samples :math:`\exp(-E/T)` restricted to them with a
    bias of order ``h``, and the uniform distribution exactly. Chains that start outside are reflected too.

    Args:
        step_size: ``h``, in squared units of ``x``, above 0.
        temperature: ``T``, at least 0; 1 samples the model, 0 descends its gradient. `None` is 1, or what ``noise`` makes it.
        noise: :math:`\sigma`, at least 0, in units of ``x``, in place of a temperature.
        bounds: ``(low, high)`` of every component, such as the range of pixels; `None` for none.
        clip_grad: Bound on the absolute value of each component of the gradient; `None` does not clip. Clipping keeps chains
            of a steep energy from running away, but the chain then samples another distribution wherever the bound applies.

    Source: G. Parisi (1981), "Correlation functions and computer simulations"; G. O. Roberts and R. L. Tweedie (1996),
    "Exponential convergence of Langevin distributions and their discrete approximations"; noise: Y. Du and I. Mordatch (2019),
    "Implicit generation and modeling with energy-based models", W. Grathwohl et al. (2020), "Your classifier is secretly an
    energy based model and you should treat it like one"; bounds: M. Bossy, E. Gobet and D. Talay (2004), "A symmetrized Euler
    scheme for an efficient approximation of reflected diffusions", S. Bubeck, R. Eldan and J. Lehec (2018), "Sampling from a
    log-concave distribution with projected Langevin Monte Carlo".

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> sampler = Langevin(step_size=0.1)
        >>> x = sampler.sample(Quadratic((2,)), torch.zeros(5000, 2), 100, generator=torch.Generator().manual_seed(0))
        >>> bool(abs(x.var() / (1 + sampler.predicted_bias(1.0)) - 1) < 0.05)
        True
    """

    state_space = "continuous"
    example_options: ClassVar[dict[str, Any]] = {"step_size": 0.1}

    def __init__(
        self,
        step_size: float,
        temperature: float | None = None,
        *,
        noise: float | None = None,
        bounds: tuple[float, float] | None = None,
        clip_grad: float | None = None,
    ) -> None:
        if not step_size > 0:
            raise ValueError(f"step_size must be above 0, got {step_size!r}")
        if temperature is not None and not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature!r}")
        if noise is not None and not noise >= 0:
            raise ValueError(f"noise must be at least 0, or None for that of the temperature, got {noise!r}")
        if temperature is not None and noise is not None:
            raise ValueError(
                f"temperature and noise are two ways to give one number: give one of them, got {temperature!r} and {noise!r}"
            )
        if clip_grad is not None and not clip_grad > 0:
            raise ValueError(f"clip_grad must be above 0, or None for no clipping, got {clip_grad!r}")
        self.step_size = step_size
        self.noise = noise
        self.bounds = check_bounds(bounds)
        self.clip_grad = clip_grad
        self._temperature = 1.0 if temperature is None else temperature

    @property
    def temperature(self) -> float:
        """``T``; with ``noise`` given, ``noise^2 / (2 h)``."""
        return self._temperature if self.noise is None else self.noise**2 / (2 * self.step_size)

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        if self.noise is not None:
            raise ValueError("the temperature follows from noise and step_size: change these")
        self._temperature = temperature

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise of one step."""
        return (2 * self.step_size * self._temperature) ** 0.5 if self.noise is None else self.noise

    def predicted_bias(self, precision: float) -> float | None:
        """Relative error of the variance on a Gaussian of that precision, ``1 / (1 - a h / 2) - 1``; with bounds not known."""
        return 1 / (1 - precision * self.step_size / 2) - 1 if self.bounds is None else None

    def init(self, energy: nn.Module, x: Tensor, *, generator: torch.Generator | None = None) -> ChainState:
        return ChainState(self._within(x))

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        grad = gradient(energy, state.x)
        if self.clip_grad is not None:
            grad = grad.clamp(-self.clip_grad, self.clip_grad)
        mean = torch.sub(state.x, grad, alpha=self.step_size)
        x = torch.normal(mean, self.noise_scale, generator=generator)
        return replace(state, x=self._within(x)), {}

    def refresh(self, energy: nn.Module, state: Any) -> ChainState:
        return state if self.bounds is None else replace(state, x=self._within(state.x))  # which may be a start

    def _within(self, x: Tensor) -> Tensor:
        return x if self.bounds is None else reflect(x, *self.bounds)[0]

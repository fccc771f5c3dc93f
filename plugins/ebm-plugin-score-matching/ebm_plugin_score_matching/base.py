"""What the losses of this distribution share: weighted means of terms, gradients that can be differentiated, projections."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from ebmcore import BaseLoss
from ebmcore.distributions import at_least_float32
from ebmcore.errors import UsageError

Projection = Literal["rademacher", "normal"]


class BaseScoreMatching(BaseLoss):
    """Base of the losses: the mean of one term for each example, which a loss defines in `terms`.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.

    Raises:
        UsageError: If the loss differentiates a gradient and a part of the energy is compiled.
    """

    state_space = "continuous"
    weighted = True

    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        if self.double_backward and any(_is_compiled(module) for module in energy.modules()):
            raise UsageError(
                f"{type(self).__name__} differentiates a gradient, which torch cannot do with a compiled energy: pass the energy "
                "as it was before torch.compile, or take the loss 'finite-difference-score-matching'"
            )
        self.energy = energy

    @abstractmethod
    def terms(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the term ``(B,)`` of each example; called with gradients enabled, also under ``torch.no_grad``."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.enable_grad():
            terms = self.terms(x, *args, **kwargs)
        if self.data_weights is not None:
            terms = terms * self.data_weights.to(terms.dtype)
        return terms.mean()

    def gradient(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns ``x`` as a leaf, and the gradient of the energy there, which can be differentiated."""
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(self.energies(x, *args, **kwargs).sum(), x, create_graph=True)
        return x, grad


def curvature(grad: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Computes ``v' H v`` ``(B,)``, where ``H`` is the derivative of ``grad`` at ``x``; ``v`` is shaped like ``x``."""
    (along,) = torch.autograd.grad(grad, x, v, create_graph=True, materialize_grads=True)
    return dot(along, v)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Computes the scalar product ``(B,)`` of each row, over all axes but the first, in float32 at least."""
    return (at_least_float32(a) * at_least_float32(b)).flatten(1).sum(1)


def project(like: Tensor, projection: Projection, generator: Generator | None) -> Tensor:
    """Draws random directions shaped like ``like``: all components of an example are independent, of mean 0 and variance 1."""
    if projection == "normal":
        return torch.randn_like(like, generator=generator)
    return 2 * torch.randint(2, like.shape, generator=generator, dtype=like.dtype, device=like.device) - 1


def check_projection(projection: str) -> None:
    """Raises a `ValueError` for the name of an unknown projection."""
    if projection not in get_args(Projection):
        raise ValueError(f"projection must be 'rademacher' or 'normal', got {projection!r}")


def check_count(name: str, value: object) -> None:
    """Raises a `ValueError` if the option ``name`` is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_positive(name: str, value: object) -> None:
    """Raises a `ValueError` if the option ``name`` is no finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a number above 0, got {value!r}")


def _is_compiled(module: nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile`` returned, or was compiled in place."""
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None

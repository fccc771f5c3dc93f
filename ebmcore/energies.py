"""Energies: what the kernel asks of them, what else they may offer, and the context in which samplers may call them.

Any ``torch.nn.Module`` that maps ``(B, *shape)`` to ``(B,)`` is an energy: ``p(x) = exp(-E(x)) / Z``, low energy means
high probability. Whatever else it can do is a *capability*: a protocol that a sampler or a metric asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn
from torch.autograd import Variable

from ebmcore.distributions import BaseDistribution
from ebmcore.errors import MissingCapabilityError

__all__ = [
    "SupportsBlockGibbs", "SupportsDataStatistics", "SupportsEnumeration", "SupportsHiddenUnits", "SupportsInitialDistribution",
    "SupportsValueAndGrad", "check_energies", "frozen", "gradient", "require", "supports", "value_and_grad",
]  # fmt: skip


@runtime_checkable
class SupportsValueAndGrad(Protocol):
    """A gradient in closed form, faster than automatic differentiation."""

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns energies ``(N,)`` and their gradient with respect to ``x``, shaped like ``x``."""


@runtime_checkable
class SupportsBlockGibbs(Protocol):
    """Two blocks of units that are each independent given the other.

    ``beta`` ``(N,)`` is an inverse temperature of the joint energy for each chain; `None` means 1.
    """

    def sample_hidden(self, x: Tensor, *, beta: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Draws the hidden units ``(N, hidden)`` given the visible ones ``(N, *shape)``."""

    def sample_visible(self, hidden: Tensor, *, beta: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Draws the visible units ``(N, *shape)`` given the hidden ones ``(N, hidden)``."""


@runtime_checkable
class SupportsHiddenUnits(Protocol):
    """Binary hidden units, whose probabilities given an example are features of it."""

    def hidden_logits(self, x: Tensor) -> Tensor:
        """Returns the hidden units' log-odds ``(N, hidden)`` given ``x`` ``(N, *shape)``."""


@runtime_checkable
class SupportsEnumeration(Protocol):
    """A normaliser that can be computed exactly.

    An energy that can be too large for it also has ``check_enumeration()``, which raises a `UsageError` if it is; unlike
    `log_partition` it returns at once, so that a metric can ask before training.
    """

    def log_partition(self) -> Tensor:
        """Returns ``log Z`` in nats, 0-dim float64."""


@runtime_checkable
class SupportsInitialDistribution(Protocol):
    """A distribution of its own where chains start, such as Bernoulli for binary units."""

    def initial_distribution(self, shape: torch.Size) -> BaseDistribution:
        """Returns the distribution over examples of ``shape``."""


@runtime_checkable
class SupportsDataStatistics(Protocol):
    """Statistics of the data that the energy keeps while it is trained, such as the offsets of a centred RBM."""

    def observe_data(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Updates the statistics with a batch ``(B, *shape)`` and its conditions, in training, before negatives are drawn."""


def supports(energy: object, capability: type) -> bool:
    """Whether ``energy``, an instance or a class, has every method of the protocol ``capability``."""
    return all(callable(getattr(energy, name, None)) for name in _methods(capability))


@cache
def _methods(capability: type) -> tuple[str, ...]:
    return tuple(name for name in vars(capability) if not name.startswith("_"))


def require(energy: object, capability: type, asked_by: str) -> None:
    """Raises `MissingCapabilityError` unless ``energy`` supports ``capability``, which ``asked_by`` needs."""
    if not supports(energy, capability):
        methods = ", ".join(f"{name}()" for name in _methods(capability))
        lacks = f"which {type(energy).__name__} lacks: choose another energy, sampler or metric"
        needs = f"{asked_by} needs an energy with the capability {capability.__name__} ({methods}), {lacks}"
        raise MissingCapabilityError(needs, capability)


def check_energies(values: Tensor, x: Tensor) -> Tensor:
    """Returns ``values`` if they are one energy for each row of ``x``; raises a `ValueError` that says so otherwise."""
    if isinstance(values, Tensor) and values.shape == x.shape[:1]:
        return values
    got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
    raise ValueError(f"the energy returned {got}: it must return ({len(x)},), one number each, e.g. through .squeeze(-1)")


def value_and_grad(energy: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Computes energies and their gradient with respect to the positions, both detached.

    Args:
        energy: An energy; its closed form is used where it has one (`SupportsValueAndGrad`).
        x: Positions ``(N, *shape)``, floating point.

    Returns:
        ``E(x)`` of shape ``(N,)`` and ``dE/dx`` of the shape of ``x``.

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> value_and_grad(Quadratic((2,)), torch.tensor([[1.0, 2.0]]))
        (tensor([2.5000]), tensor([[1., 2.]]))
    """
    closed_form = getattr(energy, "value_and_grad", None)
    value, grad = _differentiate(energy, x) if closed_form is None else closed_form(x)
    return value.detach(), grad.detach()


def gradient(energy: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Computes the gradient of the energy with respect to the positions, detached: `value_and_grad` without the value.

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> gradient(Quadratic((2,)), torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2.]])
    """
    return value_and_grad(energy, x)[1]


def _differentiate(energy: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    if not x.is_floating_point():
        raise TypeError(f"a gradient needs floating-point positions, but x is {x.dtype}: convert it with x.float()")
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = check_energies(energy(x), x)
        # What torch.autograd.grad ends in; its own handling of arguments is 8 % of a CD-10 step (MLP 2-128-128-1, batch 64).
        backward, ones = Variable._execution_engine.run_backward, torch.ones_like(value)
        (grad,) = backward((value,), (ones,), False, False, (x,), False, accumulate_grad=False)
    return value, grad


@contextmanager
def frozen(energy: nn.Module) -> Iterator[None]:
    """Context manager in which samplers call ``energy``: no gradient of its parameters, evaluation mode, and fixed buffers.

    On exit, even if an exception is raised, each ``training``, each ``requires_grad`` and each buffer is what it was. The flags
    belong to the module, so two threads cannot use one energy at the same time; give each thread a copy.

    Raises:
        RuntimeError: Under ``torch.inference_mode``, where no gradient of the energy can be computed.

    Example:
        >>> energy = nn.Linear(2, 1).train()
        >>> with frozen(energy):
        ...     energy.training, energy.weight.requires_grad
        (False, False)
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("sampling takes gradients, which torch.inference_mode() forbids: use torch.no_grad() instead")
    modules = [(m, m.training) for m in energy.modules()]
    parameters = [(p, p.requires_grad) for m, _ in modules for p in m._parameters.values() if p is not None]
    buffers = [(m, n, b, b.detach().clone(), b._version) for m, _ in modules for n, b in m._buffers.items() if b is not None]
    try:
        for module, training in modules:
            if training:
                module.training = False
        for parameter, _ in parameters:
            parameter.requires_grad = False
        yield
    finally:
        for module, training in modules:
            if module.training is not training:
                module.training = training
        for parameter, requires_grad in parameters:
            parameter.requires_grad = requires_grad
        for owner, name, buffer, saved, version in buffers:
            if getattr(owner, name) is not buffer:
                setattr(owner, name, buffer)
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(saved)

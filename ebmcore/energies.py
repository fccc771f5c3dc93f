"""What the kernel asks of an energy, and the context in which samplers may touch it.

Any ``torch.nn.Module`` that maps ``(B, *shape)`` to ``(B,)`` is an energy: ``p(x) = exp(-E(x)) / Z``, low energy means
high probability. Whatever else it can do is a *capability*: a protocol that a sampler or a metric asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward

from ebmcore.distributions import BaseDistribution
from ebmcore.errors import EbmcoreError, MissingCapabilityError


class Energy(Protocol):
    """A callable ``(B, *shape) -> (B,)``; further arguments are conditions with one row for each row of ``x``."""

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...


@runtime_checkable
class SupportsValueAndGrad(Protocol):
    """A closed-form gradient, faster than automatic differentiation."""

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(N,)`` and their gradient with respect to ``x``, shaped like ``x``."""
        ...


@runtime_checkable
class SupportsBlockGibbs(Protocol):
    """Two blocks of units that are each independent given the other.

    ``beta`` ``(N,)`` is an inverse temperature for each chain; `None` means 1. Tempering goes through the conditionals
    of the joint energy, never through a division of the marginal energy.
    """

    def sample_hidden(self, x: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw the hidden units ``(N, hidden)`` given the visible ones ``(N, *shape)``."""
        ...

    def sample_visible(
        self, hidden: Tensor, *, beta: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw the visible units ``(N, *shape)`` given the hidden ones ``(N, hidden)``."""
        ...


@runtime_checkable
class SupportsEnumeration(Protocol):
    """An exactly computable normaliser."""

    def log_partition(self) -> Tensor:
        """``log Z`` in nats, 0-dim float64."""
        ...


@runtime_checkable
class SupportsInitialDistribution(Protocol):
    """Its own starting distribution for chains (Bernoulli for binary units)."""

    def initial_distribution(self, shape: torch.Size) -> BaseDistribution:
        """Distribution over examples of ``shape``."""
        ...


@runtime_checkable
class SupportsDataStatistics(Protocol):
    """Statistics of the data that it keeps while it is trained, such as the offsets of a centred RBM."""

    def observe_data(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Take note of a batch of data ``(B, *shape)`` and its conditions; called in training, before negatives are drawn."""
        ...


def supports(energy: object, capability: type) -> bool:
    """Whether ``energy``, an instance or a class, has every method of the protocol ``capability``."""
    return all(callable(_attribute(energy, name)) for name in _methods(capability))


def _attribute(energy: object, name: str) -> Any:
    """``getattr(energy, name, None)``: each step of a chain asks, and an ``nn.Module`` takes long to say that it lacks one."""
    kind = type(energy)
    looks_as_modules_do = kind.__getattribute__ is object.__getattribute__ and (
        getattr(kind, "__getattr__", None) is nn.Module.__getattr__
    )
    if not looks_as_modules_do or hasattr(kind, name):
        return getattr(energy, name, None)
    own = vars(energy)
    return own[name] if name in own else own.get("_modules", {}).get(name)


@cache
def _methods(capability: type) -> tuple[str, ...]:
    return tuple(name for name in vars(capability) if not name.startswith("_"))


def require(energy: object, capability: type, asked_by: str) -> None:
    """Raise `MissingCapabilityError` unless ``energy`` supports ``capability``; the message says what would fit."""
    if supports(energy, capability):
        return
    methods = ", ".join(f"{name}()" for name in _methods(capability))
    raise MissingCapabilityError(
        f"{asked_by} needs an energy with the capability {capability.__name__} ({methods}), which "
        f"{type(energy).__name__} lacks. {_fitting_energies(capability)}"
    )


def _fitting_energies(capability: type) -> str:
    # Only when an error is being written: this imports the installed energies.
    from ebmcore import host

    fitting = []
    for component in host.list_components("energy"):
        try:
            if supports(host.load("energy", component.id), capability):
                fitting.append(component.id)
        except EbmcoreError:  # a broken plugin is no suggestion, and this message is about another one
            continue
    if fitting:
        return f"Energies that have it: {', '.join(fitting)}."
    return "No installed energy has it: pip install ebm-plugin-rbm, or choose another sampler or metric."


def check_energies(values: Tensor, x: Tensor) -> Tensor:
    """Return ``values`` if they are one energy for each row of ``x``, else raise a `ValueError` that says so."""
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"the energy returned shape {tuple(values.shape)} for {len(x)} examples; it must return ({len(x)},): "
            "one number for each, e.g. through .squeeze(-1)"
        )
    return values


def value_and_grad(energy: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Energies and their gradient with respect to the positions, both detached.

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
    closed_form = _attribute(energy, "value_and_grad")
    if closed_form is not None:
        value, grad = closed_form(x)
        return value.detach(), grad.detach()
    value, grad = differentiate(energy, x)
    return value.detach(), grad


def gradient(energy: Callable[..., Tensor], x: Tensor) -> Tensor:
    """The gradient of the energy with respect to the positions alone, detached: `value_and_grad` without the value.

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> gradient(Quadratic((2,)), torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2.]])
    """
    closed_form = _attribute(energy, "value_and_grad")
    grad: Tensor = closed_form(x)[1].detach() if closed_form is not None else differentiate(energy, x)[1]
    return grad


def differentiate(energy: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """`value_and_grad` by automatic differentiation; the value still has its graph."""
    if not x.is_floating_point():
        raise TypeError(f"a gradient needs floating-point positions, but x is {x.dtype}: convert it with x.float()")
    if x.requires_grad:
        x = x.detach()
    x.requires_grad_()  # for the time of the call, which is cheaper than a detached copy in every step of a chain
    try:
        with torch.enable_grad():
            value = check_energies(energy(x), x)
            # What torch.autograd.grad does after a tenth of a small network's time spent on its arguments.
            (grad,) = _engine_run_backward(
                (value,), (torch.ones_like(value),), False, False, (x,), False, accumulate_grad=False
            )
    finally:
        x.requires_grad_(False)
    return value, grad


@contextmanager
def frozen(energy: nn.Module) -> Iterator[None]:
    """Within it samplers may call the energy; afterwards the energy is as it was, also when something raised.

    Parameters take no gradient (half of a backward pass saved) and modules are in evaluation mode, so that batch
    statistics and power iterations stand still; afterwards each module's ``training``, each ``requires_grad`` and each
    buffer is what it was before. These flags are the module's: two threads cannot use one energy at a time, give each a copy.

    Raises:
        RuntimeError: Under ``torch.inference_mode``, where no gradient of the energy can be taken.

    Example:
        >>> energy = nn.Linear(2, 1).train()
        >>> with frozen(energy):
        ...     energy.training, energy.weight.requires_grad
        (False, False)
        >>> energy.training, energy.weight.requires_grad
        (True, True)
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "sampling takes gradients of the energy, which torch.inference_mode() forbids: use torch.no_grad() instead"
        )
    modules, parameters, buffers = [], [], []
    for module in all_modules(energy):
        modules.append((module, module.training))
        parameters += [(p, p.requires_grad) for p in module._parameters.values() if p is not None]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                buffers.append((module, name, buffer, buffer.detach().clone(), buffer._version))
    try:
        for module, training in modules:
            if training:
                set_plainly(module, "training", False)
        for parameter, _ in parameters:
            parameter.requires_grad = False
        yield
    finally:
        for module, training in modules:
            if module.training is not training:
                set_plainly(module, "training", training)
        for parameter, requires_grad in parameters:
            parameter.requires_grad = requires_grad
        for owner, name, buffer, saved, version in buffers:
            if getattr(owner, name) is not buffer:
                setattr(owner, name, buffer)
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(saved)


def set_plainly(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute that is no parameter, buffer or module, in a tenth of the time that ``nn.Module`` takes for it."""
    object.__setattr__(module, name, value)


def all_modules(energy: nn.Module) -> list[nn.Module]:
    """``energy.modules()`` in a third of the time, for this happens in every training step."""
    found, waiting = {energy: None}, [energy]
    while waiting:
        for module in waiting.pop()._modules.values():
            if module is not None and module not in found:
                found[module] = None
                waiting.append(module)
    return list(found)


def first_tensor(energy: nn.Module, *, floating: bool = False) -> Tensor | None:
    """The first parameter or buffer, of floating-point type if so wished: it tells device or dtype, several times in a step."""
    waiting: list[nn.Module | None] = [energy]
    while waiting:
        module = waiting.pop()
        if module is None:
            continue
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None and (tensor.is_floating_point() or not floating):
                    return tensor
        waiting += reversed(module._modules.values())
    return None

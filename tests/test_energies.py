"""Energies: gradients, capabilities, and what a missing capability says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ebmcore.energies import (
    SupportsBlockGibbs,
    SupportsEnumeration,
    SupportsValueAndGrad,
    check_energies,
    frozen,
    gradient,
    require,
    supports,
    value_and_grad,
)
from ebmcore.errors import MissingCapabilityError
from ebmcore.testing import Moody, Quadratic
from ebmcore.testing.instruments import Trace


class ClosedForm(nn.Module):
    def forward(self, x):
        return x.sum(1), torch.full_like(x, 7.0)


class Forwarding(nn.Module):
    def __init__(self, energy):
        super().__init__()
        self.wrapped = energy

    def __getattr__(self, name):
        return getattr(super().__getattr__("wrapped"), name)


class Standing(nn.Linear):
    """Answers for another module, for every attribute."""

    def __init__(self, energy):
        super().__init__(2, 1)
        self.wrapped = energy

    def __getattribute__(self, name):
        wrapped = object.__getattribute__(self, "__dict__").get("_modules", {}).get("wrapped")
        return getattr(wrapped, name) if name == "value_and_grad" and wrapped else super().__getattribute__(name)


class Cubic(nn.Module):
    def forward(self, x):
        return x.flatten(1).pow(3).sum(1)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_a_quadratics_gradient_is_closed_form(shape):
    """``a (x - mean)`` in float64, detached, for flat and for image-shaped examples."""
    x = torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    energy = Quadratic(shape, precision=3.0, mean=1.0).double()
    value, grad = value_and_grad(energy, x)
    torch.testing.assert_close(grad, 3 * (x - 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(value, 1.5 * (x - 1).flatten(1).square().sum(1), atol=1e-12, rtol=0)
    assert not value.requires_grad
    assert not grad.requires_grad


def test_the_gradient_is_that_of_torch():
    """Bit for bit what ``torch.autograd.grad`` gives."""
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    of_torch = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(Cubic()(of_torch).sum(), of_torch)
    assert torch.equal(gradient(Cubic(), x), expected)
    value, grad = value_and_grad(Cubic(), x)
    assert torch.equal(grad, expected)
    assert not value.requires_grad


@pytest.mark.parametrize("closed_form", [ClosedForm(), ClosedForm().forward], ids=["a module", "a function"])
@pytest.mark.parametrize("around", [lambda energy: energy, Forwarding, Standing], ids=["its own", "forwarded", "stood for"])
def test_a_closed_form_counts_wherever_it_stands(closed_form, around):
    """A closed form set on an instance, as a module or a function, is found, also through a wrapper that forwards it."""
    energy = nn.Linear(2, 1)
    assert not supports(around(energy), SupportsValueAndGrad)
    energy.value_and_grad = closed_form
    assert supports(around(energy), SupportsValueAndGrad)
    assert gradient(around(energy), torch.zeros(1, 2)).tolist() == [[7.0, 7.0]]


def test_a_closed_form_replaces_autograd():
    class Closed(nn.Module):
        def forward(self, x):
            raise AssertionError("not needed")

        def value_and_grad(self, x):
            return x.sum(1), torch.ones_like(x)

    _, grad = value_and_grad(Closed(), torch.zeros(2, 3))
    assert torch.equal(grad, torch.ones(2, 3))


def test_integer_positions_are_refused():
    with pytest.raises(TypeError, match=r"convert it with x\.float\(\)"):
        value_and_grad(Quadratic(), torch.zeros(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(3, 1), (), (2,)])
def test_energies_of_another_shape_are_refused(shape):
    """The message says what the energy must return."""
    with pytest.raises(ValueError, match=r"it must return \(3,\)"):
        check_energies(torch.zeros(shape), torch.zeros(3, 2))


def test_positions_stay_as_they_were():
    """Neither ``requires_grad`` nor ``grad`` of the positions changes, also when the energy raises."""

    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("broken")

    x = torch.ones(3, 2)
    gradient(Cubic(), x)
    assert not x.requires_grad
    with pytest.raises(ValueError, match="broken"):
        gradient(Broken(), x)
    assert not x.requires_grad
    wanted = torch.ones(3, 2, requires_grad=True)
    gradient(Cubic(), wanted)
    assert wanted.requires_grad
    assert wanted.grad is None


def test_capabilities_of_instances_and_classes():
    class Enumerable(Quadratic):
        def log_partition(self):
            return torch.zeros(())

    assert supports(Enumerable(), SupportsEnumeration)
    assert supports(Enumerable, SupportsEnumeration)
    assert not supports(Quadratic(), SupportsEnumeration)


def test_a_missing_capability_is_named():
    """The message names who asked, the protocol and its methods; the error carries the protocol."""
    with pytest.raises(MissingCapabilityError) as caught:
        require(Quadratic(), SupportsBlockGibbs, asked_by="Gibbs")
    message = str(caught.value)
    assert "Gibbs needs an energy with the capability SupportsBlockGibbs (sample_hidden(), sample_visible())" in message
    assert "Quadratic lacks" in message
    assert caught.value.capability is SupportsBlockGibbs


def test_frozen_restores_what_was():
    """Modes, flags and buffers come back after an exception too; meanwhile nothing trains and no parameter has a gradient."""
    energy = Moody()
    before = Trace.of(energy)

    def use():
        with frozen(energy):
            assert not any(m.training for m in energy.modules())
            assert not any(p.requires_grad for p in energy.parameters())
            energy(torch.ones(4, 2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert before.changes(energy) == []


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_scripted_energy_is_frozen():
    """A TorchScript module keeps its training flag outside Python: it is in evaluation mode all the same."""
    energy = torch.jit.script(nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))).train()
    x = torch.randn(16, 2)
    with frozen(energy):
        assert torch.equal(energy(x), energy(x))
    assert energy.training

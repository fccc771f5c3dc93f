"""Conditions: named, kept in order, filled in for samplers, capabilities included."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from ebmcore.conditions import Conditioned, condition, name_conditions, repeat_conditions, split_conditions
from ebmcore.energies import SupportsBlockGibbs, SupportsEnumeration, SupportsValueAndGrad, supports, value_and_grad
from ebmcore.tempering import tempered
from ebmcore.testing import Quadratic


class Classes(nn.Module):
    """One quadratic for each label, with capabilities of which the kernel knows nothing."""

    state_space = "continuous"

    def __init__(self):
        super().__init__()
        self.precision = nn.Parameter(torch.tensor([1.0, 2.0, 4.0]))

    def forward(self, x, label):
        return 0.5 * self.precision[label] * x.flatten(1).square().sum(1)

    def score(self, x, label):
        return -self.precision[label, None] * x

    def density(self, x, label, temperature=1.0):
        return torch.exp(-self(x, label) / temperature)

    def noise(self, n, temperature=1.0):
        return n * temperature

    def log_partition(self):
        return torch.tensor(3.0, dtype=torch.float64)

    def tempered(self, beta, base=None):
        return Hot(self, beta)


class Hot(nn.Module):
    """The classes at an inverse temperature for each chain."""

    def __init__(self, energy, beta):
        super().__init__()
        self.energy, self.beta = energy, beta

    def forward(self, x, label):
        return self.beta * self.energy(x, label)

    def score(self, x, label):
        return self.beta[:, None] * self.energy.score(x, label)


X, LABEL = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([2, 1])
SCORE = torch.tensor([[-4.0, -8.0], [-6.0, -8.0]])


@pytest.mark.parametrize("name", ["0", "label"])
def test_a_third_partys_capability_receives_conditions(name):
    """A method that takes the conditions as ``forward`` does receives them, whether they are positional or named."""
    conditioned = Conditioned(Classes(), {name: LABEL})
    assert torch.equal(conditioned.score(X), SCORE)
    assert torch.equal(conditioned(X), torch.tensor([10.0, 25.0]))


def test_a_keyword_only_condition_reaches_a_capability():
    class Named(nn.Module):
        def score(self, x, *, label, scale=1.0):
            return scale * label[:, None] * x

    conditioned = Conditioned(Named(), {"label": LABEL})
    assert torch.equal(conditioned.score(X, scale=10.0), 10 * LABEL[:, None] * X)


def test_options_follow_the_conditions():
    """``conditioned.density(x, temperature)`` is ``energy.density(x, label, temperature)``."""
    energy = Classes()
    conditioned = Conditioned(energy, {"0": LABEL})
    assert torch.equal(conditioned.density(X, 2.0), energy.density(X, LABEL, 2.0))
    assert torch.equal(conditioned.density(X, temperature=2.0), energy.density(X, LABEL, 2.0))


@pytest.mark.parametrize("name", ["0", "label"])
def test_an_option_is_no_condition(name):
    """A label is not handed to a method as its ``temperature=1.0``."""
    assert Conditioned(Classes(), {name: LABEL}).noise(5) == 5.0
    assert Conditioned(Classes(), {name: LABEL}).noise(5, temperature=2.0) == 10.0


def test_methods_without_conditions_are_forwarded():
    conditioned = Conditioned(Classes(), {"0": LABEL})
    assert conditioned.log_partition().item() == 3.0
    assert supports(conditioned, SupportsEnumeration)
    assert not supports(conditioned, SupportsBlockGibbs)


def test_plain_attributes_are_forwarded():
    conditioned = Conditioned(Classes(), {"0": LABEL})
    assert conditioned.state_space == "continuous"
    assert conditioned.precision.tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("name", ["0", "label"])
def test_a_tempered_energy_keeps_its_conditions(name):
    """An energy that brings its own tempering is tempered inside; every capability of the result is conditioned."""
    hot = tempered(Conditioned(Classes(), {name: LABEL}), torch.tensor([0.5, 1.0]))
    assert torch.equal(hot(X), torch.tensor([5.0, 25.0]))
    assert torch.equal(hot.score(X), torch.tensor([[0.5], [1.0]]) * SCORE)


def test_a_missing_attribute_is_an_attribute_error():
    conditioned = Conditioned(Classes(), {"0": LABEL})
    with pytest.raises(AttributeError, match="hessian"):
        conditioned.hessian  # noqa: B018
    assert getattr(conditioned, "hessian", None) is None


def test_a_bare_instance_lacks_attributes():
    """While it is copied or unpickled it has no energy yet: a look-up is an `AttributeError`, as ``copy`` expects."""
    with pytest.raises(AttributeError, match="score"):
        Conditioned.__new__(Conditioned).score  # noqa: B018


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))], ids=["deepcopy", "pickle"])
def test_a_copy_stands_for_itself(copied):
    """A copy holds its own parameters, and gives what the original gives."""
    conditioned = Conditioned(Classes(), {"0": LABEL})
    other = copied(conditioned)
    assert torch.equal(other.score(X), SCORE)
    other.precision.data.zero_()
    assert torch.equal(other.score(X), 0 * X)
    assert torch.equal(conditioned.score(X), SCORE)


def test_an_energys_own_deepcopy_copies_the_energy():
    """An energy with a ``__deepcopy__`` of its own, as a `torch.fx.GraphModule` has, is copied under its conditions."""

    class Own(Classes):
        def __deepcopy__(self, memo):
            return Own()

    assert torch.equal(copy.deepcopy(Conditioned(Own(), {"0": LABEL})).score(X), SCORE)


def test_a_closed_form_gradient_is_conditioned():
    class Closed(nn.Module):
        def forward(self, x, scale):
            raise AssertionError("not needed")

        def value_and_grad(self, x, scale):
            return scale * x.sum(1), scale[:, None] * torch.ones_like(x)

    energy = Conditioned(Closed(), {"0": torch.tensor([1.0, 2.0])})
    assert supports(energy, SupportsValueAndGrad)
    assert value_and_grad(energy, torch.ones(2, 3))[1][:, 0].tolist() == [1.0, 2.0]


def test_no_conditions_give_the_energy_itself():
    energy = Quadratic()
    assert condition(energy, {}) is energy


def test_conditions_keep_order_and_names():
    """Twelve positional conditions come back in their order, ``"10"`` after ``"9"``; a named one by its name."""
    x = torch.zeros(2, 1)
    given = [torch.full((2,), float(i)) for i in range(12)]
    named = name_conditions(tuple(given), {"label": x}, x)
    args, kwargs = split_conditions(named)
    assert [a[0].item() for a in args] == list(map(float, range(12)))
    assert list(kwargs) == ["label"]


@pytest.mark.parametrize("bad", [3, torch.zeros(3), torch.zeros(())])
def test_conditions_need_a_row_per_example(bad):
    with pytest.raises(ValueError, match="a row for each of 2 examples"):
        name_conditions((bad,), {}, torch.zeros(2, 1))


def test_conditions_repeat_for_a_chains_rows():
    """Three rows of each chain: the conditions of the first chain thrice, then those of the second."""
    energy = Conditioned(Quadratic((2,)), {"0": torch.tensor([1, 2]), "y": torch.ones(2, 3)})
    repeated = repeat_conditions(energy, 3)
    assert repeated.args[0].tolist() == [1, 1, 1, 2, 2, 2]
    assert repeated.kwargs["y"].shape == (6, 3)
    plain = Quadratic((2,))
    assert repeat_conditions(plain, 3) is plain

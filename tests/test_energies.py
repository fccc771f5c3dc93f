"""Energies: gradients, capabilities, tempering, and what a missing capability says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ebmcore.conditions import Conditioned, name_conditions, repeat_conditions, split_conditions
from ebmcore.distributions import Bernoulli, Normal
from ebmcore.energies import (
    SupportsBlockGibbs,
    SupportsEnumeration,
    SupportsValueAndGrad,
    check_energies,
    gradient,
    require,
    supports,
    value_and_grad,
)
from ebmcore.errors import MissingCapabilityError
from ebmcore.tempering import tempered
from ebmcore.testing import Boltzmann, DoubleWell, Gaussian, Quadratic, Watched


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_the_gradient_of_a_quadratic_is_its_closed_form(shape):
    x = torch.randn(5, *shape, dtype=torch.float64)
    energy = Quadratic(shape, precision=3.0, mean=1.0).double()
    value, grad = value_and_grad(energy, x)
    torch.testing.assert_close(grad, 3 * (x - 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(value, 1.5 * (x - 1).flatten(1).square().sum(1), atol=1e-12, rtol=0)
    assert not value.requires_grad
    assert not grad.requires_grad


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
    """Answers in place of another module, whatever is asked."""

    def __init__(self, energy):
        super().__init__(2, 1)
        self.wrapped = energy

    def __getattribute__(self, name):
        wrapped = object.__getattribute__(self, "__dict__").get("_modules", {}).get("wrapped")
        return getattr(wrapped, name) if name == "value_and_grad" and wrapped else super().__getattribute__(name)


@pytest.mark.parametrize("closed_form", [ClosedForm(), ClosedForm().forward], ids=["a module", "a function"])
@pytest.mark.parametrize("around", [lambda energy: energy, Forwarding, Standing], ids=["its own", "forwarded", "stood for"])
def test_a_closed_form_counts_wherever_it_comes_from(closed_form, around):
    energy = nn.Linear(2, 1)
    assert not supports(around(energy), SupportsValueAndGrad)
    energy.value_and_grad = closed_form
    assert supports(around(energy), SupportsValueAndGrad)
    assert gradient(around(energy), torch.zeros(1, 2)).tolist() == [[7.0, 7.0]]


def test_a_closed_form_is_used_where_the_energy_has_one():
    class Closed(nn.Module):
        def forward(self, x):
            raise AssertionError("not needed")

        def value_and_grad(self, x):
            return x.sum(1), torch.ones_like(x)

    _, grad = value_and_grad(Closed(), torch.zeros(2, 3))
    assert torch.equal(grad, torch.ones(2, 3))


def test_integer_positions_are_refused_with_advice():
    with pytest.raises(TypeError, match=r"convert it with x\.float\(\)"):
        value_and_grad(Quadratic(), torch.zeros(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(3, 1), (), (2,)])
def test_an_energy_of_the_wrong_shape_is_an_error_that_says_what_to_return(shape):
    with pytest.raises(ValueError, match=r"it must return \(3,\)"):
        check_energies(torch.zeros(shape), torch.zeros(3, 2))


def test_capabilities_are_asked_of_instances_and_classes():
    class Enumerable(Quadratic):
        def log_partition(self):
            return torch.zeros(())

    assert supports(Enumerable(), SupportsEnumeration)
    assert supports(Enumerable, SupportsEnumeration)
    assert not supports(Quadratic(), SupportsEnumeration)


def test_missing_capability_is_named():
    with pytest.raises(MissingCapabilityError) as caught:
        require(Quadratic(), SupportsBlockGibbs, asked_by="Gibbs")
    message = str(caught.value)
    assert "Gibbs needs an energy with the capability SupportsBlockGibbs (sample_hidden(), sample_visible())" in message
    assert "Quadratic lacks" in message
    assert caught.value.capability is SupportsBlockGibbs


def test_conditions_keep_their_order_and_names():
    x = torch.zeros(2, 1)
    given = [torch.full((2,), float(i)) for i in range(12)]
    named = name_conditions(tuple(given), {"label": x}, x)
    args, kwargs = split_conditions(named)
    assert [a[0].item() for a in args] == list(map(float, range(12)))
    assert list(kwargs) == ["label"]


@pytest.mark.parametrize("bad", [3, torch.zeros(3), torch.zeros(())])
def test_a_condition_without_a_row_for_each_example_is_an_error(bad):
    with pytest.raises(ValueError, match="one row for each of the 2 examples"):
        name_conditions((bad,), {}, torch.zeros(2, 1))


def test_a_conditioned_energy_keeps_its_capabilities():
    class Closed(nn.Module):
        def forward(self, x, scale):
            return scale * x.sum(1)

        def value_and_grad(self, x, scale):
            return self(x, scale), scale[:, None] * torch.ones_like(x)

    energy = Conditioned(Closed(), {"0": torch.tensor([1.0, 2.0])})
    assert supports(energy, SupportsValueAndGrad)
    assert not supports(energy, SupportsBlockGibbs)
    assert value_and_grad(energy, torch.ones(2, 3))[1][:, 0].tolist() == [1.0, 2.0]


def test_tempering_takes_one_beta_for_each_chain():
    energy, x = Quadratic((2,)), torch.ones(3, 2)
    values = tempered(energy, torch.tensor([0.0, 0.5, 1.0]))(x)
    assert values.tolist() == [0.0, 0.5, 1.0]


def test_tempering_goes_from_the_base_to_the_energy():
    energy, base, x = Quadratic((2,)), Normal(torch.zeros(2), 2.0), torch.randn(3, 2)
    torch.testing.assert_close(tempered(energy, torch.tensor(0.0), base)(x), -base.log_prob(x))
    torch.testing.assert_close(tempered(energy, torch.tensor(1.0), base)(x), energy(x))


def test_the_normal_distribution_has_its_moments_and_density():
    normal = Normal(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]))
    x = normal.sample(100_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), normal.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x.std(0), normal.std, atol=0.03, rtol=0)
    reference = torch.distributions.Normal(normal.mean, normal.std).log_prob(x).sum(1)
    torch.testing.assert_close(normal.log_prob(x), reference)


def test_the_bernoulli_distribution_has_its_rates_and_density():
    bernoulli = Bernoulli(torch.tensor([[-2.0, 0.0], [1.0, 3.0]]))
    x = bernoulli.sample(100_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), bernoulli.logits.sigmoid(), atol=0.01, rtol=0)
    reference = torch.distributions.Bernoulli(logits=bernoulli.logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(bernoulli.log_prob(x), reference)


def test_the_boltzmann_machine_sums_over_pairs_once():
    energy = Boltzmann(3)
    x = torch.tensor([[1.0, 1.0, 0.0]])
    expected = -(energy.bias[0] + energy.bias[1] + energy.coupling[0, 1])
    torch.testing.assert_close(energy(x)[0], expected)
    assert energy.probabilities().sum().item() == pytest.approx(1.0)


def test_the_double_well_is_symmetric_with_its_wells_at_the_width():
    well = DoubleWell(height=8.0, width=2.0)
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])
    assert well(x).tolist() == [0.0, 0.0, 8.0]


@pytest.mark.parametrize("base", [None, Normal(torch.zeros(3), 2.0)], ids=["no base", "base"])
@pytest.mark.parametrize("energy", [Quadratic((3,)), Gaussian(torch.eye(3))], ids=["autograd", "closed form"])
def test_a_tempered_energy_has_the_gradient_of_what_it_returns(energy, base):
    beta, x = torch.tensor([0.0, 0.3, 1.0]), torch.randn(3, 3, requires_grad=True)
    wanted = tempered(energy, beta, base)(x)
    (slope,) = torch.autograd.grad(wanted.sum(), x)
    value, grad = value_and_grad(tempered(energy, beta, base), x.detach())
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(grad, slope)
    assert grad.dtype == torch.float32


def test_a_conditioned_energy_is_tempered_inside_and_keeps_its_conditions():
    class Labelled(nn.Module):
        def forward(self, x, scale):
            return scale * x.sum(1)

        def tempered(self, beta, base=None):
            return Hot(self, beta)

    class Hot(nn.Module):
        def __init__(self, energy, beta):
            super().__init__()
            self.energy, self.beta = energy, beta

        def forward(self, x, scale):
            return self.beta * self.energy(x, scale)

        def sample_hidden(self, x, scale, **kwargs):
            return scale

    scale = torch.tensor([1.0, 10.0])
    hot = tempered(Conditioned(Labelled(), {"0": scale}), torch.tensor([0.5, 1.0]))
    assert hot(torch.ones(2, 3)).tolist() == [1.5, 30.0]
    assert torch.equal(hot.sample_hidden(torch.ones(2, 3)), scale)


def test_conditions_are_repeated_for_the_rows_of_a_chain():
    energy = Conditioned(Quadratic((2,)), {"0": torch.tensor([1, 2]), "y": torch.ones(2, 3)})
    repeated = repeat_conditions(energy, 3)
    assert repeated.args[0].tolist() == [1, 1, 1, 2, 2, 2]
    assert repeated.kwargs["y"].shape == (6, 3)
    plain = Quadratic((2,))
    assert repeat_conditions(plain, 3) is plain


def test_several_temperatures_take_one_evaluation():
    calls = []
    energy = Watched(Quadratic((2,)), lambda x: calls.append(len(x)))
    values = tempered(energy, torch.tensor([[0.0, 1.0], [0.5, 2.0]]))(torch.ones(2, 2))
    assert values.tolist() == [[0.0, 1.0], [0.5, 2.0]]
    assert calls == [2]


class Cubic(nn.Module):
    def forward(self, x):
        return x.flatten(1).pow(3).sum(1)


def test_the_gradient_is_that_of_torch():
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    of_torch = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(Cubic()(of_torch).sum(), of_torch)
    assert torch.equal(gradient(Cubic(), x), expected)
    value, grad = value_and_grad(Cubic(), x)
    assert torch.equal(grad, expected)
    assert not value.requires_grad


def test_positions_are_left_as_they_were_also_when_the_energy_raises():
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


def test_rare_ones_stay_rare_in_half_precision():
    coins = Bernoulli(torch.full((1,), -7.0, dtype=torch.bfloat16))  # p = 0.00091
    x = coins.sample(200_000, generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.bfloat16
    assert abs(float(x.float().sum()) - 182.2) < 4 * 182.2**0.5

"""Ising and Potts models against enumeration, closed forms and each other."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

import ebmcore
from ebm_plugin_lattice.ising import Ising, kaufman_log_partition
from ebm_plugin_lattice.potts import Potts
from ebmcore.distributions import Bernoulli, Categorical
from ebmcore.errors import UsageError

CRITICAL = math.log(1 + math.sqrt(2)) / 2


def enumerated(energy):
    """``log Z`` by the sum over all states."""
    return torch.logsumexp(-energy.double()(energy.double().states()), 0)


def by_hand(shape, coupling, field):
    """``log Z`` of a periodic Ising lattice, spin by spin."""
    sites = list(product(*map(range, shape)))
    total = []
    for values in product((-1, 1), repeat=len(sites)):
        s = dict(zip(sites, values, strict=True))
        bonds = 0
        for site in sites:
            for axis, length in enumerate(shape):
                if length > 1:
                    bonds += s[site] * s[(*site[:axis], (site[axis] + 1) % length, *site[axis + 1 :])]
        total.append(coupling * bonds + field * sum(values))
    return torch.logsumexp(torch.tensor(total, dtype=torch.float64), 0)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 3, 3), (2, 2, 3)])
def test_ising_energy_equals_loops(shape):
    model = Ising(shape, coupling=0.37, field=-0.2).double()
    torch.testing.assert_close(enumerated(model), by_hand(shape, 0.37, -0.2), rtol=0, atol=1e-6)  # 0.37 is a float32


@pytest.mark.parametrize("coupling", [0.0, 1e-3, 0.2, CRITICAL, 0.9, 2.0])
@pytest.mark.parametrize("shape", [(4, 4), (2, 3), (3, 2), (3, 3), (3, 5), (2, 7)])
def test_kaufman_equals_enumeration(shape, coupling):
    model = Ising(shape, coupling=coupling).double()
    found = kaufman_log_partition(*shape, model.coupling.detach())
    torch.testing.assert_close(found, enumerated(model).detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(model.log_partition(), found)


def test_antiferromagnet_on_even_sides():
    model = Ising((4, 4), coupling=-0.6).double()
    torch.testing.assert_close(model.log_partition(), enumerated(model).detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(8, 6), (9, 7), (8, 16)])
def test_kaufman_equals_transfer_matrices(shape):
    model = Ising(shape, coupling=CRITICAL).double()
    torch.testing.assert_close(model._by_transfer_matrices(), model.log_partition(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [
    lambda: Ising((1, 4, 3), coupling=0.5, field=0.3),
    lambda: Ising((3, 4), coupling=-0.5, field=torch.linspace(-1, 1, 12).tolist()),
    lambda: Ising((4, 3), coupling=0.5, field=torch.linspace(-1, 1, 12).tolist()),
    lambda: Ising((9,), coupling=-0.7),
    lambda: Potts((2, 4, 3), coupling=0.8),
    lambda: Potts((3, 2, 3), coupling=-0.8, field=torch.linspace(-1, 1, 18).tolist()),
    lambda: Potts((5, 4), coupling=0.8, field=[0.1, 0.0, -0.4, 0.9]),
])  # fmt: skip
def test_transfer_matrices_equal_enumeration(make):
    model = make()
    assert model._is_narrow()
    assert not model._has_closed_form()
    found = model.log_partition()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, enumerated(model).detach(), rtol=0, atol=1e-10)


def test_bond_energy_at_the_critical_point():
    """On 16 by 16 sites the mean of the bonds is 1.453065 for each site, and tends to the square root of 2 with the size."""
    K = torch.tensor(CRITICAL, dtype=torch.float64)

    def bonds(side, step=1e-5):
        ends = [kaufman_log_partition(side, side, K + sign * step) for sign in (1, -1)]
        return ((ends[0] - ends[1]) / (2 * step * side**2)).item()

    assert bonds(16) == pytest.approx(1.453065, abs=1e-6)
    # The distance to the infinite lattice falls as 1 / side.
    assert (bonds(64) - math.sqrt(2)) * 64 == pytest.approx((bonds(32) - math.sqrt(2)) * 32, rel=1e-2)


def test_onsager_free_energy():
    """A large lattice has the free energy of the infinite one, Onsager's integral, away from the critical point."""
    K = 0.3
    angles = math.pi * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    k = 2 * math.sinh(2 * K) / math.cosh(2 * K) ** 2
    integral = torch.log((1 + (1 - (k * angles.sin()).square()).sqrt()) / 2).mean() / 2
    wanted = math.log(2 * math.cosh(2 * K)) + integral.item()
    found = kaufman_log_partition(64, 64, torch.tensor(K, dtype=torch.float64)) / 64**2
    assert found.item() == pytest.approx(wanted, abs=1e-10)


def test_kaufman_is_differentiable():
    """The derivative of log Z is the mean of the bonds, as the probabilities of all states give it."""
    model = Ising((3, 4), coupling=0.35).double()
    K = model.coupling.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(kaufman_log_partition(3, 4, K), K)
    energies = model(model.states()).detach()
    torch.testing.assert_close(found, model.probabilities() @ (-energies / K.detach()), rtol=0, atol=1e-10)


def test_two_values_are_ising_of_half_the_coupling():
    potts, ising = Potts((4, 4, 2), coupling=0.8).double(), Ising((4, 4), coupling=0.4).double()
    bonds = 2 * 16
    torch.testing.assert_close(potts.log_partition(), ising.log_partition() + 0.4 * bonds, rtol=0, atol=1e-6)


def test_given_couplings_equal_the_lattice():
    """A matrix that holds the bonds of a lattice is that lattice, in energies, marginals and correlations."""
    sites = torch.eye(9).view(9, 3, 3)
    matrix = (0.5 * sum(sites.roll(shift, axis) for shift in (1, -1) for axis in (1, 2))).view(9, 9)
    field = torch.linspace(-0.5, 0.5, 9).tolist()
    given = Ising((3, 3), coupling=matrix.tolist(), field=field).double()
    lattice = Ising((3, 3), coupling=0.5, field=field).double()
    x = lattice.states()
    torch.testing.assert_close(given(x), lattice(x))
    torch.testing.assert_close(given.log_partition(), lattice.log_partition())
    torch.testing.assert_close(given.marginals(), lattice.marginals())
    torch.testing.assert_close(given.correlations(), lattice.correlations())


@pytest.mark.parametrize("make", [lambda: Ising((2, 3), field=0.4), lambda: Potts((3, 3), field=[0.1, 0.5, -0.4])])
def test_moments_are_derivatives_of_log_z(make):
    """Marginals are the derivatives of log Z in the field, and correlations those in the couplings."""
    model = make().double()
    logits = model.field.detach().expand(model.n_sites, -1).clone().requires_grad_()
    pairs = torch.zeros(model.n_sites, model.n_sites, dtype=torch.float64, requires_grad=True)
    x = model.states()
    spins = model.spins(x)
    shift = (spins * (logits - model.field.detach())).sum((1, 2)) + torch.einsum("sic,ij,sjc->s", spins, pairs, spins)
    mean, products = torch.autograd.grad(torch.logsumexp(shift - model(x).detach(), 0), [logits, pairs])
    found = model.spins(model.marginals()[None])[0]
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.correlations(), products, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sites", [(6,), (5,), (4, 4), (3, 4), (5, 7), (2, 3, 5), (1, 3, 1)])
def test_neighbours_have_other_colours(sites):
    model = Ising(sites)
    colours = torch.empty(model.n_sites, dtype=torch.int64)
    for colour, of_colour in enumerate(model._classes()):
        colours[of_colour] = colour
    colours = colours.view(sites)
    assert len(model._classes()) == (2 if all(n % 2 == 0 or n == 1 for n in sites) else 3)
    for axis, length in enumerate(sites):
        assert length == 1 or (colours != colours.roll(1, axis)).all()


@pytest.mark.parametrize("make", [lambda: Ising((3, 3), coupling=0.3, field=0.2), lambda: Potts((5, 3), coupling=0.9)])
def test_sweeps_sample_the_model(make):
    """Chains from fair coins end at the exact marginals and correlations, within 4.5 standard errors."""
    model, n = make(), 20_000
    generator = torch.Generator().manual_seed(0)
    x = model.initial_distribution(model.shape).sample(n, generator=generator)
    for _ in range(30):
        x = model.sample_visible(model.sample_hidden(x, generator=generator), generator=generator)
    marginals = model.marginals()
    error = (marginals * (1 - marginals) / n).sqrt()
    assert ((x.mean(0) - marginals).abs() <= 4.5 * error).all()
    spins, wanted = model.spins(x), model.correlations()
    found = torch.einsum("nic,njc->ij", spins, spins) / n
    assert ((found - wanted).abs() <= 4.5 / n**0.5).all()


@pytest.mark.parametrize("make", [lambda: Ising((2, 2), field=0.4), lambda: Potts((2, 3))])
def test_tempered_model_has_its_base(make):
    """At beta 0 the model is its base, and sweeps there sample the base at once."""
    model = make().double()
    kind = Bernoulli if model.state_space == "binary" else Categorical
    logits = torch.linspace(-1, 1, model.shape.numel(), dtype=torch.float64).view(model.shape)
    base, n = kind(logits), 40_000
    cold = model.tempered(torch.zeros(n, dtype=torch.float64), base)
    x = model.states()[:1].expand(n, *model.shape)
    generator = torch.Generator().manual_seed(0)
    x = cold.sample_visible(cold.sample_hidden(x, generator=generator), generator=generator)
    p = logits.sigmoid() if kind is Bernoulli else logits.softmax(-1)
    assert ((x.mean(0) - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt()).all()
    torch.testing.assert_close(cold(x), -base.log_prob(x))


def test_other_bases_are_refused():
    with pytest.raises(UsageError, match="the base of Ising must be a Bernoulli distribution, got Categorical"):
        Ising((2, 2)).tempered(torch.ones(()), Categorical(torch.zeros(2, 2)))


def test_large_lattice_without_closed_form_is_refused():
    for model in (Ising((16, 16), field=0.1), Ising((11, 12), coupling=-0.4), Ising((3, 3, 3)), Potts((7, 7, 3))):
        with pytest.raises(UsageError, match="estimate it, e.g. with the metric 'ais-ll'"):
            model.check_enumeration()
    with pytest.raises(UsageError, match=r"2\^25 states are too many to list: at most 1,048,576"):
        Ising((5, 5)).probabilities()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"coupling": [[0.0, 1.0], [1.0, 0.0]]}, r"coupling must be a number, or a matrix \(4, 4\) of the sites, got \(2, 2\)"),
    ({"coupling": torch.triu(torch.ones(4, 4), 1)}, r"must be symmetric with zeros on its diagonal: pass \(J \+ J.T\) / 2"),
    ({"coupling": torch.eye(4)}, "must be symmetric with zeros on its diagonal"),
    ({"coupling": math.nan}, "coupling holds NaN or infinite values"),
    ({"field": [1.0, 2.0]}, "field must be 1 or 4 numbers, not NaN or infinite, for 4 sites, got 2 numbers"),
    ({"field": []}, "field must be 1 or 4 numbers, not NaN or infinite, for 4 sites, got 0 numbers"),
    ({"field": math.inf}, "field must be 1 or 4 numbers, not NaN or infinite"),
])  # fmt: skip
def test_invalid_options_raise(arguments, message):
    with pytest.raises(UsageError, match=message):
        Ising((2, 2), **arguments)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Ising((1,)), r"couples at least 2 sites, but examples of shape \(1,\) have 1"),
    (lambda: Potts((4,)), r"categorical examples is \(\*sites, values\), got \(4,\): encode them one-hot"),
    (lambda: Potts((4, 1)), "encode them one-hot"),
])  # fmt: skip
def test_shapes_without_neighbours_raise(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_they_are_installed_under_their_names():
    assert isinstance(ebmcore.create_energy("ising", (1, 4, 4), coupling=0.3), Ising)
    assert isinstance(ebmcore.create_energy("potts", (4, 4, 3)), Potts)

"""Energy discrepancy of binary and categorical data."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import one_hot

import ebmcore
from ebm_plugin_energy_discrepancy.discrete import DiscreteEnergyDiscrepancy as DiscreteED
from ebmcore.errors import UsageError
from ebmcore.testing import Boltzmann, Potts, outcomes
from ebmcore.training import check_compatible

CATEGORICAL = ("uniform", "cyclic", "grid")


def target(perturbation):
    return (Boltzmann(2, seed=1) if perturbation == "bernoulli" else Potts(2, 3, seed=1)).double()


def laplacian(perturbation, n_values):
    """The Laplacian of the graph of a unit's values."""
    distance = (torch.arange(n_values)[:, None] - torch.arange(n_values)).abs()
    if perturbation == "cyclic":
        distance = torch.minimum(distance, n_values - distance)
    neighbours = (distance > 0 if perturbation == "uniform" else distance == 1).double()
    return torch.diag(neighbours.sum(1)) - neighbours


def moves(loss, energy):
    """The exact probabilities ``q(y | x)`` of all states."""
    states = energy.states()
    found = outcomes(lambda rows: loss.perturb(states[rows]), len(states))
    matrix = torch.zeros(len(states), len(states)).double()
    return matrix.index_put_((found.start, energy.codes(found.value)), found.probability, accumulate=True)


@pytest.mark.parametrize("n_values", [2, 3, 5])
@pytest.mark.parametrize("perturbation", CATEGORICAL)
def test_kernel_is_that_of_the_heat_equation(perturbation, n_values):
    loss = DiscreteED(Potts(), perturbation=perturbation, t=0.3)
    wanted = torch.matrix_exp(-0.3 * laplacian(perturbation, n_values))
    torch.testing.assert_close(loss.kernel(n_values, wanted), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("perturbation", ["bernoulli", *CATEGORICAL])
def test_perturbation_draws_from_the_kernel(perturbation):
    """By enumeration of all draws each unit moves by the heat kernel, independently of the others."""
    energy = target(perturbation)
    n_values = 2 if perturbation == "bernoulli" else 3
    loss = DiscreteED(energy, perturbation=perturbation, t=0.3)
    one = torch.matrix_exp(-0.3 * laplacian(perturbation, n_values))
    states = energy.states()
    values = states.long() if perturbation == "bernoulli" else states.argmax(-1)
    wanted = one[values[:, None, 0], values[:, 0]] * one[values[:, None, 1], values[:, 1]]
    torch.testing.assert_close(moves(loss, energy), wanted, rtol=0, atol=1e-7)  # the kit reads thresholds in float32


@pytest.mark.parametrize("perturbation", ["bernoulli", *CATEGORICAL])
def test_no_gradient_at_the_truth(perturbation):
    """Over all examples, copies and points the true energy has the gradient 0 exactly with ``w = 1``, and another one has not."""
    energy = target(perturbation)
    states, n = energy.states(), len(energy.states())
    loss = DiscreteED(energy, perturbation=perturbation, t=0.3, n_samples=1)
    q = moves(loss, energy)
    x, y, z = torch.cartesian_prod(*[torch.arange(n)] * 3).T
    loss.data_weights = n**3 * energy.probabilities()[x] * q[x, y] * q[y, z]
    steps = iter([states[y], states[z]] * 2)
    loss.perturb = lambda _: next(steps)
    loss(states[x]).backward()
    assert max(p.grad.abs().max() for p in energy.parameters()) < 1e-10
    energy.bias.data.view(-1)[0] += 0.1
    energy.zero_grad()
    loss(states[x]).backward()
    assert energy.bias.grad.abs().max() > 1e-4


@pytest.mark.parametrize("perturbation", ["bernoulli", "cyclic"])
def test_many_points_give_the_exact_discrepancy(perturbation):
    """With many points it is ``E_p E + E_q log sum_x q(y | x) exp(-E(x))``, by enumeration."""
    energy = target(perturbation)
    states, weights = energy.states(), torch.rand(len(energy.states()), generator=torch.Generator().manual_seed(3)).double()
    p = weights / weights.sum()
    loss = DiscreteED(energy, perturbation=perturbation, t=0.3, n_samples=200, w=0.0)
    q, energies = moves(loss, energy), energy(states)
    wanted = p @ energies + (p @ q) @ torch.log(q @ (-energies).exp())
    loss.generator = torch.Generator().manual_seed(0)
    rows = torch.multinomial(p, 4000, replacement=True, generator=torch.Generator().manual_seed(1))
    assert loss(states[rows]).item() == pytest.approx(wanted.item(), abs=0.03)


def test_learns_a_potts_model():
    """On exact samples of a Potts model another one learns their distribution."""
    truth, energy = Potts(2, 3, seed=1), Potts(2, 3, scale=0.1, seed=2)
    loss = DiscreteED(energy, perturbation="uniform", t=0.3, n_samples=4)
    loss.generator = g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.985**step
        optimizer.zero_grad()
        loss(truth.sample(1000, generator=g)).backward()
        optimizer.step()
    assert (energy.probabilities() - truth.probabilities()).abs().max() < 0.02


def test_labels_stay_with_their_example():
    """Each point is scored under the label of its example."""

    class Labelled(Potts):
        def forward(self, x, label):
            seen.append((x, label))
            return super().forward(x)

    seen = []
    x = one_hot(torch.tensor([[0, 0], [1, 1], [2, 2]]), 3).float()
    DiscreteED(Labelled(), perturbation="grid", t=1e-6, n_samples=2)(x, torch.arange(3))
    points, labels = seen[0]
    assert torch.equal(points.argmax(-1)[:, 0], labels)
    assert len(labels) == 9


def test_data_must_suit_the_perturbation():
    """A perturbation of categorical data is for energies and data of that space alone."""
    loss = DiscreteED(Potts(), perturbation="cyclic")
    assert check_compatible(Potts(), None, None, loss) == "categorical"
    with pytest.raises(UsageError, match="is for categorical data"):
        check_compatible(Boltzmann(), None, None, loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation": "ring"}, "perturbation must be 'bernoulli', 'uniform', 'cyclic' or 'grid', got 'ring'"),
        ({"t": -math.inf}, "t must be above 0"),
    ],
)
def test_discrete_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        DiscreteED(Boltzmann(), **options)


def test_discrete_energy_discrepancy_is_installed():
    found = ebmcore.host.load("loss", "ebm-plugin-energy-discrepancy:discrete-energy-discrepancy")
    assert found is DiscreteED

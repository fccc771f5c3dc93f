"""Pseudo-likelihood, ratio matching and minimum probability flow, by enumeration."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
import torch
from torch import nn

import ebmcore
from ebm_plugin_pseudo_likelihood.minimum_probability_flow import MinimumProbabilityFlow
from ebm_plugin_pseudo_likelihood.pseudo_likelihood import PseudoLikelihood
from ebm_plugin_pseudo_likelihood.ratio_matching import RatioMatching
from ebmcore.errors import UsageError
from ebmcore.testing import Boltzmann, EnumerableRBM, Ising, Potts
from ebmcore.training import check_compatible

LOSSES = (PseudoLikelihood, RatioMatching, MinimumProbabilityFlow)
SEVERAL_SPACES = (PseudoLikelihood, MinimumProbabilityFlow)
BINARY = (lambda: Boltzmann(4), lambda: Ising((2, 3)), lambda: EnumerableRBM((1, 2, 2)))
ON_BINARY = [(kind, make) for kind in LOSSES for make in BINARY]
ON_CATEGORICAL = [(kind, lambda: Potts(3, 3)) for kind in SEVERAL_SPACES]


def expected(loss, energy, p):
    """The loss averaged over all states, with the probabilities ``p``."""
    loss.data_weights = len(p) * p
    return loss(energy.states())


def gradients(value, energy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(energy.parameters()), materialize_grads=True)])


def neighbours(x, values):
    """The neighbours of a flat state ``(sites,)`` of numbers of values, as pairs of site and state."""
    for i in range(len(x)):
        for v in range(values):
            if v != x[i]:
                yield i, (*x[:i], v, *x[i + 1 :])


@pytest.mark.parametrize(("kind", "make"), ON_BINARY + ON_CATEGORICAL)
def test_gradient_is_zero_at_the_truth(kind, make):
    """The expected loss under the model's own probabilities has a stationary point at its parameters."""
    energy = make().double()
    p = energy.probabilities()
    at_truth = gradients(expected(kind(energy), energy, p), energy)
    elsewhere = gradients(expected(kind(energy), energy, p.flip(0)), energy)
    assert at_truth.abs().max() < 1e-12
    assert elsewhere.abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "make"), ON_BINARY + ON_CATEGORICAL)
def test_truth_is_a_minimum(kind, make):
    """Around the truth the expected loss is larger in every direction that changes the distribution."""
    energy = make().double()
    p = energy.probabilities()
    at_truth = expected(kind(energy), energy, p).item()
    torch.manual_seed(0)
    for _ in range(10):
        other = make().double()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        assert expected(kind(other), other, p).item() > at_truth + 1e-4


@pytest.mark.parametrize("make", [lambda: Ising((2, 3)), lambda: Potts(3, 3)])
def test_losses_equal_sums_over_neighbours(make):
    """Each loss is the sum of its paper, over neighbours that are listed one by one."""
    energy = make().double()
    states = energy.states()
    values = 3 if energy.state_space == "categorical" else 2
    codes = states.argmax(-1) if values == 3 else states.flatten(1).long()
    e = dict(zip(map(tuple, codes.tolist()), energy(states).tolist(), strict=True))
    row = 13
    here = tuple(codes[row].tolist())
    gaps = torch.zeros(len(here), values - 1, dtype=torch.float64)
    count = [0] * len(here)
    for site, other in neighbours(here, values):
        gaps[site, count[site]] = e[here] - e[other]
        count[site] += 1
    x = states[[row]]
    wanted = torch.log(1 + gaps.exp().sum(1)).sum()
    torch.testing.assert_close(PseudoLikelihood(energy)(x), wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(MinimumProbabilityFlow(energy)(x), (gaps / 2).exp().sum(), rtol=1e-12, atol=0)
    if values == 2:
        u = (-gaps).exp()  # p(x) / p(x')
        torch.testing.assert_close(RatioMatching(energy)(x), (1 / (1 + u)).square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [lambda: Boltzmann(4), lambda: Potts(3, 3)])
def test_pseudo_likelihood_is_cd_of_one_site(make):
    """The expected gradient of CD-1 that redraws one random site is that of the pseudo-likelihood over the number of sites."""
    energy = make().double()
    states, p = energy.states(), energy.probabilities()
    n = states.shape[1]
    data = states[[1, 5, 5, 11]]
    cd = torch.zeros((), dtype=torch.float64)
    for x in data:
        for site in range(n):
            same = (states != x).view(len(states), n, -1)[:, torch.arange(n) != site].flatten(1).any(1).logical_not()
            conditional = p[same] / p[same].sum()
            cd = cd + (energy(x[None])[0] - conditional @ energy(states[same])) / (n * len(data))
    found = gradients(PseudoLikelihood(energy)(data), energy) / n
    torch.testing.assert_close(found, gradients(cd, energy), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "make"), ON_BINARY[::3] + ON_CATEGORICAL)
@pytest.mark.parametrize("n_sites", [1, 2])
def test_subsets_of_sites_are_unbiased(kind, make, n_sites, monkeypatch):
    """Averaged over all subsets of the sites, a loss and its gradient are those of all sites."""
    energy = make().double()
    x = energy.states()[[2, 5, 7]]
    whole = kind(energy)(x)
    n = 4 if energy.state_space == "binary" else 3
    part, subsets = kind(energy, n_sites=n_sites), list(combinations(range(n), n_sites))
    total = torch.zeros_like(whole)
    for subset in subsets:
        mask = nn.functional.one_hot(torch.tensor(subset), n).bool()
        monkeypatch.setattr(part, "_draw_sites", lambda x, n, mask=mask: mask.unsqueeze(0))
        total = total + part(x) / comb(n, n_sites)
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(total, energy), gradients(whole, energy), rtol=0, atol=1e-12)


def test_sites_are_drawn_evenly():
    """Each example gets its own sites, without replacement, each site equally often."""
    loss = PseudoLikelihood(Boltzmann(4), n_sites=2)
    loss.generator = torch.Generator().manual_seed(0)
    masks = loss._draw_sites(torch.zeros(20_000, 4), 4)
    assert masks.shape == (20_000, 2, 4)
    assert (masks.sum(2) == 1).all()
    assert masks.sum(1).max() == 1
    assert (masks.sum((0, 1)) / 20_000 - 0.5).abs().max() < 4 * 0.5 / 20_000**0.5
    pairs = torch.unique(masks.any(1), dim=0, return_counts=True)[1]
    assert len(pairs) == 6
    assert (pairs / 20_000 - 1 / 6).abs().max() < 4 * (5 / 36 / 20_000) ** 0.5


@pytest.mark.parametrize(("kind", "make"), [*ON_BINARY[::3], *ON_CATEGORICAL])
def test_fit_ends_at_the_data(kind, make):
    """A model that is trained on all states with their probabilities ends with these probabilities."""
    target, energy = make().double(), make().double()
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.zero_()
    p, loss = target.probabilities(), kind(energy)
    options = {"max_iter": 500, "tolerance_grad": 1e-12, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(energy.parameters(), **options)

    def closure():
        optimizer.zero_grad()
        value = expected(loss, energy, p)
        value.backward()
        return value

    optimizer.step(closure)
    assert (p * (p.log() - energy.probabilities().log())).sum() < 1e-9


@pytest.mark.parametrize("kind", LOSSES)
def test_weights_count_examples(kind):
    """An example of weight 2 counts as two examples, and one of weight 0 not at all."""
    energy = Boltzmann(4).double()
    x = energy.states()[[1, 6, 9, 14]]
    loss = kind(energy)
    wanted = loss(x[[0, 0, 1, 3]])
    loss.data_weights = torch.tensor([2.0, 1.0, 0.0, 1.0])
    found = loss(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert found.dtype == torch.float64


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("shape", [(12,), (1, 3, 4), (3, 2, 2)])
def test_shape_of_examples_changes_nothing(kind, shape):
    energy = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)).double()
    x = torch.bernoulli(torch.full((6, 12), 0.5), generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(kind(energy)(x.view(6, *shape)), kind(energy)(x))


@pytest.mark.parametrize("kind", SEVERAL_SPACES)
def test_two_values_are_a_binary_unit(kind):
    """Categorical units of two values and binary units give the same loss."""

    class OfPairs(nn.Module):
        state_space = "categorical"

        def __init__(self, energy):
            super().__init__()
            self.energy = energy

        def forward(self, x):
            return self.energy(x[..., 1])

    energy = Boltzmann(4).double()
    x = energy.states()
    torch.testing.assert_close(kind(OfPairs(energy))(torch.stack([1 - x, x], 2)), kind(energy)(x))


@pytest.mark.parametrize("space", ["binary", "categorical"])
def test_probabilities_are_drawn(space):
    """The loss of examples that are probabilities is that of states drawn from them; a state stays as it is."""
    energy = Boltzmann(4).double() if space == "binary" else Potts(2, 3).double()
    p = torch.tensor([0.2, 0.9, 1.0, 0.0]) if space == "binary" else torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    loss = PseudoLikelihood(energy)
    loss.generator = torch.Generator().manual_seed(0)
    drawn = loss._as_states(p.double().expand(40_000, *p.shape))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    error = (p * (1 - p) / 40_000).sqrt()
    assert ((drawn.mean(0) - p).abs() <= 4 * error).all()
    assert torch.equal(loss._as_states(energy.states()), energy.states())


@pytest.mark.parametrize("kind", LOSSES)
def test_large_differences_stay_finite(kind):
    """Differences of about a hundred nats give a finite loss and finite gradients in float32."""
    energy = Boltzmann(4, scale=30.0)
    value = kind(energy)(energy.states())
    value.backward()
    assert (energy(energy.states()).max() - energy(energy.states()).min()) > 100
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in energy.parameters())


@pytest.mark.parametrize("kind", LOSSES)
def test_autocast_is_near_full_precision(kind):
    """Under autocast to bfloat16 the loss is in float32 and near that of full precision."""
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0))
    x = torch.bernoulli(torch.full((64, 3, 2, 2), 0.5))
    with torch.autocast("cpu", torch.bfloat16):
        found = kind(energy)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, kind(energy)(x), rtol=0.02, atol=0)


def test_batch_statistics_are_common():
    """Examples and neighbours are scored in one call, and so share their batch statistics."""
    rows = []
    energy = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1), nn.Flatten(0))
    energy.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    PseudoLikelihood(energy)(torch.zeros(6, 4))
    assert rows == [6 * 5]


@pytest.mark.parametrize(("given", "of_energy", "found"), [
    (None, None, "binary"),
    (None, "categorical", "categorical"),
    ("categorical", None, "categorical"),
    (None, "continuous", "binary"),
])  # fmt: skip
def test_space_is_the_energys_unless_given(given, of_energy, found):
    energy = nn.Identity()
    energy.state_space = of_energy
    assert PseudoLikelihood(energy, state_space=given).state_space == found


def test_other_data_are_refused():
    """Categorical data are refused by a loss that takes them for binary, with the option that helps."""
    with pytest.raises(UsageError, match="is categorical: give the loss the option state_space=categorical"):
        check_compatible(nn.Identity(), None, Potts(), PseudoLikelihood(nn.Identity()))
    with pytest.raises(
        UsageError, match="the loss RatioMatching is for binary data, but Potts is categorical: choose another"
    ):
        check_compatible(nn.Identity(), None, Potts(), RatioMatching(nn.Identity()))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"n_sites": 0}, "n_sites must be a whole number of at least 1"),
    ({"n_sites": 1.5}, "n_sites must be a whole number of at least 1"),
    ({"state_space": "continuous"}, "state_space must be 'binary', 'categorical' or None"),
    ({"n_site": 1}, "Did you mean 'n_sites'"),
])  # fmt: skip
def test_invalid_options_raise(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        PseudoLikelihood(Boltzmann(4), **arguments)


def test_too_many_sites_are_refused_before_training():
    with pytest.raises(UsageError, match=r"n_sites is 5, but examples of shape \(4,\) have 4 sites: lower it"):
        PseudoLikelihood(Boltzmann(4), n_sites=5).build((4,))


def test_single_value_is_refused():
    with pytest.raises(UsageError, match="have 1 value on the last axis: encode them one-hot"):
        PseudoLikelihood(nn.Identity(), state_space="categorical").build((4, 1))


def test_they_are_installed_under_their_names():
    for name, kind in zip(("pseudo-likelihood", "ratio-matching", "minimum-probability-flow"), LOSSES, strict=True):
        assert ebmcore.host.load("loss", f"ebm-plugin-pseudo-likelihood:{name}") is kind

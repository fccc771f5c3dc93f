"""RBMs with Gaussian and categorical visible units, against closed forms and enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn.functional import one_hot

import ebmcore
from ebm_plugin_rbm.gaussian import GaussianRBM
from ebm_plugin_rbm.gibbs import Gibbs
from ebm_plugin_rbm.potts import PottsRBM
from ebmcore.distributions import Bernoulli, Categorical, Normal
from ebmcore.errors import UsageError
from ebmcore.testing import transition_matrix
from ebmcore.testing.targets import Enumerable, binary_states

N = 100_000


def random(rbm, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rbm = rbm.double()
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator).double())
    return rbm


def gaussian(shape=(2,), hidden=3):
    return random(GaussianRBM(shape, hidden))


def potts(shape=(2, 3), hidden=3):
    return random(PottsRBM(shape, hidden))


def hidden_states(rbm):
    return binary_states(len(rbm.hidden_bias), rbm.weight.detach())


def joint_energy(rbm, v, h):
    """``E(v, h)`` of a Gaussian machine for all pairs ``(V, H)``, from the formula."""
    variance = rbm.log_variance.exp()
    quadratic = (0.5 * (v - rbm.visible_bias).square() / variance).sum(1)
    return quadratic[:, None] - h @ rbm.hidden_bias - (v / variance) @ rbm.weight @ h.T


def mixture(rbm, beta=1.0):
    """Weights, means and variances of the normal distributions that a Gaussian machine mixes at an inverse temperature."""
    h, variance = hidden_states(rbm), rbm.log_variance.exp()
    mean = rbm.visible_bias + h @ rbm.weight.T
    log_weight = h @ rbm.hidden_bias + 0.5 * ((mean.square() - rbm.visible_bias.square()) / variance).sum(1)
    return torch.softmax(beta * log_weight, 0).detach(), mean.detach(), (variance / beta).detach()


def exact_samples(rbm, n, beta=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight, mean, variance = mixture(rbm, beta)
    which = torch.multinomial(weight, n, replacement=True, generator=generator)
    noise = torch.randn(n, mean.shape[1], generator=generator, dtype=torch.float64)
    return mean[which] + variance.sqrt() * noise


def moments(rbm, beta=1.0):
    weight, mean, variance = mixture(rbm, beta)
    first = weight @ mean
    return first, torch.einsum("h,hi,hj->ij", weight, mean, mean) + torch.diag(variance)


def within_errors(x, rbm, beta=1.0):
    first, second = moments(rbm, beta)
    products = x[:, :, None] * x[:, None, :]
    for found, wanted in ((x, first), (products, second)):
        error = found.std(0) / len(x) ** 0.5
        assert ((found.mean(0) - wanted).abs() < 4.5 * error).all()


def test_gaussian_free_energy_sums_joint_energy():
    """The Gaussian free energy sums the joint energy over the hidden units."""
    rbm, v = gaussian(), torch.randn(7, 2, generator=torch.Generator().manual_seed(1)).double()
    expected = -torch.logsumexp(-joint_energy(rbm, v, hidden_states(rbm)), 1)
    torch.testing.assert_close(rbm(v), expected, atol=1e-12, rtol=0)


def test_the_gaussian_normaliser_is_the_integral():
    rbm = gaussian()
    ticks = torch.linspace(-14, 14, 1401, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    with torch.no_grad():
        integral = torch.logsumexp(-rbm(grid), 0) + 2 * math.log(ticks[1] - ticks[0])
    torch.testing.assert_close(rbm.log_partition(), integral, atol=1e-8, rtol=0)


@pytest.mark.parametrize("beta", [None, 0.5])
def test_gaussian_gibbs_keeps_exact_samples(beta):
    """Gibbs on a Gaussian machine keeps exact samples exact."""
    rbm, generator = gaussian(), torch.Generator().manual_seed(2)
    x = exact_samples(rbm, N, beta or 1.0)
    betas = None if beta is None else torch.full((N,), beta).double()
    for _ in range(3):
        hidden = rbm.sample_hidden(x, beta=betas, generator=generator)
        x = rbm.sample_visible(hidden, beta=betas, generator=generator)
    within_errors(x, rbm, beta or 1.0)


def test_gaussian_path_joins_base_and_model():
    """A tempered Gaussian machine goes from the normalised base to the model."""
    rbm, v = gaussian(), torch.randn(7, 2).double()
    base = Normal(torch.tensor([0.5, -1.0]).double(), torch.tensor([0.7, 2.0]).double())
    torch.testing.assert_close(rbm.tempered(torch.tensor(0.0), base)(v), -base.log_prob(v), atol=1e-12, rtol=0)
    torch.testing.assert_close(rbm.tempered(torch.tensor(1.0), base)(v), rbm(v), atol=1e-12, rtol=0)


def test_tempered_gaussian_sweep_keeps_law():
    """A sweep between base and Gaussian machine keeps the law that its energy says."""
    rbm, base = gaussian((1,), 2), Normal(torch.tensor([0.5]).double(), torch.tensor([1.5]).double())
    hot = rbm.tempered(torch.tensor(0.4).double(), base)
    ticks = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    with torch.no_grad():
        p = torch.softmax(-hot(ticks[:, None]), 0)
    generator = torch.Generator().manual_seed(3)
    x = ticks[torch.multinomial(p, N, replacement=True, generator=generator)][:, None]
    for _ in range(5):
        x = hot.sample_visible(hot.sample_hidden(x, generator=generator), generator=generator)
    for power in (1, 2, 3):
        exact, error = p @ ticks**power, (x**power).std() / N**0.5
        assert abs((x**power).mean() - exact) < 4.5 * error


def test_gaussian_ais_weights_average_to_normaliser():
    """AIS weights of a Gaussian machine average to its normaliser."""
    rbm, generator = gaussian(), torch.Generator().manual_seed(4)
    base = Normal(torch.zeros(2).double(), torch.full((2,), 2.0).double())
    x, total, betas = base.sample(2000, generator=generator), 0.0, torch.linspace(0, 1, 101, dtype=torch.float64)
    path = [ebmcore.tempered(rbm, beta, base) for beta in betas]
    with torch.no_grad():
        for here, there in itertools.pairwise(path):
            total = total + here(x) - there(x)
            x = Gibbs().sample(there, x, 1, generator=generator)
    found = torch.logsumexp(total, 0) - math.log(2000)
    assert abs(found - rbm.log_partition()) < 4.5 * (total.exp().std() / total.exp().mean() / 2000**0.5)


def test_the_variances_are_learned_from_the_likelihood():
    rbm = GaussianRBM((1,), 1, weight_std=0.0).double()
    x = 3.0 * torch.randn(5000, 1, generator=torch.Generator().manual_seed(0)).double() + 1.0
    optimizer = torch.optim.Adam(rbm.parameters(), lr=0.1)
    ticks = torch.linspace(-40, 40, 2001, dtype=torch.float64)[:, None]
    for _ in range(200):
        p = torch.softmax(-rbm(ticks), 0).detach()
        optimizer.zero_grad()
        (rbm(x).mean() - (p * rbm(ticks)).sum()).backward()
        optimizer.step()
    within = rbm.log_variance.exp().item()
    first, second = moments(rbm)
    assert (second[0, 0] - first[0] ** 2).item() == pytest.approx(x.var().item(), rel=0.02)
    assert within > 4


def test_fixed_variances_are_not_trained():
    rbm = GaussianRBM((2,), 3, std=0.5, learn_variance=False)
    assert not rbm.log_variance.requires_grad
    torch.testing.assert_close(rbm.log_variance.exp(), torch.full((2,), 0.25))


class Listed(Enumerable):
    """A categorical machine with its states listed."""

    def __init__(self, energy, shape):
        super().__init__()
        self.energy, self.shape = energy, shape
        self.sample_hidden, self.sample_visible = energy.sample_hidden, energy.sample_visible

    def forward(self, x):
        return self.energy(x)

    def states(self):
        units, values = self.shape
        codes = torch.cartesian_prod(*[torch.arange(values)] * units)
        return one_hot(codes, values).double()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("based", [True, False], ids=["base", "no base"])
def test_tempered_categorical_gibbs_keeps_law(beta, based):
    """Gibbs on a tempered categorical machine leaves its law invariant."""
    rbm, base = potts(), Categorical(torch.randn(2, 3).double()) if based else None
    target = Listed(rbm.tempered(torch.tensor(beta).double(), base), (2, 3))
    matrix, p = transition_matrix(Gibbs(), target), target.probabilities()
    assert (p @ matrix - p).abs().max() < 1e-12
    if beta == 0.0 and based:
        torch.testing.assert_close(target(target.states()), -base.log_prob(target.states()), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("shape", "hidden"), [((2, 3), 3), ((3, 2), 5), ((1, 4), 1)])
def test_categorical_normaliser_sums_all_states(shape, hidden):
    """The categorical normaliser is the sum over all states."""
    rbm = potts(shape, hidden)
    torch.testing.assert_close(rbm.log_partition(), Listed(rbm, shape).log_partition(), atol=1e-12, rtol=0)


def test_two_values_are_a_binary_machine():
    rbm = potts((3, 2), 4)
    binary = ebmcore.create_energy("rbm", (3,), hidden=4).double()
    weight, bias = rbm.weight.detach().view(3, 2, 4), rbm.visible_bias.detach().view(3, 2)
    with torch.no_grad():
        binary.weight.copy_(weight[:, 1] - weight[:, 0])
        binary.visible_bias.copy_(bias[:, 1] - bias[:, 0])
        binary.hidden_bias.copy_(rbm.hidden_bias + weight[:, 0].sum(0))
    v = binary_states(3, binary.weight.detach())
    x = torch.stack([1 - v, v], 2)
    gap = rbm(x) - binary(v)
    torch.testing.assert_close(gap, gap[:1].expand(8), atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [gaussian, potts])
def test_images_equal_flattened(make):
    flat = make()
    image = type(flat)((1, *flat.visible_shape), 3).double()
    image.load_state_dict(flat.state_dict())
    x = flat.initial_distribution(flat.visible_shape).sample(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(image(x.unsqueeze(1)), flat(x))
    assert image.sample_visible(torch.zeros(5, 3).double()).shape == (5, 1, *flat.visible_shape)


def test_base_must_match_units():
    """The base must be of the units' kind."""
    with pytest.raises(UsageError, match="the base of GaussianRBM must be a Normal distribution, got Bernoulli"):
        gaussian().tempered(torch.tensor(0.5), Bernoulli(torch.zeros(2)))
    with pytest.raises(UsageError, match="the base of PottsRBM must be a Categorical distribution"):
        potts().tempered(torch.tensor(0.5), Bernoulli(torch.zeros(2, 3)))


def test_invalid_values_raise_with_advice():
    """Values that cannot work raise errors with advice."""
    with pytest.raises(UsageError, match="encode them one-hot"):
        PottsRBM((4,), 3)
    with pytest.raises(ValueError, match="std must be above 0"):
        GaussianRBM((4,), 3, std=0.0)
    for rbm in (GaussianRBM((4,), 26), PottsRBM((4, 3), 26)):
        for method in (rbm.check_enumeration, rbm.log_partition):
            with pytest.raises(UsageError, match="up to 25 units"):
                method()


@pytest.mark.parametrize(("name", "cls"), [("gaussian-rbm", GaussianRBM), ("potts-rbm", PottsRBM)])
def test_they_are_installed_under_their_names(name, cls):
    assert ebmcore.host.load("energy", name) is cls


def test_autocast_keeps_bias_precision():
    """A bias is not rounded to half precision under autocast."""
    rbm = GaussianRBM((1,), hidden=1, weight_std=0.0, std=0.01)
    rbm.visible_bias.data.fill_(50.1)  # numbers of eight bits are 0.25 apart there
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        v = rbm.sample_visible(torch.ones(100, 1), generator=torch.Generator().manual_seed(0))
    assert abs(v.mean() - 50.1) < 0.005

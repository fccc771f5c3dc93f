"""Noise-contrastive estimation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.nn.functional import binary_cross_entropy_with_logits

import ebmcore
from ebm_plugin_nce.nce import NoiseContrastiveEstimation as NCE
from ebm_plugin_nce.noise import RIDGE, BernoulliNoise, NormalNoise, UniformNoise
from ebmcore.distributions import Normal
from ebmcore.errors import UsageError
from ebmcore.testing import Boltzmann, Gaussian, Quadratic, run_checks
from ebmcore.training import fit

COVARIANCE = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
LOG_PARTITION = math.log(2 * math.pi) + 0.5 * math.log(2.0 - 0.81)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def started(energy, x, **options):
    loss = NCE(energy, **options).double()
    loss.generator = seeded()
    loss.start_from_data(x)
    return loss


class AllStates:
    """The uniform distribution over the states of an energy, which a sample lists in order: its means are exact."""

    def __init__(self, energy):
        self.states = energy.states()

    def sample(self, n, *, generator=None):
        return self.states.repeat(n // len(self.states), 1)

    def log_prob(self, x):
        return x.new_full((len(x),), -math.log(len(self.states)))


class Binary(NCE):
    """As it is on binary data."""

    state_space = "binary"
    example_options = {"noise": "bernoulli", "noise_ratio": 2}


@pytest.mark.parametrize("noise_ratio", [1, 4, 10])
@pytest.mark.parametrize("shape", [(2,), (1, 2, 1)])
@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_learnt_log_partition(noise_ratio, shape, noise):
    """Under the energy that generated the data the best log Z is that of the closed form; without the ratio it is off."""
    energy = Gaussian(COVARIANCE, shape)
    x = energy.sample(100_000 // noise_ratio, generator=seeded(1))
    loss = started(energy, x, noise=noise, noise_ratio=noise_ratio)
    for _ in range(8):  # Newton's method; the derivative is that of the sum of sigmoids, by differences
        slopes = []
        for shift in (0.0, 1e-4):
            loss.generator = seeded(2)
            loss.log_partition.data += shift
            (slope,) = torch.autograd.grad(loss(x), loss.log_partition)
            slopes.append(slope)
        loss.log_partition.data -= 1e-4 + 1e-4 * slopes[0] / (slopes[1] - slopes[0])
    loss(x)
    assert slopes[0].abs() < 1e-9
    assert loss.metrics["log_partition"].item() == pytest.approx(LOG_PARTITION, abs=0.03)


def test_truth_has_no_gradient():
    """Over all states of a Boltzmann machine, in data and noise, the true energy and its log Z have the gradient 0 exactly."""
    energy = Boltzmann(3).double()
    states = energy.states()
    loss = NCE(energy, noise=AllStates(energy), noise_ratio=len(states)).double()
    loss.data_weights = len(states) * energy.probabilities()
    loss.log_partition.data.fill_(energy.log_partition())
    loss(states).backward()
    assert max(p.grad.abs().max() for p in loss.parameters()) < 1e-10
    loss.log_partition.data += 0.1
    loss.zero_grad()
    loss(states).backward()
    assert loss.log_partition.grad.abs() > 1e-3


def test_gradient_tends_to_the_likelihoods():
    """At the model's log Z the gradient is that of the likelihood, up to a share that falls with the noise ratio."""
    data = Gaussian(COVARIANCE).sample(2000, generator=seeded(1))
    energy = Gaussian(torch.tensor([[1.0, 0.5], [0.5, 0.6]], dtype=torch.float64))
    exact = 0.5 * (data.T @ data / len(data) - energy.covariance)
    off = []
    for noise_ratio in (1, 10, 500):
        loss = started(energy, data, noise_ratio=noise_ratio)
        loss.log_partition.data.fill_(math.log(2 * math.pi) + 0.5 * torch.logdet(energy.covariance))
        (grad,) = torch.autograd.grad(loss(data), energy.precision)
        off.append(((grad - exact).norm() / exact.norm()).item())
    assert off[0] > 3 * off[1] > 15 * off[2]
    assert off[2] < 0.02


@pytest.mark.parametrize("noise_ratio", [1, 4])
def test_loss_is_that_of_logistic_regression(noise_ratio):
    """Value and gradients are those of a classifier of data against noise, by torch's own density and cross entropy."""

    class Fixed:
        law = MultivariateNormal(torch.tensor([0.3, -0.2]).double(), COVARIANCE)
        points = torch.randn(8 * noise_ratio, 2, generator=seeded(3)).double()

        def sample(self, n, *, generator=None):
            return self.points

        def log_prob(self, x):
            return self.law.log_prob(x)

    x = torch.randn(8, 2, generator=seeded(4)).double()
    energy, noise = Gaussian(torch.eye(2).double()), Fixed()
    loss = NCE(energy, noise=noise, noise_ratio=noise_ratio).double()
    loss.log_partition.data.fill_(0.7)
    points = torch.cat([x, noise.points])
    ratio = (-energy(points) - loss.log_partition).exp() / (noise_ratio * noise.law.log_prob(points).exp())
    is_data = (torch.arange(len(points)) < 8).double()
    wanted = binary_cross_entropy_with_logits(ratio.log(), is_data, reduction="sum") / 8
    found = loss(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    parameters = list(loss.parameters())
    grads = [torch.autograd.grad(value, parameters) for value in (found, wanted)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1)])
def test_normal_noise_has_the_datas_moments(shape):
    """Mean and covariance are those of the weighted data, and the density is that of torch's normal distribution."""
    x = torch.randn(500, 3, generator=seeded()).double() @ torch.tensor([[1.0, 0, 0], [0.5, 2, 0], [1, 1, 0.3]]).double() + 2
    weights = torch.rand(500, generator=seeded(1)).double()
    noise = NormalNoise(shape).double()
    noise.fit(x.view(-1, *shape), weights / weights.sum())
    covariance = x.T.cov(correction=0, aweights=weights)
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(3)
    law = MultivariateNormal((weights @ x) / weights.sum(), covariance)
    torch.testing.assert_close(noise.log_prob(x.view(-1, *shape)), law.log_prob(x))
    torch.testing.assert_close(noise.entropy(), law.entropy())
    sample = noise.sample(200_000, generator=seeded(2))
    assert sample.shape[1:] == shape
    assert (sample.flatten(1).T.cov() - covariance).abs().max() < 0.05
    assert (sample.flatten(1).mean(0) - law.mean).abs().max() < 0.02


def test_constant_pixels_are_no_obstacle():
    """Data whose covariance is singular have a noise of finite density."""
    x = torch.randn(50, 4, generator=seeded())
    x[:, 2] = 0
    assert started(Quadratic((4,)).double(), x.double())(x.double()).isfinite()


def test_uniform_noise_covers_the_data():
    x = torch.tensor([[0.0, 3.0], [1.0, -1.0], [9.0, 9.0]]).double()
    noise = UniformNoise((2,)).double()
    noise.fit(x, torch.tensor([0.5, 0.5, 0.0]))
    sample = noise.sample(10_000, generator=seeded())
    assert sample.aminmax().min == pytest.approx(-1, abs=1e-3)
    assert sample.aminmax().max == pytest.approx(3, abs=1e-3)
    assert noise.log_prob(x).exp().tolist() == [1 / 16, 1 / 16, 0]
    assert noise.entropy() == pytest.approx(math.log(16))


def test_bernoulli_noise_has_the_datas_means():
    """One example of each value is added; density and entropy are those of all states."""
    states = Boltzmann(3).states().double()
    noise = BernoulliNoise((3,)).double()
    noise.fit(torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 1]]).double(), torch.full((3,), 1 / 3).double())
    torch.testing.assert_close(noise.logits.sigmoid(), torch.tensor([0.2, 0.6, 0.6]).double())
    log_p = noise.log_prob(states)
    assert log_p.exp().sum() == pytest.approx(1)
    assert noise.entropy() == pytest.approx(-(log_p.exp() * log_p).sum())
    assert (noise.sample(100_000, generator=seeded()).mean(0) - noise.logits.sigmoid()).abs().max() < 0.01


def test_log_partition_starts_at_the_entropy():
    x = Gaussian(COVARIANCE).sample(200_000, generator=seeded())
    assert started(Quadratic(), x).log_partition.item() == pytest.approx(LOG_PARTITION + 1, abs=0.02)


def test_noise_must_see_the_data():
    """A call before the noise is fitted is an error that says what to do."""
    with pytest.raises(UsageError, match=r"call start_from_data\(x\) with all training examples"):
        NCE(Quadratic())(torch.zeros(4, 2))


def test_noise_object_is_not_fitted():
    loss = NCE(Quadratic(), noise=Normal(torch.zeros(2)))
    assert loss(torch.zeros(4, 2)).isfinite()
    with pytest.raises(UsageError, match="leave out start_from_data"):
        loss.start_from_data(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_ratio": 0}, "noise_ratio must be a whole number of at least 1, got 0"),
        ({"noise": "gaussian"}, "noise must be 'normal', 'uniform', 'bernoulli' or an object"),
        ({"noise": torch.distributions.Normal(torch.zeros(2), 1.0)}, "as those of ebmcore.distributions have"),
    ],
)
def test_nce_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        NCE(Quadratic(), **options)


def test_fit_shows_the_data_to_the_noise():
    """`fit` fits the noise to all weighted examples, before the first step."""
    x = torch.randn(300, 2, generator=seeded()) + 5
    weights = torch.arange(300.0)
    loss = NCE(Quadratic())
    fit(loss, x, weights=weights, steps=1, batch_size=10)
    torch.testing.assert_close(loss.fitted.mean, weights @ x / weights.sum())


def test_resumed_nce_is_not_fitted_again(tmp_path):
    """A run that stopped and was resumed ends bit for bit as one that did not, noise and log Z included."""
    x = torch.randn(60, 2, generator=seeded())
    whole, first, resumed = NCE(Quadratic()), NCE(Quadratic()), NCE(Quadratic())
    fit(whole, x, steps=6, batch_size=10)
    fit(first, x, steps=3, batch_size=10, out=tmp_path / "run")
    fit(resumed, x, steps=6, batch_size=10, out=tmp_path / "run", resume=True)
    for name, t in whole.state_dict().items():
        assert torch.equal(t, resumed.state_dict()[name]), name
    fitted = whole.fitted.mean.clone()
    fit(whole, x + 1, steps=1)
    assert torch.equal(whole.fitted.mean, fitted)


def test_loaded_noise_needs_no_data():
    """A fresh loss that is built and loaded has the noise, and does not ask for the data."""
    x = torch.randn(60, 2, generator=seeded()).double()
    used, fresh = started(Quadratic(), x), NCE(Quadratic()).double()
    fresh.build((2,))
    fresh.double().load_state_dict(used.state_dict())
    used.generator, fresh.generator = seeded(), seeded()
    assert torch.equal(used(x), fresh(x))


def test_noise_must_suit_the_data():
    """Binary noise is refused for continuous data before the first step."""
    with pytest.raises(UsageError, match="is for continuous data"):
        fit(NCE(Quadratic(), noise="bernoulli"), torch.randn(20, 2, generator=seeded()), steps=1)


def test_binary_nce_conforms():
    """The kit's rules hold with Bernoulli noise on binary data."""
    assert not [result for result in run_checks(Binary) if result.outcome == "failed"]


def test_nce_is_installed():
    assert ebmcore.host.load("loss", "ebm-plugin-nce:nce") is NCE

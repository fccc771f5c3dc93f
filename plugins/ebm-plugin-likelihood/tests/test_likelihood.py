"""Likelihoods against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import ebmcore
from ebm_plugin_likelihood.ais import AISLogLikelihood, ReverseAISLogLikelihood, base_of, effective_sample_size, log_mean_exp
from ebm_plugin_likelihood.exact import ExactLogLikelihood
from ebm_plugin_likelihood.grid import GridLogLikelihood
from ebm_plugin_likelihood.pseudo import PseudoLogLikelihood
from ebmcore import BaseSampler
from ebmcore.distributions import Bernoulli, Normal
from ebmcore.energies import SupportsBlockGibbs
from ebmcore.errors import DivergenceError, MissingCapabilityError, UsageError
from ebmcore.testing import Boltzmann, EnumerableRBM, Identity, Quadratic, SiteGibbs
from ebmcore.training import LabelledExamples


class Flip(BaseSampler):
    """Metropolis: flips one random unit, for binary energies."""

    exact = True

    def step(self, energy, state, *, generator=None):
        x = state.x
        unit = torch.randint(x.shape[1], (len(x), 1), generator=generator)
        y = x.scatter(1, unit, 1 - x.gather(1, unit))
        accept = torch.rand(len(x), generator=generator, dtype=torch.float64).log() < energy(x) - energy(y)
        return replace(state, x=torch.where(accept[:, None], y, x)), {}


class Walk(BaseSampler):
    """Random-walk Metropolis."""

    exact = True

    def step(self, energy, state, *, generator=None):
        x = state.x
        y = x + torch.randn(x.shape, generator=generator, dtype=x.dtype)
        accept = torch.rand(len(x), generator=generator, dtype=torch.float64).log() < energy(x) - energy(y)
        return replace(state, x=torch.where(accept[:, None], y, x)), {}


def gaussian_data(n=2000):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(train=x, test=x[:500], shape=(2,), state_space="continuous")


def binary_data(energy, n=500):
    rows = torch.multinomial(energy.probabilities(), n, replacement=True, generator=torch.Generator().manual_seed(0))
    x = energy.states()[rows]
    return SimpleNamespace(train=x, test=x, shape=(x.shape[1],), state_space="binary")


def seeded():
    return torch.Generator().manual_seed(0)


def test_enumeration_is_exact():
    energy = Boltzmann(6)
    data = binary_data(energy)
    codes = (data.test * 2 ** torch.arange(6)).sum(1).long()
    expected = energy.probabilities().log()[codes].mean().item()
    result = ExactLogLikelihood()(energy, data, generator=seeded())
    assert result["log_likelihood"] == pytest.approx(expected, abs=1e-6)
    assert result["interval_low"] < expected < result["interval_high"]


def test_the_energys_own_normaliser_is_used():
    class Known(Quadratic):
        def log_partition(self):
            return torch.tensor(5.0, dtype=torch.float64)

    data = gaussian_data()
    result = ExactLogLikelihood()(Known(), data, generator=seeded())
    assert result["log_partition"] == 5.0
    assert result["log_likelihood"] == pytest.approx(-5 - data.test.double().square().sum(1).mean().item() / 2)


@pytest.mark.parametrize("precision", [0.5, 1.0, 4.0])
def test_grid_integrates_a_gaussian(precision):
    """The grid finds the normaliser of a Gaussian."""
    result = GridLogLikelihood()(Quadratic((2,), precision), gaussian_data(), generator=seeded())
    assert result["log_partition"] == pytest.approx(math.log(2 * math.pi / precision), abs=1e-4)
    assert result["edge_mass"] < 1e-4


def test_mass_beyond_the_grid_is_warned_of():
    with pytest.warns(UserWarning, match="raise grid_margin"):
        GridLogLikelihood(grid_margin=0.0)(Quadratic((2,), 0.1), gaussian_data(), generator=seeded())


def test_interval_shrinks_with_more_data():
    """The interval shrinks as the test data grow."""
    data = gaussian_data(40_000)
    widths = []
    for n in (100, 10_000):
        data.test = data.train[:n]
        result = GridLogLikelihood()(Quadratic((2,)), data, generator=seeded())
        widths.append(result["interval_high"] - result["interval_low"])
    # Mean of 0.5 * chi-square with 2 degrees of freedom: standard deviation 1.
    assert widths[1] == pytest.approx(2 * 1.96 / 100, rel=0.1)
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.3)


def test_exact_refuses_too_many_units():
    """What cannot be enumerated raises an error with advice."""
    data = SimpleNamespace(train=torch.zeros(2, 30), test=torch.zeros(2, 30), shape=(30,), state_space="binary")
    with pytest.raises(UsageError, match="use the metric 'ais-ll'"):
        ExactLogLikelihood()(Quadratic((30,)), data)


def test_ais_between_equal_distributions_is_exact():
    """AIS between equal distributions is exact with one temperature."""
    # W = 0 of a Boltzmann machine: the model is independent, and so is the base.
    energy = Boltzmann(5)
    with torch.no_grad():
        energy.coupling.zero_()
    metric = AISLogLikelihood(n_chains=10, n_temperatures=1)
    weights = metric.log_weights(energy.double(), Bernoulli(energy.bias.detach().double()), Flip(), generator=seeded())
    expected = nn.functional.softplus(energy.bias.double()).sum().item()
    torch.testing.assert_close(weights, torch.full((10,), expected, dtype=torch.float64), atol=1e-10, rtol=0)


def test_ais_finds_the_normaliser_of_a_gaussian():
    metric = AISLogLikelihood(n_chains=1000, n_temperatures=200)
    weights = metric.log_weights(
        Quadratic((2,), 4.0).double(), Normal(torch.zeros(2).double(), 1.0), Walk(), generator=seeded()
    )
    error = (weights.exp().std() / weights.exp().mean() / 1000**0.5).item()
    assert log_mean_exp(weights).item() == pytest.approx(math.log(2 * math.pi / 4), abs=4 * error)
    assert error < 0.02


def test_ais_interval_holds_exact_likelihood():
    """AIS finds the likelihood of a Boltzmann machine within its interval."""
    energy = Boltzmann(6)
    data = binary_data(energy)
    exact = ExactLogLikelihood()(energy, data, generator=seeded())
    result = AISLogLikelihood(n_chains=500, n_temperatures=300)(energy, data, sampler=Flip(), generator=seeded())
    assert result["log_partition"] == pytest.approx(exact["log_partition"], abs=4 * result["log_partition_se"])
    assert result["log_partition_se"] < 0.02
    assert result["interval_low"] < exact["log_likelihood"] < result["interval_high"]
    assert 450 < result["effective_sample_size"] <= 500


def test_forward_estimate_errs_high():
    """The forward estimate errs on the high side of the likelihood."""
    # With one temperature the mean of log Z over repetitions lies below log Z, by far.
    energy = Boltzmann(6, scale=3.0)
    exact = torch.logsumexp(-energy(energy.states()).double(), 0).item()
    metric, base = AISLogLikelihood(n_chains=2, n_temperatures=1), Bernoulli(torch.zeros(6).double())
    generator = seeded()
    estimates = torch.stack(
        [log_mean_exp(metric.log_weights(energy.double(), base, Flip(), generator=generator)) for _ in range(500)]
    )
    assert (estimates.mean() + 4 * estimates.std() / 500**0.5).item() < exact


def test_weights_are_averaged_not_their_logarithms():
    log_weights = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)
    assert log_mean_exp(log_weights).item() == pytest.approx(math.log(2.0))


def test_effective_sample_size_of_extreme_weights():
    """The effective sample size counts equal weights and a single one."""
    assert effective_sample_size(torch.zeros(8).double()).item() == pytest.approx(8.0)
    assert effective_sample_size(torch.tensor([0.0, -500.0, -500.0]).double()).item() == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([0.0, math.log(3.0)]).double()).item() == pytest.approx(16 / 10)


def test_ais_uses_float64_copy():
    """Weights are float64 and the model is not changed."""
    energy = Quadratic((2,)).train()
    before = {name: t.clone() for name, t in energy.state_dict().items()}
    rng = torch.get_rng_state()
    result = AISLogLikelihood(n_chains=20, n_temperatures=10)(energy, gaussian_data(), sampler=Walk(), generator=seeded())
    assert isinstance(result["log_likelihood"], float)
    assert energy.training
    assert energy.precision.dtype == torch.float32
    assert energy.precision.requires_grad
    assert all(torch.equal(t, before[name]) for name, t in energy.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


def test_interval_includes_chain_uncertainty():
    """The interval holds the uncertainty of the chains."""
    data = gaussian_data()
    data.test = data.train[:1].expand(100, 2)  # equal examples: what remains is the normaliser's error
    metric = AISLogLikelihood(n_chains=100, n_temperatures=5)
    result = metric(Quadratic((2,), 3.0), data, sampler=Walk(), generator=seeded())
    width = result["interval_high"] - result["interval_low"]
    assert result["log_partition_se"] > 0.01
    assert width == pytest.approx(2 * 1.96 * result["log_partition_se"], rel=0.15)
    assert result["direction"] == "forward"


def test_a_sampler_that_raises_is_not_swallowed():
    class Raising(Identity):
        def step(self, energy, state, *, generator=None):
            raise ZeroDivisionError("in the sampler")

    with pytest.raises(ZeroDivisionError, match="in the sampler"):
        AISLogLikelihood(n_chains=5, n_temperatures=3)(Quadratic((2,)), gaussian_data(), sampler=Raising())


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("temperature", 5.0, "has temperature 5.0"),
        ("bounds", (-1.0, 1.0), r"keeps chains within the bounds \(-1.0, 1.0\): name one without"),
        ("state_space", "binary", "moves in a binary space, but the data are continuous"),
    ],
)
def test_a_sampler_of_another_distribution_is_refused(attribute, value, message):
    sampler = Walk()
    setattr(sampler, attribute, value)
    with pytest.raises(UsageError, match=message):
        AISLogLikelihood()(Quadratic((2,)), gaussian_data(), sampler=sampler)


@pytest.mark.parametrize("metric", [ExactLogLikelihood(), AISLogLikelihood()])
def test_no_test_data_are_an_error(metric):
    data = gaussian_data()
    data.test = data.test[:0]
    with pytest.raises(UsageError, match="at least one test example"):
        metric(Quadratic((2,)), data, sampler=Walk())


def test_a_generator_repeats_the_estimate():
    metric = AISLogLikelihood(n_chains=20, n_temperatures=10)
    results = [metric(Quadratic((2,)), gaussian_data(), sampler=Walk(), generator=seeded()) for _ in range(2)]
    assert results[0] == results[1]


def test_ais_refuses_inexact_sampler():
    """A sampler that is not exact is refused with advice."""

    class Biased(Identity):
        exact = False

    with pytest.raises(UsageError, match=r"Biased does not: .*--metric\.sampler mala"):
        AISLogLikelihood()(Quadratic((2,)), gaussian_data(), sampler=Biased())


def test_no_sampler_is_an_error_with_advice():
    with pytest.raises(UsageError, match="needs a sampler"):
        AISLogLikelihood()(Quadratic((2,)), gaussian_data())


def test_ais_refuses_unfit_sampler():
    """A sampler that does not fit the energy raises an error."""

    class Needy(Identity):
        requires = (SupportsBlockGibbs,)

    with pytest.raises(MissingCapabilityError, match="SupportsBlockGibbs"):
        AISLogLikelihood()(Quadratic((2,)), gaussian_data(), sampler=Needy())


def test_an_energy_without_numbers_is_an_error():
    class Nothing(nn.Module):
        def forward(self, x):
            return x.sum(1) * torch.nan

    with pytest.raises(DivergenceError, match="not finite"):
        AISLogLikelihood(n_chains=5, n_temperatures=3)(Nothing(), gaussian_data(), sampler=Identity())


@pytest.mark.parametrize("arguments", [{"n_chains": 1}, {"n_temperatures": 0}, {"sampler_options": {"a": 1}}])
def test_invalid_options_raise(arguments):
    """A value that cannot work raises an error."""
    with pytest.raises(ValueError, match="need n_chains|name it with sampler"):
        AISLogLikelihood(**arguments)


def test_they_are_installed_under_their_names():
    assert isinstance(ebmcore.create_metric("ais-ll", n_chains=10), AISLogLikelihood)
    assert isinstance(ebmcore.create_metric("exact-ll"), ExactLogLikelihood)


def test_grid_refuses_other_data():
    """Data of another kind raise an error of the grid."""
    with pytest.raises(UsageError, match="two real variables, but the data are binary examples of shape"):
        GridLogLikelihood()(Boltzmann(2), binary_data(Boltzmann(2)))


@pytest.mark.parametrize("n_temperatures", [3, 10, 30])
def test_bracket_holds_exact_normaliser(n_temperatures):
    """The exact normaliser lies between forward and reverse annealing."""
    energy = Boltzmann(6, scale=1.5, seed=3)
    data, exact = binary_data(energy), energy.double().log_partition().item()
    energy.float()
    metric = ReverseAISLogLikelihood(n_chains=2000, n_temperatures=n_temperatures, n_equilibrate=100)
    low, high = [], []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        result = metric(energy, data, sampler=SiteGibbs(), generator=generator)
        mean = result["log_likelihood"] + result["log_partition"]
        low.append(mean - result["bracket_high"])
        high.append(mean - result["bracket_low"])
    assert result["direction"] == "reverse"
    low, high = sum(low) / 5, sum(high) / 5
    assert exact - 0.3 < low < exact < high < exact + 0.3  # each is about 2 errors of one run away, 4 of the mean of five


class FreeRBM(EnumerableRBM):
    """Only its free energy: its path is that of any energy."""

    tempered = None


def test_bracket_of_few_chains_holds_likelihood():
    """The bracket of few chains holds the exact likelihood."""
    held = []
    for seed in range(12):
        rbm = FreeRBM((5,), 4, seed=seed)
        data = binary_data(rbm, 200)
        exact = ExactLogLikelihood()(rbm, data, generator=seeded())["log_likelihood"]
        metric = ReverseAISLogLikelihood(n_chains=100, n_temperatures=10, n_equilibrate=20)
        result = metric(rbm, data, sampler=SiteGibbs(), generator=torch.Generator().manual_seed(seed))
        held.append(result["bracket_low"] <= exact <= result["bracket_high"])
    # Each end errs in 2.5 % of the runs at most: of 12 brackets more than 3 miss with a probability of 0.002.
    assert sum(held) >= 9


def test_ais_refuses_untempered_conditionals():
    """A sampler of conditionals, which the path to the energy does not have, is refused before any work."""

    class Needy(Identity):
        requires = (SupportsBlockGibbs,)

    rbm = EnumerableRBM((5,), 4)
    AISLogLikelihood().check(rbm, binary_data(rbm), sampler=Needy())
    with pytest.raises(MissingCapabilityError, match="SupportsBlockGibbs"):
        AISLogLikelihood().check(FreeRBM((5,), 4), binary_data(rbm), sampler=Needy())


def test_contradicting_runs_warn():
    """Runs that contradict each other give a warning."""
    # Chains that do not move: the forward run is importance sampling from fair coins, the reverse one never meets the model.
    energy = Boltzmann(4)
    data = binary_data(energy)
    data.train = energy.states()
    metric = ReverseAISLogLikelihood(n_chains=200, n_temperatures=1, n_equilibrate=1)
    with pytest.warns(UserWarning, match="contradict each other, .* raise n_equilibrate"):
        result = metric(energy, data, sampler=Identity(), generator=seeded())
    assert result["bracket_low"] > result["bracket_high"]


def test_reverse_between_equal_distributions_is_exact():
    """Reverse annealing between equal distributions is exact with one temperature."""
    energy = Boltzmann(4)
    with torch.no_grad():
        energy.coupling.zero_()
    data = binary_data(energy, 4000)
    result = ReverseAISLogLikelihood(n_chains=500, n_temperatures=1, n_equilibrate=1)(
        energy, data, sampler=SiteGibbs(), generator=seeded()
    )
    assert result["log_partition"] == pytest.approx(energy.log_partition().item(), abs=0.02)
    assert result["effective_sample_size"] > 490


@pytest.mark.filterwarnings("ignore:.*too few to believe the result")  # that is the point
def test_few_temperatures_err_on_both_sides():
    """With few temperatures forward annealing errs above and reverse below."""
    energy = Boltzmann(8, scale=2.0, seed=1)
    data, low, high = binary_data(energy), [], []
    data.train = energy.states()  # base rates of one half: far from the model
    for seed in range(20):
        result = ReverseAISLogLikelihood(n_chains=20, n_temperatures=3, n_equilibrate=200)(
            energy, data, sampler=SiteGibbs(), generator=torch.Generator().manual_seed(seed)
        )
        low.append(result["bracket_low"])
        high.append(result["bracket_high"])
    exact = ExactLogLikelihood()(energy, data, generator=seeded())["log_likelihood"]
    assert sum(low) / 20 < exact - 0.1
    assert sum(high) / 20 > exact + 0.1


def test_small_effective_sample_size_warns():
    """Too small an effective sample size gives a warning."""
    energy = Boltzmann(8, scale=8.0)
    data = binary_data(energy)
    data.train = torch.tensor([[0.0], [1.0]]).expand(2, 8)
    with pytest.warns(UserWarning, match=r"100 chains are worth \d+\.\d equally weighted ones, .* raise n_temperatures"):
        AISLogLikelihood(n_chains=100, n_temperatures=1)(energy, data, sampler=Flip(), generator=seeded())


def test_small_forward_sample_size_warns():
    """Too small an effective sample size of the forward run gives a warning."""
    # One pattern in 256 has nearly all the mass: fair coins rarely meet it, and the reverse run begins at it.
    energy = Boltzmann(8)
    with torch.no_grad():
        energy.coupling.zero_()
        energy.bias.fill_(8.0)
    data = binary_data(energy)
    data.train = energy.states()
    metric = ReverseAISLogLikelihood(n_chains=200, n_temperatures=1, n_equilibrate=20)
    with pytest.warns(UserWarning, match=r"forward run: 200 chains are worth \d+\.\d equally weighted") as caught:
        result = metric(energy, data, sampler=SiteGibbs(), generator=seeded())
    assert len(caught) == 1
    assert result["effective_sample_size"] > 20


class Cold(Flip):
    temperature = 0.25


@pytest.mark.parametrize("metric", [ExactLogLikelihood, PseudoLogLikelihood], ids=lambda m: m.__name__)
def test_other_training_temperature_warns(metric):
    """A model trained at another temperature gives a warning."""
    energy = Boltzmann(4)
    with pytest.warns(UserWarning, match=r"trained with chains at temperature 0.25, .* the likelihood of exp\(-E\)"):
        metric()(energy, binary_data(energy), sampler=Cold())


def test_training_within_bounds_warns():
    """A model trained with chains within bounds gives a warning: its density is another one on all of space."""
    bounded = Identity()
    bounded.bounds = (-1.0, 1.0)
    with pytest.warns(UserWarning, match=r"within the bounds \(-1.0, 1.0\), .* the likelihood of exp\(-E\) on all of space"):
        GridLogLikelihood()(Quadratic((2,)), gaussian_data(), sampler=bounded, generator=seeded())


def test_ais_with_own_sampler_warns_of_temperature():
    """AIS with a sampler of its own warns of the temperature of training."""

    class Plugin:
        @ebmcore.hookimpl
        def ebmcore_register(self, register):
            register.sampler("flip", Flip)

    energy = Boltzmann(4)
    with ebmcore.temporary_plugin(Plugin()):
        metric = AISLogLikelihood(n_chains=50, n_temperatures=20, sampler="flip")
    with pytest.warns(UserWarning, match="trained with chains at temperature 0.25"):
        metric(energy, binary_data(energy), sampler=Cold(), generator=seeded())


def test_a_sampler_with_a_memory_is_refused():
    class Remembering(Flip):
        has_memory = True

    energy = Boltzmann(4)
    with pytest.raises(UsageError, match="ais-ll restarts chains .* which Remembering does not support"):
        AISLogLikelihood()(energy, binary_data(energy), sampler=Remembering())


def test_base_rates_leave_nothing_impossible():
    train = LabelledExamples(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), {})
    torch.testing.assert_close(base_of(train, "binary").logits.sigmoid(), torch.tensor([0.25, 0.75], dtype=torch.float64))

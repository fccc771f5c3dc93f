"""Log-likelihood with a normaliser estimated by annealed importance sampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import ebmcore
from ebm_plugin_likelihood.common import (
    check_test_examples,
    draw,
    energies,
    float64_copy,
    groups,
    interval,
    resample,
    under,
    warn_of_other_law,
    weighted_mean,
)
from ebmcore.conditions import condition
from ebmcore.distributions import BaseDistribution, Bernoulli, Categorical, Normal
from ebmcore.errors import DivergenceError, UsageError
from ebmcore.samplers import check_sampler
from ebmcore.training import LabelledExamples, labelled_examples

_BELIEVABLE = 0.1  # effective share of the chains


class AISLogLikelihood:
    r"""Mean test log-likelihood in nats, with :math:`\log Z` from annealed importance sampling (AIS); all in float64.

    Chains start as exact samples of a base distribution :math:`p_0` fitted to the training data (base rates of discrete data,
    mean and variance of real data) and pass through the path :math:`E_\beta` of `ebmcore.tempered`, from
    :math:`\beta_0 = 0` to :math:`\beta_K = 1`, with one transition at each temperature:

    .. math:: \log w = \sum_{k=1}^{K} E_{\beta_{k-1}}(x_{k-1}) - E_{\beta_k}(x_{k-1}), \qquad
              Z \approx \frac1N\sum_n w_n

    The *weights* are averaged, not their logarithms. The run goes forward, from base to model: :math:`E[\log \hat Z]` is at
    most :math:`\log Z`, so the log-likelihood errs on the high side when there are too few temperatures. Trust it only with
    an effective sample size of many chains, and when it no longer falls as ``n_temperatures`` grows; the metric
    ``reverse-ais-ll`` errs on the low side. A warning is issued if the effective sample size is below a tenth of the chains.

    Of a conditional energy it is the mean of :math:`\log p(x \mid y)`: there is a run for each distinct label of the test
    examples, and the effective sample size is the smallest of them.

    Args:
        n_chains: Number of AIS chains.
        n_temperatures: Steps of the annealing path, evenly spaced.
        sampler: Name of the sampler of the transitions; `None` takes the one that the model was trained with. It must leave
            its target invariant (``exact``).
        sampler_options: Keywords of that sampler.
        n_bootstrap: Replications of the interval.

    The result holds ``log_likelihood``, its 95 % bootstrap interval over AIS chains and test examples together
    (``interval_low``, ``interval_high``), ``log_partition`` with the standard error over the chains alone
    (``log_partition_se``), ``effective_sample_size``, in chains, and the ``direction`` of the run.

    Source: R. M. Neal (2001), "Annealed importance sampling"; R. Salakhutdinov and I. Murray (2008), "On the quantitative
    analysis of deep belief networks".

    Example:
        >>> from ebmcore.testing import Identity, Quadratic
        >>> metric = AISLogLikelihood(n_chains=10, n_temperatures=1)
        >>> base, energy = Normal(torch.zeros(2).double()), Quadratic((2,)).double()
        >>> weights = metric.log_weights(energy, base, Identity())  # base and model are alike: exact
        >>> bool((weights - math.log(2 * math.pi)).abs().max() < 1e-12)
        True
    """

    name = "ais-ll"
    direction = "forward"  # from the base to the model
    sign = 1  # of log Z in the logarithm of the mean weight
    example_options: ClassVar[dict[str, Any]] = {"n_temperatures": 200}

    def __init__(
        self,
        *,
        n_chains: int = 500,
        n_temperatures: int = 1000,
        sampler: str | None = None,
        sampler_options: dict[str, Any] | None = None,
        n_bootstrap: int = 1000,
    ) -> None:
        if n_chains < 2 or n_temperatures < 1 or n_bootstrap < 1:
            raise ValueError("need n_chains >= 2, n_temperatures >= 1 and n_bootstrap >= 1")
        if sampler_options and sampler is None:
            raise ValueError("sampler_options belong to a sampler: name it with sampler=...")
        self.n_chains = n_chains
        self.n_temperatures = n_temperatures
        self.sampler = None if sampler is None else ebmcore.create_sampler(sampler, **(sampler_options or {}))
        self.n_bootstrap = n_bootstrap

    def check(self, energy: nn.Module, data: Any, *, sampler: Any = None) -> None:
        """Raises `UsageError` if there is no test example, or no sampler that can move chains along the path to the energy."""
        test = check_test_examples(self.name, energy, data)
        sampler = self.sampler or sampler
        self._check_exact(sampler, data)
        check_sampler(sampler, energy)
        labelled_examples(energy, data)
        one = condition(energy, groups(test)[0][0])
        check_sampler(sampler, ebmcore.tempered(one, torch.tensor(0.5)))  # what the chains pass through

    def __call__(
        self, energy: nn.Module, data: Any, *, sampler: Any = None, generator: torch.Generator | None = None
    ) -> dict[str, float | str]:
        """Measure ``energy`` on ``data.test``.

        Args:
            energy: The model; left as it is.
            data: Has ``train`` and ``test`` ``(N, *shape)`` and ``state_space``.
            sampler: The transitions, unless the metric was made with its own.
            generator: Randomness of the chains, on their device; that of the interval is derived from it.
        """
        self.check(energy, data, sampler=sampler)
        if self.sampler is not None:
            warn_of_other_law(sampler)
            sampler = self.sampler
        energy = float64_copy(energy)
        test, train = (
            labelled_examples(energy, data, "test", dtype=torch.float64),
            labelled_examples(energy, data, dtype=torch.float64),
        )
        annealed = [
            self._run(condition(energy, self._of_chains(one)), under(train, one), data.state_space, sampler, generator)
            for one in groups(test)[0]
        ]
        return self._summary(energy, test, [torch.stack(runs).cpu() for runs in zip(*annealed, strict=True)], generator)

    def _of_chains(self, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.expand(self.n_chains, *t.shape[1:]) for name, t in conditions.items()}

    def _run(
        self, energy: nn.Module, train: LabelledExamples, space: str, sampler: Any, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        """Log weights of the runs under one condition, that of ``direction`` first."""
        return (self.log_weights(energy, base_of(train, space), sampler, generator=generator),)

    def log_weights(
        self, energy: nn.Module, base: BaseDistribution, sampler: Any, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log importance weights ``(n_chains,)`` of runs from the normalised ``base`` to ``exp(-E)``."""
        x = base.sample(self.n_chains, generator=generator)
        return self._anneal(x, self._path(energy, base, x.device), sampler, generator)

    def _path(self, energy: nn.Module, base: BaseDistribution, device: torch.device) -> list[nn.Module]:
        betas = torch.linspace(0, 1, self.n_temperatures + 1, dtype=torch.float64, device=device)
        return [ebmcore.tempered(energy, beta, base) for beta in betas]

    def _anneal(self, x: Tensor, path: Sequence[nn.Module], sampler: Any, generator: torch.Generator | None) -> Tensor:
        """Log weights of chains that begin at samples ``x`` of the first energy and pass through all the others."""
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        with torch.enable_grad():  # for energies that take a gradient of their own; no parameter has one
            for here, there in pairwise(path):
                total += (here(x) - there(x)).detach()
                x = sampler.sample(there, x, 1, generator=generator)
        if not total.isfinite().all():
            raise DivergenceError(
                f"{self.name} met weights that are not finite: the energy is not normalisable, or the sampler's step size is too "
                "large"
            )
        return total

    def _summary(
        self, energy: nn.Module, test: LabelledExamples, runs: Sequence[Tensor], generator: torch.Generator | None
    ) -> dict[str, float | str]:
        """The result of ``runs``, log weights ``(conditions, n_chains)`` each, of which the first is that of ``direction``."""
        numbers, weights = groups(test)[1], None if test.weights is None else test.weights.cpu()
        minus_energy = -energies(energy, test.x, test.conditions).cpu()
        own = _own_randomness(generator)
        log_zs = self.sign * self._replications(runs[0], own)
        rows = resample(len(minus_energy), self.n_bootstrap, own)
        means = minus_energy[rows] - log_zs[numbers[rows], torch.arange(self.n_bootstrap)[:, None]]
        low, high = interval(weighted_mean(means, None if weights is None else weights[rows]))
        shares = shares_of(test)
        log_z = shares @ (self.sign * log_mean_exp(runs[0]))
        return {
            "log_likelihood": (weighted_mean(minus_energy, weights) - log_z).item(),
            "interval_low": low,
            "interval_high": high,
            "log_partition": log_z.item(),
            "log_partition_se": (shares @ log_zs).std().item(),
            "effective_sample_size": self._believable_size(runs[0], self.direction),
            "direction": self.direction,
        }

    def _replications(self, log_weights: Tensor, generator: torch.Generator) -> Tensor:
        """Bootstrap replications ``(conditions, n_bootstrap)``, over the chains, of the logarithm of the mean weight."""
        return torch.stack([log_mean_exp(one[resample(self.n_chains, self.n_bootstrap, generator)]) for one in log_weights])

    def _believable_size(self, log_weights: Tensor, direction: str) -> float:
        """Effective sample size of a run; warns where it is too small."""
        size = min(effective_sample_size(one).item() for one in log_weights)
        if size < _BELIEVABLE * self.n_chains:
            warnings.warn(
                f"{self.name}, {direction} run: {self.n_chains} chains are worth {size:.1f} equally weighted ones, too few to "
                "believe the result: raise n_temperatures",
                stacklevel=5,
            )
        return size

    def _check_exact(self, sampler: Any, data: Any) -> None:
        if sampler is None:
            raise UsageError(f"{self.name} needs a sampler: name one that is exact, e.g. sampler='mala'")
        if not getattr(sampler, "exact", False):
            raise UsageError(
                f"{self.name} needs a sampler that leaves its target invariant, which {type(sampler).__name__} does not: "
                "name one that does, e.g. --metric.sampler mala --metric.sampler_options '{step_size: 0.1}'"
            )
        if getattr(sampler, "has_memory", False):
            raise UsageError(
                f"{self.name} restarts chains at each temperature, which {type(sampler).__name__} does not support: "
                "name a sampler without a memory, e.g. --metric.sampler gibbs"
            )
        if getattr(sampler, "temperature", 1.0) != 1.0:
            raise UsageError(
                f"{self.name} needs a sampler of the model itself, but this one has temperature {sampler.temperature}: name "
                "one with temperature 1, e.g. --metric.sampler mala --metric.sampler_options '{step_size: 0.1}'"
            )
        if getattr(sampler, "bounds", None) is not None:
            raise UsageError(
                f"{self.name} anneals over all of space, but this sampler keeps chains within the bounds {sampler.bounds}: name "
                "one without, e.g. --metric.sampler mala --metric.sampler_options '{step_size: 0.1}'"
            )
        if getattr(sampler, "state_space", None) not in (None, data.state_space):
            raise UsageError(
                f"{type(sampler).__name__} moves in a {sampler.state_space} space, but the data are {data.state_space}: name a "
                "sampler of that space"
            )


class ReverseAISLogLikelihood(AISLogLikelihood):
    r"""Mean test log-likelihood in nats by annealed importance sampling in reverse, from model to base; all in float64.

    .. math:: \log r = \sum_{k=K}^{1} E_{\beta_k}(x_k) - E_{\beta_{k-1}}(x_k), \qquad
              Z^{-1} \approx \frac1N\sum_n r_n

    along the path of ``ais-ll`` in reverse, with one transition at each temperature. The mean of
    :math:`\log \hat Z` is at least :math:`\log Z` where chains begin at exact samples of the model, so the log-likelihood errs on
    the low side, and that of ``ais-ll`` on the high side. This holds in expectation only: with few chains each end has an error
    of its own. The *bracket* is therefore widened, from the lower end of the reverse run's 95 % bootstrap interval over the
    chains to the upper end of that of a forward run. It is for the likelihood of these test examples; the interval covers their
    sampling error. Chains begin at training examples and make ``n_equilibrate`` transitions first; if these are too
    few, the lower end is not a bound. A warning is issued if the effective sample size of either run is below a tenth of
    the chains, or if the two runs contradict each other: the lower end is above the upper one by more than their errors.

    Args:
        n_equilibrate: Transitions under the model before a chain counts as a sample of it.
        options: Those of ``ais-ll``: ``n_chains``, ``n_temperatures``, ``sampler``, ``sampler_options``, ``n_bootstrap``.

    The result holds the numbers of ``ais-ll`` and the bracket: ``bracket_low``, below ``log_likelihood``, and
    ``bracket_high``, from a forward run of the same length.

    Source: R. B. Grosse, Z. Ghahramani and R. P. Adams (2015), "Sandwiching the marginal likelihood using bidirectional Monte
    Carlo"; Y. Burda, R. B. Grosse and R. Salakhutdinov (2015), "Accurate and conservative estimates of MRF log-likelihood using
    reverse annealing".

    Example:
        >>> from types import SimpleNamespace
        >>> from ebmcore.testing import Boltzmann, SiteGibbs
        >>> energy = Boltzmann(3)
        >>> data = SimpleNamespace(train=energy.states(), test=energy.states(), state_space="binary", shape=(3,))
        >>> metric = ReverseAISLogLikelihood(n_chains=200, n_temperatures=20, n_equilibrate=20)
        >>> result = metric(energy, data, sampler=SiteGibbs(), generator=torch.Generator().manual_seed(0))
        >>> result["bracket_low"] < energy.probabilities().log().mean().item() < result["bracket_high"]
        True
    """

    name = "reverse-ais-ll"
    direction = "reverse"  # from the model to the base
    sign = -1  # the mean weight estimates 1 / Z
    example_options: ClassVar[dict[str, Any]] = {"n_temperatures": 200, "n_equilibrate": 200}

    def __init__(
        self,
        *,
        n_equilibrate: int = 1000,
        n_chains: int = 500,
        n_temperatures: int = 1000,
        sampler: str | None = None,
        sampler_options: dict[str, Any] | None = None,
        n_bootstrap: int = 1000,
    ) -> None:
        super().__init__(
            n_chains=n_chains,
            n_temperatures=n_temperatures,
            sampler=sampler,
            sampler_options=sampler_options,
            n_bootstrap=n_bootstrap,
        )
        if n_equilibrate < 1:
            raise ValueError(f"n_equilibrate must be at least 1, got {n_equilibrate!r}")
        self.n_equilibrate = n_equilibrate

    def _run(
        self, energy: nn.Module, train: LabelledExamples, space: str, sampler: Any, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        start = train.x[draw(train, self.n_chains, generator)]
        samples = sampler.sample(energy, start, self.n_equilibrate, generator=generator)
        base = base_of(train, space)
        reverse = self._anneal(samples, self._path(energy, base, samples.device)[::-1], sampler, generator)
        return reverse, self.log_weights(energy, base, sampler, generator=generator)

    def _summary(
        self, energy: nn.Module, test: LabelledExamples, runs: Sequence[Tensor], generator: torch.Generator | None
    ) -> dict[str, float | str]:
        result = super()._summary(energy, test, runs, generator)
        low, high = self._bracket(float(result["log_likelihood"]) + float(result["log_partition"]), test, runs, generator)
        return result | {"bracket_low": low, "bracket_high": high}

    def _bracket(
        self, minus_energy: float, test: LabelledExamples, runs: Sequence[Tensor], generator: torch.Generator | None
    ) -> tuple[float, float]:
        """``minus_energy - log Z``, with the largest believable ``log Z`` of the reverse run and the smallest of the forward."""
        reverse, forward = runs
        self._believable_size(forward, "forward")
        own, shares = _own_randomness(generator), shares_of(test)
        low = minus_energy + interval(shares @ self._replications(reverse, own))[0]  # whose weights average to 1 / Z
        high = minus_energy - interval(shares @ self._replications(forward, own))[0]
        if low > high:
            warnings.warn(
                f"{self.name}: the two runs contradict each other, as the lower end of the bracket, {low:.4f}, is above the "
                f"upper one, {high:.4f}: raise n_equilibrate, so that the reverse run begins at samples of the model",
                stacklevel=5,
            )
        return low, high


def _own_randomness(generator: torch.Generator | None) -> torch.Generator:
    """Generator of the bootstrap, which does not depend on the device of the chains."""
    return torch.Generator().manual_seed(torch.initial_seed() if generator is None else generator.initial_seed())


def shares_of(test: LabelledExamples) -> Tensor:
    """Returns the share of the examples that has each of their distinct conditions."""
    numbers, weights = groups(test)[1], None if test.weights is None else test.weights.cpu()
    return weighted_mean((numbers == numbers.unique()[:, None]).double(), weights)


def base_of(train: LabelledExamples, state_space: str) -> BaseDistribution:
    """Returns the base distribution that fits training examples: base rates of discrete units, otherwise independent normals.

    One example of each value is added to the base rates, so that none is impossible.
    """
    x = train.x.double()
    weights = torch.ones(len(x), dtype=x.dtype, device=x.device) if train.weights is None else train.weights.double()
    n = weights.sum()
    counts = torch.tensordot(weights, x, 1)
    if state_space == "categorical":
        return Categorical(torch.log(counts + 1))
    if state_space == "binary":
        return Bernoulli(torch.log(counts + 1) - torch.log(n - counts + 1))
    mean = counts / n
    variance = torch.tensordot(weights, (x - mean).square(), 1) / (n - 1).clamp_min(1)
    return Normal(mean, variance.sqrt().clamp_min(1e-3))


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Logarithm of the mean weight, over the last axis."""
    return torch.logsumexp(log_weights, dim=-1) - math.log(log_weights.shape[-1])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r""":math:`(\sum w)^2 / \sum w^2`: the number of equally weighted chains with the same variance."""
    return torch.exp(2 * torch.logsumexp(log_weights, dim=-1) - torch.logsumexp(2 * log_weights, dim=-1))

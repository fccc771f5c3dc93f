"""Log-likelihood with a normaliser estimated by annealed importance sampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import ebmcore
from ebm_plugin_likelihood.common import (
    check_test_examples,
    energies,
    float64_copy,
    interval,
    resample,
    warn_of_other_law,
)
from ebmcore.distributions import BaseDistribution, Bernoulli, Categorical, Normal
from ebmcore.errors import DivergenceError, UsageError
from ebmcore.samplers import check_sampler

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
        check_test_examples(self.name, data)
        sampler = self.sampler or sampler
        self._check_exact(sampler, data)
        check_sampler(sampler, energy)
        check_sampler(sampler, ebmcore.tempered(energy, torch.tensor(0.5)))  # what the chains pass through

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
        return self._measure(float64_copy(energy), data, self.sampler or sampler, generator)

    def _measure(
        self, energy: nn.Module, data: Any, sampler: Any, generator: torch.Generator | None
    ) -> dict[str, float | str]:
        log_weights = self.log_weights(energy, base_of(data), sampler, generator=generator)
        return self._summary(energy, data, log_weights.cpu(), generator)

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
        self, energy: nn.Module, data: Any, log_weights: Tensor, generator: torch.Generator | None
    ) -> dict[str, float | str]:
        minus_energy = -energies(energy, data.test.double()).cpu()
        own = _own_randomness(generator)
        log_z = self.sign * log_mean_exp(log_weights)
        log_zs = self.sign * self._replications(log_weights, own)
        means = minus_energy[resample(len(minus_energy), self.n_bootstrap, own)].mean(1)
        low, high = interval(means - log_zs)
        return {
            "log_likelihood": (minus_energy.mean() - log_z).item(),
            "interval_low": low,
            "interval_high": high,
            "log_partition": log_z.item(),
            "log_partition_se": log_zs.std().item(),
            "effective_sample_size": self._believable_size(log_weights, self.direction),
            "direction": self.direction,
        }

    def _replications(self, log_weights: Tensor, generator: torch.Generator) -> Tensor:
        """Bootstrap replications, over the chains, of the logarithm of the mean weight."""
        return log_mean_exp(log_weights[resample(self.n_chains, self.n_bootstrap, generator)])

    def _believable_size(self, log_weights: Tensor, direction: str) -> float:
        """Effective sample size of a run; warns where it is too small."""
        size = effective_sample_size(log_weights).item()
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

    def _measure(
        self, energy: nn.Module, data: Any, sampler: Any, generator: torch.Generator | None
    ) -> dict[str, float | str]:
        x = data.train.double()
        start = x[torch.randint(len(x), (self.n_chains,), generator=generator, device=x.device)]
        samples = sampler.sample(energy, start, self.n_equilibrate, generator=generator)
        path = self._path(energy, base_of(data), samples.device)
        reverse = self._anneal(samples, path[::-1], sampler, generator).cpu()
        forward = self.log_weights(energy, base_of(data), sampler, generator=generator).cpu()
        result = self._summary(energy, data, reverse, generator)
        minus_energy = float(result["log_likelihood"]) + float(result["log_partition"])
        low, high = self._bracket(minus_energy, reverse, forward, generator)
        return result | {"bracket_low": low, "bracket_high": high}

    def _bracket(
        self, minus_energy: float, reverse: Tensor, forward: Tensor, generator: torch.Generator | None
    ) -> tuple[float, float]:
        """``minus_energy - log Z``, with the largest believable ``log Z`` of the reverse run and the smallest of the forward."""
        self._believable_size(forward, "forward")
        own = _own_randomness(generator)
        low = minus_energy + interval(self._replications(reverse, own))[0]  # whose weights average to 1 / Z
        high = minus_energy - interval(self._replications(forward, own))[0]
        if low > high:
            warnings.warn(
                f"{self.name}: the two runs contradict each other, as the lower end of the bracket, {low:.4f}, is above the "
                f"upper one, {high:.4f}: raise n_equilibrate, so that the reverse run begins at samples of the model",
                stacklevel=4,
            )
        return low, high


def _own_randomness(generator: torch.Generator | None) -> torch.Generator:
    """Generator of the bootstrap, which does not depend on the device of the chains."""
    return torch.Generator().manual_seed(torch.initial_seed() if generator is None else generator.initial_seed())


def base_of(data: Any) -> BaseDistribution:
    """Returns the base distribution that fits the training data: base rates of discrete units, otherwise independent normals.

    One example of each value is added to the base rates, so that none is impossible.
    """
    x = data.train.double()
    counts = x.sum(0)
    if data.state_space == "categorical":
        return Categorical(torch.log(counts + 1))
    if data.state_space == "binary":
        return Bernoulli(torch.log(counts + 1) - torch.log(len(x) - counts + 1))
    return Normal(x.mean(0), x.std(0).clamp_min(1e-3))


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Logarithm of the mean weight, over the last axis."""
    return torch.logsumexp(log_weights, dim=-1) - math.log(log_weights.shape[-1])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r""":math:`(\sum w)^2 / \sum w^2`: the number of equally weighted chains with the same variance."""
    return torch.exp(2 * torch.logsumexp(log_weights, dim=-1) - torch.logsumexp(2 * log_weights, dim=-1))

"""Log-likelihood with the exact normaliser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ebm_plugin_likelihood.common import (
    check_test_examples,
    energies,
    float64_copy,
    groups,
    mean_with_interval,
    warn_of_other_law,
    weighted_mean,
)
from ebmcore.energies import SupportsEnumeration, supports
from ebmcore.errors import UsageError
from ebmcore.training import labelled_examples

MAX_BINARY_UNITS = 25
_CHUNK = 2**16


class ExactLogLikelihood:
    r"""Mean test log-likelihood in nats, with :math:`\log Z` summed over all states; all in float64.

    .. math:: \frac1N\sum_i \log p(x_i) = -\frac1N\sum_i E(x_i) - \log Z

    The normaliser comes from the energy's own ``log_partition()`` if it has one (an RBM enumerates its smaller layer), otherwise
    from the sum over all states of up to 25 binary units. Of a conditional energy it is the mean of :math:`\log p(x_i \mid y_i)`,
    with one sum for each distinct label of the test examples.

    Args:
        n_bootstrap: Replications of the interval.

    The result holds ``log_likelihood``, its 95 % bootstrap interval over the test examples (``interval_low``,
    ``interval_high``) and ``log_partition``.

    Example:
        >>> from types import SimpleNamespace
        >>> from ebmcore.testing import Boltzmann
        >>> energy = Boltzmann(4)
        >>> data = SimpleNamespace(test=energy.states(), state_space="binary", shape=(4,))
        >>> result = ExactLogLikelihood()(energy, data, generator=torch.Generator().manual_seed(0))
        >>> exact = energy.probabilities().log().mean().item()
        >>> abs(result["log_likelihood"] - exact) < 1e-6
        True
    """

    name = "exact-ll"

    def __init__(self, *, n_bootstrap: int = 1000) -> None:
        if n_bootstrap < 1:
            raise ValueError(f"n_bootstrap must be at least 1, got {n_bootstrap!r}")
        self.n_bootstrap = n_bootstrap

    def check(self, energy: nn.Module, data: Any, *, sampler: Any = None) -> None:
        """Raises `UsageError` if the energy has too many states to enumerate on these data, or if there is no test example."""
        conditional = bool(check_test_examples(self.name, energy, data).conditions)
        if supports(energy, SupportsEnumeration) and not conditional:
            getattr(energy, "check_enumeration", lambda: None)()
        elif data.state_space != "binary" or math.prod(data.shape) > MAX_BINARY_UNITS:
            raise UsageError(
                f"exact-ll needs an energy with log_partition() and no conditions, or at most {MAX_BINARY_UNITS} binary units; "
                f"{type(energy).__name__} on {data.state_space} examples of shape {tuple(data.shape)} is neither: use the metric "
                "'ais-ll', or 'grid-ll' for two real variables"
            )

    def __call__(
        self, energy: nn.Module, data: Any, *, sampler: Any = None, generator: torch.Generator | None = None
    ) -> dict[str, float]:
        """Measures ``energy`` on ``data.test``.

        Args:
            energy: The model; left as it is.
            data: Has ``test`` ``(N, *shape)``, ``shape`` and ``state_space``.
            sampler: The sampler of training; a temperature other than 1 causes a warning.
            generator: Randomness of the interval.
        """
        self.check(energy, data, sampler=sampler)
        warn_of_other_law(sampler)
        energy = float64_copy(energy)
        test = labelled_examples(energy, data, "test", dtype=torch.float64)
        conditions, numbers = groups(test)
        parts = [self.log_partition(energy, data, condition) for condition in conditions]
        log_z = torch.stack([part for part, _ in parts]).cpu()[numbers]
        values = -energies(energy, test.x, test.conditions).cpu() - log_z
        result = mean_with_interval("log_likelihood", values, test.weights, self.n_bootstrap, generator)
        extra = {name: max(more[name] for _, more in parts) for name in parts[0][1]}
        return {**result, "log_partition": weighted_mean(log_z, test.weights).item(), **extra}

    def log_partition(
        self, energy: nn.Module, data: Any, condition: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """Computes ``log Z`` in nats, 0-dim, under one condition or none, and further results to report."""
        if supports(energy, SupportsEnumeration) and not condition:
            return energy.log_partition(), {}  # type: ignore[operator]
        return _enumerate(energy, math.prod(data.shape), data, condition), {}


def _enumerate(energy: nn.Module, n_units: int, data: Any, condition: Mapping[str, Tensor]) -> Tensor:
    device, bits = data.test.device, torch.arange(n_units, device=data.test.device)
    parts = []
    for codes in torch.arange(2**n_units, device=device).split(_CHUNK):
        states = ((codes[:, None] >> bits) & 1).double().view(-1, *data.shape)
        parts.append(torch.logsumexp(-energies(energy, states, condition), dim=0))
    return torch.logsumexp(torch.stack(parts), dim=0)

"""Log-likelihood with the exact normaliser."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ebm_plugin_likelihood.common import (
    check_test_examples,
    energies,
    float64_copy,
    mean_with_interval,
    warn_of_other_law,
)
from ebmcore.energies import SupportsEnumeration, supports
from ebmcore.errors import UsageError

MAX_BINARY_UNITS = 25
_CHUNK = 2**16


class ExactLogLikelihood:
    r"""Mean test log-likelihood in nats, with :math:`\log Z` summed over all states; all in float64.

    .. math:: \frac1N\sum_i \log p(x_i) = -\frac1N\sum_i E(x_i) - \log Z

    The normaliser comes from the energy's own ``log_partition()`` if it has one (an RBM enumerates its smaller layer), otherwise
    from the sum over all states of up to 25 binary units.

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
        check_test_examples(self.name, data)
        if supports(energy, SupportsEnumeration):
            getattr(energy, "check_enumeration", lambda: None)()
        elif data.state_space != "binary" or math.prod(data.shape) > MAX_BINARY_UNITS:
            raise UsageError(
                f"exact-ll needs an energy with log_partition(), or at most {MAX_BINARY_UNITS} binary units; "
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
        log_z, extra = self.log_partition(energy, data)
        values = -energies(energy, data.test.double()) - log_z
        result = mean_with_interval("log_likelihood", values, self.n_bootstrap, generator)
        return {**result, "log_partition": log_z.item(), **extra}

    def log_partition(self, energy: nn.Module, data: Any) -> tuple[Tensor, dict[str, float]]:
        """Computes ``log Z`` in nats, 0-dim, and further results to report."""
        known = supports(energy, SupportsEnumeration)
        return energy.log_partition() if known else _enumerate(energy, math.prod(data.shape), data), {}


def _enumerate(energy: nn.Module, n_units: int, data: Any) -> Tensor:
    device, bits = data.test.device, torch.arange(n_units, device=data.test.device)
    parts = []
    for codes in torch.arange(2**n_units, device=device).split(_CHUNK):
        states = ((codes[:, None] >> bits) & 1).double().view(-1, *data.shape)
        parts.append(torch.logsumexp(-energies(energy, states), dim=0))
    return torch.logsumexp(torch.stack(parts), dim=0)

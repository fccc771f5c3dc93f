"""Pseudo-likelihood of binary data."""

from __future__ import annotations

from collections.abc import Mapping
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
from ebmcore.errors import UsageError
from ebmcore.training import labelled_examples

_CHUNK = 2**16  # examples scored at a time


class PseudoLogLikelihood:
    r"""Mean log pseudo-likelihood of binary test examples in nats: every unit predicted from all others.

    .. math:: \frac1N\sum_n \sum_i \log p(x_{n,i} \mid x_{n,-i}), \qquad
              \log p(x_i \mid x_{-i}) = \log\sigma\big(E(\bar x^{(i)}) - E(x)\big)

    with :math:`\bar x^{(i)}` the example with unit ``i`` flipped. No normaliser is needed, but it is another quantity than the
    likelihood, and blind to how much probability lies in modes far apart. All units are flipped, none is drawn at random; the
    arithmetic is in float64.

    Args:
        n_bootstrap: Replications of the interval.

    The result holds ``log_pseudo_likelihood`` and its 95 % bootstrap interval over the test examples (``interval_low``,
    ``interval_high``).

    Source: J. Besag (1975), "Statistical analysis of non-lattice data".

    Example:
        >>> from types import SimpleNamespace
        >>> data = SimpleNamespace(test=torch.zeros(3, 4), state_space="binary", shape=(4,))
        >>> class Fair(nn.Module):
        ...     def forward(self, x):
        ...         return 0 * x.sum(1)
        >>> result = PseudoLogLikelihood()(Fair(), data)
        >>> round(result["log_pseudo_likelihood"] / -4, 4)  # log 2
        0.6931
    """

    def __init__(self, *, n_bootstrap: int = 1000) -> None:
        if n_bootstrap < 1:
            raise ValueError(f"n_bootstrap must be at least 1, got {n_bootstrap!r}")
        self.n_bootstrap = n_bootstrap

    def check(self, energy: nn.Module, data: Any, *, sampler: Any = None) -> None:
        """Raises `UsageError` unless there are test examples of binary units."""
        if data.state_space != "binary":
            raise UsageError(f"pseudo-ll flips binary units, but {type(data).__name__} is {data.state_space}")
        check_test_examples("pseudo-ll", energy, data)

    def __call__(
        self, energy: nn.Module, data: Any, *, sampler: Any = None, generator: torch.Generator | None = None
    ) -> dict[str, float]:
        """Measures ``energy`` on ``data.test``.

        Args:
            energy: The model; left as it is.
            data: Has ``test`` ``(N, *shape)`` of zeros and ones, and ``state_space``.
            sampler: The sampler of training; a temperature other than 1 causes a warning.
            generator: Randomness of the interval.
        """
        self.check(energy, data, sampler=sampler)
        warn_of_other_law(sampler)
        energy = float64_copy(energy)
        test = labelled_examples(energy, data, "test", dtype=torch.float64)
        parts = torch.arange(len(test.x), device=test.x.device).split(max(1, _CHUNK // test.x[0].numel()))
        values = torch.cat(
            [
                _log_pseudo_likelihoods(energy, test.x[rows], {name: t[rows] for name, t in test.conditions.items()})
                for rows in parts
            ]
        )
        return mean_with_interval("log_pseudo_likelihood", values, test.weights, self.n_bootstrap, generator)


def _log_pseudo_likelihoods(energy: nn.Module, x: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    """Computes it for each row of ``x`` ``(B, *shape)``, summed over units."""
    units = x[0].numel()
    flip = torch.eye(units, dtype=x.dtype, device=x.device).view(units, *x.shape[1:])
    flipped = (x.unsqueeze(1) - flip).abs()  # (B, units, *shape): 0 -> 1, 1 -> 0 on the diagonal
    repeated = {name: t.repeat_interleave(units, 0) for name, t in conditions.items()}
    flips = energies(energy, flipped.flatten(0, 1), repeated).view(len(x), units)
    return torch.nn.functional.logsigmoid(flips - energies(energy, x, conditions).unsqueeze(1)).sum(1)

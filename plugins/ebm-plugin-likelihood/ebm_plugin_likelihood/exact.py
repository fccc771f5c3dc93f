"""Log-likelihood with the exact normaliser."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ebm_plugin_likelihood.common import energies, float64_copy, interval, resample
from ebmcore.energies import SupportsEnumeration, supports
from ebmcore.errors import UsageError

MAX_BINARY_UNITS = 25
_CHUNK = 2**16
_BELIEVABLE_EDGE_MASS = 1e-3


class ExactLogLikelihood:
    r"""Mean test log-likelihood in nats, with :math:`\log Z` computed, not estimated; all in float64.

    .. math:: \frac1N\sum_i \log p(x_i) = -\frac1N\sum_i E(x_i) - \log Z

    The normaliser comes from the energy's own ``log_partition()`` where it has one (an RBM enumerates its smaller layer); else
    from the sum over all states of up to 25 binary units; else, for energies of two real variables, from the midpoint rule on
    a grid over a box around the data.

    Args:
        grid_points: Grid points along each axis, for two-dimensional data.
        grid_margin: How far the box reaches beyond the data on each side, as a multiple of the data's range. Mass outside the
            box is not counted; a warning tells when the rim of the box still holds some.
        n_bootstrap: Replications of the interval.

    The result holds ``log_likelihood``, its 95 % bootstrap interval over the test examples (``interval_low``,
    ``interval_high``) and ``log_partition``; on a grid also ``edge_mass``, the share of the mass in the outermost cells.

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

    def __init__(self, *, grid_points: int = 500, grid_margin: float = 1.0, n_bootstrap: int = 1000) -> None:
        if grid_points < 2 or not grid_margin >= 0 or n_bootstrap < 1:
            raise ValueError("need grid_points >= 2, grid_margin >= 0 and n_bootstrap >= 1")
        self.grid_points = grid_points
        self.grid_margin = grid_margin
        self.n_bootstrap = n_bootstrap

    def __call__(
        self, energy: nn.Module, data: Any, *, sampler: Any = None, generator: torch.Generator | None = None
    ) -> dict[str, float]:
        """Measure ``energy`` on ``data.test``.

        Args:
            energy: The model; left as it is.
            data: Has ``test`` ``(N, *shape)``, ``shape`` and ``state_space``.
            sampler: Not used.
            generator: Randomness of the interval.
        """
        if len(data.test) == 0:
            raise UsageError("exact-ll needs at least one test example")
        energy = float64_copy(energy)
        test = data.test.double()
        log_z, extra = self._log_partition(energy, data)
        values = -energies(energy, test) - log_z
        replications = values.cpu()[resample(len(values), self.n_bootstrap, generator)].mean(1)
        low, high = interval(replications)
        return {
            "log_likelihood": values.mean().item(),
            "interval_low": low,
            "interval_high": high,
            "log_partition": log_z.item(),
            **extra,
        }

    def _log_partition(self, energy: nn.Module, data: Any) -> tuple[Tensor, dict[str, float]]:
        n_units = math.prod(data.shape)
        if supports(energy, SupportsEnumeration):
            return energy.log_partition(), {}
        if data.state_space == "binary" and n_units <= MAX_BINARY_UNITS:
            return _enumerate(energy, n_units, data), {}
        if data.state_space == "continuous" and n_units == 2:
            return self._integrate(energy, data)
        raise UsageError(
            f"exact-ll needs an energy with log_partition(), at most {MAX_BINARY_UNITS} binary units, or two real variables; "
            f"{type(energy).__name__} on {data.state_space} examples of shape {tuple(data.shape)} is none of these: "
            "use the metric 'ais-ll'"
        )

    def _integrate(self, energy: nn.Module, data: Any) -> tuple[Tensor, dict[str, float]]:
        x = data.test.double().flatten(1)
        low, high = x.min(0).values, x.max(0).values
        margin = self.grid_margin * (high - low)
        low, cell = low - margin, (high - low + 2 * margin) / self.grid_points
        ticks = torch.arange(self.grid_points, dtype=x.dtype, device=x.device) + 0.5
        grid = torch.cartesian_prod(low[0] + cell[0] * ticks, low[1] + cell[1] * ticks)
        log_mass = -energies(energy, grid.view(-1, *data.shape)) + cell.log().sum()
        log_z = torch.logsumexp(log_mass, dim=0)
        mass = (log_mass - log_z).exp().view(self.grid_points, self.grid_points)
        edge_mass = (mass[[0, -1], :].sum() + mass[1:-1, [0, -1]].sum()).item()
        if edge_mass > _BELIEVABLE_EDGE_MASS:
            warnings.warn(
                f"{edge_mass:.1%} of the mass lies on the rim of the grid, so log Z misses what is beyond it: "
                "raise grid_margin, or confine the energy",
                stacklevel=4,
            )
        return log_z, {"edge_mass": edge_mass}


def _enumerate(energy: nn.Module, n_units: int, data: Any) -> Tensor:
    device, bits = data.test.device, torch.arange(n_units, device=data.test.device)
    parts = []
    for codes in torch.arange(2**n_units, device=device).split(_CHUNK):
        states = ((codes[:, None] >> bits) & 1).double().view(-1, *data.shape)
        parts.append(torch.logsumexp(-energies(energy, states), dim=0))
    return torch.logsumexp(torch.stack(parts), dim=0)

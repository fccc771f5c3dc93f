"""Log-likelihood in the plane, by numerical integration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ebm_plugin_likelihood.common import check_test_examples, energies
from ebm_plugin_likelihood.exact import ExactLogLikelihood
from ebmcore.errors import UsageError

_BELIEVABLE_EDGE_MASS = 1e-3


class GridLogLikelihood(ExactLogLikelihood):
    r"""Mean test log-likelihood in nats of two real variables, with :math:`Z` integrated on a grid; all in float64.

    .. math:: Z \approx \Delta \sum_{g} e^{-E(x_g)}

    over the midpoints of equal cells of area :math:`\Delta`, in a box around the data.

    Args:
        grid_points: Cells along each axis.
        grid_margin: How far the box reaches beyond the data on each side, as a multiple of the data's range. Mass outside the
            box is not counted; a warning is issued if the edge of the box still holds some.
        n_bootstrap: Replications of the interval.

    The result holds ``log_likelihood``, its 95 % bootstrap interval over the test examples (``interval_low``,
    ``interval_high``), ``log_partition``, and ``edge_mass``, the share of the mass in the outermost cells.

    Example:
        >>> from types import SimpleNamespace
        >>> from ebmcore.testing import Quadratic
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> data = SimpleNamespace(test=x, state_space="continuous", shape=(2,))
        >>> result = GridLogLikelihood()(Quadratic((2,)), data)
        >>> abs(result["log_partition"] - math.log(2 * math.pi)) < 1e-6
        True
    """

    name = "grid-ll"
    state_space = "continuous"

    def __init__(self, *, grid_points: int = 500, grid_margin: float = 1.0, n_bootstrap: int = 1000) -> None:
        super().__init__(n_bootstrap=n_bootstrap)
        if grid_points < 2 or not grid_margin >= 0:
            raise ValueError(f"need grid_points >= 2 and grid_margin >= 0, got {grid_points!r} and {grid_margin!r}")
        self.grid_points = grid_points
        self.grid_margin = grid_margin

    def check(self, energy: nn.Module, data: Any, *, sampler: Any = None) -> None:
        """Raises `UsageError` unless there are test examples of two real variables."""
        check_test_examples(self.name, energy, data)
        if data.state_space != "continuous" or math.prod(data.shape) != 2:
            raise UsageError(
                f"grid-ll integrates over two real variables, but the data are {data.state_space} examples of shape "
                f"{tuple(data.shape)}: use the metric 'exact-ll' or 'ais-ll'"
            )

    def log_partition(
        self, energy: nn.Module, data: Any, condition: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        x = data.test.double().flatten(1)
        low, high = x.min(0).values, x.max(0).values
        margin = self.grid_margin * (high - low)
        low, cell = low - margin, (high - low + 2 * margin) / self.grid_points
        ticks = torch.arange(self.grid_points, dtype=x.dtype, device=x.device) + 0.5
        grid = torch.cartesian_prod(low[0] + cell[0] * ticks, low[1] + cell[1] * ticks)
        log_mass = -energies(energy, grid.view(-1, *data.shape), condition) + cell.log().sum()
        log_z = torch.logsumexp(log_mass, dim=0)
        mass = (log_mass - log_z).exp().view(self.grid_points, self.grid_points)
        edge_mass = (mass[[0, -1], :].sum() + mass[1:-1, [0, -1]].sum()).item()
        if edge_mass > _BELIEVABLE_EDGE_MASS:
            warnings.warn(
                f"{edge_mass:.1%} of the mass lies on the rim of the grid, so log Z misses what is beyond it: "
                "raise grid_margin, or confine the energy",
                stacklevel=3,
            )
        return log_z, {"edge_mass": edge_mass}

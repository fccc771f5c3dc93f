"""The Potts model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Generator, Tensor
from torch.nn.functional import one_hot

from ebm_plugin_lattice.base import SpinModel
from ebmcore.distributions import Categorical
from ebmcore.errors import UsageError


class Potts(SpinModel):
    r"""The Potts model of categorical units, one-hot: neighbours of the same value have the energy ``-J``.

    .. math:: E(x) = -\sum_{i<j} J_{ij}\, x_i \cdot x_j - \sum_i h_i \cdot x_i

    Coupling and field are parameters; ``requires_grad_(False)`` on the energy fixes them. The critical coupling of the square
    lattice with ``q`` values is :math:`\log(1 + \sqrt q)`. With two values it is the Ising model of half the coupling.

    ``log_partition()`` is exact up to 1,048,576 states, and on a two-dimensional lattice of which one side has at most 1,024
    states. Block Gibbs sampling (`SupportsBlockGibbs`) works with all couplings.

    Args:
        shape: Shape of one example ``(*sites, q)``: the last axis is the one-hot one. Without given couplings the others are
            those of a periodic lattice.
        coupling: ``J``, one number for all nearest neighbours, or a symmetric matrix of all pairs of sites.
        field: ``h``, a list of ``q`` numbers for all sites, or of ``q`` for each; `None` for no field, and none is learnt.

    Source: R. B. Potts (1952), "Some generalized order-disorder transformations".

    Example:
        >>> import math
        >>> model = Potts((6, 6, 3), coupling=0.0)
        >>> bool(abs(model.log_partition() - 36 * math.log(3)) < 1e-10)
        True
    """

    state_space = "categorical"
    base_type = Categorical
    unit_logit = 1.0
    example_options: ClassVar[dict[str, Any]] = {"field": [0.2, -0.1]}

    def __init__(
        self, shape: Sequence[int], *, coupling: float | list[list[float]] = 0.4, field: list[float] | None = None
    ) -> None:
        if len(shape) < 2 or shape[-1] < 2:
            raise UsageError(
                f"the shape of categorical examples is (*sites, values), got {tuple(shape)}: encode them one-hot"
            )
        super().__init__(shape, shape[:-1], shape[-1], coupling, field, shape[-1])

    def spins(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.n_values)

    def encode(self, values: Tensor) -> Tensor:
        return one_hot(values, self.n_values)

    def draw(self, logits: Tensor, generator: Generator | None) -> Tensor:
        return Categorical.draw(logits, generator)

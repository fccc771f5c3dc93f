"""Sliced score matching."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ebm_plugin_score_matching.base import (
    BaseScoreMatching,
    Projection,
    check_count,
    check_projection,
    curvature,
    dot,
    project,
)


class SlicedScoreMatching(BaseScoreMatching):
    r"""Sliced score matching: compares the scores of model and data along random directions.

    .. math:: L = E_{data} E_v\Big[\tfrac12 (v^\top \nabla E(x))^2 - v^\top \nabla^2 E(x)\, v\Big]

    Directions :math:`v` have independent components of mean 0 and variance 1, over all axes of an example, so that the
    expectation is the loss of ``score-matching``, while a step costs two backward passes for any number of dimensions. As
    :math:`E_v (v^\top \nabla E)^2 = \|\nabla E\|^2` is known, the variance-reduced form takes it in place of the square.

    As for ``score-matching``, the energy must be twice differentiable and the data must have a density.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        n_slices: Directions for each example; each costs one backward pass more.
        projection: ``"rademacher"``, components that are 1 or -1, or ``"normal"``. Rademacher has the smaller variance.
        variance_reduced: Use the expectation :math:`\|\nabla E\|^2 / 2` of the first term. `False` is the original form.

    Source: Y. Song, S. Garg, J. Shi and S. Ermon (2019), "Sliced score matching: a scalable approach to density and score
    estimation".

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> SlicedScoreMatching(Quadratic((3,), precision=2.0))(torch.zeros(8, 3)).item()
        -6.0
    """

    def __init__(
        self,
        energy: nn.Module,
        *,
        n_slices: int = 1,
        projection: Projection = "rademacher",
        variance_reduced: bool = True,
    ) -> None:
        super().__init__(energy)
        check_count("n_slices", n_slices)
        check_projection(projection)
        self.n_slices, self.projection, self.variance_reduced = n_slices, projection, variance_reduced

    def terms(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x, grad = self.gradient(x, *args, **kwargs)
        slices = []
        for _ in range(self.n_slices):
            v = project(x, self.projection, self.generator)
            squared = dot(grad, grad) if self.variance_reduced else dot(grad, v).square()
            slices.append(0.5 * squared - curvature(grad, x, v))
        return torch.stack(slices).mean(0)

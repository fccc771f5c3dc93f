"""Score matching with the exact Laplacian or an unbiased estimate of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ebm_plugin_score_matching.base import BaseScoreMatching, check_count, curvature, dot, project
from ebmcore.distributions import at_least_float32


class ScoreMatching(BaseScoreMatching):
    r"""Score matching: fits the score of the model, :math:`-\nabla E`, to that of the data, without the normaliser.

    .. math:: L = E_{data}\Big[\tfrac12 \|\nabla E(x)\|^2 - \Delta E(x)\Big],
              \qquad \Delta E = \sum_{i=1}^d \frac{\partial^2 E}{\partial x_i^2}

    By partial integration this is half the expected squared distance of the two scores, up to a constant of the data. The exact
    Laplacian takes one backward pass for each of the :math:`d` dimensions. Hutchinson's estimate
    :math:`\Delta E \approx v^\top \nabla^2 E\, v`, with components of :math:`v` that are 1 or -1, takes ``n_probes`` of them:
    prefer it beyond about 10 dimensions.

    The energy must be twice differentiable, as with SiLU or softplus units: the Laplacian of ReLU units is 0 almost everywhere.
    Data must have a density; add noise to data on a grid such as pixels, or use ``denoising-score-matching``.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        n_probes: Random directions of Hutchinson's estimate; `None` computes the exact Laplacian.
        chunk_size: Dimensions of the exact Laplacian that are differentiated at once, by ``torch.vmap``; `None` takes all. Fewer
            need less memory, and on a CPU less time where the batch is large. 1 is a loop without ``vmap``, for energies with
            operators that it does not know.

    Source: A. Hyvarinen (2005), "Estimation of non-normalized statistical models by score matching"; M. F. Hutchinson (1989), "A
    stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines".

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> ScoreMatching(Quadratic((3,), precision=2.0))(torch.zeros(8, 3)).item()  # 0 - 3 * 2
        -6.0
    """

    def __init__(self, energy: nn.Module, *, n_probes: int | None = None, chunk_size: int | None = None) -> None:
        super().__init__(energy)
        for name, value in (("n_probes", n_probes), ("chunk_size", chunk_size)):
            if value is not None:
                check_count(name, value)
        self.n_probes, self.chunk_size = n_probes, chunk_size

    def terms(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x, grad = self.gradient(x, *args, **kwargs)
        if self.n_probes is None:
            laplacian = exact_laplacian(grad, x, self.chunk_size)
        else:
            probes = (project(x, "rademacher", self.generator) for _ in range(self.n_probes))
            laplacian = torch.stack([curvature(grad, x, v) for v in probes]).mean(0)
        return 0.5 * dot(grad, grad) - laplacian


def exact_laplacian(grad: Tensor, x: Tensor, chunk_size: int | None = None) -> Tensor:
    """Computes the trace ``(B,)`` of the derivative of ``grad`` at ``x``, ``chunk_size`` dimensions at a time."""
    d = x[0].numel()
    size = d if chunk_size is None else chunk_size
    return torch.stack([_diagonal(grad, x, range(i, min(i + size, d))).sum(0) for i in range(0, d, size)]).sum(0)


def _diagonal(grad: Tensor, x: Tensor, dimensions: range) -> Tensor:
    """The second derivatives ``(K, B)`` by each of K dimensions of the flattened example."""
    k = len(dimensions)
    units = x.new_zeros(k, len(x), x[0].numel())
    units.diagonal(dimensions.start, 0, 2).fill_(1)  # row j has 1 in dimension start + j
    units = units.view(k, *x.shape)
    if k == 1:
        return curvature(grad, x, units[0])[None]
    (rows,) = torch.autograd.grad(grad, x, units, create_graph=True, allow_unused=True, is_grads_batched=True)
    rows = torch.zeros_like(units) if rows is None else rows  # of a linear energy
    diagonal = rows.flatten(2).diagonal(dimensions.start, 0, 2)
    return at_least_float32(diagonal).T

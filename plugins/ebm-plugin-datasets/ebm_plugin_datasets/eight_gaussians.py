"""Eight Gaussians on a circle, as in the literature."""

from __future__ import annotations

import math

from ebm_plugin_datasets.ring_of_gaussians import RingOfGaussians


class EightGaussians(RingOfGaussians):
    r"""The mixture of eight Gaussians on a circle of radius :math:`2\sqrt2`, each of standard deviation :math:`1/(2\sqrt2)`.

    ``ring-of-gaussians`` with the numbers of the literature on flows; ``log_prob(x)`` is its log-density.

    Args:
        n_train: Number of training points.
        n_test: Number of test points.
        seed: Seed of the points; training and test points are independent.

    Source: W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever and D. Duvenaud (2019), "FFJORD: free-form continuous
    dynamics for scalable reversible generative models".

    Example:
        >>> EightGaussians(n_train=100).log_prob(EightGaussians().centres).shape
        torch.Size([8])
    """

    def __init__(self, *, n_train: int = 10_000, n_test: int = 2_000, seed: int = 0) -> None:
        super().__init__(radius=2 * math.sqrt(2), std=0.5 / math.sqrt(2), n_train=n_train, n_test=n_test, seed=seed)

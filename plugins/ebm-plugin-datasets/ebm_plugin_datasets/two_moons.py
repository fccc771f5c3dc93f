"""Two interleaved half circles."""

from __future__ import annotations

import torch
from sklearn.datasets import make_moons

from ebm_plugin_datasets.plane import MAX_POINTS


class TwoMoons:
    """Two interleaved half circles in the plane, with normal noise; about centred, of radius 2.

    Args:
        n_train: Number of training points.
        n_test: Number of test points.
        noise: Standard deviation of the noise, in units of ``x``.
        seed: Seed of the points; training and test points are independent.

    Example:
        >>> TwoMoons(n_train=100).train.shape
        torch.Size([100, 2])
    """

    state_space = "continuous"
    shape = (2,)

    def __init__(self, *, n_train: int = 10_000, n_test: int = 2_000, noise: float = 0.2, seed: int = 0) -> None:
        if not (1 <= n_train <= MAX_POINTS and 1 <= n_test <= MAX_POINTS) or not noise >= 0:
            raise ValueError(
                f"need n_train and n_test from 1 to {MAX_POINTS:,} and noise >= 0, got {n_train}, {n_test} and {noise}"
            )
        points, _ = make_moons(n_train + n_test, noise=noise / 2, random_state=seed)
        x = 2 * (torch.from_numpy(points).float() - torch.tensor([0.5, 0.25]))
        self.train, self.test = x[:n_train], x[n_train:]

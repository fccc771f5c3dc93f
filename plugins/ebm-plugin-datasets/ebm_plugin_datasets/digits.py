"""Handwritten digits."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

THRESHOLD = 8  # of the grey levels 0 ... 16
TEST_EVERY = 6


class Digits:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships.

    The split is fixed: every sixth image, beginning with the first, is a test image (300), the others are for training
    (1,497). The order of the source mixes writers and digits.

    Args:
        binary: `True` gives pixels in {0, 1}, 1 where the grey level is at least 8 of 16; `False` gives grey levels scaled
            to [-1, 1].

    Attributes:
        train: ``(1497, 1, 8, 8)`` float32.
        test: ``(300, 1, 8, 8)`` float32.

    Source: E. Alpaydin and C. Kaynak (1998), "Optical recognition of handwritten digits", UCI Machine Learning Repository.

    Example:
        >>> digits = Digits()
        >>> digits.shape, len(digits.train), len(digits.test), digits.train.unique().tolist()
        ((1, 8, 8), 1497, 300, [0.0, 1.0])
    """

    shape = (1, 8, 8)

    def __init__(self, *, binary: bool = True) -> None:
        self.state_space = "binary" if binary else "continuous"
        levels = torch.from_numpy(load_digits().images).float().unsqueeze(1)
        x = (levels >= THRESHOLD).float() if binary else levels / 8 - 1
        is_test = torch.arange(len(x)) % TEST_EVERY == 0
        self.train, self.test = x[~is_test], x[is_test]

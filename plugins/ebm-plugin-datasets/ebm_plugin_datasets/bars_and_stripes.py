"""Bars and stripes."""

from __future__ import annotations

import torch


class BarsAndStripes:
    """All patterns of a square grid in which either each row or each column is of one colour.

    There are ``2 * 2**side`` rows and columns to colour; the two uniform patterns arise both ways and stand in the data
    twice, as in the literature. Training and test data are the same: the whole distribution.

    Args:
        side: Side of the grid, 1 to 10.

    Attributes:
        train: ``(2 * 2**side, 1, side, side)`` float32 in {0, 1}.
        test: The same.

    Source: G. E. Hinton and T. J. Sejnowski (1986), "Learning and relearning in Boltzmann machines";
    D. J. C. MacKay (2003), "Information Theory, Inference, and Learning Algorithms".

    Example:
        >>> data = BarsAndStripes(side=4)
        >>> len(data.train), len(data.train.unique(dim=0))
        (32, 30)
    """

    state_space = "binary"

    def __init__(self, *, side: int = 4) -> None:
        if not 1 <= side <= 10:
            raise ValueError(f"side must be from 1 to 10, got {side!r}")
        self.shape = (1, side, side)
        lines = ((torch.arange(2**side)[:, None] >> torch.arange(side)) & 1).float()
        bars = lines[:, None, None, :].expand(-1, 1, side, side)
        self.train = torch.cat([bars, bars.transpose(2, 3)]).contiguous()
        self.test = self.train

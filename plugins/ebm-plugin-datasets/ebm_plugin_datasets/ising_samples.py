"""Exact samples of the Ising model."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ebm_plugin_datasets.plane import check_sizes

MAX_WIDTH, MAX_LENGTH = 10, 32
_CHUNK = 4096  # examples at a time


class IsingSamples:
    r"""Independent exact samples of the Ising model on a periodic lattice, with the spins :math:`s = 2x - 1`.

    .. math:: p(x) \propto \exp\Big(J \sum_{\langle ij \rangle} s_i s_j + h \sum_i s_i\Big)

    The rows of a lattice are a Markov chain on a ring, whose transfer matrix has the states of one row as its rows and columns.
    They are drawn one after the other, each from its exact probability given the row before it and the first one, so no chain
    has to mix, at the critical coupling and beyond it too. ``log_prob(x)`` is exact. On a side of length 2 a bond counts twice.

    Args:
        height: Height of the lattice; one of the sides is 2 to 10, the other 2 to 32.
        width: Width of the lattice.
        coupling: ``J``; the critical one of the infinite lattice is 0.4407.
        field: ``h``.
        n_train: Number of training examples.
        n_test: Number of test examples.
        seed: Seed of the examples; training and test examples are independent.

    Attributes:
        log_partition: ``log Z`` in nats, 0-dim float64.

    Source: H. A. Kramers and G. H. Wannier (1941), "Statistics of the two-dimensional ferromagnet".

    Example:
        >>> data = IsingSamples(height=4, width=4, n_train=100)
        >>> data.train.shape, data.log_prob(data.train).shape
        (torch.Size([100, 1, 4, 4]), torch.Size([100]))
    """

    state_space = "binary"

    def __init__(
        self,
        *,
        height: int = 8,
        width: int = 8,
        coupling: float = 0.4,
        field: float = 0.0,
        n_train: int = 10_000,
        n_test: int = 2_000,
        seed: int = 0,
    ) -> None:
        sides = sorted((height, width))
        if not (2 <= sides[0] <= MAX_WIDTH and sides[1] <= MAX_LENGTH):
            raise ValueError(
                f"need one side from 2 to {MAX_WIDTH} and the other from 2 to {MAX_LENGTH}, got {height} and {width}"
            )
        if not (math.isfinite(coupling) and math.isfinite(field)):
            raise ValueError(f"coupling and field must be finite, got {coupling} and {field}")
        check_sizes(n_train, n_test)
        self.shape = (1, height, width)
        self.coupling, self.field = coupling, field
        rows, powers, self.log_partition = self._transfer_matrices(*sides)
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.ones(n_train + n_test).split(_CHUNK)
        x = torch.cat([_draw(rows, powers, len(part), generator) for part in sizes])
        x = (x if height >= width else x.transpose(1, 2)).reshape(-1, *self.shape)
        self.train, self.test = x[:n_train].contiguous(), x[n_train:].contiguous()

    def log_prob(self, x: Tensor) -> Tensor:
        """Computes the exact log-probability ``(N,)`` of examples ``(N, 1, height, width)`` in nats, float64."""
        s = 2 * x.double() - 1
        bonds = (s * (s.roll(1, 2) + s.roll(1, 3))).flatten(1).sum(1)
        return self.coupling * bonds + self.field * s.flatten(1).sum(1) - self.log_partition.to(x.device)

    def _transfer_matrices(self, width: int, length: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """Returns the states of a row, the powers 1 to ``length`` of the matrix, each scaled by a number, and ``log Z``."""
        rows = ((torch.arange(2**width)[:, None] >> torch.arange(width)) & 1).double()
        s = 2 * rows - 1
        within = self.coupling * (s * s.roll(1, 1)).sum(1) + self.field * s.sum(1)
        exponents = within[:, None] + self.coupling * s @ s.T
        log_scale = exponents.max()
        powers, log_scales = [(exponents - log_scale).exp()], [log_scale]
        while len(powers) < length:
            product = powers[-1] @ powers[0]
            powers.append(product / product.max())
            log_scales.append(log_scales[-1] + log_scales[0] + product.max().log())
        return rows, powers, powers[-1].trace().log() + log_scales[-1]


def _draw(rows: Tensor, powers: list[Tensor], n: int, generator: Generator) -> Tensor:
    """Draws lattices ``(n, length, width)``, float32: the first row, then each given the one before it and the first."""
    first = torch.multinomial(powers[-1].diagonal(), n, replacement=True, generator=generator)
    drawn = [first]
    for back_to_first in powers[-2::-1]:
        weights = powers[0][drawn[-1]] * back_to_first.T[first]
        drawn.append(torch.multinomial(weights, 1, generator=generator)[:, 0])
    return rows[torch.stack(drawn, 1)].float()

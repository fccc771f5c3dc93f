"""Many small RBMs side by side, as one energy: a loss, a sampler and an optimizer of the plugins train all of them at once.

Their likelihoods, and those of an RBM of the plugin, are enumerated here, not by the plugin that is studied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebmcore.distributions import Bernoulli


class Machines(nn.Module):
    """The product of ``T`` independent RBMs: an example holds one example of each, and its energy is the sum of theirs.

    The gradient with respect to the parameters of one machine is what that machine alone would get, and block Gibbs sampling
    moves each by its own conditionals.

    Args:
        weight: Initial weights ``(T, visible, hidden)``.
        visible_bias: Initial biases ``(T, visible)``.
        hidden_bias: Initial biases ``(T, hidden)``.
    """

    state_space = "binary"

    def __init__(self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.visible_bias = nn.Parameter(visible_bias.clone())
        self.hidden_bias = nn.Parameter(hidden_bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        linear = torch.einsum("ntv,tv->n", x, self.visible_bias)
        return -linear - softplus(self._hidden_logits(x)).sum((1, 2))

    def sample_hidden(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return _flip(self._hidden_logits(x), generator)

    def sample_visible(self, hidden: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        field = torch.bmm(hidden.transpose(0, 1), self.weight.transpose(1, 2)).transpose(0, 1)
        return _flip(field + self.visible_bias, generator)

    def initial_distribution(self, shape: Sequence[int]) -> Bernoulli:
        return Bernoulli(torch.zeros(tuple(shape)))

    def _hidden_logits(self, x: Tensor) -> Tensor:
        return torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1) + self.hidden_bias


def _flip(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(logits.shape, generator=generator).lt(logits.sigmoid()).to(logits.dtype)


def for_each(x: Tensor, n_machines: int) -> Tensor:
    """The same examples ``(N, *shape)`` for all machines, ``(N, T, visible)``."""
    return x.flatten(1).unsqueeze(1).expand(-1, n_machines, -1).contiguous()


def alone(rbm: Any) -> Machines:
    """One RBM of the plugin as the only machine."""
    return Machines(rbm.weight[None], rbm.visible_bias[None], rbm.hidden_bias[None])


@torch.no_grad()
def summed_log_likelihoods(machines: Machines, x: Tensor) -> Tensor:
    """Exact log-likelihood of ``x`` ``(N, *shape)`` under each machine, summed over the examples, ``(T,)`` float64."""
    weight, b, c = (p.double() for p in (machines.weight, machines.visible_bias, machines.hidden_bias))
    x = x.flatten(1).double()
    minus_energy = x @ b.T + softplus(torch.einsum("nv,tvh->nth", x, weight) + c).sum(2)
    return minus_energy.sum(0) - len(x) * log_partitions(machines)


@torch.no_grad()
def log_partitions(machines: Machines, chunk: int = 4096) -> Tensor:
    """Exact ``log Z`` of each machine, ``(T,)`` float64, from all states of the smaller layer, ``chunk`` of them at a time."""
    weight, b, c = (p.double() for p in (machines.weight, machines.visible_bias, machines.hidden_bias))
    if weight.shape[2] < weight.shape[1]:
        weight, b, c = weight.transpose(1, 2), c, b
    n_units = weight.shape[1]
    parts = []
    for codes in torch.arange(2**n_units).split(chunk):
        states = ((codes[:, None] >> torch.arange(n_units)) & 1).double()
        free = states @ b.T + softplus(torch.einsum("sv,tvh->sth", states, weight) + c).sum(2)
        parts.append(torch.logsumexp(free, 0))
    return torch.logsumexp(torch.stack(parts), 0)


def best_possible(x: Tensor) -> float:
    """The largest summed log-likelihood that any model can give ``x``: that of its own distribution."""
    _, counts = x.flatten(1).unique(dim=0, return_counts=True)
    return sum(n * math.log(n / len(x)) for n in counts.tolist())

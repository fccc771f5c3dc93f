"""Block Gibbs sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ebmcore import BaseSampler, ChainState
from ebmcore.energies import SupportsBlockGibbs
from ebmcore.samplers import Info


class Gibbs(BaseSampler):
    r"""Block Gibbs sampling: all hidden units given the visible ones, then all visible units given the hidden ones.

    .. math:: h \sim p(h \mid x), \qquad x' \sim p(x \mid h)

    Leaves the model's distribution invariant, with no step size to choose. The energy must offer both conditionals
    (`SupportsBlockGibbs`), as the energy ``rbm`` does.

    Source: S. Geman and D. Geman (1984), "Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of
    images".

    Example:
        >>> from ebm_plugin_rbm.rbm import RBM
        >>> rbm = RBM((2, 2), hidden=3)
        >>> x = Gibbs().sample(rbm, torch.zeros(5, 2, 2), n_steps=10)
        >>> x.shape
        torch.Size([5, 2, 2])
    """

    requires = (SupportsBlockGibbs,)
    exact = True
    reversible = True

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        hidden = energy.sample_hidden(state.x, generator=generator)
        return replace(state, x=energy.sample_visible(hidden, generator=generator)), {}

"""Base of the persistent contrastive-divergence variants: chains that continue where they stopped in the last step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypedDict

import torch
from torch import Generator, Tensor, nn

from ebmcore.chains import Slots
from ebmcore.conditions import condition, name_conditions
from ebmcore.distributions import InitialDistribution, Uniform
from ebmcore.errors import UsageError
from ebmcore.losses import BaseContrastiveDivergence
from ebmcore.samplers import ChainState, Sampler

__all__ = ["BasePersistentContrastiveDivergence", "PersistentOptions"]


class PersistentOptions(TypedDict, total=False):
    """The keywords of every persistent variant, for a constructor that ends in ``**options: Unpack[PersistentOptions]``."""

    n_chains: int
    restart_prob: float
    initial: Literal["model", "data", "uniform"] | InitialDistribution
    energy_l2: float
    joint_forward: bool


class BasePersistentContrastiveDivergence(BaseContrastiveDivergence):
    """Base of variants whose negative chains persist; a variant is only what differs.

    Each call draws as many different chains as the batch has examples (all of them, if they are fewer), moves them and writes
    them back. Other arguments are those of `BaseContrastiveDivergence`.

    Args:
        sampler: A `Sampler`; its whole state persists with the chain.
        n_chains: Number of chains, independent of the batch size; in distributed training over all ranks.
        restart_prob: Probability that a drawn chain restarts from the initial distribution, in [0, 1].
        initial: Where chains start: ``"model"``, the energy's own initial distribution (Bernoulli for binary units) or a
            standard normal where it has none; ``"data"``, the rows of the batch in turn; ``"uniform"``, uniform noise in
            [-1, 1]; or an object with ``sample(n, *, generator)``.

    Source: T. Tieleman (2008), "Training restricted Boltzmann machines using approximations to the likelihood gradient";
    restarts: Y. Du and I. Mordatch (2019), "Implicit generation and modeling with energy-based models".

    Example:
        >>> from ebmcore.testing import Identity, Quadratic
        >>> class PCD(BasePersistentContrastiveDivergence): pass
        >>> pcd = PCD(Quadratic((2,)), Identity(), n_chains=10)
        >>> loss, pred_x = pcd(torch.ones(4, 2))
        >>> pred_x.shape, pcd.chain.shape
        (torch.Size([4, 2]), torch.Size([10, 2]))
    """

    persistent = True
    starts_at_data = False
    slots: Slots  # where the chains of this draw go back to, until they are kept

    def __init__(
        self,
        energy: nn.Module,
        sampler: Sampler,
        k_steps: int = 1,
        *,
        n_chains: int = 256,
        restart_prob: float = 0.0,
        initial: Literal["model", "data", "uniform"] | InitialDistribution = "model",
        energy_l2: float = 0.0,
        joint_forward: bool = True,
    ) -> None:
        super().__init__(energy, sampler, k_steps, energy_l2=energy_l2, joint_forward=joint_forward)
        if isinstance(n_chains, bool) or not isinstance(n_chains, int) or n_chains < 1:
            raise ValueError(f"n_chains must be a whole number of at least 1, got {n_chains!r}")
        if not 0 <= restart_prob <= 1:
            raise ValueError(f"restart_prob must be a probability in [0, 1], got {restart_prob!r}")
        own = isinstance(initial, InitialDistribution) and "generator" in inspect.signature(initial.sample).parameters
        if not own and initial not in ("model", "data", "uniform"):
            named = "'model', 'data', 'uniform' or have sample(n, *, generator), as those of ebmcore.distributions have"
            raise ValueError(f"initial must be {named}, got {initial!r}")
        self.n_chains, self.restart_prob, self.initial = n_chains, restart_prob, initial

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        pred_x = self.draw_negatives(x, *args, **kwargs)
        return self.compute_loss(x, pred_x, *args, **kwargs), pred_x

    def compute_loss(self, x: Tensor, pred_x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.energy_gap(x, pred_x, *args, **kwargs)

    def start_chains(self, x: Tensor, *args: Any, **kwargs: Any) -> ChainState:
        """Draws persistent chains, one for each row of ``x`` or all of them if they are fewer, and refreshes their states.

        The store is filled from the initial distribution at first use. A chain that restarts has the conditions of its row of x.
        """
        chains, conditions, shape = self.chains, name_conditions(args, kwargs, x), (self.n_chains, *x.shape[1:])
        if chains.x is not None and not chains.matches(shape):
            held = f"the loss holds chains {(len(chains), *chains.x.shape[1:])}, not {shape}"
            raise UsageError(f"{held}: make a new loss, or start new ones by initialize_persistent_chain({shape})")
        if chains.x is None:
            self._allocate_chains(shape, x)
        stored = self.initialize_persistent_chain(shape)
        like = self.new_chains(x[:1], {name: t[:1] for name, t in conditions.items()})
        if chains.conditions and chains.conditions.keys() != conditions.keys():
            held = f"the chains have the conditions {sorted(chains.conditions)}, the data {sorted(conditions)}"
            raise UsageError(f"{held}: name them as in the first call, or initialize_persistent_chain() for new chains")
        if like.tensors().keys() - chains.tensors.keys():
            # First use: every chain takes over conditions in turn, and gets whatever else its sampler carries.
            turn = torch.arange(len(stored), device=x.device) % len(x)
            known = {name: t[turn] for name, t in conditions.items()} | chains.conditions
            chains.fill_missing(self.new_chains(stored, known))
        n, start = min(x.shape[0], stored.shape[0]), partial(self._start, x, conditions)
        state, self.slots = chains.draw(like, n, start, restart_prob=self.restart_prob, generator=self.generator)
        return self.sampler.refresh(condition(self.energy, state.conditions), state)

    def _start(self, x: Tensor, conditions: Mapping[str, Tensor], n: int) -> ChainState:
        started = self.initial_distribution(x.shape[1:], x).sample(n, generator=self.generator)
        return self.new_chains(started.to(x), {name: t[:n] for name, t in conditions.items()})

    def keep_chains(self, state: ChainState) -> None:
        """Writes the chains back into the slots that they were drawn from."""
        self.chains.write(state, self.slots)
        del self.slots  # which hold the batch

    def initial_distribution(self, shape: Sequence[int], x: Tensor | None = None) -> InitialDistribution:
        if self.initial == "model":
            return super().initial_distribution(shape, x)
        if self.initial == "uniform":
            return Uniform(torch.zeros(tuple(shape), dtype=self.dtype, device=self.device))
        if self.initial != "data":
            return self.initial
        if x is None:
            raise ValueError("initial='data' starts chains from a batch: call the loss on data first")
        return _InTurn(x)


class _InTurn:
    """The rows of a batch in turn, as chains take over its conditions: an example keeps its label."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        return self.x[torch.arange(n, device=self.x.device) % self.x.shape[0]]

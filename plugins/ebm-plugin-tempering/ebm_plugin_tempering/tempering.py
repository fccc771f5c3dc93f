"""Parallel tempering over any sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import ebmcore
from ebmcore import BaseSampler, ChainState, Sampler, tempered
from ebmcore.conditions import repeat_conditions
from ebmcore.energies import supports
from ebmcore.samplers import Info
from ebmcore.tempering import SupportsTempering, Tempered

MAX_RUNGS = 1000  # ladders of published work have up to 100


@dataclass(eq=False)
class LadderState(ChainState):
    """Chains that each hold a ladder of ``R`` replicas; ``x`` are the positions of those at ``beta = 1``.

    Args:
        rungs: The inner sampler's state of all ``N * R`` replicas, row ``n * R + r``; its first row of each chain is at ``x``.
        beta: Inverse temperatures ``(N, R)``, falling from 1.
        was_hottest: ``(N, R)`` bool: replicas that were at the hottest rung since they were last at the coldest.
        odd: ``(N,)`` bool: whether the odd pairs of rungs exchange next, or the even ones.
    """

    rungs: ChainState
    beta: Tensor
    was_hottest: Tensor
    odd: Tensor

    def tensors(self) -> dict[str, Tensor]:
        own = super().tensors()
        rungs = {name: t.unflatten(0, self.beta.shape) for name, t in own.pop("rungs").tensors().items()}
        rungs["x"] = rungs["x"][:, 1:]  # the first is the chain's own
        return own | {f"rungs.{name}": t for name, t in rungs.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> LadderState:
        rungs = {name.removeprefix("rungs."): t for name, t in tensors.items() if name.startswith("rungs.")}
        rungs["x"] = torch.cat([tensors["x"].unsqueeze(1), rungs["x"]], 1)
        own = {name: t for name, t in tensors.items() if not name.startswith("rungs.")}
        return super().with_tensors(own | {"rungs": self.rungs.with_tensors({n: t.flatten(0, 1) for n, t in rungs.items()})})


class Tempering(BaseSampler):
    r"""Parallel tempering (replica exchange): each chain is a ladder of replicas at rising temperatures.

    Replica ``r`` moves by the inner sampler under :math:`E_{\beta_r}`, the energy at its inverse temperature
    (`ebmcore.tempered`), with :math:`1 = \beta_0 > \dots > \beta_{R-1}`. Then neighbours exchange places with probability

    .. math:: \min\Big(1, e^{E_{\beta_i}(x_i) + E_{\beta_j}(x_j) - E_{\beta_j}(x_i) - E_{\beta_i}(x_j)}\Big), \qquad j = i + 1

    for the even pairs in one step and the odd pairs in the next. :math:`E_\beta` is the energy that the replica samples: of
    an RBM the free energy of its joint energy times :math:`\beta`, not :math:`\beta` times its free energy. All replicas of all
    chains move in one call. The coldest replica samples the model, exactly if the inner sampler does. One rung is the inner
    sampler, bit for bit.

    ``info["swap_rate"]`` is the mean probability of the exchanges tried, ``info["round_trip_rate"]`` how often a replica that had
    been at the hottest rung came back to the coldest; what the inner sampler reports is that of the coldest replica.

    Args:
        inner: The sampler of each replica, or its name.
        inner_options: Keywords of the inner sampler, where it is given by name.
        n_rungs: Number of replicas of each chain, 1 to 1000.
        min_beta: The smallest inverse temperature, in [0, 1); the others stand evenly between it and 1. 0 suits binary units; in
            a continuous space nothing holds chains at 0 together.
        betas: The inverse temperatures themselves, falling from 1, in place of ``n_rungs`` and ``min_beta``.
        adapt: Rate at which each ladder adapts until all its neighbours exchange equally often: each gap between two inverse
            temperatures is multiplied by ``exp(adapt * swap rate)`` after an attempt, and all are scaled to the same
            ends. 0 keeps the ladder. While it adapts, the chain samples its target only approximately; a sampler with ``adapt=0``
            keeps the ladder that the state has reached.

    Source: R. H. Swendsen and J.-S. Wang (1986), "Replica Monte Carlo simulation of spin glasses"; C. J. Geyer (1991), "Markov
    chain Monte Carlo maximum likelihood"; round trips: H. G. Katzgraber, S. Trebst, D. A. Huse and M. Troyer (2006),
    "Feedback-optimized parallel tempering Monte Carlo".

    Example:
        >>> from ebmcore.testing import Boltzmann, SiteGibbs
        >>> tempering = Tempering(SiteGibbs(), n_rungs=4, min_beta=0.0)
        >>> tempering.betas
        (1.0, 0.6666666666666667, 0.33333333333333337, 0.0)
        >>> tempering.sample(Boltzmann(3), torch.zeros(5, 3), n_steps=10).shape
        torch.Size([5, 3])
    """

    # Both modes of the kit's small targets are crossed with few rungs; few states keep the exact law quick to solve for.
    example_options: ClassVar[dict[str, Any]] = {"inner": "ebmcore.testing:SiteGibbs", "betas": (1.0, 0.4)}

    def __init__(
        self,
        inner: str | Sampler,
        inner_options: dict[str, Any] | None = None,
        *,
        n_rungs: int = 8,
        min_beta: float = 0.1,
        betas: Sequence[float] | None = None,
        adapt: float = 0.0,
    ) -> None:
        if isinstance(inner, str):
            inner = ebmcore.create_sampler(inner, **(inner_options or {}))
        elif inner_options:
            raise ValueError(
                "inner_options belong to an inner sampler given by name, got an object: set the options on that object"
            )
        if isinstance(inner, type) or not isinstance(inner, Sampler):
            raise TypeError(f"inner must be a sampler or the name of one, got {inner!r}")
        if isinstance(inner, Tempering):
            raise ValueError("inner is a ladder already: give the sampler of its replicas, and more rungs")
        if getattr(inner, "temperature", 1.0) != 1.0:
            raise ValueError(
                f"the ladder has the temperatures: give the inner sampler temperature 1, not {inner.temperature}"
            )
        self.inner = inner
        self.n_rungs = n_rungs
        self.min_beta = min_beta
        evenly = _ladder(n_rungs, min_beta)  # checks both, also where betas take their place
        self.betas = evenly if betas is None else tuple(float(beta) for beta in betas)
        falling = all(warm < cold for cold, warm in pairwise(self.betas))
        if not self.betas or self.betas[0] != 1 or not falling or not self.betas[-1] >= 0:
            raise ValueError(f"betas must fall from 1 to no less than 0, got {self.betas}")
        if not adapt >= 0:
            raise ValueError(f"adapt must be at least 0, got {adapt!r}")
        self.adapt = adapt

    @property
    def state_space(self) -> str | None:
        return getattr(self.inner, "state_space", None)

    @property
    def bounds(self) -> tuple[float, float] | None:
        return getattr(self.inner, "bounds", None)

    @property
    def exact(self) -> bool:
        return bool(getattr(self.inner, "exact", False)) and not self.adapt

    @property
    def deterministic(self) -> bool:
        return bool(getattr(self.inner, "deterministic", False)) and len(self.betas) == 1

    @property
    def has_memory(self) -> bool:
        return len(self.betas) > 1 or bool(getattr(self.inner, "has_memory", False))

    @property
    def requires(self) -> tuple[type, ...]:
        # The kernel's path for any energy has no conditionals; an energy that has conditionals brings its own path.
        of_inner = tuple(getattr(self.inner, "requires", ()))
        lost = [capability for capability in of_inner if not supports(Tempered, capability)]
        return (*of_inner, SupportsTempering) if lost and len(self.betas) > 1 else of_inner

    def init(self, energy: nn.Module, x: Tensor, *, generator: torch.Generator | None = None) -> LadderState:
        n, n_rungs = len(x), len(self.betas)
        beta = torch.tensor(self.betas, dtype=x.dtype if x.is_floating_point() else None, device=x.device).repeat(n, 1)
        at_each = _at(repeat_conditions(energy, n_rungs), beta)
        rungs = self.inner.init(at_each, x.repeat_interleave(n_rungs, 0), generator=generator)
        nothing = torch.zeros(n, n_rungs, dtype=torch.bool, device=x.device)
        return LadderState(x, rungs, beta, was_hottest=nothing, odd=nothing[:, 0].clone())

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[LadderState, Info]:
        n, n_rungs = state.beta.shape
        energy = repeat_conditions(energy, n_rungs)
        rungs, info = self.inner.step(_at(energy, state.beta), state.rungs, generator=generator)
        if n_rungs == 1:
            return replace(state, x=rungs.x, rungs=rungs), info

        pair = torch.arange(n_rungs - 1, device=state.beta.device)
        tried = (pair % 2 == 1) == state.odd.unsqueeze(1)
        log_accept = _log_accept(energy, rungs.x, state.beta, tried)
        uniform = torch.rand(tried.shape, generator=generator, dtype=torch.float64, device=tried.device)
        source = _exchange(uniform.log() < log_accept)  # False where log_accept is not a number

        rows = (source + n_rungs * torch.arange(n, device=source.device).unsqueeze(1)).flatten()
        rungs = rungs.with_tensors({name: t.index_select(0, rows) for name, t in rungs.tensors().items()})
        was_hottest = state.was_hottest.gather(1, source)
        was_hottest[:, -1] = True
        round_trip = was_hottest[:, 0].double()
        was_hottest[:, 0] = False
        swap_rates = log_accept.clamp(max=0).exp()
        beta = self._adapted(state.beta, swap_rates)
        rungs = self.inner.refresh(_at(energy, beta), rungs)

        info = {name: value.view(n, n_rungs)[:, 0] for name, value in info.items()}
        info |= {"swap_rate": swap_rates.sum(1) / tried.sum(1), "round_trip_rate": round_trip}
        odd = ~state.odd if n_rungs > 2 else state.odd
        x = rungs.x.view(n, n_rungs, *state.x.shape[1:])[:, 0].contiguous()
        return replace(state, x=x, rungs=rungs, beta=beta, was_hottest=was_hottest, odd=odd), info

    def refresh(self, energy: nn.Module, state: Any) -> LadderState:
        at_each = _at(repeat_conditions(energy, state.beta.shape[1]), state.beta)
        return replace(state, rungs=self.inner.refresh(at_each, state.rungs))

    def predicted_bias(self, precision: float) -> float | None:
        """Bias of the inner sampler if the ladder has one rung; with several rungs it is known only if it is 0."""
        return super().predicted_bias(precision) if self.has_memory else self.inner.predicted_bias(precision)

    def _adapted(self, beta: Tensor, swap_rates: Tensor) -> Tensor:
        if not self.adapt:
            return beta
        gaps = -beta.double().diff(dim=1) * torch.exp(self.adapt * swap_rates)
        ends = beta[:, :1] - beta[:, -1:]
        steps = pad(torch.cumsum(gaps * ends / gaps.sum(1, keepdim=True), 1), (1, 0))
        return (beta[:, :1] - steps).to(beta.dtype).clamp(min=0)


def _ladder(n_rungs: int, min_beta: float) -> tuple[float, ...]:
    if isinstance(n_rungs, bool) or not isinstance(n_rungs, int) or n_rungs < 1:
        raise ValueError(f"n_rungs must be a whole number of at least 1, got {n_rungs!r}")
    if n_rungs > MAX_RUNGS:
        raise ValueError(f"n_rungs must be at most {MAX_RUNGS}: a step moves each of them; got {n_rungs}")
    if not 0 <= min_beta < 1:
        raise ValueError(f"min_beta must be in [0, 1), got {min_beta!r}")
    return tuple(1 - (1 - min_beta) * r / max(1, n_rungs - 1) for r in range(n_rungs))


def _at(energy: nn.Module, beta: Tensor) -> nn.Module:
    """The energy of every replica; the energy itself where there is only one, at ``beta = 1``."""
    return energy if beta.shape[1] == 1 else tempered(energy, beta.flatten())


def _log_accept(energy: nn.Module, x: Tensor, beta: Tensor, tried: Tensor) -> Tensor:
    """Logarithm of the acceptance ratio of each pair ``(N, R - 1)`` in float64; minus infinity for those not tried."""
    exchanged = beta.gather(1, _exchange(tried))
    both = torch.stack([beta, exchanged]).double().flatten(1)
    with torch.enable_grad():  # for an energy that takes a gradient of its own; no parameter has one here
        energies = tempered(energy, both)(x).detach()
    here, there = energies.double().view(2, *beta.shape)
    change = here - there
    return (change[:, :-1] + change[:, 1:]).masked_fill(~tried, -torch.inf)


def _exchange(pairs: Tensor) -> Tensor:
    """Rung from which each rung ``(N, R)`` takes its replica when the rungs ``i, i + 1`` of ``pairs`` ``(N, R - 1)`` exchange."""
    up, down = pad(pairs.long(), (0, 1)), pad(pairs.long(), (1, 0))
    return torch.arange(pairs.shape[1] + 1, device=pairs.device) + up - down

"""Transitions of a sampler as one compiled graph: what ``run(..., compile=True)`` does.

A sampler's steps are traced on an energy once (`ebmcore.compiling.graph`) and compiled. From the same generator the graph gives
what the steps give, and nothing that changes in training makes another graph (`ebmcore.compiling.guards`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ebmcore.compiling.graph import CannotCompileError, Graph, Transitions, traced
from ebmcore.compiling.guards import CLOSED_FORM, Fingerprint
from ebmcore.conditions import condition, name_conditions
from ebmcore.energies import differentiate

MAX_STEPS = 32  # of one graph; more are several calls
MAX_KNOWN = 16  # kinds of call of one energy


def compiled_transitions(
    eager: Transitions,
    sampler: Any,
    energy: nn.Module,
    state: Any,
    n_steps: int,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Any, dict[str, Tensor]]:
    """What ``eager`` gives, from graphs that are made when something is asked for the second time.

    Fewer chains than an existing graph has, as in the last batch of an epoch, move without one. Where the steps cannot be
    traced, the energy's gradient is compiled alone, and a warning says why.
    """
    totals: dict[str, Tensor] = {}
    while n_steps:
        n = min(n_steps, MAX_STEPS)
        state, more = _found(eager, sampler, energy, state, n)(sampler, energy, state, n, generator=generator)
        totals = {name: totals[name] + total if name in totals else total for name, total in more.items()}
        n_steps -= n
    return state, totals


def _found(eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Transitions:
    """A graph, or what takes its place."""
    known, now = _KNOWN.setdefault(energy, []), Fingerprint.of(sampler, energy, state, n_steps)
    fitting = [one for one in known if one.fits(sampler, now)]
    exact = [one for one in fitting if one.n_chains in (len(state), None)]
    for one in exact:
        if not isinstance(one, _Seen):
            return one
    if any(isinstance(one, Graph) and one.n_chains is not None and one.n_chains > len(state) for one in fitting):
        return eager
    seen = next((one for one in exact if isinstance(one, _Seen)), None)
    if seen is not None:
        known[known.index(seen)] = made = _made(eager, sampler, energy, state, n_steps, seen)
        return made
    if sum(one.kind is type(sampler) for one in known) >= MAX_KNOWN:
        reason = f"{MAX_KNOWN} kinds of call were seen: what the sampler or the energy is set to changes from call to call"
        known.append(_instead(eager, sampler, reason))
    else:
        constant = any(one.holds_numbers(now) for one in known)
        known.append(_Seen(eager, sampler, now, len(state), exactly=constant))
    return known[-1]


class _Seen:
    """A call that was made once: whether it comes again remains to be seen, and what its energy makes at first is made.

    With other numbers it is the same call, unless it is known (``exactly``) that they cannot be inputs of its graph.
    """

    def __init__(
        self, eager: Transitions, sampler: Any, fingerprint: Fingerprint, n_chains: int, *, exactly: bool = False
    ) -> None:
        self.eager = eager
        self.kind = type(sampler)
        self.fingerprint = fingerprint
        self.n_chains: int | None = n_chains
        self.exactly = exactly

    def fits(self, sampler: Any, now: Fingerprint) -> bool:
        """Whether it was the same."""
        return self.fingerprint.equals(now, whatever_numbers=not self.exactly)

    def holds_numbers(self, now: Fingerprint) -> bool:
        """Whether it is the same but for numbers that its graph would hold."""
        return self.exactly and self.fingerprint.equals(now, whatever_numbers=True)

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: torch.Generator | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        return self.eager(sampler, energy, state, n_steps, generator=generator)


def _made(
    eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int, seen: _Seen
) -> Graph | _Seen | _GradientsAlone:
    try:
        graph = traced(eager, sampler, energy, state, n_steps)
        if not graph.fits(sampler, seen.fingerprint):  # for its numbers, which may be others at every call
            return _Seen(eager, sampler, graph.fingerprint, len(state), exactly=True)
        graph.compile(sampler, energy, state)
    except CannotCompileError as error:
        return _instead(eager, sampler, str(error))
    except Exception as error:  # inductor's, or of the C++ compiler that it needs
        return _instead(eager, sampler, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return graph


def _instead(eager: Transitions, sampler: Any, reason: str) -> _GradientsAlone:
    if not isinstance(sampler, _Gradient):  # it is tried after a sampler that was warned of
        warnings.warn(
            f"the steps of {type(sampler).__name__} are not compiled, at most the energy's gradient is: {reason}",
            stacklevel=7,
        )
    return _GradientsAlone(eager, sampler)


class _GradientsAlone:
    """The transitions as they are, with the energy's gradient compiled."""

    n_chains: int | None = None  # any

    def __init__(self, eager: Transitions, sampler: Any) -> None:
        self.eager = eager
        self.kind = type(sampler)

    def fits(self, sampler: Any, now: Fingerprint) -> bool:
        """Whether it is for samplers of this kind; it depends on nothing else, and is not warned of again."""
        return type(sampler) is self.kind

    def holds_numbers(self, now: Fingerprint) -> bool:
        """It has no graph that would hold any."""
        return False

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: torch.Generator | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        if isinstance(sampler, _Gradient) or hasattr(energy, CLOSED_FORM):
            return self.eager(sampler, energy, state, n_steps, generator=generator)
        vars(energy)[CLOSED_FORM] = partial(_gradient, energy)
        try:
            return self.eager(sampler, energy, state, n_steps, generator=generator)
        finally:
            del vars(energy)[CLOSED_FORM]


_KNOWN: WeakKeyDictionary[nn.Module, list[Graph | _Seen | _GradientsAlone]] = WeakKeyDictionary()


class _Gradient:
    """In place of a sampler, where only the energy's gradient is compiled."""


@dataclass
class _Positions:
    x: Tensor
    conditions: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.x)

    def tensors(self) -> dict[str, Tensor]:
        return {"x": self.x, **self.conditions}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> _Positions:
        return _Positions(tensors["x"], {name: tensors[name] for name in self.conditions})


def _gradient(energy: nn.Module, x: Tensor, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, Tensor]:
    at, in_place_of_sampler = _Positions(x, name_conditions(args, kwargs, x)), _Gradient()
    find = _found(_gradient_as_a_step, in_place_of_sampler, energy, at, 1)
    there, value = find(in_place_of_sampler, energy, at, 1)
    return value["energy"], there.x


def _gradient_as_a_step(
    _: Any, energy: nn.Module, at: _Positions, n: int, *, generator: torch.Generator | None = None
) -> tuple[_Positions, dict[str, Tensor]]:
    value, grad = differentiate(condition(energy, at.conditions), at.x)
    return _Positions(grad, at.conditions), {"energy": value.detach()}

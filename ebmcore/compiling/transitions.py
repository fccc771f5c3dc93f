"""The object that makes a loss's transitions by compiled graphs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore.compiling.graph import CannotCompileError, Graph, trace
from ebmcore.compiling.guards import Guard
from ebmcore.samplers import eager_transitions

__all__ = ["CompiledTransitions"]

MAX_STEPS = 32  # of one graph
MAX_GRAPHS = 16


class CompiledTransitions:
    """Transitions of a sampler by compiled graphs; called as `ebmcore.samplers.eager_transitions` is, with the same result.

    ``loss.compile()`` makes one and hands it to `run`. From the same generator it gives the eager chain, up to rounding. The first call of a kind
    runs eagerly, which lets lazy modules make their parameters. The second call makes the graph, which takes 5 to 30 seconds. A call
    with fewer chains than a graph has, such as the last batch of an epoch, runs eagerly. More than 32 steps are several calls. Where
    steps cannot be traced or compiled, one warning says why and calls with that sampler and energy run eagerly from then on.

    A graph is of what was there when it was made. A call with other shapes, dtypes, options of the sampler, layers or autocast is
    another kind, and makes another graph; parameters, chains and floating-point options that the step uses by arithmetic are inputs of
    the graph. What lies deeper, such as an attribute of a layer or a variable in a closure, is not seen: call ``loss.compile()`` again
    after changing it.

    It owns its graphs. A copy, or one that was pickled, has none and makes its own.

    Example:
        >>> from ebmcore.samplers import ChainState, run
        >>> from ebmcore.testing import Identity, Quadratic
        >>> transitions = CompiledTransitions()
        >>> state, _ = run(Identity(), Quadratic((2,)), ChainState(torch.zeros(3, 2)), 5, transitions=transitions)
        >>> transitions.n_graphs  # the second call makes one
        0
    """

    def __init__(self) -> None:
        self._graphs: list[Graph] = []
        self._seen: list[tuple[Guard, int]] = []
        self._eager: set[tuple[type, type]] = set()

    @property
    def n_graphs(self) -> int:
        """Number of graphs made so far."""
        return len(self._graphs)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: torch.Generator | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Make ``n_steps`` transitions under ``torch.no_grad()``, with the energy frozen."""
        totals: dict[str, Tensor] = {}
        for done in range(0, n_steps, MAX_STEPS):
            n = min(n_steps - done, MAX_STEPS)
            state, more = self._transitions(sampler, energy, state, n, generator)
            totals = {name: totals[name] + total if name in totals else total for name, total in more.items()}
        return state, totals

    def _transitions(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, generator: torch.Generator | None
    ) -> tuple[Any, dict[str, Tensor]]:
        if (type(sampler), type(energy)) in self._eager:
            return eager_transitions(sampler, energy, state, n_steps, generator=generator)
        guard = Guard.of(sampler, energy, state, n_steps)
        graphs = [graph for graph in self._graphs if graph.matches(guard)]
        graph = next((graph for graph in graphs if graph.n_chains == len(state)), None)
        if graph is None and self._was_seen(guard, len(state)):
            graph = self._make(sampler, energy, state, n_steps)
        if graph is not None:
            return graph(sampler, energy, state, n_steps, generator=generator)
        result = eager_transitions(sampler, energy, state, n_steps, generator=generator)
        if not any(graph.n_chains > len(state) for graph in graphs):
            self._seen.append((Guard.of(sampler, energy, state, n_steps), len(state)))  # with what the first call has made
            if len(self._seen) > MAX_GRAPHS:
                self._give_up(sampler, energy, f"{MAX_GRAPHS} kinds of call were seen")
        return result

    def _was_seen(self, guard: Guard, n_chains: int) -> bool:
        return any(n == n_chains and seen.matches(guard, any_numbers=True) for seen, n in self._seen)

    def _make(self, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Graph | None:
        try:
            if len(self._graphs) == MAX_GRAPHS:
                raise CannotCompileError(f"{MAX_GRAPHS} graphs were made: something changes from call to call")
            graph = trace(sampler, energy, state, n_steps)
            graph.compile(sampler, energy, state)
        except Exception as error:  # inductor's own errors and those of the C++ compiler that it needs
            own = isinstance(error, CannotCompileError)
            self._give_up(
                sampler, energy, str(error) if own else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            )
            return None
        self._graphs.append(graph)
        return graph

    def _give_up(self, sampler: Any, energy: nn.Module, reason: str) -> None:
        warnings.warn(f"the steps of {type(sampler).__name__} are not compiled: {reason}", stacklevel=6)
        self._eager.add((type(sampler), type(energy)))

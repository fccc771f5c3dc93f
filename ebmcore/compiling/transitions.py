"""The object that makes a loss's transitions by compiled graphs."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from ebmcore.compiling.graph import CannotCompileError, Graph, summary, trace
from ebmcore.compiling.guards import Guard
from ebmcore.samplers import eager_transitions

MAX_STEPS = 32  # of one graph
MAX_GRAPHS = 16


class CompiledTransitions:
    """Makes transitions by compiled graphs, which give what `ebmcore.samplers.eager_transitions` gives, up to rounding.

    ``loss.compile()`` makes one, and `ebmcore.samplers.run` takes one. The first call of a kind runs eagerly, which lets lazy
    modules make their parameters; the second makes the graph, which takes 5 to 30 seconds. Fewer chains than a graph has, such as
    the last batch of an epoch, move eagerly; more than 32 steps are several calls. Where steps cannot be traced or compiled, one
    warning says why, and that sampler runs eagerly from then on.

    A graph is of what was there when it was made. Other shapes, dtypes, options of the sampler, layers or autocast make another
    graph. Parameters, chains, and floating-point options that the step uses by arithmetic are inputs. What lies deeper, such as
    an attribute of a layer or a variable in a closure, is not seen: call ``loss.compile()`` again after changing it. A copied or
    pickled object makes its own graphs.

    Attributes:
        graphs: The graphs made so far.
    """

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self._seen: list[tuple[Guard, int]] = []
        self._eager: set[type] = set()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: Any = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Makes ``n_steps`` transitions; the caller has frozen the energy and is under ``torch.no_grad``."""
        totals: dict[str, Tensor] = {}
        for done in range(0, n_steps, MAX_STEPS):
            n = min(n_steps - done, MAX_STEPS)
            move = self._graph(sampler, energy, state, n) or eager_transitions
            state, more = move(sampler, energy, state, n, generator=generator)
            totals = {name: totals[name] + total if name in totals else total for name, total in more.items()}
        return state, totals

    def _graph(self, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Graph | None:
        if type(sampler) in self._eager:
            return None
        guard, n_chains = Guard.of(sampler, energy, state, n_steps), len(state)
        graphs = [graph for graph in self.graphs if graph.guard.matches(guard, graph.lifted)]
        fitting = next((graph for graph in graphs if graph.n_chains == n_chains), None)
        if fitting or any(graph.n_chains > n_chains for graph in graphs):
            return fitting
        if not any(n == n_chains and seen.matches(guard, range(len(guard.numbers))) for seen, n in self._seen):
            self._seen.append((guard, n_chains))
            if len(self._seen) > MAX_GRAPHS:
                self._give_up(sampler, f"{MAX_GRAPHS} kinds of call were seen, as something changes from call to call")
            return None
        try:
            if len(self.graphs) == MAX_GRAPHS:
                raise CannotCompileError(f"{MAX_GRAPHS} graphs were made, as something changes from call to call")
            graph = trace(sampler, energy, state, n_steps)
            graph.compile(sampler, energy, state)
        except Exception as error:  # inductor's own too, and those of the C++ compiler that it needs
            self._give_up(sampler, str(error) if isinstance(error, CannotCompileError) else summary(error))
            return None
        self.graphs.append(graph)
        return graph

    def _give_up(self, sampler: Any, reason: str) -> None:
        warnings.warn(f"the steps of {type(sampler).__name__} are not compiled: {reason}", stacklevel=5)
        self._eager.add(type(sampler))

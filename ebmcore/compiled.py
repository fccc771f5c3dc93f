"""Transitions of a sampler as one compiled graph: what ``run(..., compile=True)`` does.

A sampler's steps are traced on an energy once, with everything that may change handed in from outside: positions and whatever
else a chain carries, the energy's parameters and buffers, the sampler's numbers (step size, temperature), and the random
numbers, which torch's own generators draw beforehand, in the order in which the steps ask for them. So from the same generator
the graph gives what the steps give, and nothing that changes in training makes another graph.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ebmcore.energies import all_modules, condition, differentiate, name_conditions
from ebmcore.errors import EbmcoreError

aten = torch.ops.aten
MAX_STEPS = 32  # of one graph; more are several calls
MAX_GRAPHS = 16  # of one energy


class State(Protocol):
    """What is needed of a `ChainState`."""

    def __len__(self) -> int: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Any: ...


Transitions = Callable[..., tuple[Any, dict[str, Tensor]]]
"""``(sampler, energy, state, n_steps, generator=...) -> (state, totals)``, under ``torch.no_grad`` with the energy frozen."""


class CannotCompileError(EbmcoreError):
    """Transitions that no graph can make; the message says why."""


class ImpureStepError(CannotCompileError):
    """Transitions that are no function of tensors: they read values of tensors or change the sampler."""


def compiled_transitions(
    eager: Transitions,
    sampler: Any,
    energy: nn.Module,
    state: Any,
    n_steps: int,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Any, dict[str, Tensor]]:
    """What ``eager`` gives, from graphs made at first need.

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


class Graph:
    """Traced transitions, as a function of the state, the energy's tensors, the sampler's numbers and a generator.

    Args:
        eager: What is traced.
        sampler: The sampler, whose step must be pure.
        energy: The energy, frozen.
        state: Gives names, shapes, dtypes and device.
        n_steps: Number of transitions.
        lift: Whether the sampler's numbers are inputs, too; else another number makes another graph.

    Raises:
        ImpureStepError: If the steps read values of tensors or change the sampler.
        CannotCompileError: If they draw random numbers of a distribution that they compute.
    """

    def __init__(
        self, eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, lift: bool = True
    ) -> None:
        self.lift = lift
        self.fingerprint = self._fingerprint(sampler, energy, state, n_steps)
        self.n_chains = len(state)
        self.weights = [(owner, name) for owner, name, _ in _weights(energy)]
        self.module = self._trace(eager, sampler, energy, state, n_steps)
        self.draws = _take_out_draws(self.module)
        self.call: Callable[..., Sequence[Tensor]] = self.module

    def fits(self, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> bool:
        """Whether it was traced from these, apart from the values of tensors and numbers and from the number of chains."""
        return _same(self.fingerprint, self._fingerprint(sampler, energy, state, n_steps))

    def compile(self, sampler: Any, state: Any) -> None:
        """Compile it by inductor."""
        noise = [node.meta["val"] for node in self.module.graph.nodes if node.name.startswith("noise_")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own parts
            self.call = torch.compile(self.module, dynamic=False)
            self._results(sampler, state, [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in noise])

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: torch.Generator | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        results = iter(self._results(sampler, state, [draw(generator=generator) for draw in self.draws]))
        moved = state.with_tensors({name: next(results) for name in self.names})
        return moved, {name: next(results) for name in self.told}

    def _results(self, sampler: Any, state: Any, noise: Sequence[Tensor]) -> Sequence[Tensor]:
        weights = [owner[name] for owner, name in self.weights]
        return self.call(*weights, *self._numbers(sampler), *state.tensors().values(), *noise)

    def _numbers(self, sampler: Any) -> list[Tensor]:
        return [torch.tensor(number, dtype=torch.float64) for number in _numbers(sampler)] if self.lift else []

    def _trace(self, eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> torch.fx.GraphModule:
        from torch.fx.experimental.proxy_tensor import make_fx

        weights, numbers, chain = [owner[name] for owner, name in self.weights], self._numbers(sampler), state.tensors()

        def flat(*inputs: Tensor) -> list[Tensor]:
            rest = iter(inputs)
            with _in_place_of(self.weights, [next(rest) for _ in weights]), _TensorsAsNumbers():
                twin = _with_numbers(sampler, iter([next(rest) for _ in numbers]) if self.lift else None)
                before = list(_attributes(twin))
                moved, totals = eager(twin, energy, state.with_tensors(dict(zip(chain, rest, strict=True))), n_steps)
                if not _same(before, list(_attributes(twin))):
                    raise ImpureStepError(
                        "its step changes the sampler's attributes: keep what a chain carries in its state"
                    )
            self.names, self.told = list(moved.tensors()), list(totals)
            return [*moved.tensors().values(), *totals.values()]

        try:
            return make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*weights, *numbers, *chain.values())
        except CannotCompileError:
            raise
        except Exception as error:  # whatever the sampler's or the energy's code does with tensors that hold no values
            raise ImpureStepError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error

    def _fingerprint(self, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> list[Any]:
        """What the traced code may depend on apart from values of tensors: compared by `_same`."""
        chain = state.tensors()
        device = next(iter(chain.values())).device.type
        return [
            n_steps,
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
            *((name, t.shape[1:], t.dtype, t.device) for name, t in chain.items()),
            *((name, t.shape, t.dtype, t.device) for _, name, t in _weights(energy)),
            *(value for value in _attributes(sampler) if not (self.lift and type(value) is float)),
            *(value for module in all_modules(energy) for value in _code(module)),
        ]


def _found(eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Transitions:
    """A graph, or what takes its place."""
    known = _GRAPHS.setdefault(energy, [])
    fitting = [one for one in known if one.fits(sampler, energy, state, n_steps)]
    for one in fitting:
        if one.n_chains in (len(state), None):
            return one
    if any(one.n_chains is not None and one.n_chains > len(state) for one in fitting):
        return eager
    made = _made(eager, sampler, energy, state, n_steps)
    known.append(made)
    return made


_GRAPHS: WeakKeyDictionary[nn.Module, list[Graph | _GradientsAlone]] = WeakKeyDictionary()


def _made(eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Graph | _GradientsAlone:
    try:
        if len(_GRAPHS[energy]) >= MAX_GRAPHS:
            raise CannotCompileError(
                f"{MAX_GRAPHS} graphs were made for this energy: what it or the sampler is set to changes from call to call"
            )
        graph = traced(eager, sampler, energy, state, n_steps)
        graph.compile(sampler, state)
    except CannotCompileError as error:
        reason = str(error)
    except Exception as error:  # inductor, or the C++ compiler that it needs
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    else:
        return graph
    name = type(sampler).__name__
    warnings.warn(f"the steps of {name} are not compiled, at most the energy's gradient is: {reason}", stacklevel=7)
    return _GradientsAlone(eager, sampler)


def traced(eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Graph:
    """The transitions as a graph that is not compiled yet."""
    try:
        return Graph(eager, sampler, energy, state, n_steps)
    except CannotCompileError:  # numbers that pass through math.sqrt and the like stay as they are
        return Graph(eager, sampler, energy, state, n_steps, lift=False)


class _GradientsAlone:
    """The transitions as they are, with the energy's gradient compiled."""

    n_chains: int | None = None  # any

    def __init__(self, eager: Transitions, sampler: Any) -> None:
        self.eager = eager
        self.kind = type(sampler)

    def fits(self, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> bool:
        """Whether it is for samplers of this kind; it depends on nothing else, and is not warned of again."""
        return type(sampler) is self.kind

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: torch.Generator | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        if isinstance(sampler, _Gradient) or hasattr(energy, _CLOSED_FORM):
            return self.eager(sampler, energy, state, n_steps, generator=generator)
        vars(energy)[_CLOSED_FORM] = partial(_gradient, energy)
        try:
            return self.eager(sampler, energy, state, n_steps, generator=generator)
        finally:
            del vars(energy)[_CLOSED_FORM]


_CLOSED_FORM = "value_and_grad"


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
    at = _Positions(x, name_conditions(args, kwargs, x))
    there, value = _found(_gradient_as_a_step, _Gradient(), energy, at, 1)(_Gradient(), energy, at, 1)
    return value["energy"], there.x


def _gradient_as_a_step(
    _: Any, energy: nn.Module, at: _Positions, n: int, *, generator: torch.Generator | None = None
) -> tuple[_Positions, dict[str, Tensor]]:
    value, grad = differentiate(condition(energy, at.conditions), at.x)
    return _Positions(grad, at.conditions), {"energy": value.detach()}


class Draw:
    """A call that draws random numbers, apart from its generator."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.function = partial(function, *args, **kwargs)

    def __call__(self, generator: torch.Generator | None) -> Tensor:
        numbers: Tensor = self.function(generator=generator)
        return numbers


_LIKE = {aten.randn_like: torch.randn, aten.rand_like: torch.rand, aten.normal: torch.randn}


def _take_out_draws(module: torch.fx.GraphModule) -> list[Draw]:
    """Turn the nodes that draw random numbers into inputs; return what fills these, in order."""
    graph = module.graph
    random = [node for node in graph.nodes if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())]
    last_input = [node for node in graph.nodes if node.op == "placeholder"][-1]
    draws = []
    for i, node in enumerate(random):
        function, value = node.target.overloadpacket, node.meta["val"]
        kwargs = {name: given for name, given in node.kwargs.items() if name != "generator" and given is not None}
        if function in _LIKE and node.all_input_nodes:
            draws.append(Draw(_LIKE[function], (tuple(value.shape),), {"dtype": value.dtype, "device": value.device}))
        elif not node.all_input_nodes:
            draws.append(Draw(function, node.args, kwargs))
        else:
            raise CannotCompileError(
                f"its step draws from {function}, of a distribution that it computes: draw uniform or normal numbers and "
                "transform them"
            )
        with graph.inserting_after(last_input):
            noise = last_input = graph.placeholder(f"noise_{i}")
            noise.meta["val"] = value
        if function is aten.normal and node.all_input_nodes:
            mean, std = node.args
            with graph.inserting_before(node):
                noise = graph.call_function(torch.add, (graph.call_function(torch.mul, (noise, std)), mean))
        node.replace_all_uses_with(noise)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return draws


class _TensorsAsNumbers(TorchFunctionMode):
    """Lets tensors stand where operators take numbers: ``add(x, y, alpha=t)``."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("alpha"), Tensor):
            first, second, *rest = args
            args = (first, kwargs.pop("alpha") * second, *rest)
        return function(*args, **kwargs)


def _weights(energy: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for module in all_modules(energy):
        for owner in (module._parameters, module._buffers):
            yield from ((owner, name, tensor) for name, tensor in owner.items() if tensor is not None)


@contextmanager
def _in_place_of(slots: Sequence[tuple[dict[str, Any], str]], tensors: Iterable[Tensor]) -> Iterator[None]:
    own = [owner[name] for owner, name in slots]
    try:
        for (owner, name), tensor in zip(slots, tensors, strict=True):
            owner[name] = tensor
        yield
    finally:
        for (owner, name), tensor in zip(slots, own, strict=True):
            owner[name] = tensor


def _numbers(sampler: Any) -> Iterator[float]:
    return (value for value in _attributes(sampler) if type(value) is float)


def _attributes(sampler: Any) -> Iterator[Any]:
    """Whatever a sampler, and those that it is made of, are set to."""
    yield type(sampler)
    for name, value in getattr(sampler, "__dict__", {}).items():
        yield name
        if _is_sampler(value):
            yield from _attributes(value)
        else:
            yield value


def _is_sampler(value: Any) -> bool:
    return not isinstance(value, type) and hasattr(value, "step") and hasattr(value, "refresh")


def _with_numbers(sampler: Any, numbers: Iterator[Tensor] | None) -> Any:
    """A copy with tensors in place of its numbers, in the order of `_numbers`."""
    twin = copy.copy(sampler)
    for name, value in getattr(sampler, "__dict__", {}).items():
        if _is_sampler(value):
            vars(twin)[name] = _with_numbers(value, numbers)
        elif type(value) is float and numbers is not None:
            vars(twin)[name] = next(numbers)
    return twin


_OF_EVERY_MODULE = frozenset((*vars(nn.Module()), _CLOSED_FORM))


def _code(module: nn.Module) -> Iterator[Any]:
    """What the forward of a module, apart from its tensors, may depend on."""
    yield type(module)
    yield from (value for pair in vars(module).items() if pair[0] not in _OF_EVERY_MODULE for value in pair)
    yield from (*module._forward_pre_hooks.values(), *module._forward_hooks.values())


_COMPARED_BY_VALUE = frozenset((int, float, bool, str, torch.Size, torch.dtype, torch.device))


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(
        s is t or (type(s) is type(t) and (s == t if type(s) in _COMPARED_BY_VALUE else type(s) is tuple and _same(s, t)))
        for s, t in zip(a, b, strict=True)
    )

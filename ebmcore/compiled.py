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
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ebmcore.energies import all_modules, condition, differentiate, name_conditions
from ebmcore.errors import EbmcoreError

aten = torch.ops.aten
MAX_STEPS = 32  # of one graph; more are several calls
MAX_KNOWN = 16  # kinds of call of one energy


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


class Graph:
    """Traced transitions, as a function of the state, the energy's tensors, the sampler's numbers and a generator.

    Args:
        eager: What is traced.
        sampler: The sampler, whose step must be pure.
        energy: The energy, frozen; it was called before, so that what it makes at its first call is there.
        state: Gives names, shapes, dtypes and device.
        n_steps: Number of transitions.
        lift: Whether the sampler's numbers are inputs, too; else another number makes another graph.

    Raises:
        ImpureStepError: If the steps read values of tensors, or change the sampler or the energy.
        CannotCompileError: If they draw random numbers of a distribution that they compute, or not from their generator.
    """

    def __init__(
        self, eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, lift: bool = True
    ) -> None:
        self.lift = lift
        self.n_chains: int | None = len(state)
        self.fingerprint = Fingerprint.of(sampler, energy, state, n_steps)
        self.module, n_drawn = self._trace(eager, sampler, energy, state, n_steps)
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        n_weights, n_numbers = len(list(_weights(energy))), len(self._numbers(sampler))
        if not all(node.users for node in inputs[n_weights : n_weights + n_numbers]):
            # Not used, or by a way round the copy that holds them as tensors: then they are constants of this graph.
            raise CannotCompileError("a number of the sampler does not enter its steps as an attribute")
        self.draws = _take_out_draws(self.module, n_drawn)
        self.call: Callable[..., Sequence[Tensor]] = self.module

    def fits(self, sampler: Any, now: Fingerprint) -> bool:
        """Whether it was traced from these, apart from the values of tensors and numbers and from the number of chains."""
        return self.fingerprint.equals(now, whatever_numbers=self.lift)

    def compile(self, sampler: Any, energy: nn.Module, state: Any) -> None:
        """Compile it by inductor."""
        noise = [node.meta["val"] for node in self.module.graph.nodes if node.name.startswith("noise_")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own parts
            self.call = torch.compile(self.module, dynamic=False)
            self._results(sampler, energy, state, [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in noise])

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: torch.Generator | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        results = iter(self._results(sampler, energy, state, [draw(generator=generator) for draw in self.draws]))
        moved = state.with_tensors({name: next(results) for name in self.names})
        return moved, {name: next(results) for name in self.told}

    def _results(self, sampler: Any, energy: nn.Module, state: Any, noise: Sequence[Tensor]) -> Sequence[Tensor]:
        weights, numbers, chain = [t for *_, t in _weights(energy)], self._numbers(sampler), state.tensors().values()
        # Called once under a dispatch mode, such as a counter of operators, compiled code would be skipped ever after.
        call = self.call if _get_current_dispatch_mode() is None else self.module
        with torch.autocast(_device(state).type, enabled=False):  # its casts are in the graph
            return call(*weights, *numbers, *chain, *noise)

    def _numbers(self, sampler: Any) -> list[Tensor]:
        return [torch.tensor(number, dtype=torch.float64) for number in _numbers(sampler)] if self.lift else []

    def _trace(
        self, eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int
    ) -> tuple[torch.fx.GraphModule, int]:
        from torch.fx.experimental.proxy_tensor import make_fx

        slots = [(owner, name) for owner, name, _ in _weights(energy)]
        weights, numbers, chain = [t for *_, t in _weights(energy)], self._numbers(sampler), state.tensors()
        generator, attributes = (
            torch.Generator(_device(state)),
            [(module, dict(vars(module))) for module in all_modules(energy)],
        )
        tracing = _Tracing(generator)

        def flat(*inputs: Tensor) -> list[Tensor]:
            rest = iter(inputs)
            with _in_place_of(slots, [next(rest) for _ in weights]), tracing:
                twin = _with_numbers(sampler, iter([next(rest) for _ in numbers]) if self.lift else None)
                before = list(_settings(twin))
                started = state.with_tensors(dict(zip(chain, rest, strict=True)))
                moved, totals = eager(twin, energy, started, n_steps, generator=generator)
            if not _same(before, list(_settings(twin))):
                raise ImpureStepError("its step changes the sampler's attributes: keep what a chain carries in its state")
            if not _same(list(_beside_tensors(started)), list(_beside_tensors(moved))):
                raise ImpureStepError("its state carries something that changes and is no tensor: make it a tensor")
            self.names, self.told = list(moved.tensors()), list(totals)
            return [*moved.tensors().values(), *totals.values()]

        try:
            traced = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*weights, *numbers, *chain.values())
        except CannotCompileError:
            raise
        except Exception as error:  # whatever the sampler's or the energy's code does with tensors that hold no values
            raise ImpureStepError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        finally:
            changed = [
                module for module, before in attributes if not _same(list(before.values()), list(vars(module).values()))
            ]
            for module, before in attributes:
                vars(module).clear()
                vars(module).update(before)
        if changed:
            raise ImpureStepError(f"the forward of {type(changed[0]).__name__} changes its attributes")
        return traced, tracing.n_drawn


class Fingerprint(NamedTuple):
    """What traced code may depend on apart from values of tensors and the number of chains."""

    settings: list[Any]
    others: list[Any]

    @classmethod
    def of(cls, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Fingerprint:
        """That of a call."""
        device = _device(state).type
        others = [
            n_steps,
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
            *((name, t.shape[1:], t.stride(), t.dtype, t.device) for name, t in state.tensors().items()),
            *((name, t.shape, t.stride(), t.dtype, t.device) for _, name, t in _weights(energy)),
            *_beside_tensors(state),
            *(value for module in all_modules(energy) for value in _code(module)),
        ]
        return cls(list(_settings(sampler)), others)

    def equals(self, other: Fingerprint, *, whatever_numbers: bool) -> bool:
        """Whether both are the same, the sampler's numbers apart if so wished."""
        return _same(self.settings, other.settings, whatever_numbers) and _same(self.others, other.others)


def _found(eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Transitions:
    """A graph, or what takes its place."""
    known, now = _KNOWN.setdefault(energy, []), Fingerprint.of(sampler, energy, state, n_steps)
    fitting = [one for one in known if one.fits(sampler, now)]
    exact = [one for one in fitting if one.n_chains in (len(state), None)]
    if exact and not isinstance(exact[0], _Seen):
        return exact[0]
    if any(isinstance(one, Graph) and one.n_chains is not None and one.n_chains > len(state) for one in fitting):
        return eager
    if exact:
        known[known.index(exact[0])] = made = _made(eager, sampler, energy, state, n_steps)
        return made
    if len(known) >= MAX_KNOWN:
        reason = f"{MAX_KNOWN} kinds of call were seen: what the sampler or the energy is set to changes from call to call"
        known.append(_instead(eager, sampler, reason))
    else:
        known.append(_Seen(eager, now, len(state)))
    return known[-1]


class _Seen:
    """A call that was made once: whether it comes again remains to be seen, and what its energy makes at first is made."""

    def __init__(self, eager: Transitions, fingerprint: Fingerprint, n_chains: int) -> None:
        self.eager = eager
        self.fingerprint = fingerprint
        self.n_chains: int | None = n_chains

    def fits(self, sampler: Any, now: Fingerprint) -> bool:
        """Whether it was the same."""
        return self.fingerprint.equals(now, whatever_numbers=False)

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: torch.Generator | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        return self.eager(sampler, energy, state, n_steps, generator=generator)


def _made(eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Graph | _GradientsAlone:
    try:
        graph = traced(eager, sampler, energy, state, n_steps)
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

    def fits(self, sampler: Any, now: Fingerprint) -> bool:
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


_KNOWN: WeakKeyDictionary[nn.Module, list[Graph | _Seen | _GradientsAlone]] = WeakKeyDictionary()
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
    at, in_place_of_sampler = _Positions(x, name_conditions(args, kwargs, x)), _Gradient()
    find = _found(_gradient_as_a_step, in_place_of_sampler, energy, at, 1)
    there, value = find(in_place_of_sampler, energy, at, 1)
    return value["energy"], there.x


def _gradient_as_a_step(
    _: Any, energy: nn.Module, at: _Positions, n: int, *, generator: torch.Generator | None = None
) -> tuple[_Positions, dict[str, Tensor]]:
    value, grad = differentiate(condition(energy, at.conditions), at.x)
    return _Positions(grad, at.conditions), {"energy": value.detach()}


class Draw:
    """A call that draws random numbers, apart from its generator."""

    def __init__(self, function: Any, *args: Any, **kwargs: Any) -> None:
        self.function = partial(function, *args, **kwargs)

    def __call__(self, generator: torch.Generator | None) -> Tensor:
        numbers: Tensor = self.function(generator=generator)
        return numbers


def _filled(
    fill: str, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device, **kwargs: Any
) -> Tensor:
    # As torch fills a tensor like another: in the order in which it lies in memory.
    numbers: Tensor = getattr(torch.empty_strided(shape, stride, dtype=dtype, device=device), fill)(**kwargs)
    return numbers


_FILL = {aten.randn_like: "normal_", aten.rand_like: "uniform_", aten.normal: "normal_"}


def _take_out_draws(module: torch.fx.GraphModule, n_drawn: int) -> list[Draw]:
    """Turn the nodes that draw random numbers into inputs; return what fills these, in order."""
    graph = module.graph
    random = [node for node in graph.nodes if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())]
    if len(random) != n_drawn:
        raise CannotCompileError("random numbers are drawn that are not of the step's generator")
    last_input = [node for node in graph.nodes if node.op == "placeholder"][-1]
    draws = []
    for i, node in enumerate(random):
        function, value = node.target.overloadpacket, node.meta["val"]
        of_moments = function is aten.normal and bool(node.all_input_nodes)
        if function in _FILL and node.all_input_nodes and (not of_moments or len(node.args) == 2):
            draws.append(Draw(_filled, _FILL[function], value.shape, value.stride(), value.dtype, value.device))
        elif not node.all_input_nodes:
            draws.append(Draw(function, *node.args, **{k: v for k, v in node.kwargs.items() if v is not None}))
        else:
            raise CannotCompileError(
                f"its step draws from {function}, of a distribution that it computes: draw uniform or normal numbers and "
                "transform them"
            )
        with graph.inserting_after(last_input):
            noise = last_input = graph.placeholder(f"noise_{i}")
            noise.meta["val"] = value
        if of_moments:
            mean, std = node.args
            with graph.inserting_before(node):
                noise = graph.call_function(torch.add, (graph.call_function(torch.mul, (noise, std)), mean))
        node.replace_all_uses_with(noise)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return draws


class _Tracing(TorchFunctionMode):
    """What calls of torch are while steps are traced.

    Tensors may stand where operators take numbers, ``add(x, y, alpha=t)``; and calls that draw from the steps' generator are
    counted, to tell them from others.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.n_drawn = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is self.generator:
            del kwargs["generator"]  # no graph holds one
            self.n_drawn += 1
        if isinstance(kwargs.get("alpha"), Tensor):
            first, second, *rest = args
            args = (first, kwargs.pop("alpha") * second, *rest)
        return function(*args, **kwargs)


def _device(state: Any) -> torch.device:
    device: torch.device = next(iter(state.tensors().values())).device
    return device


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
    return (value for value in _settings(sampler) if type(value) is float)


def _settings(sampler: Any) -> Iterator[Any]:
    """Whatever a sampler, and those that it is made of, are set to."""
    yield type(sampler)
    for name in _names(sampler):
        yield name
        yield from _within(getattr(sampler, name, None))


def _names(sampler: Any) -> list[str]:
    slots = [name for cls in type(sampler).__mro__ for name in getattr(cls, "__slots__", ())]
    return [*getattr(sampler, "__dict__", {}), *slots]


def _within(value: Any) -> Iterator[Any]:
    """A value; of containers what they hold, for that can change where it is."""
    if isinstance(value, list | tuple):
        yield type(value)
        for item in value:
            yield from _within(item)
    elif isinstance(value, dict):
        yield type(value)
        for key, item in value.items():
            yield key
            yield from _within(item)
    elif _is_sampler(value):
        yield from _settings(value)
    else:
        yield value
        if isinstance(value, Tensor) and value.numel() == 1:  # whose value may have been read
            yield value._version


def _is_sampler(value: Any) -> bool:
    return not isinstance(value, type) and hasattr(value, "step") and hasattr(value, "refresh")


def _with_numbers(sampler: Any, numbers: Iterator[Tensor] | None) -> Any:
    """A copy of a sampler and of the containers in it, with tensors in place of its numbers, in the order of `_numbers`."""

    def copied(value: Any) -> Any:
        if type(value) is float and numbers is not None:
            return next(numbers)
        if type(value) in (list, tuple):
            return type(value)(copied(item) for item in value)
        if type(value) is dict:
            return {key: copied(item) for key, item in value.items()}
        return _with_numbers(value, numbers) if _is_sampler(value) else value

    twin = copy.copy(sampler)
    for name in _names(sampler):
        if hasattr(sampler, name):
            object.__setattr__(twin, name, copied(getattr(sampler, name)))
    return twin


def _beside_tensors(state: Any) -> Iterator[Any]:
    """What a state carries that is no tensor."""
    yield type(state)
    for name, value in vars(state).items():
        if hasattr(value, "with_tensors"):
            yield from _beside_tensors(value)
        elif not isinstance(value, Tensor | Mapping):
            yield name
            yield from _within(value)


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OF_EVERY_MODULE = frozenset((*vars(nn.Module()), _CLOSED_FORM))


def _code(module: nn.Module) -> Iterator[Any]:
    """What the forward of a module, apart from its tensors, may depend on."""
    yield type(module)
    for name, value in vars(module).items():
        if name not in _OF_EVERY_MODULE:
            yield name
            yield from _within(value)
    for name in _HOOKS:
        yield from (id(hook) for hook in vars(module)[name].values())  # by number: a hook may hold the energy


_COMPARED_BY_VALUE = frozenset((int, float, bool, str, torch.Size, torch.dtype, torch.device))


def _same(a: Sequence[Any], b: Sequence[Any], whatever_numbers: bool = False) -> bool:
    return len(a) == len(b) and all(
        s is t or (type(s) is type(t) and _alike(s, t, whatever_numbers)) for s, t in zip(a, b, strict=True)
    )


def _alike(s: Any, t: Any, whatever_numbers: bool) -> bool:
    if type(s) is float and whatever_numbers:
        return True
    return bool(s == t) if type(s) in _COMPARED_BY_VALUE else type(s) is tuple and _same(s, t)

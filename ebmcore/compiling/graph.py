"""Traces the transitions of a sampler into one graph and compiles it.

Everything that may change is an input of the graph: the chains' state, the energy's parameters and buffers, the sampler's tensors and
floating-point options, and the random numbers. Those are drawn outside by torch's generators, in the order in which the steps ask for
them, so that the graph gives what the steps give.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ebmcore.compiling.guards import Guard, Options, device_of, tensors_of, with_options
from ebmcore.errors import EbmcoreError
from ebmcore.samplers import eager_transitions

__all__ = ["CannotCompileError", "Graph", "ImpureStepError", "compile_with_inductor", "trace"]

aten = torch.ops.aten


class CannotCompileError(EbmcoreError):
    """Raised for transitions that cannot be made a graph; the message says why."""


class ImpureStepError(CannotCompileError):
    """Raised for transitions that are no function of tensors: they read a tensor's values or change the sampler."""


def trace(sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Graph:
    """Trace transitions into a graph that is not compiled yet and that can be called as `eager_transitions` is.

    Args:
        sampler: The sampler, whose ``step`` must be pure.
        energy: The energy, frozen. It was called before, so that lazy modules have their parameters.
        state: Gives names, shapes, dtypes and device.
        n_steps: Number of transitions.

    Raises:
        ImpureStepError: If a step reads the values of tensors, or changes the sampler or the energy.
        CannotCompileError: If a step draws from a distribution that it computes, or not from its generator.
    """
    try:
        return Graph(sampler, energy, state, n_steps, lift=True)
    except CannotCompileError:  # numbers that pass through math.sqrt and the like are constants of the graph
        return Graph(sampler, energy, state, n_steps, lift=False)


class Graph:
    """Traced transitions, a function of the state, the energy's tensors, the sampler's options and a generator.

    Args:
        sampler: See `trace`.
        energy: See `trace`.
        state: See `trace`.
        n_steps: See `trace`.
        lift: Whether the sampler's floating-point options are inputs of the graph. Otherwise they are constants.
    """

    def __init__(self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, lift: bool) -> None:
        if lift and Options.of(sampler).has_objects:  # they would use the numbers of the sampler, not those of the graph
            raise CannotCompileError("an attribute of the sampler is a function or an object that may read its options")
        self.lift = lift
        self.guard = Guard.of(sampler, energy, state, n_steps)
        self.n_chains = len(state)
        self.module, n_drawn = self._trace(sampler, energy, state, n_steps)
        self.constants = _constants(self.module)
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        first = len(tensors_of(energy))
        if lift and not all(node.users for node in inputs[first : first + len(self.guard.numbers)]):
            raise CannotCompileError("an option of the sampler does not enter its steps as an attribute")
        self.draws = _lift_random_numbers(self.module, n_drawn)
        self.call: Callable[..., Sequence[Tensor]] = self.module

    def matches(self, guard: Guard) -> bool:
        """Return whether the graph is that of a call with this guard, apart from the number of chains."""
        unwritten = all(tensor._version == version for tensor, version in self.constants)
        return unwritten and self.guard.matches(guard, any_numbers=self.lift)

    def compile(self, sampler: Any, energy: nn.Module, state: Any) -> None:
        """Compile the graph with inductor."""
        noise = [node.meta["val"] for node in self.module.graph.nodes if node.name.startswith("noise_")]
        zeros = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).zero_() for t in noise]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # inductor imports what torch has deprecated
            self.call = compile_with_inductor(self.module, _separate(self._inputs(sampler, energy, state, zeros)))

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: torch.Generator | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        inputs, device = (
            self._inputs(sampler, energy, state, [draw(generator) for draw in self.draws]),
            device_of(state).type,
        )
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):  # its casts are in the graph
                results = iter(self.call(*inputs))
        else:
            results = iter(self.call(*inputs))
        moved = state.with_tensors({name: next(results) for name in self.state_names})
        return moved, {name: next(results) for name in self.info_names}

    def _inputs(self, sampler: Any, energy: nn.Module, state: Any, noise: Sequence[Tensor]) -> list[Tensor]:
        options = Options.of(sampler)
        weights = [_column_major(tensor) for *_, tensor in tensors_of(energy)]
        numbers = [torch.tensor(number, dtype=torch.float64) for number in options.numbers] if self.lift else []
        return [*weights, *numbers, *options.tensors, *state.tensors().values(), *noise]

    def _trace(self, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> tuple[torch.fx.GraphModule, int]:
        from torch.fx.experimental.proxy_tensor import make_fx

        slots = [(owner, name) for owner, name, _ in tensors_of(energy)]
        options, chain = Options.of(sampler), state.tensors()
        generator = torch.Generator(device_of(state))
        mode = _Tracing(generator)

        def steps(*inputs: Tensor) -> list[Tensor]:
            rest = iter(inputs)
            with _swapped(slots, [next(rest) for _ in slots]), mode:
                numbers = iter([next(rest) for _ in options.numbers]) if self.lift else None
                twin = with_options(sampler, numbers, rest)
                before = Options.of(twin)
                start = state.with_tensors(dict(zip(chain, rest, strict=True)))
                moved, totals = eager_transitions(twin, energy, start, n_steps, generator=generator)
            if not Options.of(twin).equals(before):
                raise ImpureStepError("its step changes the sampler's attributes: keep what a chain carries in its state")
            carried = [(options.structure, options.numbers) for options in (Options.of(start), Options.of(moved))]
            if carried[0] != carried[1]:
                raise ImpureStepError("its state carries something that changes and is no tensor: make it a tensor")
            if any(t.dtype != chain[name].dtype for name, t in moved.tensors().items()):
                raise CannotCompileError("its step changes the type of a tensor of the state")
            self.state_names, self.info_names = list(moved.tensors()), list(totals)
            return [*moved.tensors().values(), *totals.values()]

        try:
            with _unchanged(energy):
                traced = make_fx(steps, _DECOMPOSITIONS, tracing_mode="fake", _allow_non_fake_inputs=True)(
                    *_separate(self._inputs(sampler, energy, state, []))
                )
        except CannotCompileError:
            raise
        except Exception as error:  # whatever the sampler's or the energy's code does with tensors that hold no values
            raise ImpureStepError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        return traced, mode.n_drawn


def compile_with_inductor(module: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compile a graph for inputs like these. It is called without torch's own guards: a `Guard` says when it fits."""
    compiled: Callable[..., Sequence[Tensor]] = torch._inductor.compile(copy.deepcopy(module), list(inputs))
    return compiled


def _constants(module: torch.fx.GraphModule) -> list[tuple[Tensor, int]]:
    tensors = {node.target: getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for tensor in tensors.values():
        if tensor.requires_grad:  # it would be stale after a training step
            raise CannotCompileError(
                f"a trained tensor of shape {tuple(tensor.shape)} is no parameter of the energy: give the energy the module that "
                "has it as an attribute"
            )
    return [(tensor, tensor._version) for tensor in tensors.values()]


def _separate(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach() for t in inputs]  # a tensor that is given twice would be taken for one input


def _column_major(weight: Tensor) -> Tensor:
    if weight.ndim != 2 or not 2 <= weight.shape[1] <= 4 or weight.stride() != (weight.shape[1], 1):
        return weight
    return weight.t().contiguous().t()


def _narrow_mm(a: Tensor, b: Tensor) -> Any:
    if not 1 <= len(b) <= 4 or a.dtype.itemsize < 4:  # half precision is summed up in float32 within a product
        return NotImplemented
    product = a[:, :1] * b[0]
    for i in range(1, len(b)):
        product = product + a[:, i : i + 1] * b[i]
    return product


def _narrow_addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _narrow_mm(a, b) if beta == alpha == 1 else NotImplemented
    return product if product is NotImplemented else bias + product


_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {aten.mm.default: _narrow_mm, aten.addmm.default: _narrow_addmm}


def _fill(fill: str, like: Tensor, generator: torch.Generator | None) -> Tensor:
    # torch fills a tensor in the order in which it lies in memory.
    numbers = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    filled: Tensor = getattr(numbers, fill)(generator=generator)
    return filled


def _draw(function: Any, args: Any, kwargs: Any, generator: torch.Generator | None) -> Tensor:
    numbers: Tensor = function(*args, **kwargs, generator=generator)
    return numbers


_FILL = {
    aten.randn: "normal_",
    aten.rand: "uniform_",
    aten.randn_like: "normal_",
    aten.rand_like: "uniform_",
    aten.normal: "normal_",
}


def _lift_random_numbers(module: torch.fx.GraphModule, n_drawn: int) -> list[Callable[[torch.Generator | None], Tensor]]:
    """Turn the nodes that draw random numbers into inputs; return what fills these, in order."""
    graph = module.graph
    random = [node for node in graph.nodes if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())]
    if len(random) != n_drawn:
        raise CannotCompileError("random numbers are drawn that are not of the step's generator")
    last_input = [node for node in graph.nodes if node.op == "placeholder"][-1]
    draws: list[Callable[[torch.Generator | None], Tensor]] = []
    for i, node in enumerate(random):
        function, value = node.target.overloadpacket, node.meta["val"]
        of_moments = function is aten.normal and bool(node.all_input_nodes)
        filled = function in _FILL and not node.target._schema.is_mutable
        if filled and (function is not aten.normal or (of_moments and len(node.args) == 2)):
            draws.append(partial(_fill, _FILL[function], value))
        elif not node.all_input_nodes:
            draws.append(partial(_draw, function, node.args, {k: v for k, v in node.kwargs.items() if v is not None}))
        else:
            raise CannotCompileError(
                f"its step draws from {function}, of a distribution that it computes or in a tensor's place: draw uniform or "
                "normal numbers by torch.rand or torch.randn and transform them"
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
    """Counts the calls that draw from the steps' generator, and lets a tensor stand for ``alpha``, as in ``add(x, y, alpha=t)``."""

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


@contextmanager
def _swapped(slots: Sequence[tuple[dict[str, Any], str]], tensors: Iterable[Tensor]) -> Iterator[None]:
    own = [owner[name] for owner, name in slots]
    try:
        for (owner, name), tensor in zip(slots, tensors, strict=True):
            owner[name] = tensor
        yield
    finally:
        for (owner, name), tensor in zip(slots, own, strict=True):
            owner[name] = tensor


@contextmanager
def _unchanged(energy: nn.Module) -> Iterator[None]:
    """Put back the attributes of every module, which a tensor without values must not enter; raise if one was changed."""
    before = [(module, dict(vars(module))) for module in energy.modules()]
    try:
        yield
    finally:
        after = [dict(vars(module)) for module, _ in before]
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
    for (module, old), new in zip(before, after, strict=True):
        if old.keys() != new.keys() or any(old[name] is not new[name] for name in old):
            raise ImpureStepError(f"the forward of {type(module).__name__} changes its attributes")

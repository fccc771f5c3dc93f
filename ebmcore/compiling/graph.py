"""Traces the transitions of a sampler into one graph and compiles it.

Inputs of the graph are the chains' state, the energy's tensors, the sampler's tensors and floating-point options, and random
numbers. Random numbers are drawn outside by torch's generators, in the order in which the steps ask for them.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ebmcore.compiling.guards import Guard, Options, map_options, tensors_of
from ebmcore.errors import EbmcoreError
from ebmcore.samplers import eager_transitions

aten = torch.ops.aten


class CannotCompileError(EbmcoreError):
    """Transitions that cannot be made a graph; the message says why."""


class ImpureStepError(CannotCompileError):
    """Transitions that are no function of tensors: they read a tensor's values or change the sampler."""


def trace(sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Graph:
    """Traces transitions into a graph that is not compiled yet; called as `eager_transitions` is. Raises `CannotCompileError`."""
    numbers = range(len(Options.of(sampler).numbers))
    with suppress(CannotCompileError):
        return Graph(sampler, energy, state, n_steps, numbers)
    lifted: Sequence[int] = ()  # a number that passes through math.sqrt, an if and the like is a constant of the graph
    for i in numbers:
        with suppress(CannotCompileError):
            lifted = Graph(sampler, energy, state, 1, [*lifted, i]).lifted
    return Graph(sampler, energy, state, n_steps, lifted)


class Graph:
    """Traced transitions; those of the sampler's floats that are ``lifted`` (by place) are inputs, the others constants."""

    def __init__(self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, lifted: Sequence[int]) -> None:
        if lifted and Options.of(sampler).objects:  # they would use the numbers of the sampler, not those of the graph
            raise CannotCompileError("an attribute of the sampler is a function or an object that may read its options")
        self.lifted = lifted
        self.guard = Guard.of(sampler, energy, state, n_steps)
        self.n_chains = len(state)
        self.module, n_drawn = self._trace(sampler, energy, state, n_steps)
        find, first = self.module.graph.find_nodes, len(tensors_of(energy))
        if any(getattr(self.module, node.target).requires_grad for node in find(op="get_attr")):
            raise CannotCompileError("a trained tensor is no parameter of the energy: give it the module that has it")
        if not all(node.users for node in list(find(op="placeholder"))[first : first + len(lifted)]):
            raise CannotCompileError("an option of the sampler does not enter its steps as an attribute")
        self.draws = _lift_random_numbers(self.module, n_drawn)
        self.call: Callable[..., Sequence[Tensor]] = self.module

    def compile(self, sampler: Any, energy: nn.Module, state: Any) -> None:
        generator = torch.Generator(state.x.device)
        inputs = self._inputs(sampler, energy, state, [draw(generator=generator) for draw in self.draws])
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of what inductor imports
            self.call = compile_with_inductor(self.module, [t.detach() for t in inputs])

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: torch.Generator | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        inputs = self._inputs(sampler, energy, state, [draw(generator=generator) for draw in self.draws])
        with torch.autocast(state.x.device.type, enabled=False):  # its casts are in the graph
            results = iter(self.call(*inputs))
        moved = state.with_tensors({name: next(results) for name in self.state_names})
        return moved, {name: next(results) for name in self.info_names}

    def _inputs(self, sampler: Any, energy: nn.Module, state: Any, noise: Sequence[Tensor]) -> list[Tensor]:
        options, weights = Options.of(sampler), [_by_columns(tensor) for *_, tensor in tensors_of(energy)]
        numbers = [torch.tensor(options.numbers[i], dtype=torch.float64) for i in self.lifted]
        return [*weights, *numbers, *options.tensors, *state.tensors().values(), *noise]

    def _trace(self, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> tuple[torch.fx.GraphModule, int]:
        from torch.fx.experimental.proxy_tensor import make_fx

        n_weights, options, chain = len(tensors_of(energy)), Options.of(sampler), state.tensors()
        mode = _Tracing(torch.Generator(state.x.device))

        def steps(*inputs: Tensor) -> list[Tensor]:
            rest = iter(inputs[n_weights:])
            numbers = iter([next(rest) if i in self.lifted else number for i, number in enumerate(options.numbers)])
            held = iter([next(rest) for _ in options.tensors])

            def replaced(leaf: Any) -> Any:
                return next(numbers) if type(leaf) is float else next(held) if isinstance(leaf, Tensor) else leaf

            twin = map_options(replaced, sampler)
            before, start = Options.of(twin), state.with_tensors(dict(zip(chain, rest, strict=True)))
            with _holding(energy, inputs[:n_weights]), mode:
                moved, totals = eager_transitions(twin, energy, start, n_steps, generator=mode.generator)
            after = Options.of(twin)
            if after.constants() != before.constants() or not all(map(operator.is_, after.tensors, before.tensors)):
                raise ImpureStepError("its step changes the sampler's attributes: keep what a chain carries in its state")
            was, now = Options.of(start), Options.of(moved)
            if was.constants() != now.constants() or was.numbers != now.numbers:
                raise ImpureStepError("its state carries something that changes and is no tensor: make it a tensor")
            if any(t.dtype != chain[name].dtype for name, t in moved.tensors().items()):
                raise CannotCompileError("its step changes the type of a tensor of the state")
            self.state_names, self.info_names = list(moved.tensors()), list(totals)
            return [*moved.tensors().values(), *totals.values()]

        try:
            fake = make_fx(steps, _DECOMPOSITIONS, tracing_mode="fake", _allow_non_fake_inputs=True)
            inputs = self._inputs(sampler, energy, state, [])  # a tensor that is given twice would be taken for one input
            return fake(*(t.detach() for t in inputs)), mode.n_drawn
        except CannotCompileError:
            raise
        except Exception as error:  # of the sampler's or the energy's own code, given tensors that hold no values
            raise ImpureStepError(summary(error)) from error


def summary(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def compile_with_inductor(module: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compiles a graph for inputs like these. It is called without torch's own guards: a `Guard` says when it fits."""
    # What calls the kernels is C++ too: a Langevin step of an MLP 2-128-128-1 with 64 chains takes 0.95 of the time.
    options = {"cpp_wrapper": all(t.device.type == "cpu" for t in inputs)}
    return torch._inductor.compile(copy.deepcopy(module), list(inputs), options)  # type: ignore[no-any-return]


def _by_columns(weight: Tensor) -> Tensor:
    """Returns a weight (n, 2) to (n, 4) column by column: inductor's kernel reads it by rows of n, not number by number.

    A Langevin step of an MLP 2-128-128-1 takes 0.94, 0.91 and 0.90 of the time with 64, 256 and 1,024 chains (AMD EPYC, AVX-512).
    """
    narrow = weight.ndim == 2 and 2 <= weight.shape[1] <= 4 and weight.is_contiguous()
    return weight.t().contiguous().t() if narrow else weight


def _narrow_mm(a: Tensor, b: Tensor) -> Any:
    """A product over up to 4 columns as a sum that inductor fuses with what is around it: a tenth of the time of 20 steps."""
    if not 1 <= len(b) <= 4 or a.dtype.itemsize < 4:  # half precision is summed up in float32 within a product
        return NotImplemented
    return reduce(torch.add, [a[:, i : i + 1] * row for i, row in enumerate(b)])


def _narrow_addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _narrow_mm(a, b) if beta == alpha == 1 else NotImplemented
    return product if product is NotImplemented else bias + product


_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {aten.mm.default: _narrow_mm, aten.addmm.default: _narrow_addmm}


def _filling(fill: str, like: Tensor) -> Callable[..., Tensor]:
    # As torch fills a tensor like another: in the order in which it lies in memory.
    empty = partial(torch.empty_strided, like.shape, like.stride(), dtype=like.dtype, device=like.device)
    return lambda *, generator: getattr(empty(), fill)(generator=generator)


_FILL = dict.fromkeys((aten.randn, aten.randn_like, aten.normal), "normal_")
_FILL |= dict.fromkeys((aten.rand, aten.rand_like), "uniform_")


def _lift_random_numbers(module: torch.fx.GraphModule, n_drawn: int) -> list[Callable[..., Tensor]]:
    """Turns the nodes that draw random numbers into inputs; returns what fills these, in order."""
    graph = module.graph
    random = [node for node in graph.nodes if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())]
    if len(random) != n_drawn:
        raise CannotCompileError("random numbers are drawn that are not of the step's generator")
    last_input = list(graph.find_nodes(op="placeholder"))[-1]
    draws: list[Callable[..., Tensor]] = []
    for i, node in enumerate(random):
        function, value = node.target.overloadpacket, node.meta["val"]
        of_moments = function is aten.normal and bool(node.all_input_nodes)
        filled = function in _FILL and not node.target._schema.is_mutable
        if filled and (function is not aten.normal or (of_moments and len(node.args) == 2)):
            draws.append(_filling(_FILL[function], value))
        elif not node.all_input_nodes:
            draws.append(partial(function, *node.args, **{k: v for k, v in node.kwargs.items() if v is not None}))
        else:
            raise CannotCompileError(f"{node.target} draws in place or from a computed distribution: use torch.rand")
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
    """Counts the calls that draw from the steps' generator, and writes two functions in a form that suits a graph."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.n_drawn = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is self.generator:
            del kwargs["generator"]  # no graph holds one
            self.n_drawn += 1
        if isinstance(kwargs.get("alpha"), Tensor):  # of add(x, y, alpha=t), which takes numbers only
            first, second, *rest = args
            args = (first, kwargs.pop("alpha") * second, *rest)
        if function is nn.functional.silu and not kwargs.get("inplace") and len(args) == 1 and args[0].dtype.itemsize >= 4:
            # Its own gradient computes the sigmoid again: a Langevin step of an MLP 2-128-128-1 takes 0.94 of the time.
            return args[0] * args[0].sigmoid()
        return function(*args, **kwargs)


@contextmanager
def _holding(energy: nn.Module, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Puts tensors in the place of the energy's own, and afterwards all attributes back; raises if the energy changed one."""
    slots, before = tensors_of(energy), [(module, dict(vars(module))) for module in energy.modules()]
    try:
        for (owner, name, _), tensor in zip(slots, tensors, strict=True):
            owner[name] = tensor
        yield
        for module, attributes in before:
            now = vars(module)
            if now.keys() != attributes.keys() or any(now[name] is not attributes[name] for name in now):
                raise ImpureStepError(f"the forward of {type(module).__name__} changes its attributes")
    finally:
        for owner, name, own in slots:
            owner[name] = own
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)

"""Transitions of a sampler traced into one graph.

Everything that may change is handed in from outside: positions and whatever else a chain carries, the energy's parameters and
buffers, the sampler's numbers (step size, temperature), and the random numbers, which torch's own generators draw beforehand, in
the order in which the steps ask for them.
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
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ebmcore.compiling.guards import (
    Fingerprint,
    attribute_names,
    attributes_of,
    beside_tensors,
    calls_back,
    device_of,
    is_sampler,
    numbers_of,
    settings,
    tensors_of,
    version_of,
)
from ebmcore.errors import EbmcoreError

aten = torch.ops.aten

Transitions = Callable[..., tuple[Any, dict[str, Tensor]]]
"""``(sampler, energy, state, n_steps, generator=...) -> (state, totals)``, under ``torch.no_grad`` with the energy frozen."""


class CannotCompileError(EbmcoreError):
    """Transitions that no graph can make; the message says why."""


class ImpureStepError(CannotCompileError):
    """Transitions that are no function of tensors: they read values of tensors or change the sampler."""


def traced(eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int) -> Graph:
    """The transitions as a graph that is not compiled yet."""
    try:
        return Graph(eager, sampler, energy, state, n_steps)
    except CannotCompileError:  # numbers that pass through math.sqrt and the like stay as they are
        return Graph(eager, sampler, energy, state, n_steps, lift=False)


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
        if lift and calls_back(sampler):  # with numbers of the sampler itself, not of the copy that holds tensors
            raise CannotCompileError("an attribute of the sampler is a function, or an object that may know the sampler")
        self.lift = lift
        self.kind = type(sampler)
        self.n_chains: int | None = len(state)
        self.fingerprint = Fingerprint.of(sampler, energy, state, n_steps)
        self.module, n_drawn = self._trace(eager, sampler, energy, state, n_steps)
        self.constants = _constants(self.module)
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        n_weights, n_numbers = len(tensors_of(energy)), len(self._numbers(sampler))
        if not all(node.users for node in inputs[n_weights : n_weights + n_numbers]):
            # Not used, or by a way round the copy that holds them as tensors: then they are constants of this graph.
            raise CannotCompileError("a number of the sampler does not enter its steps as an attribute")
        self.draws = _take_out_draws(self.module, n_drawn)
        self.call: Callable[..., Sequence[Tensor]] = self.module

    def fits(self, sampler: Any, now: Fingerprint) -> bool:
        """Whether it was traced from these, apart from the values of tensors and numbers and from the number of chains."""
        unchanged = all(version_of(tensor) == version for tensor, version in self.constants)
        return unchanged and self.fingerprint.equals(now, whatever_numbers=self.lift)

    def holds_numbers(self, now: Fingerprint) -> bool:
        """Whether it was traced from the same but for numbers that are constants of the graph."""
        return not self.lift and self.fingerprint.equals(now, whatever_numbers=True)

    def compile(self, sampler: Any, energy: nn.Module, state: Any) -> None:
        """Compile it by inductor."""
        noise = [node.meta["val"] for node in self.module.graph.nodes if node.name.startswith("noise_")]
        zeros = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).zero_() for t in noise]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # inductor imports what torch has deprecated
            self.call = by_inductor(self.module, _apart(self._inputs(sampler, energy, state, zeros)))

    def __call__(
        self, sampler: Any, energy: nn.Module, state: Any, n_steps: int, *, generator: torch.Generator | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        results = iter(self._results(sampler, energy, state, [draw(generator=generator) for draw in self.draws]))
        moved = state.with_tensors({name: next(results) for name in self.names})
        return moved, {name: next(results) for name in self.told}

    def _results(self, sampler: Any, energy: nn.Module, state: Any, noise: Sequence[Tensor]) -> Sequence[Tensor]:
        # Under a dispatch mode, such as one of tensors without values, operators are asked for one by one.
        call = self.call if _get_current_dispatch_mode() is None else self.module
        inputs, device = self._inputs(sampler, energy, state, noise), device_of(state).type
        if not torch.is_autocast_enabled(device):
            return call(*inputs)
        with torch.autocast(device, enabled=False):  # its casts are in the graph
            return call(*inputs)

    def _inputs(self, sampler: Any, energy: nn.Module, state: Any, noise: Sequence[Tensor]) -> list[Tensor]:
        weights = [tensor for *_, tensor in tensors_of(energy)]
        return [*weights, *self._numbers(sampler), *state.tensors().values(), *noise]

    def _numbers(self, sampler: Any) -> list[Tensor]:
        return [torch.tensor(number, dtype=torch.float64) for number in numbers_of(sampler)] if self.lift else []

    def _trace(
        self, eager: Transitions, sampler: Any, energy: nn.Module, state: Any, n_steps: int
    ) -> tuple[torch.fx.GraphModule, int]:
        from torch.fx.experimental.proxy_tensor import make_fx

        slots = [(owner, name) for owner, name, _ in tensors_of(energy)]
        weights, numbers, chain = [t for *_, t in tensors_of(energy)], self._numbers(sampler), state.tensors()
        modules = [(module, dict(vars(module)), attributes_of(module)) for module in list(energy.modules())]
        generator = torch.Generator(device_of(state))
        tracing = _Tracing(generator)

        def flat(*inputs: Tensor) -> list[Tensor]:
            rest = iter(inputs)
            with _in_place_of(slots, [next(rest) for _ in weights]), tracing:
                twin = _with_numbers(sampler, iter([next(rest) for _ in numbers]) if self.lift else None)
                before = settings(twin)
                started = state.with_tensors(dict(zip(chain, rest, strict=True)))
                moved, totals = eager(twin, energy, started, n_steps, generator=generator)
            if before != settings(twin):
                raise ImpureStepError("its step changes the sampler's attributes: keep what a chain carries in its state")
            if beside_tensors(started) != beside_tensors(moved):
                raise ImpureStepError("its state carries something that changes and is no tensor: make it a tensor")
            if any(t.dtype != chain[name].dtype for name, t in moved.tensors().items()):
                raise CannotCompileError("its step changes the type of a tensor of the state")
            self.names, self.told = list(moved.tensors()), list(totals)
            return [*moved.tensors().values(), *totals.values()]

        try:
            trace = make_fx(flat, _NARROW, tracing_mode="fake", _allow_non_fake_inputs=True)
            traced = trace(*_apart([*weights, *numbers, *chain.values()]))
        except CannotCompileError:
            raise
        except Exception as error:  # whatever the sampler's or the energy's code does with tensors that hold no values
            raise ImpureStepError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        finally:
            changed = [module for module, _, before in modules if before != attributes_of(module)]
            for module, own, _ in modules:
                vars(module).clear()
                vars(module).update(own)
        if changed:
            raise ImpureStepError(f"the forward of {type(changed[0]).__name__} changes its attributes")
        return traced, tracing.n_drawn


def _constants(module: torch.fx.GraphModule) -> list[tuple[Tensor, int]]:
    """The tensors that the graph holds, each with its version; raises if one is trained, which would be stale after a step."""
    tensors = {node.target: getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for tensor in tensors.values():
        if tensor.requires_grad:
            raise CannotCompileError(
                f"a trained tensor of shape {tuple(tensor.shape)} is no parameter of the energy: give the energy the module that "
                "has it as an attribute"
            )
    return [(tensor, version_of(tensor)) for tensor in tensors.values()]


def _apart(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors, each an object of its own: one that is given twice would be taken for one input."""
    return [t.detach() for t in inputs]


def by_inductor(module: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The graph compiled for inputs like these, which is not checked: a `Fingerprint` tells when it fits."""
    compiled: Callable[..., Sequence[Tensor]] = torch._inductor.compile(copy.deepcopy(module), list(inputs))
    return compiled


def _narrow_mm(a: Tensor, b: Tensor) -> Any:
    """A product over few columns as a sum of outer products, which inductor fuses with what is around it; others stay."""
    if not 1 <= len(b) <= 4 or a.dtype.itemsize < 4:  # half precision is summed up in float32 within a product
        return NotImplemented
    product = a[:, :1] * b[0]
    for i in range(1, len(b)):
        product = product + a[:, i : i + 1] * b[i]
    return product


def _narrow_addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    product = _narrow_mm(a, b) if beta == alpha == 1 else NotImplemented
    return product if product is NotImplemented else bias + product


_NARROW: dict[Any, Callable[..., Any]] = {aten.mm.default: _narrow_mm, aten.addmm.default: _narrow_addmm}


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


_FILL = {
    aten.randn: "normal_",
    aten.rand: "uniform_",
    aten.randn_like: "normal_",
    aten.rand_like: "uniform_",
    aten.normal: "normal_",
}


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
        filled = function in _FILL and not node.target._schema.is_mutable
        if filled and (function is not aten.normal or (of_moments and len(node.args) == 2)):
            draws.append(Draw(_filled, _FILL[function], value.shape, value.stride(), value.dtype, value.device))
        elif not node.all_input_nodes:
            draws.append(Draw(function, *node.args, **{k: v for k, v in node.kwargs.items() if v is not None}))
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


def _with_numbers(sampler: Any, numbers: Iterator[Tensor] | None) -> Any:
    """A copy of a sampler and of the containers in it, with tensors in place of its numbers, in the order of `numbers_of`."""

    def copied(value: Any) -> Any:
        if type(value) is float and numbers is not None:
            return next(numbers)
        if type(value) in (list, tuple):
            return type(value)(copied(item) for item in value)
        if type(value) is dict:
            return {key: copied(item) for key, item in value.items()}
        return _with_numbers(value, numbers) if is_sampler(value) else value

    twin = copy.copy(sampler)
    for name in attribute_names(sampler):
        if hasattr(sampler, name):
            object.__setattr__(twin, name, copied(getattr(sampler, name)))
    return twin

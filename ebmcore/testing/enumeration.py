r"""Exact probabilities of what a random function does, by enumerating what it could have drawn.

A sampler on a discrete space draws uniform numbers and compares them with probabilities. Between two thresholds the outcome
does not depend on the number, so that finitely many numbers stand for all: `outcomes` runs the function with one number of
each interval, notes the thresholds that it is compared with, and splits the intervals until none is left to split. The
probability of an outcome is the product of the lengths of its intervals, exact to rounding. The function itself needs
no change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ebmcore.energies import frozen
from ebmcore.errors import EbmcoreError
from ebmcore.samplers import ChainState, Sampler
from ebmcore.testing.targets import Enumerable

_MAX_ROWS = 200_000
_MAX_STATES = 2_000


class NotEnumerableError(EbmcoreError):
    """The function draws random numbers in a way that cannot be enumerated; the message says which."""


class Outcome(NamedTuple):
    """Outcomes of a random function, one in each row.

    Args:
        start: Input row of each outcome, int64 ``(R,)``.
        probability: Given that input row, float64 ``(R,)``.
        value: What the function returned ``(R, ...)``.
    """

    start: Tensor
    probability: Tensor
    value: Tensor


def transition_matrix(sampler: Sampler, energy: Enumerable) -> Tensor:
    """``P[i, j]``, the exact probability of going from state ``i`` to state ``j`` in one step; float64.

    Args:
        sampler: A sampler whose chains have no memory.
        energy: A target in double precision; the order is that of ``energy.states()``.

    Raises:
        NotEnumerableError: If it draws other than uniform, Bernoulli or categorical numbers, one or more for each chain.

    Example:
        >>> from ebmcore.testing import Boltzmann, Identity
        >>> torch.equal(transition_matrix(Identity(), Boltzmann(2).double()), torch.eye(4, dtype=torch.float64))
        True
    """
    states = energy.states()

    def step(start: Tensor) -> Tensor:
        state = sampler.init(energy, states[start])
        return sampler.step(energy, state)[0].x

    with frozen(energy), torch.no_grad():
        found = outcomes(step, len(states))
        matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
        return matrix.index_put_((found.start, energy.codes(found.value)), found.probability, accumulate=True)


def stationary_law(sampler: Sampler, energy: Enumerable) -> Tensor:
    """The exact long-run probability of each state of the target, ``(S,)`` float64, for chains with any further state.

    Follows the whole state of the chains (replicas, caches) from `Sampler.init` at every state of the target to all that can be
    reached, and solves for the law that a step leaves invariant.

    Args:
        sampler: A sampler whose chains reach finitely many states.
        energy: A target in double precision; the order is that of ``energy.states()``.

    Raises:
        NotEnumerableError: See `transition_matrix`; also if more than 2,000 states are reached.

    Example:
        >>> from ebmcore.testing import Boltzmann, SiteGibbs
        >>> target = Boltzmann(2).double()
        >>> bool((stationary_law(SiteGibbs(), target) - target.probabilities()).abs().max() < 1e-12)
        True
    """
    with frozen(energy), torch.no_grad():
        with _NoOtherRandomness():  # type: ignore[no-untyped-call]
            first = sampler.init(energy, energy.states())
        shapes = {name: (t.shape[1:], t.dtype) for name, t in first.tensors().items()}

        def pack(state: ChainState) -> Tensor:
            return torch.cat([t.double().reshape(len(t), -1) for t in state.tensors().values()], 1)

        def unpack(packed: Tensor) -> ChainState:
            parts = packed.split([shape.numel() for shape, _ in shapes.values()], 1)
            named = zip(shapes.items(), parts, strict=True)
            return first.with_tensors({name: t.reshape(-1, *shape).to(dtype) for (name, (shape, dtype)), t in named})

        reached, moves = _unique(pack(first)), []
        done = 0
        while done < len(reached):
            new = reached[done:]
            found = outcomes(lambda i, new=new: pack(sampler.step(energy, unpack(new[i]))[0]), len(new))  # type: ignore[misc]
            moves.append((found.start + done, found.probability, found.value))
            done = len(reached)
            reached = torch.cat([reached, _missing(found.value, reached)])
            if len(reached) > _MAX_STATES:
                raise NotEnumerableError(f"chains reach more than {_MAX_STATES} states")
        start, probability, value = (torch.cat(parts) for parts in zip(*moves, strict=True))
        matrix = torch.zeros(len(reached), len(reached), dtype=torch.float64)
        matrix.index_put_((start, _positions_in(value, reached)), probability, accumulate=True)
        # The left eigenvector to the eigenvalue 1, as the solution of p (P - 1) = 0 with sum p = 1.
        system = torch.cat([matrix.T - torch.eye(len(matrix)), torch.ones(1, len(matrix))])
        right = torch.zeros(len(matrix) + 1, dtype=torch.float64)
        right[-1] = 1
        # On the CPU, which alone has this driver.
        law = torch.linalg.lstsq(system.double().cpu(), right[:, None].cpu(), driver="gelsd").solution[:, 0]
        codes = energy.codes(unpack(reached).x)
        return torch.zeros(len(energy.states()), dtype=torch.float64).index_add_(0, codes, law.to(codes.device))


def _keys(rows: Tensor) -> Tensor:
    return torch.round(rows * 1e8)  # caches that differ in the last digits are the same state


def _unique(rows: Tensor) -> Tensor:
    keys, which = torch.unique(_keys(rows), dim=0, return_inverse=True)
    first = torch.full((len(keys),), len(rows)).scatter_reduce_(0, which, torch.arange(len(rows)), "amin")
    return rows[first.sort().values]


def _positions_in(rows: Tensor, known: Tensor) -> Tensor:
    """Index in ``known`` of each row; -1 if there is none."""
    together, which = torch.unique(_keys(torch.cat([known, rows])), dim=0, return_inverse=True)
    table = torch.full((len(together),), -1).scatter_(0, which[: len(known)], torch.arange(len(known)))
    return table[which[len(known) :]]


def _missing(rows: Tensor, known: Tensor) -> Tensor:
    rows = _unique(rows)
    return rows[_positions_in(rows, known) < 0]


def outcomes(function: Callable[[Tensor], Tensor], n_inputs: int) -> Outcome:
    """All outcomes of a random function with their exact probabilities.

    Args:
        function: Maps input numbers ``(R,)``, each in ``range(n_inputs)``, to a tensor ``(R, ...)``, row by row.
        n_inputs: How many different inputs there are.

    Raises:
        NotEnumerableError: See `transition_matrix`; also if there are more than 200,000 outcomes.
    """
    start = torch.arange(n_inputs)
    low = torch.zeros(n_inputs, 0, dtype=torch.float64)
    high = torch.ones(n_inputs, 0, dtype=torch.float64)
    done: list[Outcome] = []
    while len(start):
        if len(start) > _MAX_ROWS:
            raise NotEnumerableError(f"more than {_MAX_ROWS} outcomes: use a smaller target")
        draws = _Draws(low, high)
        with draws, _NoOtherRandomness():  # type: ignore[no-untyped-call]
            value = function(start)
        if isinstance(value, _Uniform):
            raise NotEnumerableError("the result is a random number itself, not a choice made with one")
        low, high = draws.low, draws.high
        rows, thresholds = draws.first_split()
        settled = torch.ones(len(start), dtype=torch.bool)
        settled[rows] = False
        probability = (high - low).prod(1)
        done.append(Outcome(start[settled], probability[settled], value[settled]))
        start, low, high = _split(start, low, high, rows, thresholds)
    return Outcome(*(torch.cat(parts) for parts in zip(*done, strict=True)))


class _Split(NamedTuple):
    uniform: Tensor  # which uniform of the row, (M,)
    value: Tensor  # the threshold, (M,)


def _split(start: Tensor, low: Tensor, high: Tensor, rows: Tensor, thresholds: _Split) -> tuple[Tensor, Tensor, Tensor]:
    """Each of ``rows`` twice: below its threshold and above it."""
    below, above = high[rows].clone(), low[rows].clone()
    at = torch.arange(len(rows))
    below[at, thresholds.uniform] = thresholds.value
    above[at, thresholds.uniform] = thresholds.value
    return start[rows].repeat(2), torch.cat([low[rows], above]), torch.cat([below, high[rows]])


class _Draws(TorchFunctionMode):
    """Hands out the midpoints of intervals in place of random numbers, and notes what they are compared with."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.low, self.high = low, high
        self._count = 0
        self._compared: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("generator", None)
        name = getattr(func, "__name__", str(func))
        if name == "rand":
            size = args[0] if args and isinstance(args[0], list | tuple) else (args or kwargs.pop("size"))
            return self.uniform(size, kwargs.get("dtype") or torch.get_default_dtype())
        if name == "rand_like":
            return self.uniform(args[0].shape, kwargs.get("dtype") or args[0].dtype)
        if name == "bernoulli" and not isinstance(args[0], _Uniform) and len(args) == 1 and "p" not in kwargs:
            return self.uniform(args[0].shape, args[0].dtype).lt(args[0]).to(args[0].dtype)
        if name == "randint":
            *bounds, size = args if isinstance(args[-1], list | tuple) else (*args, kwargs.pop("size"))
            low, high = bounds if len(bounds) == 2 else (0, *bounds)
            edges = torch.arange(1, high - low, dtype=torch.float64) / (high - low)
            drawn = self.uniform((*size, 1), torch.float64).ge(edges).sum(-1) + low
            return drawn.to(kwargs.get("dtype") or torch.int64)
        if name == "multinomial" and (args[1:] or (kwargs.get("num_samples"),))[0] == 1 and args[0].ndim == 2:
            edges = torch.cumsum(args[0].double() / args[0].double().sum(1, keepdim=True), 1)[:, :-1]
            return self.uniform((len(args[0]), 1), torch.float64).ge(edges).sum(1, keepdim=True)
        return func(*args, **kwargs)

    def uniform(self, size: Sequence[int], dtype: torch.dtype) -> _Uniform:
        n_rows = len(self.low)
        if not size or size[0] == 0 or size[0] % n_rows:
            raise NotEnumerableError(f"it draws numbers of shape {tuple(size)}, which are not one or more for each chain")
        n = math.prod(size) // n_rows  # replicas of a chain are rows of their own, one after the other
        if (missing := self._count + n - self.low.shape[1]) > 0:
            self.low = torch.cat([self.low, self.low.new_zeros(n_rows, missing)], 1)
            self.high = torch.cat([self.high, self.high.new_ones(n_rows, missing)], 1)
        number = torch.arange(self._count, self._count + n).expand(n_rows, n)
        row = torch.arange(n_rows)[:, None].expand(n_rows, n)
        values = 0.5 * (self.low + self.high)[:, self._count : self._count + n]
        self._count += n
        shape = tuple(size)
        return _Uniform.make(values.to(dtype).reshape(shape), row.reshape(shape), number.reshape(shape), self)

    def compare(self, u: _Uniform, threshold: Tensor) -> None:
        shape = torch.broadcast_shapes(u.row.shape, threshold.shape)
        parts = (u.row.expand(shape), u.number.expand(shape), threshold.double().expand(shape))
        self._compared.append((parts[0].flatten(), parts[1].flatten(), parts[2].flatten()))

    def first_split(self) -> tuple[Tensor, _Split]:
        """The rows with a threshold inside one of their intervals, and the first such in the order of drawing."""
        if not self._compared:
            nothing = torch.zeros(0, dtype=torch.int64)
            return nothing, _Split(nothing, nothing.double())
        row, number, threshold = (torch.cat(parts) for parts in zip(*self._compared, strict=True))
        inside = (self.low[row, number] < threshold) & (threshold < self.high[row, number])
        row, number, threshold = row[inside], number[inside], threshold[inside]
        order = torch.argsort(row * (self._count + 1) + number, stable=True)
        row, number, threshold = row[order], number[order], threshold[order]
        first = torch.ones(len(row), dtype=torch.bool)
        first[1:] = row[1:] != row[:-1]
        return row[first], _Split(number[first], threshold[first])


class _Uniform(Tensor):
    """Uniform numbers that keep their identity through reshaping and the logarithm."""

    row: Tensor
    number: Tensor
    draws: _Draws
    is_log: bool

    _SHAPES = frozenset(
        {"view", "reshape", "unsqueeze", "squeeze", "expand", "flatten", "__getitem__", "unbind", "select", "expand_as"}
    )
    _CASTS = frozenset({"to", "double", "float", "type_as", "contiguous", "clone", "detach"})
    _COMPARISONS = frozenset({"lt", "le", "gt", "ge", "less", "less_equal", "greater", "greater_equal"})

    @staticmethod
    def make(values: Tensor, row: Tensor, number: Tensor, draws: _Draws, is_log: bool = False) -> _Uniform:
        u = values.as_subclass(_Uniform)
        u.row, u.number, u.draws, u.is_log = row, number, draws, is_log
        return u

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.__name__.removeprefix("__").removesuffix("__") if func.__name__ != "__getitem__" else "__getitem__"
        plain = [a.as_subclass(Tensor) if isinstance(a, _Uniform) else a for a in args]
        if name == "get":  # an attribute, such as shape
            return func(*plain)
        if name in ("dim", "size", "numel", "len"):
            return func(*plain)
        if name.removesuffix("_") in cls._COMPARISONS and len(args) == 2:
            u, other = args if isinstance(args[0], _Uniform) else args[::-1]
            if isinstance(other, _Uniform):
                raise NotEnumerableError("it compares two random numbers with each other")
            threshold = torch.as_tensor(other)
            u.draws.compare(u, threshold.double().exp() if u.is_log else threshold)
            return func(*plain)
        u = args[0]
        if isinstance(u, _Uniform) and name in cls._SHAPES and not any(isinstance(a, _Uniform) for a in args[1:]):
            parts = [func(t, *args[1:], **kwargs) for t in (plain[0], u.row, u.number)]
            if isinstance(parts[0], tuple):
                return tuple(cls.make(t, row, number, u.draws, u.is_log) for t, row, number in zip(*parts, strict=True))
            return cls.make(parts[0], parts[1], parts[2], u.draws, u.is_log)
        if isinstance(u, _Uniform) and name in cls._CASTS:
            return cls.make(func(*plain, **kwargs), u.row, u.number, u.draws, u.is_log)
        if isinstance(u, _Uniform) and name in ("log", "log_") and not u.is_log:
            return cls.make(plain[0].log(), u.row, u.number, u.draws, is_log=True)
        raise NotEnumerableError(f"it puts random numbers into {func.__name__}(), where only comparisons can be enumerated")


class _NoOtherRandomness(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotEnumerableError(f"it draws with {func}")
        return func(*args, **(kwargs or {}))

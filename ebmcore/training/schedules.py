r"""Schedules: numeric options that change during training.

A schedule is a function ``(step, n_steps) -> value`` of the number of optimizer steps done and the number of steps of the whole
run. `ebmcore.training.fit` takes a mapping of options to schedules and sets each option before each step::

    fit(loss, data, steps=1000, schedules={"sampler.step_size": Cosine(0.1, 0.01), "optimizer.lr": Linear(end=0.0)})

In a configuration file and on the command line a schedule is text, the class's name in lower case with its arguments::

    schedules: {sampler.step_size: "cosine(0.1, 0.01)", optimizer.lr: "linear(end=0)"}
    --schedules.sampler.step_size "cosine(0.1, 0.01)" --schedules.optimizer.lr "linear(end=0)"

What can be scheduled: each numeric option of the loss's constructor (``loss.energy_l2``), of its sampler's
(``sampler.step_size``), of a sampler within it (``sampler.inner.step_size``), and of the optimizer (``optimizer.lr``). A
component keeps the option in an attribute of the same name; it does nothing else for it. A schedule of a whole number, such as
``loss.k_steps``, is rounded.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from ebmcore.errors import UsageError
from ebmcore.training.numbers import check_magnitudes

__all__ = ["Constant", "Cosine", "Exponential", "Linear", "Piecewise", "Schedule", "as_schedule", "as_text"]

Schedule = Callable[[int, int], float]

_LONGEST = 2000  # characters of a schedule's text
# What wrong text raises; the last two are of deep nesting, and how deep depends on Python's version.
_WRONG = (SyntaxError, ValueError, TypeError, ArithmeticError, MemoryError, RecursionError)


@dataclass(frozen=True)
class Constant:
    """The same value at every step.

    Args:
        value: The value; `None` stands for the option's own, which takes the place of a recommended schedule.

    Example:
        >>> Constant(0.1)(5, 10)
        0.1
    """

    value: float | None = None

    def __call__(self, step: int, n_steps: int) -> float:
        return _known(self.value)


@dataclass(frozen=True)
class Linear:
    r"""A straight line, :math:`v(t) = a + (b - a)\, t / T` at step :math:`t` of :math:`T`.

    The value ``end`` is that after the last step, so that a learning rate that falls to 0 is above 0 in each step.

    Args:
        start: Value ``a`` of the first step; `None` stands for the option's own.
        end: Value ``b`` after the last step.

    Example:
        >>> [Linear(1.0, 0.0)(step, 4) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """

    start: float | None = None
    end: float = 0.0

    def __call__(self, step: int, n_steps: int) -> float:
        start = _known(self.start)
        return start + (self.end - start) * step / n_steps


@dataclass(frozen=True)
class Cosine:
    r"""Half a period of the cosine, :math:`v(t) = b + \tfrac12 (a - b) \big(1 + \cos(\pi t / T)\big)`.

    Args:
        start: Value ``a`` of the first step; `None` stands for the option's own.
        end: Value ``b`` after the last step.

    Example:
        >>> Cosine(0.1, 0.02)(0, 10), round(Cosine(0.1, 0.02)(5, 10), 6)
        (0.1, 0.06)
    """

    start: float | None = None
    end: float = 0.0

    def __call__(self, step: int, n_steps: int) -> float:
        start = _known(self.start)
        return start + (self.end - start) * (1 - math.cos(math.pi * step / n_steps)) / 2


@dataclass(frozen=True)
class Exponential:
    r"""A constant factor per step, :math:`v(t) = a\, (b / a)^{t / T}`. Both values must have the same sign.

    Args:
        start: Value ``a`` of the first step; `None` stands for the option's own.
        end: Value ``b`` after the last step.

    Example:
        >>> Exponential(1.0, 0.01)(5, 10)
        0.1
    """

    start: float | None = None
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.end == 0 or (self.start is not None and not self.end / (self.start or -self.end) > 0):
            raise ValueError(
                f"start and end of an exponential schedule must have one sign, got {self.start} and {self.end}: "
                "end at a small number in place of 0"
            )

    def __call__(self, step: int, n_steps: int) -> float:
        start = _known(self.start)
        return float(start * (self.end / start) ** (step / n_steps))


@dataclass(frozen=True)
class Piecewise:
    """Constant between given steps.

    Args:
        values: The values, one more than there are steps in ``at``.
        at: The steps at which the next value begins, in rising order.

    Example:
        >>> [Piecewise([0.1, 0.01], at=[2])(step, 4) for step in range(4)]
        [0.1, 0.1, 0.01, 0.01]
    """

    values: Sequence[float]
    at: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.at) + 1 or list(self.at) != sorted(set(self.at)):
            raise ValueError(
                f"a piecewise schedule has one value more than steps, which rise; got the values {self.values} at {self.at}"
            )

    def __call__(self, step: int, n_steps: int) -> float:
        return self.values[sum(step >= first for first in self.at)]


SCHEDULES: dict[str, type[Any]] = {
    kind.__name__.lower(): kind for kind in (Constant, Linear, Cosine, Exponential, Piecewise)
}


def as_schedule(option: str, schedule: Schedule | str) -> Schedule:
    """Read a schedule from its text, such as ``"cosine(0.1, 0.01)"``; return a function as it is.

    Raises:
        UsageError: If the text is not a schedule. The message is one line that names ``option``.

    Example:
        >>> as_schedule("sampler.step_size", "cosine(0.1, end=0.01)")
        Cosine(start=0.1, end=0.01)
    """
    if callable(schedule):
        return schedule
    text = str(schedule)
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"it has more than {_LONGEST} characters")
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("it is not a name with arguments")
        if call.func.id not in SCHEDULES:
            raise ValueError(f"there is no {call.func.id!r}{close_match(call.func.id, SCHEDULES)}")
        arguments = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        _check_arguments([*arguments, *named.values()])
        made: Schedule = SCHEDULES[call.func.id](*arguments, **named)
        float(from_value(made, 1.0)(0, 1))  # refuses values that are no numbers
        return made
    except _WRONG as error:
        reason = str(error).replace(".__init__()", "").partition(" (<unknown>")[0]
        raise UsageError(
            f"the schedule of {option}, {text[:100]!r}: {reason}; write one of {', '.join(SCHEDULES)} with its arguments, "
            'such as "cosine(0.1, 0.01)"'
        ) from error


def _check_arguments(values: Sequence[Any]) -> None:
    numbers = [number for value in values for number in (value if isinstance(value, (list, tuple)) else [value])]
    if any(isinstance(number, bool) or not isinstance(number, (int, float, type(None))) for number in numbers):
        raise ValueError("its arguments are numbers or lists of numbers")
    check_magnitudes(numbers, name="each of them")


def as_text(schedule: Schedule | str) -> str:
    """Text that `as_schedule` reads.

    Example:
        >>> as_text(Linear(end=0.1))
        'linear(end=0.1)'
    """
    kind: Any = type(schedule)
    if kind not in SCHEDULES.values():
        return str(schedule)
    values = {field.name: (getattr(schedule, field.name), field.default) for field in fields(kind)}
    shown = [f"{name}={value!r}" for name, (value, default) in values.items() if default is MISSING or value != default]
    return f"{kind.__name__.lower()}({', '.join(shown)})"


def close_match(name: str, known: Iterable[str]) -> str:
    """Advice on a name that is not known; empty where no known one is close."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def from_value(schedule: Schedule, value: float) -> Schedule:
    """The schedule with the option's own value where it begins at `None`."""
    if isinstance(schedule, Constant) and schedule.value is None:
        return replace(schedule, value=value)
    if isinstance(schedule, Linear | Cosine | Exponential) and schedule.start is None:
        return replace(schedule, start=value)
    return schedule


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("this schedule begins at the option's own value, which only fit() knows")
    return value

"""A check: a rule in words, the function that tries it, and the components to which it applies."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ebmcore.errors import EbmcoreError


class ConformanceError(AssertionError, EbmcoreError):
    """A component breaks the rule that a check tests; the message names the rule and says how far off it is."""


def expect(condition: bool, message: str) -> None:
    """Raise `ConformanceError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConformanceError(message)


@dataclass(frozen=True)
class Condition:
    """Condition on a component's declarations under which a check applies.

    Args:
        where: Completes "applies ...", e.g. ``"to persistent losses"``.
        holds: Whether it does.
    """

    where: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Check:
    """A rule: a function ``check_<rule>(case)`` that raises where a component breaks it.

    Args:
        function: The function; the first line of its docstring is the rule in words.
        since: Version of ebmcore that brought it.
        when: What a component must declare for it to apply.
    """

    function: Callable[[Any], None]
    since: str
    when: tuple[Condition, ...]

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def rule(self) -> str:
        """The rule in one sentence."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def obstacle(self, case: Any) -> str | None:
        """Reason why the check does not apply to a case; `None` if it applies."""
        return next((f"applies {condition.where}" for condition in self.when if not condition.holds(case)), None)


Function = TypeVar("Function", bound=Callable[[Any], None])
CHECKS: dict[str, Check] = {}


def check(*when: Condition, since: str) -> Callable[[Function], Function]:
    """Mark a function as a check that applies where all conditions hold."""

    def mark(function: Function) -> Function:
        CHECKS[function.__name__] = Check(function, since, when)
        return function

    return mark

"""Rules for components of every kind."""

from __future__ import annotations

import copy
import difflib
import pickle

from ebmcore._keywords import accepted_keywords
from ebmcore.testing import checks
from ebmcore.testing.cases import Case
from ebmcore.testing.rules import check, expect

UNKNOWN = "no_component_takes_this"


@check(since="0.1")
def check_unknown_keywords_are_rejected(case: Case) -> None:
    """The constructor takes named options only, and an unknown one is a TypeError."""
    accepted = accepted_keywords(case.component)
    expect(accepted is not None, "the constructor takes **kwargs, so that a typo in an option goes unnoticed: name them all")
    try:
        case.make(**{UNKNOWN: 1})
    except TypeError as error:
        # Python's own error of a class without a constructor names no option.
        named = UNKNOWN in str(error) or "takes no arguments" in str(error)
        expect(named, f"the error for an unknown option does not name it: {error}")
    else:
        expect(False, f"{UNKNOWN}=1 was accepted")


@check(since="0.1")
def check_it_can_be_pickled(case: Case) -> None:
    """A component survives pickling."""
    instance = case.make()
    try:
        again = pickle.loads(pickle.dumps(instance))  # noqa: S301 - what was just written
    except Exception as error:
        raise AssertionError(f"pickle fails with {type(error).__name__}: {error}") from error
    expect(type(again) is type(instance), f"pickling turns it into a {type(again).__name__}")


@check(since="0.1")
def check_it_can_be_copied(case: Case) -> None:
    """copy.deepcopy makes another object of the same type."""
    instance = case.make()
    other = copy.deepcopy(instance)
    expect(other is not instance, "deepcopy returns the very same object")
    expect(type(other) is type(instance), f"deepcopy turns it into a {type(other).__name__}")


@check(since="0.1")
def check_expected_failures_name_checks_and_reasons(case: Case) -> None:
    """expected_failures, where declared, maps names of existing checks to the reason why each fails."""
    known = checks.names(case.kind)
    for name, reason in case.expected_failures.items():
        close = difflib.get_close_matches(name, known, n=1)
        expect(name in known, f"{name!r} is not a check; similar names: {', '.join(close) or 'none'}")
        said = isinstance(reason, str) and bool(reason.strip())
        expect(said, f"expected_failures[{name!r}] must say why, got {reason!r}")

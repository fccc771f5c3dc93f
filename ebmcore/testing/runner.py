"""Running the checks on a component, with pytest and without. Imports torch when a check runs and not before."""

from __future__ import annotations

import difflib
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from ebmcore import host
from ebmcore.errors import PluginError, UsageError
from ebmcore.testing import checks

PASSED, FAILED, EXPECTED, NOT_APPLICABLE = "passed", "failed", "failed as expected", "did not apply"
OUTCOMES = (PASSED, FAILED, EXPECTED, NOT_APPLICABLE)
APPLICABLE = "at_least_one_check_applies"
MADE = "it can be made"
NOTHING_APPLIES = "no check applies to it, so nothing about it is known: declare what it is in its class attributes"
PROPERTY = "ebmcore conformance"  # under which a test of pytest records its result


@dataclass(frozen=True)
class Result:
    """Result of one check on one component.

    Args:
        component: Name of the component.
        check: Name of the check.
        outcome: ``"passed"``, ``"failed"``, ``"failed as expected"`` or ``"did not apply"``.
        detail: Why it failed or did not apply.
        seconds: How long it took.
        error: Exception that was raised, if any.
    """

    component: str
    check: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    error: BaseException | None = None


def find(target: str | type[Any]) -> list[host.Component]:
    """The components that a target names: a distribution, a canonical id, a bare name, or a class.

    Raises:
        UsageError: If nothing of that name is installed.
    """
    if isinstance(target, type):
        return [host.Component(_kind(target), target.__name__, target, "not installed", "")]
    installed = host.list_components()
    found = [c for c in installed if target in (c.distribution, c.id)] or [c for c in installed if target == c.name]
    if found:
        return found
    broken = [r for r in host.plugins() if r.distribution == target]
    if broken:
        raise UsageError(f"the plugin {target} is {broken[0].state} and gives no component: {broken[0].reason}")
    known = sorted({name for c in installed for name in (c.distribution, c.name)})
    close = difflib.get_close_matches(target, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"installed: {', '.join(known) or 'none'}"
    raise UsageError(f"no installed distribution or component is called {target!r}; {hint}")


def _kind(cls: type[Any]) -> str:
    from torch import nn

    from ebmcore.losses import BaseLoss

    if issubclass(cls, BaseLoss):
        return "loss"
    if hasattr(cls, "step"):
        return "sampler"
    if issubclass(cls, nn.Module):
        return "energy"
    raise UsageError(f"{cls.__name__} is neither a loss, a sampler nor an energy: give its name, once it is installed")


def run_check(component: host.Component, name: str, options: Mapping[str, Any] | None = None) -> Result:
    """Run one check on one component, from fixed seeds; torch's global random state is as before afterwards.

    It runs on torch's default device: on an accelerator within ``with torch.device("cuda"):``.

    A check that the component names in ``expected_failures`` must fail: one that passes, or does not apply, is a failure.

    Args:
        component: The component.
        name: Name of the check.
        options: Options with which the component is made, before those of its ``example_options``.

    Raises:
        PluginError: If the component cannot be loaded.
    """
    from ebmcore.testing.devices import seeded

    case, check = _case(component, options), load_check(name)
    reason = case.expected_failures.get(name)
    start = time.perf_counter()

    def result(outcome: str, detail: str, error: BaseException | None = None) -> Result:
        return Result(component.name, name, outcome, detail, time.perf_counter() - start, error)

    with seeded(0):
        try:
            obstacle = check.obstacle(case)
        except (Exception, SystemExit) as error:
            return result(FAILED, f"whether it applies is not known: {_said(error)}", error)
        if obstacle is not None and reason is not None:
            return result(FAILED, f"expected to fail ({reason}), but it {obstacle}")
        if obstacle is not None:
            return result(NOT_APPLICABLE, obstacle)
        try:
            check.function(case)
        except (Exception, SystemExit) as error:
            if reason is not None:
                return result(EXPECTED, reason, error)
            return result(FAILED, f"{check.rule} But here: {_said(error)}", error)
    if reason is not None:
        return result(FAILED, f"expected to fail ({reason}), but it passed: remove it from the list")
    return result(PASSED, "")


def _said(error: BaseException) -> str:
    """Message of an error; its type and its line if it has no message."""
    said = str(error).strip()
    if said:
        return said if isinstance(error, AssertionError) else f"{type(error).__name__}: {said}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return f"{type(error).__name__}{where}"


def run_checks(target: str | type[Any], *, options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Result]:
    """Run every check on every component that ``target`` names.

    Args:
        target: A distribution, a canonical id, a bare name, or a class that is not installed yet.
        options: For the name of a component, options with which it is made, where its ``example_options`` cannot give them,
            such as the directory of a data set's files.

    Returns:
        A result for each component and check, those that did not apply included. A component to which no check applies,
        and one that cannot be made, has a failure that says so.

    Raises:
        UsageError: If nothing of that name is installed, or the options are for a component that is not there.

    Example:
        >>> from ebmcore.testing import Identity
        >>> results = run_checks(Identity)
        >>> {result.outcome for result in results} <= {"passed", "did not apply"}
        True
    """
    components = find(target)
    check_options(components, options)
    results = []
    for component in components:
        own = run_on(component, checks.names(component.kind), (options or {}).get(component.name))
        results += own
        if all(result.outcome == NOT_APPLICABLE for result in own):
            results.append(Result(component.name, APPLICABLE, FAILED, NOTHING_APPLIES))
    return results


def run_on(component: host.Component, names: Sequence[str], options: Mapping[str, Any] | None = None) -> list[Result]:
    """Run the checks of these names on one component; one failure says why it cannot be loaded or made."""
    try:
        obstacle = _case(component, options).obstacle
    except PluginError as error:
        return [Result(component.name, "it can be loaded", FAILED, str(error), error=error)]
    if obstacle is not None:
        return [Result(component.name, MADE, FAILED, obstacle)]
    return [run_check(component, name, options) for name in names]


def check_options(components: Sequence[host.Component], options: Mapping[str, Mapping[str, Any]] | None) -> None:
    """Raise `UsageError` if options are given for a component that is not among these."""
    known = sorted({c.name for c in components})
    for name in options or {}:
        if name not in known:
            raise UsageError(f"options are given for {name!r}, which is none of the components here: {', '.join(known)}")


def summary(results: Sequence[Result]) -> list[str]:
    """Lines that say, for each component, how many checks ran, passed and failed, and which did not apply and why."""
    lines = []
    for component in dict.fromkeys(result.component for result in results):
        own = [result for result in results if result.component == component]
        count = Counter(result.outcome for result in own)
        ran = len(own) - count[NOT_APPLICABLE]
        parts = [
            f"{count[outcome]} {outcome}" for outcome in OUTCOMES if count[outcome] or outcome in (PASSED, NOT_APPLICABLE)
        ]
        seconds = sum(result.seconds for result in own)
        lines.append(f"{component}: {ran} checks ran in {seconds:.1f} s, {', '.join(parts)}")
        lines += [f"  {r.check} {r.outcome}: {r.detail}" for r in own if r.outcome in (EXPECTED, NOT_APPLICABLE)]
    return lines


def conformance(target: str, *, options: Mapping[str, Mapping[str, Any]] | None = None) -> Callable[..., None]:
    """A test function for pytest that runs every check on every component of a distribution, one test for each.

    Args:
        target: Name of a distribution, e.g. ``"ebm-plugin-pcd"``, or canonical id of one component.
        options: For the name of a component, options with which it is made; see `run_checks`.

    Raises:
        UsageError: If nothing of that name is installed, or the options are for a component that is not there.

    Example:
        >>> test_conformance = conformance("ebm-plugin-pcd")
    """
    import pytest

    items = collect(target, options)

    @pytest.mark.parametrize("item", items, ids=[item.id for item in items])
    def test_conformance(item: Item, record_property: Callable[[str, object], None]) -> None:
        item.run(record_property)

    return test_conformance


@dataclass(frozen=True)
class Item:
    """One test of pytest: a check on a component."""

    component: host.Component
    check: str
    options: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        """Name under which pytest shows the test."""
        return f"{self.component.name}-{self.check}"

    def run(self, record_property: Callable[[str, object], None]) -> None:
        """Run it and report to pytest: pass, skip, xfail, or fail with the rule in the message.

        Args:
            record_property: Takes the result, for the summary at the end.
        """
        import pytest

        from ebmcore.testing.rules import ConformanceError

        __tracebackhide__ = True  # the message says it; the lines of the kit do not
        if self.check == APPLICABLE:
            self._check_applicable()
            return
        try:
            obstacle = _case(self.component, self.options).obstacle
        except PluginError as error:
            obstacle = f"{self.component.name} cannot be loaded: {error}"
        if obstacle is not None:
            pytest.skip(obstacle)  # the test of whether a check applies has failed with it
        result = run_check(self.component, self.check, self.options)
        record_property(PROPERTY, (*astuple(replace(result, error=None)),))
        if result.outcome == NOT_APPLICABLE:
            pytest.skip(result.detail)
        if result.outcome == EXPECTED:
            pytest.xfail(result.detail)
        if result.outcome == FAILED:
            cause = None if isinstance(result.error, ConformanceError) else result.error
            raise ConformanceError(f"{self.component.name} breaks {self.check}: {result.detail}") from cause

    def _check_applicable(self) -> None:
        from ebmcore.testing.rules import ConformanceError

        case = _case(self.component, self.options)
        if case.obstacle is not None:
            raise ConformanceError(case.obstacle)
        if not any(load_check(name).obstacle(case) is None for name in checks.names(self.component.kind)):
            raise ConformanceError(f"{self.component.name}: {NOTHING_APPLIES}")


def collect(target: str, options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Item]:
    """The tests of a distribution or component. Imports neither torch nor any component."""
    components = find(target)
    check_options(components, options)
    given = options or {}
    return [Item(c, name, given.get(c.name)) for c in components for name in (APPLICABLE, *checks.names(c.kind))]


def _case(component: host.Component, options: Mapping[str, Any] | None = None) -> Any:
    from ebmcore.testing.cases import CASES

    cls = host.load(component.kind, component.id) if isinstance(component.target, str) else component.target
    return CASES[component.kind](component.name, cls, options or {})


def load_check(name: str) -> Any:
    """The `ebmcore.testing.rules.Check` of that name; imports the checks."""
    import importlib

    from ebmcore.testing.rules import CHECKS

    if name not in CHECKS:
        for module in sorted({module for modules in checks.MODULES.values() for module in modules}):
            importlib.import_module(f"{checks.__name__}.{module}")
    return CHECKS[name]

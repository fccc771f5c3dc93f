"""The pytest plugin: ``pytest --ebm-conformance ebm-plugin-pcd``, and the summary of every conformance test.

Loaded in every pytest run of an environment that has ebmcore, so it imports nothing until it is asked to.
"""

from __future__ import annotations

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("ebmcore").addoption(
        "--ebm-conformance",
        action="append",
        default=[],
        metavar="NAME",
        help="run the conformance checks of ebmcore on an installed distribution or component; may be given several times",
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    targets: list[str] = config.getoption("--ebm-conformance")
    if not targets:
        return
    from ebmcore.errors import EbmcoreError
    from ebmcore.testing.runner import collect

    try:
        tests = [item for target in dict.fromkeys(targets) for item in collect(target)]
    except EbmcoreError as error:
        raise pytest.UsageError(f"--ebm-conformance: {error}") from error
    items += [ConformanceItem.from_parent(session, name=f"conformance[{test.id}]", test=test) for test in tests]


class ConformanceItem(pytest.Item):
    """One check on one component."""

    def __init__(self, *, test: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.test = test

    def runtest(self) -> None:
        self.test.run(lambda name, value: self.user_properties.append((name, value)))

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, self.name


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report for reports in terminalreporter.stats.values() for report in reports if getattr(report, "when", "") == "call"
    ]
    found = [value for report in reports for name, value in report.user_properties if name == "ebmcore conformance"]
    if not found:
        return
    from ebmcore.testing.runner import Result, summary

    terminalreporter.section("ebmcore conformance")
    for line in summary([Result(*value) for value in found]):
        terminalreporter.line(line)

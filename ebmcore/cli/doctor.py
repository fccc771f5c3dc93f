"""``ebmcore doctor``: what is wrong with the installed plugins, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from typing import Any

from importlib_metadata import distributions, version
from packaging.utils import canonicalize_name

from ebmcore.cli import COMMANDS
from ebmcore.cli.listing import Parser, print_rows
from ebmcore.errors import UsageError
from ebmcore.host.discovery import discover
from ebmcore.host.doctor import SECONDS, Examination, examine
from ebmcore.host.settings import Settings, check_installed


def doctor(arguments: Sequence[str]) -> int:
    """Examine plugins; the exit status is 1 if anything is wrong."""
    parser = Parser(
        "ebmcore doctor", description="Import plugins and their components, each plugin in a process of its own."
    )
    parser.add_argument("plugins", nargs="*", metavar="PLUGIN", help="which to examine, by distribution; without one, all")
    parser.add_argument(
        "--timeout", type=float, default=SECONDS, metavar="SECONDS", help=f"for each plugin; default {SECONDS:g}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_intermixed_args(arguments)
    if not options.timeout > 0:
        raise UsageError(f"--timeout must be above 0 seconds, got {options.timeout:g}")
    installed = discover(distributions())
    named: set[str] = {canonicalize_name(name) for name in options.plugins}
    check_installed("ebmcore doctor", named, installed)
    general = []
    try:
        settings = Settings.read(os.environ, installed)
    except UsageError as error:
        settings = Settings()
        general.append(str(error))
    found = examine([name for name in installed if name in named or not named], seconds=options.timeout)
    general += _conflicts(found, settings) + _hidden_commands(found)
    problems = len(general) + sum(len(e.problems) for e in found)
    versions = {"ebmcore": version("ebmcore"), "torch": version("torch"), "python": platform.python_version()}
    rows: Sequence[dict[str, Any]] = [vars(e) | {"left_out_by": settings.left_out.get(e.distribution)} for e in found]
    if options.json:
        print(json.dumps({"versions": versions, "plugins": rows, "problems": general}, indent=2))
        return int(problems > 0)
    print(", ".join(f"{name} {number}" for name, number in versions.items()), end="\n\n")
    for row in rows:
        row["components"] = ", ".join(name for _, name in row["components"]) or "-"
        row["import"] = f"{1000 * row['seconds']:.0f} ms"
        row["left out by"] = row["left_out_by"] or ""
    print_rows(rows, ("distribution", "version", "state", "components", "import", "left out by"))
    print()
    for examination in found:
        for problem in examination.problems:
            print(f"{examination.distribution}: {problem}\n")
    for problem in general:
        print(f"{problem}\n")
    outcome = "all in order" if not problems else "1 problem" if problems == 1 else f"{problems} problems"
    print(f"{len(found)} plugin{'s' * (len(found) != 1)} examined: {outcome}")
    return int(problems > 0)


def _conflicts(found: Sequence[Examination], settings: Settings) -> list[str]:
    """Names that several of the plugins in use provide, with no preference that decides."""
    providers: dict[tuple[str, str], list[str]] = {}
    for examination in found:
        for component in examination.components if examination.distribution not in settings.left_out else ():
            providers.setdefault(component, []).append(examination.distribution)
    return [
        f"the {kind} {name!r} is provided by {' and '.join(several)}: decide with EBMCORE_PREFER={name}={several[0]}, or use "
        f"the canonical ids, e.g. {several[0]}:{name}"
        for (kind, name), several in providers.items()
        if len(several) > 1 and name not in settings.prefer
    ]


def _hidden_commands(found: Sequence[Examination]) -> list[str]:
    """Commands of plugins that have the name of a built-in command, which comes first."""
    return [
        f"the command {name!r} of {examination.distribution} is hidden by ebmcore's own: give it another name, or run "
        f"'ebmcore {examination.distribution}:{name}'"
        for examination in found
        for kind, name in examination.components
        if kind == "command" and name in COMMANDS
    ]

"""``ebmcore check``: the conformance kit without pytest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ebmcore.cli.listing import Parser, print_rows
from ebmcore.errors import UsageError
from ebmcore.testing.runner import FAILED, find, run_checks, summary


def check(arguments: Sequence[str]) -> int:
    """Run every conformance check on a component or distribution; the exit status is 1 if one failed unexpectedly."""
    parser = Parser("ebmcore check", description="Check a component against the rules of its kind.")
    parser.add_argument("name", metavar="NAME", help="component, canonical id or distribution, e.g. pcd or ebm-plugin-pcd")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option with which the component is made, e.g. directory=/data/mnist; may be given several times",
    )
    options = parser.parse_args(arguments)
    results = run_checks(options.name, options=_options(options.name, options.option))
    failed = [result for result in results if result.outcome == FAILED]
    fields = ("component", "check", "outcome", "seconds")
    rows = [{**{f: str(getattr(r, f)) for f in fields}, "seconds": f"{r.seconds:.1f}"} for r in results]
    if options.json:
        print(json.dumps([row | {"detail": r.detail} for row, r in zip(rows, results, strict=True)], indent=2))
        return int(bool(failed))
    print_rows(rows, fields)
    print()
    for line in summary(results):
        print(line)
    for result in failed:
        print(f"\n{result.component} breaks {result.check}\n  {result.detail}")
    return int(bool(failed))


def _options(name: str, given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of the one component that is checked; a value is read as JSON where it is JSON, and as text otherwise."""
    if not given:
        return {}
    components = find(name)
    if len(components) > 1:
        raise UsageError(f"{name} has {len(components)} components: check one of them by its name to give it options")
    options = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--option takes KEY=VALUE, got {pair!r}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return {components[0].name: options}

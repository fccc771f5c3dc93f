"""``ebmcore check``: the conformance kit without pytest."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ebmcore.cli.listing import Parser, print_rows
from ebmcore.testing.runner import FAILED, run_checks, summary


def check(arguments: Sequence[str]) -> int:
    """Run every conformance check on a component or distribution; the exit status is 1 if one failed."""
    parser = Parser("ebmcore check", description="Check a component against the rules of its kind.")
    parser.add_argument("name", metavar="NAME", help="component, canonical id or distribution, e.g. pcd or ebm-plugin-pcd")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    results = run_checks(options.name)
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

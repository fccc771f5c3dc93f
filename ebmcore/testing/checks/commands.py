"""Rule for commands: ``--help`` works."""

from __future__ import annotations

import contextlib
import io

from ebmcore.testing.cases import CommandCase
from ebmcore.testing.rules import check, expect


@check(since="0.1")
def check_it_prints_help(case: CommandCase) -> None:
    """Called with ["--help"] a command prints its usage and exits with status 0."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            status = case.component(["--help"])
        except SystemExit as end:  # argparse exits this way
            status = end.code
    expect(status in (0, None), f"it exits with status {status!r}")
    expect(bool(printed.getvalue().strip()), "it prints nothing")

"""The command ``ebmcore``.

Listing commands import neither torch nor any component; each other command is imported when it is called.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence

from ebmcore.errors import EbmcoreError

COMMANDS = {
    "train": ("ebmcore.cli.train", "train an energy; 'ebmcore train --help' shows the options"),
    "evaluate": ("ebmcore.cli.evaluate", "measure a trained energy with a metric"),
    "sample": ("ebmcore.cli.sample", "draw samples from a trained energy and picture them"),
    "list": ("ebmcore.cli.listing", "list the components of installed plugins"),
    "plugins": ("ebmcore.cli.listing", "list the installed plugins and their state"),
    "show": ("ebmcore.cli.listing", "show a component: options, summary, citation"),
    "new": ("ebmcore.cli.new", "make a plugin to start from: 'ebmcore new plugin NAME --kind KIND'"),
    "doctor": ("ebmcore.cli.doctor", "examine plugins, each in a process of its own; exit status 1 if anything is wrong"),
    "check": ("ebmcore.cli.check", "check a component or plugin against the rules of its kind"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 after a check that failed, or 2 after wrong input, told in one line."""
    command, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if command in ("-h", "--help"):
        print(_usage())
        return 0
    if command == "--version":
        from importlib_metadata import version

        print(f"ebmcore {version('ebmcore')}")
        return 0
    if command not in COMMANDS:
        return _fail(f"there is no command {command!r}; the commands are {', '.join(COMMANDS)}")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            module = importlib.import_module(COMMANDS[command][0])
            status: int | None = getattr(module, command)(arguments)
            return status or 0
    except EbmcoreError as error:
        return _fail("; ".join([str(error), *getattr(error, "__notes__", ())]))
    except KeyboardInterrupt:
        print("ebmcore: interrupted; a training run goes on with 'ebmcore train --resume RUN'", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or 'see above'}")
    return 0


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"ebmcore: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str) -> int:
    print(f"ebmcore: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _usage() -> str:
    lines = ["usage: ebmcore COMMAND [OPTIONS]", "", "Train energy-based models with plugins.", ""]
    lines += [f"  {name:<10}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([*lines, "", "'ebmcore COMMAND --help' tells more."])

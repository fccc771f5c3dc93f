"""The command ``ebmcore``.

Each built-in command is imported when it is called; listing commands import neither torch nor any component. Plugins add
commands with ``register.command``. A plugin cannot replace a built-in command.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ebmcore._termination import saying_end
from ebmcore.errors import EbmcoreError, LostProcessError, PluginError, UnknownComponentError, UsageError

if TYPE_CHECKING:
    from ebmcore.host import Component

__all__ = ["main"]

COMMANDS = {
    "train": ("ebmcore.cli.train", "train an energy; 'ebmcore train --help' shows the options"),
    "evaluate": ("ebmcore.cli.evaluate", "measure a trained energy with a metric"),
    "sample": ("ebmcore.cli.sample", "draw samples from a trained energy and picture them"),
    "score": ("ebmcore.cli.score", "compute the log-density of examples under a trained energy"),
    "export": ("ebmcore.cli.export", "write a trained energy for other programs"),
    "list": ("ebmcore.cli.listing", "list the components of installed plugins"),
    "plugins": ("ebmcore.cli.listing", "list the installed plugins and their state"),
    "show": ("ebmcore.cli.listing", "show a component: options, summary, citation"),
    "new": ("ebmcore.cli.new", "make a plugin to start from: 'ebmcore new plugin NAME --kind KIND'"),
    "doctor": ("ebmcore.cli.doctor", "examine plugins, each in a process of its own; exit status 1 if anything is wrong"),
    "check": ("ebmcore.cli.check", "check a component or plugin against the rules of its kind"),
}

_LONGEST = 4000  # characters of a message, which may quote a whole file


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0; 1 after a check that failed, or where another process of the run was lost; 2 after wrong input or a
        failure of a plugin or of a user's own class, which is reported in one line; 128 and the signal's number after Ctrl-C or
        SIGTERM.

    Raises:
        SystemExit: After the help of a command.
    """
    name, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    try:
        with saying_end(), warnings.catch_warnings():
            warnings.showwarning = _warn
            if name in ("-h", "--help"):
                print(_usage())
                return 0
            if name == "--version":
                from importlib_metadata import version

                print(f"ebmcore {version('ebmcore')}")
                return 0
            return _run(name, arguments) or 0
    except EbmcoreError as error:
        _fail(str(error), error)
        return 1 if isinstance(error, LostProcessError) else 2
    except KeyboardInterrupt as end:
        print(f"ebmcore: {printable(str(end)) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(end, "signum", signal.SIGINT)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
    except SystemExit as end:
        if _is_end_of_parser(end, arguments):
            raise
        return _fail(_with_plugin(_exit_call(end), end), end)
    except OSError as error:
        reason = ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
        return _fail(_with_plugin(reason, error), error)
    except Exception as error:
        from ebmcore.host.origin import is_of_own_class, is_out_of_memory

        named = f"{type(error).__name__}: {error}".removesuffix(": ")
        if is_out_of_memory(error):
            return _fail(_with_plugin(f"out of memory ({error or named})", error), error)
        if is_of_own_class(error):
            return _fail(_with_plugin(named, error), error)
        raise
    return 0


def _run(name: str, arguments: Sequence[str]) -> int | None:
    """Run a built-in command or, where there is none of that name, a plugin's."""
    if name in COMMANDS:
        function: Callable[[Sequence[str]], int | None] = getattr(importlib.import_module(COMMANDS[name][0]), name)
        return function(arguments)
    from ebmcore import host
    from ebmcore.host.doctor import place

    component = _find(name)
    cause: BaseException | None
    function = host.load("command", component.id)
    try:
        status = function(arguments)
    except (EbmcoreError, BrokenPipeError):
        raise
    except SystemExit as end:
        if _is_end_of_parser(end, arguments):
            raise
        problem, cause = f"failed: {_exit_call(end)}{place(end)}; a command returns its exit status", end
    except Exception as error:
        problem, cause = f"raised {type(error).__name__}: {error}{place(error)}", error
    else:
        if status is None or isinstance(status, int):
            return status
        problem, cause = f"returned {status!r} instead of an exit status or None", None
    raise PluginError(f"the command {component.id} ({component.import_path}) {problem}") from cause


def _find(name: str) -> Component:
    """The command of a plugin.

    Raises:
        UsageError: If there is none; the message names close matches, built-in commands included.
    """
    from ebmcore import host

    try:
        return host.find("command", name)
    except UnknownComponentError as error:
        if ":" in name:  # a canonical id, whose distribution the message names
            raise
        known = [*COMMANDS, *(c.name for c in host.list_components("command"))]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"the commands are {', '.join(known)}"
        raise UsageError(f"there is no command {name!r}; {hint}") from error


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"ebmcore: warning: {printable(str(message))}", file=sys.stderr)


def _fail(message: str, error: BaseException) -> int:
    told = "; ".join([message, *getattr(error, "__notes__", ())])
    print(f"ebmcore: {printable(told)}", file=sys.stderr)
    return 2


def _with_plugin(problem: str, error: BaseException) -> str:
    """The problem and, where the code of a plugin raised the error, which plugin and line."""
    from ebmcore.host.origin import origin

    plugin = origin(error)
    return f"{plugin} failed: {problem}" if plugin else problem


def _is_end_of_parser(end: SystemExit, arguments: Sequence[str]) -> bool:
    """Whether a parser ended the command, after its help or a wrong option, and not code that the command has called."""
    *_, (frame, _) = traceback.walk_tb(end.__traceback__)
    return frame.f_globals.get("__name__") == "argparse" or not {"-h", "--help"}.isdisjoint(arguments)


def _exit_call(end: SystemExit) -> str:
    return f"sys.exit({'' if end.code is None else repr(end.code)}) was called"


def printable(message: str) -> str:
    """The message as one line, in which the characters that a terminal obeys, or that cannot be seen, are written as escapes."""
    line = " ".join(message.split())
    if len(line) > _LONGEST:
        line = f"{line[:_LONGEST]}... ({len(line):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _usage() -> str:
    """The commands, those of plugins included. Imports the plugins' light modules."""
    from ebmcore import host

    rows = {name: summary for name, (_, summary) in COMMANDS.items()}
    note = []
    try:
        commands = host.list_components("command")
    except EbmcoreError as error:  # help is shown even where an environment variable is wrong
        commands, note = [], ["", f"Commands of plugins cannot be listed: {error}"]
    names = [*COMMANDS, *(c.name for c in commands)]
    rows |= {(c.name if names.count(c.name) == 1 else c.id): f"a command of {c.distribution}" for c in commands}
    width = max(map(len, rows)) + 2
    lines = ["usage: ebmcore COMMAND [OPTIONS]", "", "Train energy-based models with plugins.", ""]
    lines += [f"  {name:<{width}}{summary}" for name, summary in rows.items()]
    return "\n".join([*lines, "", "'ebmcore COMMAND --help' shows the options of a command.", *note])

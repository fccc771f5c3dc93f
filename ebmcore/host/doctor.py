"""Examines each plugin in a process of its own, so that one that crashes or hangs is named and harms nothing.

``python -m ebmcore.host.doctor DISTRIBUTION FILE`` is that process: it imports the plugin and everything that it provides, and
writes what it is about to do and what it found into the file, a line of JSON for each.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ebmcore.host.report import State
from ebmcore.host.settings import VARIABLES

SECONDS = 60.0  # until an import counts as one that hangs
_OUTPUT_SHOWN = 300  # characters of what a crashed process said


@dataclass
class Examination:
    """Result of the examination of one plugin.

    Args:
        distribution: Its name.
        version: Its version.
        state: One of `ebmcore.host.report.State`.
        components: Kind and name of what it provides.
        seconds: Time to import its light module, as every ``ebmcore list`` has to.
        problems: What is wrong, each with what to do about it.
    """

    distribution: str
    version: str
    state: str
    components: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def examine(distributions: Sequence[str], *, seconds: float = SECONDS) -> list[Examination]:
    """Examine plugins, as many at a time as there are processors.

    Args:
        distributions: Canonical names of installed plugins.
        seconds: Time limit for each.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda name: _examine(name, seconds), distributions))


def _examine(distribution: str, seconds: float) -> Examination:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found"
        code = f"import sys; sys.path[:] = {sys.path!r}; from ebmcore.host.doctor import _serve; _serve(*sys.argv[1:])"
        # Alone, regardless of the variables: a plugin is examined for its own faults.
        environ = {name: value for name, value in os.environ.items() if name not in VARIABLES} | {
            "EBMCORE_PLUGINS": distribution
        }
        command = [sys.executable, "-c", code, distribution, str(path)]
        try:
            done = subprocess.run(
                command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
            )
            end, output = _how_it_ended(done.returncode), done.stderr.decode(errors="replace")
        except subprocess.TimeoutExpired:
            end, output = f"did not come to an end in {seconds:g} s", ""
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    found = next((line["found"] for line in lines if "found" in line), None)
    if found is not None:
        return Examination(**{**found, "components": [tuple(c) for c in found["components"]]})
    doing = next((line["doing"] for line in reversed(lines) if "doing" in line), "starting Python")
    said = " ".join(output.split())[-_OUTPUT_SHOWN:]
    problem = f"the process {end} while {doing}{f': ...{said}' if said else ''}. {_leave_out(distribution)}"
    version = next((line["version"] for line in lines if "version" in line), "unknown")
    return Examination(distribution, version, State.FAILED, problems=[problem])


def _how_it_ended(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"


def _leave_out(distribution: str) -> str:
    return f"pip install --upgrade {distribution}, or leave it out with EBMCORE_DISABLED_PLUGINS={distribution}"


def _serve(distribution: str, path: str) -> None:
    with Path(path).open("w", encoding="utf-8") as file:
        _write(file, found=vars(_examine_here(distribution, file)))
    os._exit(0)  # threads that a plugin started must not keep the process


def _write(file: TextIO, **line: Any) -> None:
    print(json.dumps(line), file=file, flush=True)


def _examine_here(distribution: str, file: TextIO) -> Examination:
    from ebmcore.errors import EbmcoreError
    from ebmcore.host.manager import get_manager

    manager = get_manager()
    report = next(r for r in manager.reports() if r.distribution == distribution)
    _write(file, version=report.version, doing=f"importing {', '.join(report.modules)}")
    _import_if_installed("numpy.random")  # so that a plugin that seeds it is seen
    start = time.perf_counter()
    components = manager.components()
    seconds = time.perf_counter() - start
    problems = [] if not report.reason else [f"{report.reason}{place(report.error)}. {_leave_out(distribution)}"]
    if "torch" in sys.modules:
        problems.append(
            f"importing {', '.join(report.modules)} imports torch, which costs every 'ebmcore list' {seconds:.1f} s: "
            "import it in the modules of the components, and register these by import string"
        )
    if report.state is State.LOADED and not components:
        problems.append(
            "ebmcore_register registers nothing: call register.loss(name, target), or another method of register"
        )
    if components:
        _import_if_installed("torch")  # so that a component that changes its settings is seen
    for component in components:
        _write(file, doing=f"loading the {component.kind} {component.name} ({component.import_path})")
        try:
            manager.load(component)
        except EbmcoreError as error:
            problems.append(f"{error}{place(error.__cause__)}")
            report.state = State.FAILED
    names = [(c.kind, c.name) for c in components]
    return Examination(distribution, report.version, report.state, names, seconds, problems + report.notes)


def _import_if_installed(module: str) -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module(module)


def place(error: BaseException | None) -> str:
    """File and line where an error was raised, in parentheses; empty if unknown."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""

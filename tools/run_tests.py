"""All tests: the kernel's, then each plugin's alone in an environment of its own: ``python tools/run_tests.py [NAME ...]``.

``NAME`` is ``kernel`` or a plugin. A plugin that fails hides no other: its output follows its line. Its environment remains in
``.venv-plugins/NAME`` until the next run, to look into.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import wheels
from environments import Environment

ENVIRONMENTS = wheels.ROOT / ".venv-plugins"
ALONE = Path(__file__).parent / "plugin_alone.py"
PROCESSES = 2


@dataclass
class Outcome:
    """What came of one run of pytest."""

    name: str
    ok: bool
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    output: str = ""

    def __str__(self) -> str:
        counts = f"{self.passed:4} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{'ok    ' if self.ok else 'FAILED'}  {self.name:24} {counts}, {self.seconds:.0f} s"


def outcome(name: str, done: subprocess.CompletedProcess[str], report: Path, started: float) -> Outcome:
    """Reads the counts of pytest's own report; a run that left none, such as one that was killed, counts as one failure."""
    seconds, output = time.monotonic() - started, (done.stdout or "") + (done.stderr or "")
    if not report.exists():
        return Outcome(name, ok=False, failed=1, seconds=seconds, output=output)
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    tests, failures, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    ok = done.returncode == 0
    return Outcome(name, ok, tests - failed - skipped, failed if ok else max(failed, 1), skipped, seconds, output)


def kernel() -> Outcome:
    """The kernel's tests, in two processes; pytest prints as it goes."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", str(PROCESSES), "--dist", "worksteal", f"--junitxml={report}"]
        return outcome("kernel", subprocess.run(command, cwd=wheels.ROOT, text=True), report, started)


def plugin(source: Path, built: Path, environments: Path) -> Outcome:
    """A plugin's own tests and those of `plugin_alone`, with nothing installed but what the plugin declares."""
    name, started = source.name, time.monotonic()
    report = environments / f"{name}.xml"
    report.unlink(missing_ok=True)
    try:
        site = Environment(environments / name, built, [f"{name}[dev]"], environments / "links")
    except (AssertionError, LookupError) as error:
        return Outcome(name, ok=False, failed=1, seconds=time.monotonic() - started, output=str(error))
    options = ["-p", "no:cacheprovider", "-c", source / "pyproject.toml", "--rootdir", source]
    # torch says so at import where no one declares NumPy.
    options += ["-W", "ignore:Failed to initialize NumPy:UserWarning"]
    # The kit records what came of its checks as properties, which pytest's other family of reports does not hold.
    options += [f"--junitxml={report}", "-o", "junit_family=xunit1"]
    done = site.run("pytest", *options, source / "tests", ALONE, cwd=source, seconds=1200)
    return outcome(name, done, report, started)


def plugins(sources: Sequence[Path], built: Path, environments: Path) -> Iterator[Outcome]:
    """The outcomes of several plugins, two at a time, in their order."""
    environments.mkdir(exist_ok=True)
    with ThreadPoolExecutor(PROCESSES) as pool:
        yield from pool.map(lambda source: plugin(source, built, environments), sources)


def main(names: Sequence[str]) -> int:
    """Runs what is named, or all, and ends with a line of counts."""
    sources = {source.name: source for source in wheels.PLUGINS}
    if unknown := set(names) - {"kernel", *sources}:
        print(f"unknown: {', '.join(sorted(unknown))}; choose from kernel, {', '.join(sources)}")
        return 2
    chosen = [sources[name] for name in sources if name in names or not names]
    outcomes = [kernel()] if "kernel" in names or not names else []
    print(f"\nplugins, each alone with what it declares ({ENVIRONMENTS.name}):", flush=True)
    for one in plugins(chosen, wheels.build(ENVIRONMENTS / "wheels"), ENVIRONMENTS):
        outcomes.append(one)
        print(one, flush=True)
        if not one.ok:
            print(one.output, flush=True)
    bad = [one.name for one in outcomes if not one.ok]
    print(f"\n{len(outcomes) - len(bad)} of {len(outcomes)} parts are in order{', not: ' if bad else ''}{', '.join(bad)}")
    totals = (sum(getattr(one, key) for one in outcomes) for key in ("passed", "failed", "skipped"))
    print("{} passed, {} failed, {} skipped".format(*totals))
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))

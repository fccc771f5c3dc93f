"""Time of ``ebmcore list`` with the installed plugins alone and beside 300 generated ones. Run by ``make bench``.

Whole processes, in turn, with the start of Python in it; the figure is the median. The bound is 0.5 s with 300.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_PLUGINS = 300
ROUNDS = 15
LIMIT = 0.5  # seconds

PLUGIN = """
import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register):
    register.loss("loss-{i}", "ebm_plugin_many{i}_loss:Loss")
    register.sampler("sampler-{i}", "ebm_plugin_many{i}_sampler:Sampler")
"""


def install(folder: Path) -> None:
    """Write the plugins with their metadata."""
    for i in range(N_PLUGINS):
        (folder / f"ebm_plugin_many{i}.py").write_text(PLUGIN.format(i=i))
        info = folder / f"ebm_plugin_many{i}-1.0.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.4", f"Name: ebm-plugin-many{i}", "Version: 1.0", "Summary: generated"]
        lines += ["Requires-Dist: ebmcore>=0.1", "Requires-Dist: torch>=2.10", "", "A README.\n" * 100]
        (info / "METADATA").write_text("\n".join(lines))
        (info / "entry_points.txt").write_text(f"[ebmcore]\nmany{i} = ebm_plugin_many{i}\n")


def seconds(command: str, path: str) -> float:
    """One run of the command."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-m", "ebmcore", command], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Print the table; the exit status is 1 above the bound."""
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        cases = {(command, path): [] for command in ("list", "plugins") for path in ("", folder)}
        for _ in range(ROUNDS):
            for (command, path), times in cases.items():
                times.append(seconds(command, path))
    medians = {case: statistics.median(times) for case, times in cases.items()}
    for (command, path), median in medians.items():
        print(
            f"ebmcore {command:<8} {f'and {N_PLUGINS} generated plugins' if path else 'installed plugins':<28} {median:.2f} s"
        )
    slowest = max(medians.values())
    print(f"bound {LIMIT} s: {'held' if slowest <= LIMIT else 'MISSED'}")
    return int(slowest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

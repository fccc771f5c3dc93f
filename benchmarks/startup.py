"""Cost of starting: imports, listings with the installed plugins alone and with 300 generated ones, a first loss.

Run by ``make bench``. It times whole processes in turn, with the start of Python; figures are medians, the last one of ratios.
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
COMMANDS = ("list", "plugins")
CREATE = """
import torch, ebmcore
ebmcore.create_loss("cd", torch.nn.Linear(2, 1), ebmcore.create_sampler("langevin", step_size=0.1))
"""

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


def seconds(arguments: list[str], path: str = "") -> float:
    """One run of Python."""
    start = time.perf_counter()
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "",
    }  # bytecode lies there after the first round
    subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Print the table; the exit status is 1 if a bound is missed."""
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        cases = {
            "python": (["-c", ""], ""),
            "import ebmcore": (["-c", "import ebmcore"], ""),
            "ebmcore list": (["-m", "ebmcore", "list"], ""),
            **{f"ebmcore {c}, {N_PLUGINS} more plugins": (["-m", "ebmcore", c], folder) for c in COMMANDS},
            "import torch": (["-c", "import torch"], ""),
            "import torch and create_loss": (["-c", CREATE], ""),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(5 if "--quick" in sys.argv else ROUNDS):
            for name, case in cases.items():
                times[name].append(seconds(*case))
    medians = {name: statistics.median(of) for name, of in times.items()}
    for name, median in medians.items():
        print(f"{name:<40} {median:.3f} s")
    bare, created = times["import torch"], times["import torch and create_loss"]
    bounds = [
        ("import ebmcore beyond python, s", medians["import ebmcore"] - medians["python"], 0.1),
        ("ebmcore list, s", medians["ebmcore list"], 0.3),
        *((f"ebmcore {c}, {N_PLUGINS} more, s", medians[f"ebmcore {c}, {N_PLUGINS} more plugins"], 0.5) for c in COMMANDS),
        ("create_loss, of import torch", statistics.median(b / a for a, b in zip(bare, created, strict=True)) - 1, 0.05),
    ]
    for name, value, bound in bounds:
        print(f"{name:<40} {value:.3f}, at most {bound}: {'held' if value <= bound else 'MISSED'}")
    return int(any(value > bound for _, value, bound in bounds))


if __name__ == "__main__":
    sys.exit(main())

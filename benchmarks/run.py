"""Time of ebmcore compared with its floor, the usual hand-written loop and other libraries. Run by ``make bench``.

Every unit of work is timed in rounds in which all systems take turns; a figure is the median of the ratios to the hand-written
loop within a round, with its quartiles. Dispatches are counts of ATen operators in a unit, which repeat exactly.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from workloads import WORKLOADS, Workload, function_of

SYSTEMS = (
    "floor",
    "hand",
    "ebmcore_eager",
    "ebmcore_compiled",
    "bare",
    "torchebm_",
    "ebmkit_",
    "rbms_",
    "learnergy_",
    "sklearn_",
    "blackjax_",
)
OPAQUE = {"ebmcore_compiled", "sklearn", "blackjax"}  # their work is no sequence of ATen operators
BUDGET = 0.08  # seconds of one system in a round
RESULTS = Path(__file__).parent / "results"


class Dispatches(TorchDispatchMode):
    """Counts operators; not ``detach``, which computes nothing."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not str(function).startswith(("profiler", "aten.detach"))
        return function(*args, **(kwargs or {}))


def systems(names: list[str]) -> dict[str, ModuleType]:
    """The systems among ``names`` that are installed."""
    found = {}
    for name in names:
        try:
            found[name.strip("_")] = importlib.import_module(f"systems.{name}")
        except ModuleNotFoundError as error:
            print(f"{name.strip('_')} is left out: {error}")
    return found


def seconds(unit: Callable[[], object], n: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Mean time of one of ``n`` calls."""
    start = clock()
    for _ in range(n):
        unit()
    return (clock() - start) / n


def measure(workload: Workload, size: Any, found: dict[str, ModuleType], rounds: int) -> list[dict[str, Any]]:
    """A row for each system."""
    units, cold, counts = {}, {}, {}
    # The processor's time of one thread is changed little by other processes.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for name, system in found.items():
        if function_of(system, workload.function) is None or (name == "ebmcore_compiled" and not workload.compile):
            continue
        units[name] = workload.make(system, size)
        cold[name] = 2 * seconds(units[name], 2)  # the second call compiles, where there is something to compile
        with Dispatches() as dispatches:
            units[name]()
        counts[name] = None if name in OPAQUE else dispatches.count / workload.per
    calls = {name: max(1, round(BUDGET / seconds(unit, 2, clock))) for name, unit in units.items()}
    times: dict[str, list[float]] = {name: [] for name in units}
    for i in range(rounds):
        order = list(units) if i % 2 else list(units)[::-1]
        for name in order:
            times[name].append(seconds(units[name], calls[name], clock) / workload.per)
    rows = []
    for name in units:
        row = {"workload": workload.name, "size": str(size).strip("()").replace(", ", "x"), "system": name}
        for reference in ("hand", "floor"):
            ratios = [a / b for a, b in zip(times[name], times[reference], strict=True)]
            row[reference] = statistics.quantiles(ratios, n=4)
        row |= {"ms": 1000 * statistics.median(times[name]), "dispatches": counts[name], "cold": cold[name]}
        rows.append(row)
        low, median, high = row["hand"]
        print(
            f"{row['workload']:<48} {row['size']:>8} {name:<17} {median:6.3f} ({low:.3f} to {high:.3f}) of hand, "
            f"{row['floor'][1]:.3f} of floor, {row['ms']:9.3f} ms, {row['dispatches'] or 0:.0f} dispatches",
            flush=True,
        )
    return rows


def checked(workload: Workload, found: dict[str, ModuleType]) -> dict[str, ModuleType]:
    """The systems whose result is right."""
    right = {}
    for name, system in found.items():
        if function_of(system, workload.function) is None:
            continue
        if getattr(system, "CHECKED", True):
            error = wrong(workload.check, system)
            if error:
                print(f"{workload.name}: {name} is not measured, because its result is wrong: {error}")
                continue
        right[name] = system
    return right


@cache
def wrong(check: Callable[[ModuleType], None], system: ModuleType) -> str:
    """Message of the check of a system; empty if it holds."""
    try:
        check(system)
    except AssertionError as error:
        return str(error)
    return ""


def processor() -> str:
    """The name of the processor, as Linux gives it, with the widest vectors that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = known.get("flags", "").split()
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else platform.machine()
    return f"{known.get('model name', platform.machine())}, {vectors}"


def main() -> None:
    """Print a line for each figure and write them to ``results``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="without other libraries and compilation, one size each, few rounds"
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", help="workloads whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if hasattr(os, "sched_setaffinity"):  # before JAX counts them for its own threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    warnings.simplefilter("ignore")  # of the libraries under test
    found = systems(list(SYSTEMS[:3] if options.quick else SYSTEMS))
    rows = []
    print(f"torch {torch.__version__}, {options.threads} thread{'s' * (options.threads > 1)}, {processor()}")
    for workload in WORKLOADS:
        if options.only and options.only not in workload.name:
            continue
        right = checked(workload, found)
        if not {"hand", "floor"} <= right.keys():
            raise SystemExit(f"{workload.name}: nothing to compare with")
        for size in workload.sizes[:1] if options.quick else workload.sizes:
            rows += measure(workload, size, right, 5 if options.quick else options.rounds)
    if not options.quick and not options.only:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"threads-{options.threads}.json").write_text(
            json.dumps({"processor": processor(), "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()

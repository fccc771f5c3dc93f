"""A check of this machine's accelerator: ``python -m ebmcore.testing.gpu``, in at most five minutes.

It trains and measures on the device what `ebmcore.testing.on_device` holds, and runs the conformance kit there for every
installed component. It writes ``gpu.json`` and a table, ``gpu.md``, and ends with status 1 if something failed. Without an
accelerator it says so and runs on the CPU, in at most two minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import ebmcore
from ebmcore import host
from ebmcore.errors import UnknownComponentError
from ebmcore.testing import checks, on_device
from ebmcore.testing.devices import seeded
from ebmcore.testing.runner import FAILED, MADE, NOT_APPLICABLE, PASSED, Result, load_check, run_on

SKIPPED = "skipped"
ON_THE_HOST = ("dataset", "observer", "recipe", "command")  # training runs these on the CPU
SECONDS = 200  # of the kit; what comes after is skipped, so that all ends within five minutes
STATISTICS = ("fits", "gradients", "laws")  # modules of checks on 100,000 samples, or on hundreds of training steps
WAITS = "no synchronisation within a step"
WAITING = "check_nothing_waits_for_the_device"
TABLE = "<!-- table -->"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: What was tried.
        verdict: ``"passed"``, ``"failed"`` or ``"skipped"``.
        figure: What was measured, or why it failed or was skipped.
        seconds: How long it took.
    """

    name: str
    verdict: str
    figure: str
    seconds: float = 0.0


def conformance(device: torch.device) -> list[Row]:
    """The conformance kit on the device: a row for each installed component, and one for waits within a step.

    On a CPU its statistics are left out, which a plugin's own tests repeat there each time.
    """
    rows, waits, began = list[Row](), list[Result](), time.perf_counter()
    for component in host.list_components():
        start = time.perf_counter()
        name = f"{component.kind} {component.name}"
        if start - began > SECONDS:
            rows.append(Row(name, SKIPPED, f"the {SECONDS} seconds of the kit are over"))
            continue
        names = [n for n in checks.names(component.kind) if device.type != "cpu" or _module(n) not in STATISTICS]
        with torch.device("cpu" if component.kind in ON_THE_HOST else device), _whole_float32():
            results = run_on(component, names)
        waits += [result for result in results if result.check == WAITING]
        rows.append(replace(_summary(name, results), seconds=time.perf_counter() - start))
    waiting = [result.component for result in waits if result.outcome == FAILED]
    figure = ", ".join(waiting) or f"{len(waits)} losses and samplers"
    verdict = FAILED if waiting else PASSED if waits else SKIPPED
    return [Row(WAITS, verdict, figure), *rows]


def _module(check: str) -> str:
    return str(load_check(check).function.__module__).rpartition(".")[2]


def _summary(name: str, results: Sequence[Result]) -> Row:
    failed = [result for result in results if result.outcome == FAILED]
    if [result.check for result in failed] == [MADE]:
        return Row(name, SKIPPED, failed[0].detail.partition(". ")[0])  # such as a data set whose files the kit is not given
    if failed:
        return Row(name, FAILED, "; ".join(f"{result.check}: {_line(result.detail)}" for result in failed))
    ran = Counter(result.outcome for result in results)
    return Row(name, PASSED, f"{len(results) - ran[NOT_APPLICABLE]} checks")


@contextmanager
def _whole_float32() -> Iterator[None]:
    """No TensorFloat-32 in convolutions, torch's default on CUDA: the kit's bounds are those of float32."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


# What is trained and measured, by the name of its row; each returns its figure, or raises.
SECTIONS: dict[str, Callable[[torch.device], str]] = {
    "bit-exact resumption": on_device.check_resumption,
    "bf16-mixed": on_device.check_mixed_precision,
    "compiled beside eager": on_device.check_compiled,
    "convolutions on 28x28, PCD-20": on_device.check_convolutional_pcd,
    "RBM 784-500, PCD-1": on_device.check_rbm,
}


def run(device: torch.device) -> list[Row]:
    """Run everything; what raises is a failed row, and the rest still runs."""
    rows = [_row(name, section, device) for name, section in SECTIONS.items()]
    try:
        return rows + conformance(device)
    except Exception as error:
        return [*rows, Row("conformance", FAILED, _said(error))]


def _row(name: str, section: Callable[[torch.device], str], device: torch.device) -> Row:
    start = time.perf_counter()
    verdict = PASSED
    try:
        with seeded(0, device):
            figure = section(device)
    except UnknownComponentError as error:
        verdict, figure = SKIPPED, _line(error)
    except Exception as error:
        verdict, figure = FAILED, _said(error)
    return Row(name, verdict, figure, time.perf_counter() - start)


def _said(error: Exception) -> str:
    return _line(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {_line(error)}"


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]


def name_of(device: torch.device) -> str:
    """The name of an accelerator, as its maker gives it; of a CPU, as Linux does."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(report: dict[str, Any]) -> str:
    """The report as a page of Markdown."""
    of, versions = f"{report['device']}, {report['date']}", f"torch {report['torch']}, ebmcore {report['ebmcore']}"
    lines = ["| tried | verdict | figure | seconds |", "|---|---|---|---|"]
    lines += [
        f"| {row['name']} | {row['verdict']} | {row['figure'].replace('|', '/')} | {row['seconds']:.1f} |"
        for row in report["rows"]
    ]
    return "\n".join([f"{of}, {versions}, {report['seconds']:.0f} s in all.", "", *lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check and write its report; return 1 if something failed."""
    parser = argparse.ArgumentParser(
        "python -m ebmcore.testing.gpu", description="Check this machine's accelerator.", allow_abbrev=False
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-check"), help="where gpu.json and gpu.md go (default: gpu-check)"
    )
    parser.add_argument("--device", help="such as cpu (default: the accelerator, or the CPU if there is none)")
    parser.add_argument("--page", type=Path, help=f"a page of Markdown: its text below {TABLE} becomes the table")
    options = parser.parse_args(arguments)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if options.device is None and accelerator is None:
        print("torch finds no accelerator: the check runs on the CPU, smaller, in at most two minutes")
    device = torch.device(options.device or accelerator or "cpu")
    start = time.perf_counter()
    rows = run(device)
    report = {
        "device": name_of(device),
        "type": device.type,
        "torch": torch.__version__,
        "ebmcore": ebmcore.__version__,
        "date": datetime.date.today().isoformat(),
        "seconds": time.perf_counter() - start,
        "rows": [asdict(row) for row in rows],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (options.out / "gpu.md").write_text(table(report), encoding="utf-8")
    if options.page is not None:
        above, marker, _ = options.page.read_text(encoding="utf-8").partition(TABLE)
        options.page.write_text(f"{above}{marker or TABLE}\n\n{table(report)}", encoding="utf-8")
    print(table(report))
    return int(any(row.verdict == FAILED for row in rows))


if __name__ == "__main__":
    sys.exit(main())

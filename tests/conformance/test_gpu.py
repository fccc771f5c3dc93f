"""The check of an accelerator, here without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import broken_losses
import pytest
import torch

import ebmcore
from ebmcore import host
from ebmcore.testing import Boltzmann, gpu
from ebmcore.testing.devices import generator, seeded

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FROM_FILES = {f"dataset {name}" for name in ("array", "images", "mnist", "sequences")}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The whole check in a process that sees no accelerator: the process, and the directory of its report."""
    out = tmp_path_factory.mktemp("gpu-check")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ebmcore.testing.gpu", "--out", str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=out, timeout=600), out


def test_whole_check_passes_on_the_cpu(done):
    """Every section, and every installed component but data sets whose files are not there, passes."""
    process, out = done
    report = json.loads((out / "gpu.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert process.returncode == 0, process.stdout + process.stderr
    assert {row["verdict"] for name, row in rows.items() if name not in FROM_FILES} == {"passed"}
    assert list(rows) == [
        *gpu.SECTIONS, gpu.WAITS, *(f"{c.kind} {c.name}" for c in host.list_components() if c.distribution != host.SESSION)
    ]  # fmt: skip
    assert all(row["figure"] for row in report["rows"])
    assert (report["type"], report["torch"], report["ebmcore"]) == ("cpu", torch.__version__, ebmcore.__version__)


def test_it_says_that_there_is_no_accelerator(done):
    process, _ = done
    assert process.stdout.startswith("torch finds no accelerator: the check runs on the CPU")


def test_table_has_each_row(done):
    """The page of Markdown and what is printed are the report: device, date, versions, and a line for each row."""
    process, out = done
    report, page = json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()
    for said in (report["device"], report["date"], f"torch {report['torch']}", f"ebmcore {report['ebmcore']}"):
        assert said in page.splitlines()[0]
    for row in report["rows"]:
        assert f"| {row['name']} | {row['verdict']} | {row['figure']} |" in page
    assert page in process.stdout


def raising(device):
    raise ValueError("two\nlines")


def missing(device):
    ebmcore.create_energy("no-such-energy")


@pytest.fixture
def sections(monkeypatch):
    """Replaces what is run by sections that take no time."""

    def replace(**functions):
        monkeypatch.setattr(gpu, "SECTIONS", functions)
        monkeypatch.setattr(gpu, "conformance", lambda device: [])

    return replace


def run(tmp_path, *options):
    status = gpu.main(["--device", "cpu", "--out", str(tmp_path / "out"), *options])
    return status, json.loads((tmp_path / "out/gpu.json").read_text())["rows"]


def test_failure_of_one_section_leaves_the_others(sections, tmp_path):
    """A section that raises is a failed row with its reason in one line, and the status is 1."""
    sections(bad=raising, good=lambda device: "1.0")
    status, rows = run(tmp_path)
    assert status == 1
    assert [(row["verdict"], row["figure"]) for row in rows] == [("failed", "ValueError: two lines"), ("passed", "1.0")]


def test_missing_plugin_is_skipped(sections, tmp_path):
    sections(absent=missing)
    status, (row,) = run(tmp_path)
    assert (status, row["verdict"]) == (0, "skipped")
    assert "no-such-energy" in row["figure"]


def test_kit_that_raises_is_a_failure(sections, tmp_path, monkeypatch):
    sections()
    monkeypatch.setattr(gpu, "conformance", raising)
    status, (row,) = run(tmp_path)
    assert (status, row["name"], row["figure"]) == (1, "conformance", "ValueError: two lines")


def test_table_goes_into_a_page(sections, tmp_path):
    """What stands below the mark is replaced, what stands above it stays."""
    sections(good=lambda device: "1.0")
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{gpu.TABLE}\n\nIt has not been run.\n")
    run(tmp_path, "--page", str(page))
    assert page.read_text() == f"# Title\n\n{gpu.TABLE}\n\n" + (tmp_path / "out/gpu.md").read_text()


def installed(monkeypatch, *classes):
    components = [host.Component("loss", cls.__name__, cls, "not installed", "") for cls in classes]
    monkeypatch.setattr(gpu.host, "list_components", lambda: components)


def test_broken_component_is_named_with_its_check(monkeypatch):
    installed(monkeypatch, broken_losses.Waiting)
    waits, loss = gpu.conformance(CPU)
    assert (waits.verdict, waits.figure) == ("failed", "Waiting")
    assert loss.verdict == "failed"
    assert "check_nothing_waits_for_the_device" in loss.figure


def test_kit_ends_in_time(monkeypatch):
    installed(monkeypatch, broken_losses.Waiting)
    monkeypatch.setattr(gpu, "SECONDS", -1)
    assert [row.verdict for row in gpu.conformance(CPU)] == ["skipped", "skipped"]


def test_slow_loop_is_a_failure():
    """A step that takes more than three times as long as the hand-written one fails, and the message has both."""
    with pytest.raises(AssertionError, match="of the time of the hand-written one"):
        gpu.on_device._ratio(lambda: torch.randn(300_000).sort(), lambda: torch.zeros(1), CPU, "hand-written", seconds=1e-4)


def test_page_says_what_each_row_means():
    page = (ROOT / "docs/gpu.md").read_text()
    assert [name for name in (*gpu.SECTIONS, gpu.WAITS) if f"| {name} |" not in page] == []


def test_targets_are_made_on_the_default_device():
    with torch.device("meta"):
        assert {p.device.type for p in Boltzmann(3).parameters()} == {"meta"}


def test_seeded_restores_the_global_generator():
    before = torch.get_rng_state()
    with seeded(3):
        drawn = torch.rand(4)
    assert torch.equal(drawn, torch.rand(4, generator=generator(3)))
    assert torch.equal(torch.get_rng_state(), before)

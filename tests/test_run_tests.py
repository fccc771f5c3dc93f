"""``tools/run_tests.py``: each plugin is its own line, and none hides another."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import run_tests
import wheels as builder

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0"
dependencies = ["ebmcore>=0.1"]

[project.optional-dependencies]
dev = ["pytest"]

[project.entry-points.ebmcore]
{package} = "{package}"

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.pytest.ini_options]
addopts = "--import-mode=importlib -q"
filterwarnings = ["error"]
"""
MODULE = """
import ebmcore
{imports}


class Quiet:
    \"\"\"An observer that does nothing.\"\"\"

    def on_start(self, run, *args): ...
    def on_log(self, *args): ...
    def on_checkpoint(self, *args): ...
    def on_end(self, *args): ...


@ebmcore.hookimpl
def ebmcore_register(register):
    register.observer("{package}", "{package}:Quiet")
"""


@pytest.fixture
def source(tmp_path):
    """Makes the source of a small plugin."""

    def make(name, imports="", test="pass"):
        package = name.replace("-", "_")
        folder = tmp_path / "sources" / name
        (folder / package).mkdir(parents=True)
        (folder / "tests").mkdir()
        (folder / "pyproject.toml").write_text(PROJECT.format(name=name, package=package))
        (folder / package / "__init__.py").write_text(MODULE.format(package=package, imports=imports))
        (folder / "tests" / f"test_{package}.py").write_text(f"def test_of_its_own():\n    import {package}\n    {test}\n")
        return folder

    return make


def test_outcomes_of_good_and_bad_plugins(tmp_path, source):
    sources = [
        source("tiny-undeclared", imports="import sklearn"),
        source("tiny-wrong", test="assert 2 == 3"),
        source("tiny-good"),
    ]
    built = builder.build(tmp_path / "wheels", [builder.ROOT, *sources])
    undeclared, wrong, good = run_tests.plugins(sources, built, tmp_path / "environments")
    assert good.ok, good.output
    assert (good.passed, good.failed, good.skipped) == (5, 0, 0)
    assert not wrong.ok
    assert (wrong.passed, wrong.failed) == (4, 1)
    assert "assert 2 == 3" in wrong.output
    assert str(wrong).startswith("FAILED  tiny-wrong")
    assert not undeclared.ok
    assert "No module named 'sklearn'" in undeclared.output


def test_unsatisfied_requirements_fail_the_plugin_alone(tmp_path, source):
    folder = source("tiny-greedy")
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace('"pytest"]', '"pytest", "ebm-no-such-thing"]'))
    built = builder.build(tmp_path / "wheels", [builder.ROOT, folder])
    (greedy,) = run_tests.plugins([folder], built, tmp_path / "environments")
    assert (greedy.ok, greedy.failed) == (False, 1)
    assert "tiny-greedy requires ebm-no-such-thing" in greedy.output


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_closing_line_and_status(monkeypatch, capsys, tmp_path, ok, status):
    outcomes = [run_tests.Outcome("a", ok, 3, 0 if ok else 2, 1, output="why"), run_tests.Outcome("b", True, 4, 0, 0)]
    monkeypatch.setattr(run_tests, "kernel", lambda: run_tests.Outcome("kernel", True, 10, 0, 2))
    monkeypatch.setattr(run_tests, "plugins", lambda *_: iter(outcomes))
    monkeypatch.setattr(run_tests, "ENVIRONMENTS", tmp_path)
    assert run_tests.main([]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"17 passed, {0 if ok else 2} failed, 3 skipped"
    assert ("why" in lines) is not ok


def test_killed_runs_count_as_failures(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print('last words', flush=True); os.abort()"], capture_output=True, text=True
    )
    killed = run_tests.outcome("a", done, tmp_path / "none.xml", 0.0)
    assert (killed.ok, killed.failed) == (False, 1)
    assert "last words" in killed.output


def test_unknown_names_are_refused(capsys):
    assert run_tests.main(["ebm-plugin-nothing"]) == 2
    assert re.match(r"unknown: ebm-plugin-nothing; choose from kernel, ebm-plugin-cd", capsys.readouterr().out)

"""``ebmcore new plugin``: what it makes and what it refuses. That what it makes works is tested in clean environments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebmcore import host
from ebmcore.cli import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def new(command):
    return main(["new", "plugin", *command.split()])


def test_it_makes_a_whole_distribution(tmp_path):
    assert new("my-cd --kind loss") == 0
    made = tmp_path / "ebm-plugin-my-cd"
    assert {str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()} == {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "ebm_plugin_my_cd/__init__.py",
        "ebm_plugin_my_cd/loss.py",
        "ebm_plugin_my_cd/py.typed",
        "tests/conftest.py",
        "tests/test_my_cd_conformance.py",
        ".github/workflows/test.yml",
    }
    assert not [p for p in made.rglob("*") if p.is_file() and "$" in p.read_text()]


@pytest.mark.parametrize("kind", [*host.KINDS, "loss --base other"])
def test_what_it_makes_is_tidy(tmp_path, tmp_path_factory, kind):
    assert new(f"tidy --kind {kind}") == 0
    for command in (["check", "--select=B,E,F,I,N,S,UP,W,T20"], ["format", "--check"]):
        arguments = [
            sys.executable,
            "-m",
            "ruff",
            *command,
            "--isolated",
            "--line-length=125",
            "ebm-plugin-tidy/ebm_plugin_tidy",
        ]
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    cache = tmp_path_factory.getbasetemp() / "mypy"
    typed = ["mypy", "--strict", "--follow-imports=silent", f"--cache-dir={cache}", "ebm-plugin-tidy/ebm_plugin_tidy"]
    done = subprocess.run([sys.executable, "-m", *typed], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_inside_the_repository_it_goes_among_the_plugins_and_needs_no_ci(tmp_path, monkeypatch, capsys):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "ebmcore"\n')
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    assert new("my-cd --kind loss") == 0
    assert (tmp_path / "plugins/ebm-plugin-my-cd/pyproject.toml").exists()
    assert not (tmp_path / "plugins/ebm-plugin-my-cd/.github").exists()


def test_a_directory_can_be_chosen_and_an_empty_one_is_taken(tmp_path):
    (tmp_path / "mine").mkdir()
    for directory in ("mine", "deep/down"):
        assert new(f"my-cd --kind loss --directory {directory}") == 0
        assert (tmp_path / directory / "ebm_plugin_my_cd/loss.py").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "mine"]


@pytest.mark.parametrize("name", ["My_CD", "ebm-plugin-my-cd", "my.cd"])
def test_a_name_is_written_in_one_way(tmp_path, name):
    assert new(f"{name} --kind loss") == 0
    assert 'register.loss("my-cd"' in (tmp_path / "ebm-plugin-my-cd/ebm_plugin_my_cd/__init__.py").read_text()


@pytest.mark.parametrize("name", ["3d", "none", "1", "base"])
def test_every_name_gives_valid_python(tmp_path, name):
    for kind in host.KINDS:
        assert new(f"{name} --kind {kind} --directory {kind}") == 0
        for file in (tmp_path / kind / f"ebm_plugin_{name}").glob("*.py"):
            compile(file.read_text(), kind, "exec")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pcd --kind loss", "the loss 'pcd' exists already, as ebm-plugin-pcd:pcd"),
        ("nets --kind loss", "the distribution ebm-plugin-nets exists already"),
        ("a/b --kind loss", "is no valid project name"),
        ("-- -x --kind loss", "--kind"),
        ("my-cd_ --kind loss", "is no valid project name"),
        ("my-cd --kind lose", "invalid choice: 'lose'"),
        ("my-cd", "--kind"),
        ("my-mcmc --kind sampler --base other", "--base is for losses, not for a sampler: leave it out"),
        ("my-cd --kind loss --directory full", "exists and is not an empty directory"),
        ("my-cd --kind loss --directory file", "exists and is not an empty directory"),
        ("my-cd --kind loss --directory .", "the current directory"),
        ("my-cd --kind loss --directory file/below", "file"),
    ],
)
def test_what_cannot_be_made_is_one_clear_line_and_nothing_is_left(tmp_path, capsys, command, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    assert new(command) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["file", "full", "full/mine"]


def test_what_fails_in_the_middle_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert new("my-cd --kind loss") == 2
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

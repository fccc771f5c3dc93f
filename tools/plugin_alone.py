"""What holds for each plugin where only what it requires is installed; run beside its own tests by ``tools/run_tests.py``."""

from __future__ import annotations

import json
import subprocess

import pytest
from importlib_metadata import distribution, requires
from packaging.requirements import Requirement

import ebmcore
from ebmcore.cli import main


@pytest.fixture
def name(pytestconfig):
    """The distribution; its folder, the root of this run, bears its name."""
    return pytestconfig.rootpath.name


@pytest.fixture
def installed(name):
    """The plugin, and those of ours that it and its tests require; without one that provides no component."""
    required = [Requirement(text) for text in requires(name)]
    ours = {name} | {r.name for r in required if r.name.startswith("ebm-plugin-")}
    return {one for one in ours if distribution(one).entry_points.select(group="ebmcore")}


def command(*arguments):
    """What the installed command prints as JSON, in a process that has loaded nothing yet."""
    done = subprocess.run(["ebmcore", *arguments, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_list_shows_these_plugins_alone(installed):
    assert {row["id"].split(":")[0] for row in command("list")} <= installed


def test_plugins_shows_what_is_listed(installed):
    plugins = command("plugins")
    assert {(plugin["distribution"], plugin["state"]) for plugin in plugins} == {(name, "available") for name in installed}
    listed = sorted((row["kind"], row["name"]) for row in command("list"))
    assert sorted((row["kind"], row["name"]) for plugin in plugins for row in plugin["components"]) == listed


def test_show_describes_each_component(capsys):
    for component in ebmcore.list_components():
        assert main(["show", component.id]) == 0
        assert component.id in capsys.readouterr().out


def test_doctor_finds_nothing(capsys, installed):
    status = main(["doctor"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert f"{len(installed)} plugin{'s' * (len(installed) > 1)} examined: all in order" in printed

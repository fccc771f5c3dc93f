"""What holds for each plugin where nothing else is installed; run beside the plugin's own tests by ``tools/run_tests.py``."""

from __future__ import annotations

import json
import subprocess

import pytest

import ebmcore
from ebmcore.cli import main


@pytest.fixture
def name(pytestconfig):
    """The distribution; its folder, the root of this run, bears its name."""
    return pytestconfig.rootpath.name


def command(*arguments):
    """What the installed command prints as JSON, in a process that has loaded nothing yet."""
    done = subprocess.run(["ebmcore", *arguments, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_list_shows_this_plugin_alone(name):
    assert {row["id"].split(":")[0] for row in command("list")} == {name}


def test_plugins_shows_what_is_listed(name):
    (plugin,) = command("plugins")
    assert (plugin["distribution"], plugin["state"]) == (name, "available")
    listed = {(row["kind"], row["name"]) for row in command("list")}
    assert {(row["kind"], row["name"]) for row in plugin["components"]} == listed


def test_show_describes_each_component(capsys):
    for component in ebmcore.list_components():
        assert main(["show", component.id]) == 0
        assert component.id in capsys.readouterr().out


def test_doctor_finds_nothing(capsys):
    status = main(["doctor"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "1 plugin examined: all in order" in printed

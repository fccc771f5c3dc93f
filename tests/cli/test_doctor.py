"""``ebmcore plugins``, ``list`` and ``doctor`` beside broken plugins, without any and with hundreds."""

from __future__ import annotations

import json
import time

import pytest
from broken_plugins import NAME, Broken, component, hook, python

from ebmcore.cli import main
from ebmcore.host.doctor import examine


def ebmcore(*arguments, **environ):
    return python(["-m", "ebmcore", *arguments], **environ)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder with 300 installed plugins of two components each."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(300):
        (folder / f"ebm_plugin_many{i}.py").write_text(
            hook().replace("broken_component:Still", f"many_component{i}:Still").replace('"broken"', f'"still{i}"')
        )
        info = folder / f"ebm_plugin_many{i}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Name: ebm-plugin-many{i}\nVersion: 1\nSummary: number {i}\nRequires-Dist: ebmcore>=0.1\n"
        )
        (info / "entry_points.txt").write_text(f"[ebmcore]\nmany{i} = ebm_plugin_many{i}\n")
    return str(folder)


@pytest.mark.parametrize("command", ["list", "plugins"])
def test_listings_work_with_three_hundred_plugins(many, command):
    rows = json.loads(ebmcore(command, "--json", PYTHONPATH=many).stdout)
    found = {row["name"] if command == "list" else row["components"][0]["name"] for row in rows}
    assert {f"still{i}" for i in range(300)} <= found


def test_a_run_works_beside_three_hundred_plugins(many, tmp_path):
    train = "train --energy rbm --energy.hidden 4 --sampler gibbs --loss pcd --data bars-and-stripes --steps 2 --out"
    done = ebmcore(*train.split(), str(tmp_path / "run"), PYTHONPATH=many)
    assert "trained 2 steps" in done.stdout, done.stderr


def test_plugins_are_listed_with_state_components_and_summary_and_none_is_imported(install):
    install(Broken(hook("raise AssertionError('imported')")))
    table = ebmcore("plugins")
    assert table.returncode == 0
    assert table.stdout.splitlines()[0].split() == ["DISTRIBUTION", "VERSION", "STATE", "COMPONENTS", "SUMMARY"]
    line = next(line for line in table.stdout.splitlines() if NAME in line)
    assert line.split() == [NAME, "1.2", "available", "broken", "broken"]


def test_a_plugin_that_cannot_work_says_why_below_the_table(install):
    install(Broken(version="Version: 1.2\nRequires-Dist: no-such-distribution>=3\n"))
    shown = ebmcore("plugins").stdout
    assert f"{NAME} is incompatible: needs no-such-distribution>=3, which is not installed" in shown
    rows = json.loads(ebmcore("plugins", "--json").stdout)
    assert next(row["state"] for row in rows if row["distribution"] == NAME) == "incompatible"


def test_the_doctor_finds_everything_in_order(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "plugins examined: all in order" in shown
    assert "ebm-plugin-pcd" in shown


def test_the_doctor_names_what_is_wrong_and_what_to_do(install, capsys):
    install(Broken(component=component("import no_such_module")))
    assert main(["doctor", NAME, "ebm-plugin-pcd"]) == 1
    shown = capsys.readouterr().out
    assert "ModuleNotFoundError: No module named 'no_such_module'" in shown
    assert f"EBMCORE_DISABLED_PLUGINS={NAME}" in shown
    assert "broken_component.py:4" in shown  # where
    assert "plugins examined: 1 problem" in shown


def test_a_syntax_error_is_told_with_its_place(install):
    install(Broken(hook("x = = 1")))
    (found,) = examine([NAME])
    (problem,) = found.problems
    assert "broken_plugin.py:3)" in problem
    assert "frozen" not in problem


def test_a_list_without_a_broken_plugin_says_so(install):
    install(Broken(hook("x = = 1")))
    listed = ebmcore("list", "loss")
    assert listed.returncode == 0
    assert listed.stderr.startswith(f"{NAME} is failed: SyntaxError: invalid syntax")
    assert listed.stderr.endswith("see 'ebmcore doctor'\n")


def test_the_doctor_writes_json(install, capsys):
    install(Broken(hook(before="import torch")))
    assert main(["doctor", "--json", NAME, "ebm-plugin-pcd"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["versions"].keys() == {"ebmcore", "torch", "python"}
    (broken,) = [plugin for plugin in found["plugins"] if plugin["distribution"] == NAME]
    assert broken["state"] == "loaded"
    assert broken["components"] == [["sampler", "broken"]]
    assert "imports torch" in broken["problems"][0]
    assert broken["seconds"] > 0.1


def test_the_doctor_tells_conflicts_unless_a_preference_decides(install, monkeypatch, capsys):
    install(Broken(other="name"))
    both = [NAME, "ebm-plugin-zother"]
    assert main(["doctor", *both]) == 1
    assert (
        "the sampler 'broken' is provided by ebm-plugin-broken and ebm-plugin-zother: decide with EBMCORE_PREFER"
        in capsys.readouterr().out
    )
    for variable, value in (("EBMCORE_PREFER", f"broken={NAME}"), ("EBMCORE_DISABLED_PLUGINS", NAME)):
        with monkeypatch.context() as settled:
            settled.setenv(variable, value)
            assert main(["doctor", *both]) == 0


def test_the_doctor_tells_a_variable_that_cannot_be_obeyed_and_goes_on(monkeypatch, capsys):
    monkeypatch.setenv("EBMCORE_PLUGINS", "ebm-plugin-nothing")
    assert main(["doctor", "ebm-plugin-pcd"]) == 1
    shown = capsys.readouterr().out
    assert "EBMCORE_PLUGINS names ebm-plugin-nothing, which is not installed" in shown
    assert "ebm-plugin-pcd" in shown


def test_the_doctor_examines_those_that_are_named(capsys):
    assert main(["doctor", "EBM_plugin.pcd", "--json", "ebm-plugin-nets"]) == 0
    found = json.loads(capsys.readouterr().out)["plugins"]
    assert {plugin["distribution"] for plugin in found} == {"ebm-plugin-pcd", "ebm-plugin-nets"}
    assert main(["doctor", "ebm-plugin-nothing"]) == 2
    assert "ebmcore doctor names ebm-plugin-nothing, which is not installed; installed plugins: " in capsys.readouterr().err


def test_the_doctor_refuses_a_time_limit_that_is_none(capsys):
    assert main(["doctor", "--timeout", "0"]) == 2
    assert "--timeout must be above 0" in capsys.readouterr().err


def test_what_a_plugin_prints_does_not_disturb_the_doctor(install):
    install(Broken(hook("print('{}'); import sys; print('noise', file=sys.stderr)")))
    (found,) = examine([NAME])
    assert (found.state, found.problems) == ("loaded", [])


def test_what_a_crashed_plugin_said_last_is_shown(install):
    install(Broken(hook("import os, sys; print('famous last words', file=sys.stderr, flush=True); os._exit(9)")))
    (found,) = examine([NAME])
    assert "ended with exit status 9 while importing broken_plugin: ...famous last words" in found.problems[0]


def test_threads_of_a_plugin_do_not_keep_the_doctor(install):
    install(Broken(hook("import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()")))
    start = time.monotonic()
    (found,) = examine([NAME], seconds=60)
    assert found.problems == []
    assert time.monotonic() - start < 50


def test_doctor_names_hidden_commands(install, capsys):
    source = (
        hook()
        .replace("register.sampler(", "register.command(")
        .replace("broken_component:Still", "ebmcore.cli.listing:list")
    )
    install(Broken(source.replace('"broken"', '"list"')))
    assert main(["doctor", NAME]) == 1
    shown = capsys.readouterr().out
    assert f"the command 'list' of {NAME} is hidden by ebmcore's own" in shown
    assert f"'ebmcore {NAME}:list'" in shown

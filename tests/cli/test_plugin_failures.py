"""Code of a plugin that ends the process, cannot read a file or has no memory left: one line that names the plugin."""

from __future__ import annotations

import argparse
import re
import sys

import pytest
import torch
from commands import ebmcore, train

import ebmcore as ebmcore_
from ebmcore.cli import main
from ebmcore.testing import Quadratic
from ebmcore.training.directory import write_text

PLUGIN = r"ebmcore: the plugin ebm-plugin-failing 0 \(\S+test_plugin_failures\.py:\d+\) failed: "


class Failing(Quadratic):
    """Fails with the first call that computes a loss."""

    fails = None

    def forward(self, x):
        type(self).fails()
        return super().forward(x)


class Unbuildable(Quadratic):
    def __init__(self, shape):
        super().__init__(shape)
        Failing.fails()


class FailingMetric:
    def __call__(self, energy, data, *, sampler, generator):
        Failing.fails()


@pytest.fixture
def failing(monkeypatch):
    """Trains with components of a plugin that call a function."""

    class Plugin:
        @ebmcore_.hookimpl
        def ebmcore_register(self, register):
            register.energy("failing", Failing)
            register.energy("unbuildable", Unbuildable)
            register.metric("failing-metric", FailingMetric)

    def run(fails, out, options="--energy failing"):
        monkeypatch.setattr(Failing, "fails", staticmethod(fails))
        common = "--sampler langevin --sampler.step_size 0.1 --loss cd --data two-moons --steps 1 --progress false"
        return train(f"{common} {options}", out)

    with ebmcore_.temporary_plugin(Plugin(), "ebm-plugin-failing"):
        yield run


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("code", [(), (0,), (3,), ("enough",)])
def test_exit_within_energy_is_no_success(failing, tmp_path, capsys, code):
    assert failing(lambda: sys.exit(*code), tmp_path / "run") == 2
    call = f"sys.exit({', '.join(map(repr, code))}) was called"
    assert re.fullmatch(rf"{PLUGIN}{re.escape(call)}", last_line(capsys))


def test_exit_within_metric_is_no_success(failing, tmp_path, capsys):
    options = "--energy mlp --energy.hidden [4] --metric failing-metric"
    assert failing(lambda: sys.exit(0), tmp_path / "run", options) == 2
    assert re.fullmatch(rf"{PLUGIN}sys\.exit\(0\) was called", last_line(capsys))


def test_missing_file_of_plugin_names_plugin(failing, tmp_path, capsys):
    assert failing(lambda: open("weights.npy"), tmp_path / "run") == 2  # noqa: SIM115
    assert re.fullmatch(rf"{PLUGIN}No such file or directory: weights\.npy", last_line(capsys))


def test_missing_file_read_by_library_names_its_caller(failing, tmp_path, capsys):
    """Frames of other libraries are passed over."""
    assert failing(lambda: torch.load("weights.pt"), tmp_path / "run") == 2
    assert re.fullmatch(rf"{PLUGIN}No such file or directory: weights\.pt", last_line(capsys))


def test_missing_file_of_constructor_names_plugin(failing, tmp_path, capsys):
    assert failing(lambda: open("weights.npy"), tmp_path / "run", "--energy unbuildable") == 2  # noqa: SIM115
    told = "No such file or directory: weights.npy; while making the energy 'unbuildable'"
    assert re.fullmatch(rf"{PLUGIN}{told}", last_line(capsys))


def test_file_of_kernel_names_no_plugin(failing, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert failing(lambda: write_text(tmp_path / "file/a", "text"), tmp_path / "run") == 2
    assert last_line(capsys).startswith("ebmcore: Not a directory: ")


def take_too_much(kind):
    if kind == "cpu":
        torch.empty(10**15)
    raise {"python": MemoryError, "gpu": torch.OutOfMemoryError}[kind]


@pytest.mark.parametrize("kind", ["python", "cpu", "gpu"])
def test_constructor_without_memory_is_one_line(failing, tmp_path, capsys, kind):
    assert failing(lambda: take_too_much(kind), tmp_path / "run", "--energy unbuildable") == 2
    named = rf"{PLUGIN}out of memory \(.*\); while making the energy 'unbuildable'"
    sized = "ebmcore: the energy 'unbuildable': a size is too large, or below 0: .*"  # its options may be the cause
    assert re.fullmatch(f"{named}|{sized}", last_line(capsys))


def test_other_errors_keep_their_traceback(failing, tmp_path):
    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing(fails, tmp_path / "run")


@pytest.mark.parametrize("command", ["train", "evaluate", "list", "new plugin"])
def test_help_is_a_success(command, capsys):
    with pytest.raises(SystemExit) as end:
        ebmcore(f"{command} --help")
    assert end.value.code == 0


def parses(arguments):
    if arguments == ["probe", "--help"]:  # as other parsers than argparse end it
        sys.exit(0)
    parser = argparse.ArgumentParser("probe")
    parser.add_argument("--version", action="version", version="1")
    parser.parse_args(arguments)
    sys.exit(0)


@pytest.fixture
def probe():
    """A command that parses its arguments and then exits."""

    class Plugin:
        @ebmcore_.hookimpl
        def ebmcore_register(self, register):
            register.command("probe", parses)

    with ebmcore_.temporary_plugin(Plugin(), "ebm-plugin-probe"):
        yield lambda *arguments: main(["probe", *arguments])


@pytest.mark.parametrize(("arguments", "code"), [("--help", 0), ("probe --help", 0), ("--version", 0), ("--wrong", 2)])
def test_parser_may_end_command(probe, arguments, code):
    with pytest.raises(SystemExit) as end:
        probe(*arguments.split())
    assert end.value.code == code


def test_exit_of_command_is_no_success(probe, capsys):
    assert probe() == 2
    assert re.search(r"the command ebm-plugin-probe:probe .* failed: sys\.exit\(0\) was called \(", last_line(capsys))

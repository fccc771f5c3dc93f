"""Commands of plugins beside the built-in ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ebmcore
from ebmcore.cli import COMMANDS, main


class Plugin:
    """Registers commands, by name and target."""

    def __init__(self, **commands):
        self.commands = commands

    @ebmcore.hookimpl
    def ebmcore_register(self, register):
        for name, target in self.commands.items():
            register.command(name, target)


@pytest.fixture
def commands():
    """Registers a plugin with the given commands for the length of a test."""
    made = []

    def make(distribution="ebm-plugin-probe", **targets):
        made.append(ebmcore.temporary_plugin(Plugin(**targets), distribution))
        made[-1].__enter__()

    yield make
    for plugin in made:
        plugin.__exit__(None, None, None)


def one_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_command_runs_with_arguments(commands):
    seen = []
    commands(probe=lambda arguments: seen.append(arguments))
    assert main(["probe", "--deep", "x"]) == 0
    assert main(["ebm-plugin-probe:probe"]) == 0
    assert seen == [["--deep", "x"], []]


def test_command_gives_exit_status(commands):
    commands(probe=lambda arguments: 3)
    assert main(["probe"]) == 3


def test_help_lists_commands_without_importing(commands, capsys):
    commands(probe="a_module_that_does_not_exist:probe")
    assert main(["--help"]) == 0
    assert "  probe     a command of ebm-plugin-probe\n" in capsys.readouterr().out


def test_help_names_ambiguous_commands_by_id(commands, capsys):
    commands(probe=lambda arguments: 0)
    commands("ebm-plugin-other", probe=lambda arguments: 0)
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "  ebm-plugin-other:probe  a command" in shown
    assert "  ebm-plugin-probe:probe  a command" in shown


def test_help_beside_wrong_variable():
    program = "from ebmcore.cli import main; main(['--help'])"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"EBMCORE_STRICT": "maybe", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "  train " in done.stdout
    assert "Commands of plugins cannot be listed: EBMCORE_STRICT must be" in done.stdout


def test_built_in_command_cannot_be_shadowed(commands, capsys):
    commands(plugins=lambda arguments: 7)
    assert main(["plugins"]) == 0
    assert main(["ebm-plugin-probe:plugins"]) == 7
    capsys.readouterr()
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert COMMANDS["plugins"][1] in shown
    assert "ebm-plugin-probe:plugins" in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("porbe", "there is no command 'porbe'; did you mean probe or score?"),
        ("trian", "there is no command 'trian'; did you mean train?"),
        ("xyz", "the commands are train, evaluate, sample, score, export, list, plugins, show, new, doctor, check, probe"),
        ("ebm-plugin-none:probe", "no installed plugin provides the command 'ebm-plugin-none:probe'; did you mean probe?"),
    ],
)
def test_unknown_command_names_close_ones(commands, capsys, given, message):
    commands(probe=lambda arguments: 0)
    assert main([given]) == 2
    assert message in one_line(capsys)


def raises(arguments):
    return 1 / len(arguments)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a_module_that_does_not_exist:probe", "is broken: ModuleNotFoundError"),
        ("ebmcore.errors:UsageError", "the target of a command must be a function"),
        ("ebmcore.host:refresh", "a command must be a function of one argument"),
        (raises, r"raised ZeroDivisionError: division by zero ("),
        (lambda arguments: "done", "returned 'done' instead of an exit status"),
    ],
)
def test_broken_command_names_plugin(commands, capsys, target, message):
    commands(probe=target)
    assert main(["probe"]) == 2
    line = one_line(capsys)
    assert message in line
    assert "the command ebm-plugin-probe:probe" in line


def test_show_describes_command(commands, capsys):
    commands(probe="ebmcore.cli.listing:plugins")
    assert main(["show", "probe"]) == 0
    shown = capsys.readouterr().out
    assert "command ebm-plugin-probe:probe" in shown
    assert "Print the plugins" in shown
    assert "ptions" not in shown


def test_listing_imports_no_plugin_command():
    program = "from ebmcore.cli import main; import sys; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)

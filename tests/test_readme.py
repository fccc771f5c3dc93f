"""What the README says is what happens. Its Python examples are doctests; here are the commands and the plugin."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ebmcore.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_command_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 7
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "ebmcore"
        assert main(arguments) == 0, f"{command}: {capsys.readouterr().err}"
    run = {path.name for path in (tmp_path / "runs/digits").iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "evaluation.json", "samples.png"} <= run


def test_what_it_says_of_plugins_is_on_the_page_that_is_run():
    # tests/test_environments.py runs that page in a clean environment.
    page = (ROOT / "docs/write-a-plugin.md").read_text()
    commands = blocks("bash-plugin")
    assert len(commands) == 2
    for line in "".join(commands).splitlines():
        assert f"\n{line}\n" in page
    assert blocks("python")[-1] in page


def test_the_documented_loss_is_at_most_thirty_lines():
    loss = next(block for block in blocks("python") if "class NoisyCdLoss" in block)
    assert len(loss.strip().splitlines()) <= 30


def test_each_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE)) <= targets


def test_each_plugin_is_in_the_table():
    for plugin in (ROOT / "plugins").iterdir():
        assert f"| `{plugin.name}` |" in README


@pytest.mark.parametrize("path", [ROOT, *sorted((ROOT / "plugins").iterdir())], ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", (path / "README.md").read_text()):
        assert (path / target).exists()


@pytest.mark.parametrize("plugin", sorted((ROOT / "plugins").iterdir()), ids=lambda p: p.name)
def test_each_plugins_readme_has_its_options_and_its_source(plugin):
    import inspect

    import ebmcore

    text = (plugin / "README.md").read_text()
    assert "## Options" in text
    assert re.search(r"## Source\n\n.*\(\d{4}\)", text, re.DOTALL)
    for component in ebmcore.list_components():
        if component.distribution == plugin.name:
            options = set(inspect.signature(ebmcore.host.load(component.kind, component.id)).parameters)
            for option in options - {"energy", "sampler"}:
                assert f"`{option}`" in text, (component.id, option)

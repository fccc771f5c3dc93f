"""What the README says is what happens. Its Python examples are doctests; here are the commands and the plugin."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
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


def test_the_plugin_installs_and_trains(tmp_path):
    files = dict(re.findall(r"`([\w./]+)`\n```(?:toml|python)\n(.*?)```", README, re.DOTALL))
    assert set(files) == {"pyproject.toml", "ebm_plugin_noisy_cd/__init__.py", "ebm_plugin_noisy_cd/loss.py"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    site = tmp_path / "site"
    install = ["pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site), str(tmp_path)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    (commands,) = blocks("bash-plugin")
    for command in commands.splitlines():
        arguments = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "start_noise: 0.2" in (tmp_path / "runs/noisy/config.yaml").read_text()


def test_the_documented_loss_is_at_most_thirty_lines():
    loss = next(block for block in blocks("python") if "class NoisyContrastiveDivergence" in block)
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
            options = set(inspect.signature(ebmcore.load(component.kind, component.id)).parameters)
            for option in options - {"energy", "sampler"}:
                assert f"`{option}`" in text, (component.id, option)

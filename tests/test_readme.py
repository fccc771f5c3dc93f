"""What the README says is what happens. Its Python examples are doctests; here are its commands, its plugin and its tables."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest

import ebmcore
from ebmcore import host
from ebmcore.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PLUGINS = sorted((ROOT / "plugins").iterdir())


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def without_docstrings(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


(NOISY_CD,) = (block for block in blocks("python") if "class NoisyCdLoss" in block)
(FIVE_COMMANDS,) = (block.splitlines() for block in blocks("bash-plugin"))


def test_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_commands_run(tmp_path, monkeypatch, capsys):
    """Every command of the README runs as it stands, one after the other, and leaves the run that the pages describe."""
    monkeypatch.chdir(tmp_path)
    for command in "".join(blocks("bash")).splitlines():
        program, *arguments = shlex.split(command)
        assert program == "ebmcore"
        assert main(arguments) == 0, f"{command}: {capsys.readouterr().err}"
    run = {path.name for path in (tmp_path / "runs/digits").iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "evaluation.json", "samples.png"} <= run


def test_install_command_installs_everything(environment):
    (editable,) = re.findall(r"^pip install -e .*", "".join(blocks("console")), re.MULTILINE)
    site = environment("ebmcore[all]", "hatchling", "editables")
    site.check(editable, cwd=ROOT)
    program = "import ebmcore, ebm_plugin_pcd; print(ebmcore.__file__, ebm_plugin_pcd.__file__)"
    assert site.check("python", "-c", program).count(str(ROOT)) == 2
    names = [plugin.name for plugin in PLUGINS]
    site.check("python", "-c", f"from importlib.metadata import version; list(map(version, {names}))")


@pytest.mark.parametrize("kind", ["loss", "loss --base other", "sampler"])
def test_five_commands_make_a_plugin(everything, tmp_path, request, kind):
    """From nothing to a tested plugin that trains, without editing: the first command prints the other four."""
    name = "noisy-cd" if kind == "loss" else "first-of-" + kind.split()[-1]
    new = FIVE_COMMANDS[0].replace("noisy-cd", name).replace("--kind loss", f"--kind {kind}")
    request.addfinalizer(lambda: everything.check(f"pip uninstall -y ebm-plugin-{name}"))
    printed = [line.strip() for line in everything.check(new, cwd=tmp_path).splitlines()[2:]]
    assert len(printed) == 4
    if kind == "loss":
        assert [shlex.split(line) for line in printed] == [shlex.split(line) for line in FIVE_COMMANDS[1:]]
    shown = everything.check(" && ".join(printed), cwd=tmp_path)
    assert re.search(r"\d+ passed", shown)
    assert "trained" in shown
    assert f"ebm-plugin-{name}:{name}" in everything.check("ebmcore list")


def test_plugin_is_that_of_the_page():
    """The page *Write a plugin*, every line of which is run, has the README's commands and its loss."""
    page = (ROOT / "docs/write-a-plugin.md").read_text()
    for line in FIVE_COMMANDS:
        assert f"\n{line}\n" in page
    assert re.search(r"about (\d+) rules", README).group(1) == re.search(r"about (\d+) checks", page).group(1)
    written = [without_docstrings(block) for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    assert without_docstrings(NOISY_CD) in written


def test_plugin_has_thirty_lines():
    assert len(NOISY_CD.strip().splitlines()) <= 30


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_table_names_every_plugin_and_component():
    rows = "".join(line for line in README.splitlines() if line.startswith("| `"))
    assert [p.name for p in PLUGINS if f"`{p.name}`" not in rows] == []
    ours = [c for c in ebmcore.list_components() if (ROOT / "plugins" / c.distribution).is_dir()]
    assert len(ours) > 20
    assert [c.id for c in ours if f"`{c.name}`" not in rows] == []


@pytest.mark.parametrize("path", [ROOT, *PLUGINS], ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", (path / "README.md").read_text()):
        assert (path / target).exists(), target


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_plugin_readme_has_options_and_source(plugin):
    text = (plugin / "README.md").read_text()
    assert "## Options" in text
    assert re.search(r"## Source\n\n.*\(\d{4}\)", text, re.DOTALL)
    for component in ebmcore.list_components():
        if component.distribution == plugin.name and component.kind not in ("recipe", "command"):
            options = set(inspect.signature(host.load(component.kind, component.id)).parameters)
            for option in options - {"energy", "sampler"}:
                assert f"`{option}`" in text, (component.id, option)

"""What the documentation says is what there is: every hook, command and variable, and every command on the pages runs."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import ebmcore
from ebmcore import host
from ebmcore.cli import COMMANDS, main
from ebmcore.host import hookspecs
from ebmcore.host.report import State
from ebmcore.host.settings import VARIABLES
from ebmcore.testing import run_checks

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
HOOKS = [name for name in vars(hookspecs) if name.startswith("ebmcore_")]


def squeezed(text):
    return " ".join(text.split())


def page(name):
    return squeezed((DOCS / name).read_text())


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_signature(hook):
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert f"## {hook} ```python def {hook}{signature}" in page("hooks.md")


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test(hook):
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_host.py"))
    assert re.search(rf"def test_hook_{hook}\b", tests)


def test_each_method_of_register_is_documented():
    _, *parameters = inspect.signature(host.registry.RegisterKind.__call__).parameters.values()
    bare = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
    assert f"register.loss{bare}" in page("hooks.md")
    for kind in host.KINDS:
        assert f"| `register.{kind}` |" in page("hooks.md")


def test_each_state_is_documented():
    for state in State:
        assert f"| `{state}` |" in page("hooks.md")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented_with_its_usage(command, capsys):
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    usage = squeezed(capsys.readouterr().out.split("\n\n")[0])
    assert usage.startswith(f"usage: ebmcore {command}")
    section = page("reference/commands.md").partition(f"## ebmcore {command} ")[2].partition(" ## ")[0]
    assert usage in section, usage


def test_no_command_is_documented_that_does_not_exist():
    assert re.findall(r"^## ebmcore (\w+)$", (DOCS / "reference/commands.md").read_text(), re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_variable_is_documented(variable):
    assert f"| `{variable}` |" in page("reference/environment.md")
    assert f"``{variable}``" in host.__doc__


def test_there_is_no_other_variable():
    source = "".join(path.read_text() for path in (ROOT / "ebmcore").rglob("*.py"))
    assert set(re.findall(r"EBMCORE_[A-Z_]+\b", source)) == set(VARIABLES)


def test_every_source_is_in_the_list_of_citations():
    citations = page("citations.md")
    cited = set()
    for path in (*(ROOT / "ebmcore").rglob("*.py"), *(ROOT / "plugins").rglob("ebm_plugin_*/*.py")):
        cited |= set(re.findall(r'\(?\d{4}\)?, (?:comments on )?"([^"]+)"', squeezed(path.read_text())))
    assert len(cited) > 10
    assert [title for title in cited if title.rstrip(".") not in citations] == []


def test_every_decision_has_a_number_of_its_own():
    numbers = sorted(path.name[:4] for path in (DOCS / "decisions").glob("0*.md"))
    assert numbers == [f"{i:04}" for i in range(1, len(numbers) + 1)]


def test_every_page_is_reached_from_the_index():
    reached, new = set(), {"index"}
    while new:
        name = new.pop()
        reached.add(name)
        text = (DOCS / f"{name}.md").read_text()
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
            for entry in re.findall(r"^[\w/*-]+$", tree, re.MULTILINE):
                found = sorted((DOCS / name).parent.glob(f"{entry}.md"))
                new |= {str(path.relative_to(DOCS).with_suffix("")) for path in found} - reached
    assert reached == {
        str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md") if "_build" not in path.parts
    }


@pytest.mark.parametrize("name", ["getting-started", "training"])
def test_commands_of_the_page_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"```bash\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL)
    assert commands
    for command in "".join(commands).splitlines():
        program, *arguments = shlex.split(command)
        assert program == "ebmcore"
        assert main(arguments) == 0, f"{command}: {capsys.readouterr().err}"


# Components on pages, which the kit tries: a module of the code blocks of each page, in their order.
SHOWN = {
    "losses-beyond-cd": ["DenoisingScoreMatching", "ClassifyingScoreMatching", "ShortRun", "LearntNoise"],
    "write-a-plugin": ["MyLangevin"],
}


def code(name):
    language = r"\{code-block\} python" if name == "write-a-plugin" else "python"
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL))


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Imports what a page shows, in this process and in those that the kit starts."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def make(name):
        module = f"shown_{name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(code(name))
        return importlib.import_module(module)

    yield make
    for module in [name for name in sys.modules if name.startswith("shown_")]:
        del sys.modules[module]


@pytest.mark.parametrize(("name", "component"), [(name, c) for name, all_ in SHOWN.items() for c in all_])
def test_component_of_the_page_passes_the_kit(name, component, shown):
    results = run_checks(getattr(shown(name), component))
    assert [f"{r.check}: {r.detail}" for r in results if r.outcome not in ("passed", "did not apply")] == []
    assert sum(r.outcome == "passed" for r in results) > 20


def test_every_component_of_the_pages_is_tried():
    for name, components in SHOWN.items():
        classes = re.findall(r"^class (\w+)\((?!torch)", code(name), re.MULTILINE)
        assert classes == components


@pytest.mark.parametrize(
    ("name", "kinds", "n_lines"), [("how-to-choose", ("sampler", "energy", "metric"), 45), ("choose-a-loss", ("loss",), 95)]
)
def test_pages_of_choice_name_what_exists(name, kinds, n_lines):
    """One page names every sampler, energy and metric of ours, another one every loss, both briefly."""
    text = (DOCS / f"{name}.md").read_text()
    ours = [c for c in ebmcore.list_components() if (ROOT / "plugins" / c.distribution).is_dir()]
    named = {c.name for c in ours if c.kind in kinds}
    assert {name for name in named if f"`{name}`" not in text} == set()
    assert len(text.splitlines()) <= n_lines


def sphinx(source, tmp_path, **files):
    (source / "conf.py").write_text('extensions = ["ebmcore.sphinxext"]\n')
    for name, text in files.items():
        (source / f"{name}.rst").write_text(text)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-q", "-j", "2", str(source), str(tmp_path / "out")]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_directive_lists_what_is_installed_and_is_safe_in_parallel(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    pages = {f"page{i}": "Page\n====\n\n.. ebm-components::\n" for i in range(6)}
    one = "One\n===\n\n.. ebm-components::\n   :kind: loss\n   :distribution: ebm-plugin-pcd\n"
    tree = "Index\n=====\n\n.. toctree::\n\n   one\n" + "".join(f"   {name}\n" for name in pages)
    done = sphinx(source, tmp_path, index=tree, one=one, **pages)
    assert done.returncode == 0, done.stderr  # a warning that it is not parallel_read_safe would be an error
    listed = (tmp_path / "out/page0.html").read_text()
    for component in ebmcore.list_components():
        assert component.id in listed or component.distribution == host.SESSION
    chosen = (tmp_path / "out/one.html").read_text()
    assert "ebm-plugin-pcd:pcd" in chosen
    assert "ebm-plugin-cd:cd" not in chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [(":kind: lose", '"lose" unknown; choose from'), (":distribution: nothing", "no installed component is of kind any")],
)
def test_the_directive_says_what_is_wrong_with_its_options(tmp_path, options, message):
    source = tmp_path / "source"
    source.mkdir()
    done = sphinx(source, tmp_path, index=f"Index\n=====\n\n.. ebm-components::\n   {options}\n")
    assert done.returncode != 0
    assert message in squeezed(done.stderr)

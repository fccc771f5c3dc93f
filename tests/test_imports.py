"""What stands outside the kernel uses its public names: those in the ``__all__`` of the module that they come from."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from string import Template

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("plugins", "examples", "studies", "ebmcore/cli/template")


class _Anything(dict):
    """A name for each placeholder of a template."""

    def __missing__(self, name):
        return f"a_{name}"


def sources():
    """Python files outside the kernel, and the scaffold's templates of such files."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py*")):
            if path.name.endswith((".py", ".py.template")):
                yield pytest.param(path, id=str(path.relative_to(ROOT)))


def parse(path):
    """The syntax tree; examples in docstrings and placeholders of templates are code too."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".template":
        text = Template(text).safe_substitute(_Anything())
    examples = re.findall(r"^ *>>> ((?:from|import) .*)$", text, flags=re.MULTILINE)
    return ast.parse(text), ast.parse("\n".join(examples))


def is_module(name):
    return all(not part.startswith("_") for part in name.split(".")) and importlib.util.find_spec(name) is not None


def is_public(module, name):
    """Whether ``name`` is in the module's ``__all__``, or is a public module in that package."""
    members = importlib.import_module(module)
    return name in getattr(members, "__all__", ()) or (hasattr(members, "__path__") and is_module(f"{module}.{name}"))


def imported(tree):
    """Pairs of a module of the kernel and a name that is imported from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ebmcore":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            dotted = (alias.name.rpartition(".") for alias in node.names if alias.name.startswith("ebmcore."))
            yield from ((package, name) for package, _, name in dotted)


def looked_up(tree):
    """Pairs of a module of the kernel and a name that is looked up in it, as in ``ebmcore.testing.conformance``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module = ast.unparse(node.value)
            if re.fullmatch(r"ebmcore(\.[a-z_]+)*", module) and is_module(module):
                yield module, node.attr


def test_the_check_finds_private_names():
    """The check itself: names outside ``__all__`` and private modules, as imports and as lookups."""
    tree = ast.parse(
        "from ebmcore.samplers import run, conditions_among\n"
        "from ebmcore._keywords import StrictKeywords\n"
        "from ebmcore import run, losses\n"
        "import ebmcore.testing, ebmcore._keywords\n"
        "ebmcore.chains.Slots, ebmcore.chains.State, ebmcore.create_loss, ebmcore.nothing\n"
    )
    found = {(module, name) for module, name in (*imported(tree), *looked_up(tree)) if not is_public(module, name)}
    assert found == {
        ("ebmcore.samplers", "conditions_among"),
        ("ebmcore._keywords", "StrictKeywords"),
        ("ebmcore", "_keywords"),
        ("ebmcore.chains", "State"),
        ("ebmcore", "nothing"),
    }


@pytest.mark.parametrize("path", list(sources()))
def test_only_public_names_are_used(path):
    """Plugins and their tests, examples, studies and what the scaffold writes import nothing private of the kernel."""
    pairs = {pair for tree in parse(path) for pair in (*imported(tree), *looked_up(tree))}
    private = sorted(f"{module}.{name}" for module, name in pairs if not is_public(module, name))
    assert not private, f"not in the __all__ of their module: {private}"

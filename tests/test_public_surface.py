"""The public surface: every name that plugins may import, with its signature, in one readable file."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import ebmcore

PINNED = Path(__file__).parent / "public-surface.txt"
STUB = Path(ebmcore.__file__).with_suffix(".pyi")
HEADER = "# Every public name with its signature. After a change that is meant: python tests/test_public_surface.py\n"


def public_modules():
    folder = Path(ebmcore.__file__).parent
    names = [".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in sorted(folder.rglob("*.py"))]
    names = [name.removesuffix(".__init__") for name in names if "template" not in name and "__main__" not in name]
    return [module for module in map(importlib.import_module, names) if hasattr(module, "__all__")]


def signature(value):
    try:
        return re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.signature(value)).replace("'", ""))
    except ValueError:
        return ""


def lines(module, name):
    value, path = getattr(module, name), f"{module.__name__}.{name}"
    if inspect.ismodule(value) or not callable(value):
        return [path]
    methods = vars(value).items() if inspect.isclass(value) and value.__module__ == module.__name__ else ()
    public = sorted(n for n, member in methods if inspect.isfunction(member) and not n.startswith("_"))
    return [path + signature(value), *(f"{path}.{n}{signature(getattr(value, n))}" for n in public)]


def surface():
    found = [lines(module, name) for module in public_modules() for name in sorted(module.__all__) if name != "__version__"]
    return HEADER + "\n".join(line for several in found for line in several) + "\n"


def test_public_surface_is_pinned():
    """A name or a signature changes only where the file of the public surface changes, too."""
    assert surface() == PINNED.read_text(), "rewrite the file if the change is meant: see its first line"


def test_stub_names_the_public_face():
    """The types that editors and type checkers see are those of the names that exist."""
    named = {node.name for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.FunctionDef)} | {"__version__"}
    for node in ast.walk(ast.parse(STUB.read_text())):
        if isinstance(node, ast.ImportFrom):
            named |= {alias.asname for alias in node.names if alias.asname}
    assert named == set(ebmcore.__all__)


def test_modules_and_version_are_in_dir():
    """An editor completes modules and the version of the package."""
    assert {"losses", "samplers", "training", "testing", "errors", "__version__"} <= set(dir(ebmcore))
    assert ebmcore.losses.BaseLoss is ebmcore.BaseLoss


if __name__ == "__main__":
    PINNED.write_text(surface())

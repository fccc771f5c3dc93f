"""The public surface: every public name with its signature, as ``public-surface.txt`` has it.

``python tests/test_public_surface.py`` rewrites the file. A line that changes or goes is a change that users notice: see
``docs/policy.md``.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
import re
from pathlib import Path

import ebmcore

FILE = Path(__file__).with_name("public-surface.txt")
STUB = Path(ebmcore.__file__).with_suffix(".pyi")
HEADER = """\
# Every public name of ebmcore with its signature. Written by: python tests/test_public_surface.py
# A line that changes or goes is a change that users notice: docs/policy.md says how that is done.
"""


class Annotation:
    """An annotation that is a string, shown without quotes."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text


class Default(Annotation):
    """A default value, shown without its address; a function or class by its name."""

    def __init__(self, value):
        named = inspect.isfunction(value) or inspect.isclass(value)
        super().__init__(value.__qualname__ if named else re.sub(r" at 0x[0-9a-f]+", "", repr(value)))


def plain(annotation):
    if annotation is inspect.Parameter.empty or not isinstance(annotation, str):
        return annotation
    return Annotation(annotation)


def signature(function, without_self=False):
    found = inspect.signature(function)
    parameters = [
        p.replace(annotation=plain(p.annotation), default=p.default if p.default is p.empty else Default(p.default))
        for p in list(found.parameters.values())[without_self:]
    ]
    return str(found.replace(parameters=parameters, return_annotation=plain(found.return_annotation)))


def members(cls):
    """Lines for what a class itself defines, sorted by name."""
    lines = {}
    for name, kind in inspect.get_annotations(cls).items():
        default = f" = {Default(vars(cls)[name])}" if isinstance(vars(cls).get(name), (str, int, float, tuple)) else ""
        lines[name] = f"{name}: {getattr(kind, '__forward_arg__', kind)}{default}"
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)  # of a class method or static method
        if isinstance(value, property):
            lines[name] = f"{name}: property"
        elif isinstance(value, functools.cached_property):
            lines[name] = f"{name}: cached property"
        elif inspect.isfunction(function):
            lines[name] = f"{name}{signature(function)}"
        elif name not in lines and not inspect.isclass(value):
            lines[name] = f"{name} = {Default(value)}"
    return [f"    {line}" for name, line in sorted(lines.items()) if not name.startswith("_")]


def describe(name, value):
    """The lines of one public name."""
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        own = any("__init__" in vars(base) for base in value.__mro__ if base.__module__.startswith("ebmcore"))
        written = inspect.unwrap(value.__init__)  # without the keywords of the constructor above, which a wrapper adds
        shown = own and not getattr(value, "_is_protocol", False)
        constructor = [f"    {name}{signature(written, without_self=True)}"] if shown else []
        return [f"class {name}({bases})" if bases else f"class {name}", *constructor, *members(value)]
    if inspect.isfunction(value):
        return [f"{name}{signature(value)}"]
    return [f"{name} = {Default(value)}"]


def stub():
    """The names of the top level's stub, each with its line."""
    lines = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            lines |= {alias.asname: f"{alias.asname}: {node.module}" for alias in node.names if alias.asname is not None}
        elif isinstance(node, ast.FunctionDef):
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            lines[node.name] = f"{node.name}({ast.unparse(node.args)}){returns}"
        elif isinstance(node, ast.AnnAssign):
            lines[node.target.id] = ast.unparse(node)
    return lines


def surface():
    lines = [HEADER, "[ebmcore]", *(line for _, line in sorted(stub().items())), ""]
    modules = [name for name, line in sorted(stub().items()) if line == f"{name}: ebmcore"]
    for module in modules:
        found = importlib.import_module(f"ebmcore.{module}")
        lines.append(f"[ebmcore.{module}]")
        for name in sorted(found.__all__):
            lines += describe(name, getattr(found, name))
        lines.append("")
    return "\n".join(lines)


def test_public_surface():
    """A failure shows what changed. Where the change is intended, rewrite the file and add a line to ``CHANGELOG.md``."""
    was, now = FILE.read_text().splitlines(), surface().splitlines()
    changes = "\n".join(difflib.unified_diff(was, now, "public-surface.txt", "this code", n=0, lineterm=""))
    assert not changes, f"{changes}\nIf this is intended: python tests/test_public_surface.py"


def test_stub_has_every_name():
    assert set(stub()) == set(ebmcore.__all__)


if __name__ == "__main__":
    FILE.write_text(surface())

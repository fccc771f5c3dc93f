"""Text is UTF-8 on every system; Windows has another default."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def without_encoding(source):
    """The lines that read or write text in the default of the system. The functions of `ebmcore.training.directory` have one."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg in ("encoding", None) for keyword in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        method = isinstance(node.func, ast.Attribute)
        place = ast.unparse(node.func)
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        modes += [k.value.value for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
        binary = any("b" in mode and len(mode) <= 3 for mode in modes)
        first = {"read_text": 0, "write_text": 1}.get(name, len(node.args))  # of the arguments by place, the encoding
        text = (method and name in ("read_text", "write_text") and len(node.args) <= first) or (
            name == "open" and not binary
        )
        if text and place not in ("os.open", "Image.open", "distribution.read_text"):
            yield node.lineno


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path.read_text()", [1]),
        ("path.write_text('a')", [1]),
        ("open('a')", [1]),
        ("path.open('w')", [1]),
        ("path.open('rb')", []),
        ("path.read_text('utf-8')", []),
        ("path.write_text('a', encoding='utf-8')", []),
        ("read_text(path)", []),
    ],
)
def test_missing_encodings_are_found(line, found):
    assert list(without_encoding(line)) == found


def test_text_has_an_encoding():
    modules = [*ROOT.glob("ebmcore/**/*.py"), *ROOT.glob("plugins/*/ebm_plugin_*/**/*.py")]
    found = [f"{path.relative_to(ROOT)}:{n}" for path in modules for n in without_encoding(path.read_text(encoding="utf-8"))]
    assert found == []

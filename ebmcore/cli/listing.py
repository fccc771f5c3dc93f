"""``ebmcore list``, ``ebmcore plugins`` and ``ebmcore show``: what is installed."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ebmcore import host
from ebmcore.errors import EbmcoreError, UnknownComponentError, UsageError
from ebmcore.host.discovery import names_in_source
from ebmcore.host.kinds import CLASSES
from ebmcore.host.report import State


class Parser(argparse.ArgumentParser):
    """Raises wrong usage as a `UsageError`, which is reported in one line like any other; takes no abbreviated option."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see '{self.prog} --help'")


def list(arguments: Sequence[str]) -> None:
    """Print the components."""
    parser = Parser("ebmcore list", description="List the components of installed plugins.")
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(host.KINDS)}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    components = host.list_components(options.kind)
    fields = ("kind", "name", "id", "version")
    _print([{field: getattr(c, field) for field in fields} for c in components], fields, options.json)
    for report in host.plugins():
        if report.state in (State.FAILED, State.INCOMPATIBLE):
            print(f"{report.distribution} is {report.state}: {report.reason}; see 'ebmcore doctor'", file=sys.stderr)


def plugins(arguments: Sequence[str]) -> None:
    """Print the plugins, from their metadata and source alone."""
    parser = Parser("ebmcore plugins", description="List the installed plugins and their state; imports none of them.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    reports = host.plugins()
    fields = ("distribution", "version", "state", "components", "summary")
    rows: Sequence[dict[str, Any]] = [
        {"distribution": r.distribution, "version": r.version, "state": str(r.state), "summary": r.summary}
        | {"components": [{"kind": kind, "name": name} for kind, name in names_in_source(r)]}
        | {"reason": r.reason, "notes": r.notes}
        for r in reports
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print_rows([row | {"components": ", ".join(c["name"] for c in row["components"]) or "-"} for row in rows], fields)
    for report in reports:
        for line in filter(None, [report.reason and f"is {report.state}: {report.reason}", *report.notes]):
            print(f"\n{report.distribution} {line}")


def show(arguments: Sequence[str]) -> None:
    """Print what a component is and which options it takes. Imports the component."""
    parser = Parser("ebmcore show", description="Show a component: options, summary, citation.")
    parser.add_argument("name", metavar="NAME", help="name or canonical id, e.g. pcd or ebm-plugin-pcd:pcd")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    described = [_describe(component) for component in _named(options.name)]
    if options.json:
        print(json.dumps(described, indent=2))
        return
    for shown in described:
        print(f"{shown['kind']} {shown['id']} {shown['version']}  ({shown['class']})\n\n{shown['description']}\n")
        if shown["kind"] in CLASSES:
            print("Options" if shown["options"] else "No options")
        for option in shown["options"]:
            print(f"  {option['name']}: {option['type']} = {option['default']}")


def _named(name: str) -> Sequence[host.Component]:
    found, errors = [], []
    for kind in host.KINDS:
        try:
            found.append(host.find(kind, name))
        except EbmcoreError as error:
            errors.append(error)
    if found:
        return found
    known = sorted({c.name for c in host.list_components()})
    # The most useful of the kinds' errors first: a broken plugin, the distribution to install, a close match.
    useful = sorted(errors, key=lambda e: ("pip install" not in str(e), "did you mean" not in str(e)))
    broken = [e for e in errors if not isinstance(e, UnknownComponentError)]
    if broken or "pip install" in str(useful[0]) or "did you mean" in str(useful[0]):
        raise (broken or useful)[0]
    raise UsageError(f"no installed plugin provides {name!r}; installed: {', '.join(known) or 'none'}")


def _describe(component: host.Component) -> dict[str, Any]:
    loaded = host.load(component.kind, component.id)
    if component.kind == "recipe":
        summary = _comment(text := loaded.read_text(encoding="utf-8"))
        description = f"{text.strip()}\n\nebmcore train --recipe {component.name}"
    else:
        summary = description = inspect.getdoc(loaded) or ""
    return {
        "kind": component.kind,
        "name": component.name,
        "id": component.id,
        "version": component.version,
        "class": component.import_path,
        "summary": summary.partition("\n")[0],
        "description": description or "no description",
        "options": _options(component.kind, loaded),
    }


def _options(kind: str, loaded: Any) -> Sequence[dict[str, str]]:
    """Options of a component's constructor that the user gives, not the run."""
    if kind not in CLASSES:
        return []
    given = {"loss": ("energy", "sampler"), "energy": ("shape",)}.get(kind, ())
    return [
        {"name": p.name, "type": _text(p.annotation), "default": "required" if p.default is p.empty else repr(p.default)}
        for p in inspect.signature(loaded).parameters.values()
        if p.name not in given
    ]


def _comment(text: str) -> str:
    """The first line of a YAML file's comment."""
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _text(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation).replace("typing.", "")


def print_rows(rows: Sequence[dict[str, str]], fields: Sequence[str]) -> None:
    """Print rows as a table with aligned columns."""
    widths = [max(len(field), *(len(row[field]) for row in rows), 0) if rows else len(field) for field in fields]
    for row in ({field: field.upper() for field in fields}, *rows):
        print("  ".join(row[field].ljust(width) for field, width in zip(fields, widths, strict=True)).rstrip())


def _print(rows: Sequence[dict[str, str]], fields: Sequence[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows, fields)

"""Finds the installed plugins from metadata and source alone: nothing here imports a plugin."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable
from email import message_from_string
from email.message import Message
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import decode_source, find_spec
from pathlib import Path
from typing import cast

from importlib_metadata import Distribution, EntryPoint, MetadataPathFinder, PackageNotFoundError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ebmcore.host.kinds import KINDS
from ebmcore.host.report import PluginReport, State

GROUP = "ebmcore"


def discover(distributions: Iterable[Distribution]) -> dict[str, PluginReport]:
    """A report for each plugin among ``distributions``, by canonical name and sorted by it.

    Of a distribution that is there twice, the first counts, as it does for Python's imports.
    """
    unmet = functools.cache(functools.partial(_unmet, installed_version=functools.cache(_installed_version)))
    found: dict[str, PluginReport] = {}
    places: dict[str, Path] = {}
    for distribution in distributions:
        report = _describe(distribution, unmet)
        if report is None:
            continue
        name, place = report.distribution, Path(str(distribution.locate_file("")))
        first = found.setdefault(name, report)
        same = (place, report.version) == (places.setdefault(name, place), first.version)
        if first is not report and not same:
            first.notes.append(
                f"is installed twice: {first.version} in {places[name]} counts, {report.version} in {place} does not; "
                f"pip uninstall {name} until it is gone, then install it again"
            )
    return dict(sorted(found.items()))


def forget() -> None:
    """Drop what is cached of the installed distributions."""
    MetadataPathFinder.invalidate_caches()


def names_in_source(report: PluginReport) -> list[tuple[str, str]]:
    """Kind and name of each component that the plugin's modules register, read from their source.

    Only literal names are seen; names that a hook computes are known only when it is called.
    """
    found = []
    for entry_point in report.entry_points:
        source = _source(entry_point)
        try:
            tree = ast.parse(source or "")
        except (SyntaxError, ValueError):
            continue  # importing it raises the error
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            match call:
                case ast.Call(func=ast.Attribute(attr=kind), args=[ast.Constant(value=str(name)), _, *_]) if kind in KINDS:
                    found.append((kind, name))
    return found


def _describe(distribution: Distribution, unmet: Callable[[str], str]) -> PluginReport | None:
    """The report of one distribution; `None` if it is no plugin. However broken the metadata, it does not raise."""
    problem, entry_points = "", []
    try:
        text = distribution.read_text("entry_points.txt") or ""
        if f"[{GROUP}]" not in text:
            return None
        entry_points = sorted(distribution.entry_points.select(group=GROUP))
        if not entry_points:
            problem = f"its entry_points.txt has the group [{GROUP}], but nothing in it"
    except Exception as error:
        problem = f"its entry_points.txt cannot be read: {type(error).__name__}: {error}"
    try:
        metadata = _headers(distribution)
        name, number, summary = (metadata.get(key) for key in ("Name", "Version", "Summary"))
        # Else read by the distribution once more, and where else a requirement may stand.
        needs = metadata.get_all("Requires-Dist") or distribution.requires or []
    except Exception as error:
        name, number, summary, needs = None, None, None, []
        problem = problem or f"its metadata cannot be read: {type(error).__name__}: {error}"
    if not name:
        name = entry_points[0].value.partition(".")[0] if entry_points else Path(str(distribution.locate_file(""))).name
    report = PluginReport(canonicalize_name(name), number or "unknown", summary or "", entry_points)
    if not number:
        report.notes.append("has no version in its metadata: install it again")
    if problem:
        report.state, report.reason = State.FAILED, problem
        return report
    reasons = [reason for line in needs if (reason := unmet(line))]
    if reasons:
        report.state, report.reason = State.INCOMPATIBLE, "; ".join(reasons)
    return report


def _headers(distribution: Distribution) -> Message:
    """Its metadata without the description, a README that takes longer to parse than all the rest."""
    text = distribution.read_text("METADATA")
    return message_from_string(text.partition("\n\n")[0]) if text else cast(Message, distribution.metadata)


def _unmet(line: str, installed_version: Callable[[str], str | None]) -> str:
    """Describe what is wrong with one line of ``Requires-Dist``; empty if nothing is wrong."""
    try:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            return ""
        found = installed_version(requirement.name)
        if found is None:
            return f"needs {requirement.name}{requirement.specifier}, which is not installed"
        if not requirement.specifier.contains(found, prereleases=True):
            return f"needs {requirement.name}{requirement.specifier}, but {found} is installed"
    except ValueError as error:  # of a requirement, a marker, a version or the text's encoding
        return f"its requirement {line!r} cannot be evaluated: {error}"
    return ""


def _installed_version(name: str) -> str | None:
    try:
        return _headers(Distribution.from_name(name)).get("Version") or "a version that its metadata do not name"
    except (PackageNotFoundError, FileNotFoundError):  # the latter where only an empty folder of it is left
        return None


def _source(entry_point: EntryPoint) -> str | None:
    """The source of an entry point's module, found without importing it or its parents."""
    try:
        top, *rest = entry_point.module.split(".")
        spec: ModuleSpec | None = find_spec(top)
        for part in rest:
            spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations) if spec else None
        return decode_source(Path(spec.origin).read_bytes()) if spec and spec.origin else None
    except (ImportError, ValueError, SyntaxError, OSError):  # no such module, a malformed value, source that cannot be read
        return None

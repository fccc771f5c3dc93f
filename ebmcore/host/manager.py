"""Finds plugins, registers them one by one, and keeps a broken one from touching anything else."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any

import pluggy
from importlib_metadata import Distribution, EntryPoint, entry_points, version
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ebmcore.errors import PluginError, UnknownComponentError, UsageError
from ebmcore.host import hookspecs
from ebmcore.host.registry import Component, Register, Registry
from ebmcore.host.report import PluginReport, State

GROUP = "ebmcore"


class PluginManager:
    """The host.

    Args:
        installed: Entry points of the group ``ebmcore``.
        environ: Where the ``EBMCORE_...`` variables are read.
    """

    def __init__(self, installed: Iterable[EntryPoint], environ: Mapping[str, str]) -> None:
        self._entry_points: dict[str, list[EntryPoint]] = {}
        for entry_point in sorted(installed, key=lambda e: (_name(e), e.name)):
            self._entry_points.setdefault(_name(entry_point), []).append(entry_point)
        self._reports = {name: _describe(name, found) for name, found in self._entry_points.items()}
        self._disable(environ)
        self._registry = Registry(self._preferences(environ.get("EBMCORE_PREFER", "")))
        self._registered = False
        self._loaded: dict[type[Any], Component] = {}
        self._staged: list[tuple[str, str, str | type[Any]]] = []
        self._pluggy = pluggy.PluginManager(GROUP)
        self._pluggy.add_hookspecs(hookspecs)
        # Historic: each later pm.register() calls that plugin's hook alone, so its failure is its own.
        self._pluggy.hook.ebmcore_register.call_historic(kwargs={"register": Register(self._stage)})

    @property
    def registry(self) -> Registry:
        """All components of all working plugins; the first use imports the plugins' light modules."""
        if not self._registered:
            self._registered = True
            for report in self._reports.values():
                if report.state is State.AVAILABLE:
                    self._register(report)
            for report in self._reports.values():
                shared = self._registry.conflicts(report.distribution)
                if report.state is State.LOADED and shared:
                    report.state = State.CONFLICT
                    report.reason = f"also provided by another plugin: {', '.join(shared)}"
        return self._registry

    def reports(self) -> list[PluginReport]:
        """The state of every installed plugin, sorted by distribution."""
        return list(self._reports.values())

    def find(self, kind: str, name: str) -> Component:
        """See `ebmcore.host.find`. A name that a broken plugin should provide raises with that plugin's failure."""
        try:
            return self.registry.find(kind, name)
        except UnknownComponentError as unknown:
            report = self._suspect(name)
            if report is None:
                raise
            raise PluginError(f"the {kind} {name!r} cannot be had: {_failure(report)}") from (report.error or unknown)

    def load(self, component: Component) -> type[Any]:
        """The class of a component; failures name the cause, the distribution and the fix."""
        report = self._reports[component.distribution]
        try:
            target = component.target if isinstance(component.target, type) else _import(component.target)
            _check_target(component.kind, target)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"the {component.kind} {component.id} ({component.import_path}) is broken: {type(error).__name__}: {error}. "
                f"{_advice(report)}"
            ) from error
        self._loaded[target] = component
        return target

    def provenance(self, cls: type[Any]) -> dict[str, str | None]:
        """See `ebmcore.host.provenance`."""
        path = f"{cls.__module__}:{cls.__qualname__}"
        found = self._loaded.get(cls) or next((c for c in self.registry.components() if c.import_path == path), None)
        if found is None:
            return {"class": path, "id": None, "distribution": None, "version": None}
        return {"class": path, "id": found.id, "distribution": found.distribution, "version": found.version}

    def versions_in_use(self) -> dict[str, str]:
        """Distribution and version of every component that was loaded in this process."""
        return {c.distribution: c.version for c in sorted(self._loaded.values(), key=lambda c: c.id)}

    def _stage(self, kind: str, name: str, target: str | type[Any]) -> None:
        if not (isinstance(name, str) and name and ":" not in name):
            raise ValueError(f"a component's name must be a non-empty string without ':', got {name!r}")
        if not isinstance(target, type) and not (isinstance(target, str) and target.count(":") == 1):
            raise TypeError(f"the target of {name!r} must be a class or 'package.module:Class', got {target!r}")
        if (kind, name) in [staged[:2] for staged in self._staged]:
            raise ValueError(f"the {kind} {name!r} is registered twice")
        self._staged.append((kind, name, target))

    def _register(self, report: PluginReport) -> None:
        """Import one plugin and commit what it registers, all of it or nothing."""
        self._staged = []
        try:
            for entry_point in self._entry_points[report.distribution]:
                module = entry_point.load()
                self._pluggy.register(module, f"{report.distribution}:{entry_point.name}")
                self._pluggy.check_pending()
                if not self._pluggy.get_hookcallers(module):
                    raise TypeError(f"{entry_point.value} implements no hook: is @ebmcore.hookimpl missing?")
        # SystemExit too: a script imported by accident must not end the host.
        except (Exception, SystemExit) as error:
            report.state = State.FAILED
            report.reason = f"{type(error).__name__}: {error}"
            report.error = error
            for name, plugin in self._pluggy.list_name_plugin():
                if name.partition(":")[0] == report.distribution and plugin is not None:
                    self._pluggy.unregister(plugin)
            return
        self._registry.add(
            Component(kind, name, target, report.distribution, report.version) for kind, name, target in self._staged
        )
        report.state = State.LOADED

    def _preferences(self, text: str) -> dict[str, str]:
        preferences = _pairs(text)
        self._check_installed("EBMCORE_PREFER", set(preferences.values()))
        return preferences

    def _check_installed(self, variable: str, named: set[str]) -> None:
        unknown = sorted(named - set(self._reports))
        if unknown:
            raise UsageError(
                f"{variable} names {', '.join(unknown)}, which is not installed; "
                f"installed plugins: {', '.join(self._reports) or 'none'}"
            )

    def _disable(self, environ: Mapping[str, str]) -> None:
        for variable in ("EBMCORE_PLUGINS", "EBMCORE_DISABLED_PLUGINS"):
            if variable not in environ:
                continue
            named: set[str] = {canonicalize_name(part.strip()) for part in environ[variable].split(",") if part.strip()}
            self._check_installed(variable, named)
            left_out = named if variable == "EBMCORE_DISABLED_PLUGINS" else set(self._reports) - named
            for name in left_out:
                self._reports[name].state = State.DISABLED
                self._reports[name].reason = f"by {variable}"

    def _suspect(self, name: str) -> PluginReport | None:
        """The plugin that probably would have provided ``name``, if it is not in working order."""
        distribution, _, bare = name.rpartition(":")
        for report in self._reports.values():
            names = {report.distribution, *(e.name for e in self._entry_points[report.distribution])}
            provides = {d for (_, known), d in _first_party() if known == bare}
            if report.state in (State.FAILED, State.DISABLED, State.INCOMPATIBLE) and (
                distribution in names or bare in names or report.distribution in provides
            ):
                return report
        return None


@functools.cache
def get_manager() -> PluginManager:
    """The host of this process; entry points are scanned once, at first need."""
    return PluginManager(entry_points(group=GROUP), os.environ)


def _first_party() -> Iterable[tuple[tuple[str, str], str]]:
    from ebmcore.host.registry import FIRST_PARTY

    return FIRST_PARTY.items()


def _name(entry_point: EntryPoint) -> str:
    if entry_point.dist is None:
        return canonicalize_name(entry_point.value.partition(".")[0])
    return canonicalize_name(entry_point.dist.name)


def _describe(name: str, found: list[EntryPoint]) -> PluginReport:
    dist: Distribution | None = found[0].dist
    modules = [e.value for e in found]
    if dist is None:
        return PluginReport(name, "unknown", "", modules)
    report = PluginReport(name, dist.version or "unknown", dist.metadata.get("Summary") or "", modules)
    kernel = version("ebmcore")
    for line in dist.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # pip's business, unless it concerns ebmcore, whose name no longer parses then
        if canonicalize_name(requirement.name) == "ebmcore" and not requirement.specifier.contains(kernel, prereleases=True):
            report.state = State.INCOMPATIBLE
            report.reason = f"needs ebmcore{requirement.specifier}, but {kernel} is installed"
    return report


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, sign, distribution = part.partition("=")
        if not (name and sign and distribution):
            raise UsageError(f"EBMCORE_PREFER must hold name=distribution pairs, but holds {part!r}")
        pairs[name.strip()] = canonicalize_name(distribution.strip())
    return pairs


def _import(target: str) -> Any:
    return EntryPoint(name="target", value=target, group=GROUP).load()


def _check_target(kind: str, target: Any) -> None:
    if not inspect.isclass(target):
        raise TypeError(f"the target of a {kind} must be a class, got {target!r}")
    if inspect.isabstract(target):
        raise TypeError(f"the class is abstract: it lacks {', '.join(sorted(getattr(target, '__abstractmethods__', ())))}")
    if kind == "loss":
        from ebmcore.losses import BaseLoss

        if not issubclass(target, BaseLoss):
            raise TypeError("a loss must derive from ebmcore.BaseLoss")
    required = {"sampler": ("init", "step", "refresh"), "energy": ("forward",), "metric": ("__call__",)}.get(kind, ())
    # A class always has __call__ (it makes instances); what counts is its own.
    missing = [n for n in required if not any(n in vars(base) for base in target.__mro__ if base is not object)]
    if missing:
        raise TypeError(f"a {kind} must have {', '.join(n + '()' for n in missing)}")


def _failure(report: PluginReport) -> str:
    return f"the plugin {report.distribution} is {report.state}: {report.reason}. {_advice(report)}"


def _advice(report: PluginReport) -> str:
    if report.state is State.DISABLED:
        return "Change that variable to use it."
    return (
        f"It comes from {report.distribution} {report.version}, with ebmcore {version('ebmcore')}: "
        f"pip install --upgrade {report.distribution}, or leave it out with EBMCORE_DISABLED_PLUGINS={report.distribution}"
    )

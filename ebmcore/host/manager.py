"""Imports plugins one by one, and keeps a broken one from touching anything else."""

from __future__ import annotations

import functools
import importlib
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from importlib_metadata import Distribution, distributions

from ebmcore.errors import PluginError, UnknownComponentError, UsageError
from ebmcore.host.discovery import discover, forget, names_in_source
from ebmcore.host.isolation import preserve_global_state
from ebmcore.host.kinds import Target, check_target, load_target
from ebmcore.host.registration import call_hooks
from ebmcore.host.registry import SESSION, Component, Registry, known_plugins
from ebmcore.host.report import PluginReport, State
from ebmcore.host.settings import Settings


class PluginManager:
    """The plugin host. Safe to use from several threads.

    Args:
        installed: All installed distributions; those with entry points in the group ``ebmcore`` are plugins.
        environ: Where the ``EBMCORE_...`` variables are read.
    """

    def __init__(self, installed: Iterable[Distribution], environ: Mapping[str, str]) -> None:
        self._lock = threading.RLock()
        self._registry = Registry()
        self._reports: dict[str, PluginReport] = {}
        self._strict = False
        self._complete = False  # whether every available plugin was imported
        self._importing: str | None = None  # the plugin that is being imported
        self._loaded: dict[Component, Any] = {}
        self._broken: dict[Component, BaseException] = {}
        self.rescan(installed, environ)

    def rescan(self, installed: Iterable[Distribution], environ: Mapping[str, str]) -> None:
        """Look again at what is installed. Imported plugins stay; plugins that failed are tried again."""
        with self._lock:
            found = discover(installed)
            settings = Settings.read(environ, found)  # raises before anything has changed
            for name, report in self._reports.items():
                if report.state not in (State.LOADED, State.CONFLICT):
                    continue
                if name not in found or name in settings.left_out:
                    self._forget(name)
                    continue
                if report.version != found[name].version:
                    warnings.warn(
                        f"{name} {found[name].version} is installed, but {report.version} is imported: restart Python to use it",
                        RuntimeWarning,
                        stacklevel=3,
                    )
                found[name] = report
            for name, variable in settings.left_out.items():
                found[name].state, found[name].reason = State.DISABLED, f"by {variable}"
            self._reports, self._strict = found, settings.strict
            self._registry.prefer = settings.prefer
            self._broken.clear()
            self._complete = False

    def reports(self) -> list[PluginReport]:
        """The state of every installed plugin, sorted by distribution. Imports no plugin."""
        return list(self._reports.values())

    def components(self, kind: str | None = None) -> list[Component]:
        """See `ebmcore.host.list_components`."""
        return self._complete_registry().components(kind)

    def find(self, kind: str, name: str) -> Component:
        """See `ebmcore.host.find`. A name that a broken plugin should provide raises that plugin's failure."""
        registry = self._complete_registry()
        try:
            return registry.find(kind, name)
        except UnknownComponentError as unknown:
            report = self._broken_provider(kind, name)
            if report is None:
                raise
            raise PluginError(f"the {kind} {name!r} is not available: {report.failure()}") from (report.error or unknown)

    def load(self, component: Component) -> Any:
        """See `ebmcore.host.load`. Failures are remembered and raised again."""
        with self._lock:
            if component in self._loaded:
                return self._loaded[component]
            if component not in self._broken:
                try:
                    with preserve_global_state() as changed:
                        loaded = load_target(component.kind, component.target)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # SystemExit too: an import must not end the host
                    self._broken[component] = error
                else:
                    self._loaded[component] = loaded
                    self._note_changes(component.distribution, component.import_path, changed)
                    return loaded
            cause, report = self._broken[component], self._reports.get(component.distribution)
            advice = f". {report.advice()}" if report else ""
            raise PluginError(
                f"the {component.kind} {component.id} ({component.import_path}) is broken: {_format(cause)}{advice}"
            ) from cause

    def provenance(self, cls: type[Any]) -> dict[str, str | None]:
        """See `ebmcore.host.provenance`."""
        path = f"{cls.__module__}:{cls.__qualname__}"
        found = next((c for c, loaded in self._loaded.items() if loaded is cls), None)
        found = found or next((c for c in self.components() if c.import_path == path), None)
        if found is None:
            return {"class": path, "id": None, "distribution": None, "version": None}
        return {"class": path, "id": found.id, "distribution": found.distribution, "version": found.version}

    def register(self, kind: str, name: str, target: Target) -> None:
        """See `ebmcore.host.register`."""
        with self._lock:
            component = Component(kind, name, target, SESSION, "")
            if not isinstance(target, str):
                check_target(kind, target)
            others = [c for c in self.components() if c.distribution == SESSION and (c.kind, c.name) != (kind, name)]
            self._forget(SESSION)
            self._registry.add([*others, component])

    @contextmanager
    def temporary(self, plugin: object, distribution: str) -> Iterator[list[Component]]:
        """See `ebmcore.host.temporary_plugin`."""
        with self._lock:
            registry = self._complete_registry()  # first, so that this plugin cannot hide failures of installed ones
            if distribution in self._reports:
                raise UsageError(f"{distribution} is installed: give the temporary plugin another name")
            report = PluginReport(distribution, "0", state=State.LOADED)
            try:
                with self._while_importing(report):
                    components = call_hooks(report, [plugin])
            except (Exception, SystemExit) as error:
                raise PluginError(f"the temporary plugin {distribution} cannot be registered: {_format(error)}") from error
            registry.add(components)
            self._reports = dict(sorted((self._reports | {distribution: report}).items()))
        try:
            yield [c for c in registry.components() if c.distribution == distribution]
        finally:
            with self._lock:
                self._forget(distribution)
                self._reports.pop(distribution, None)

    def _complete_registry(self) -> Registry:
        """The components of all working plugins. The first call imports the plugins' light modules.

        Raises:
            PluginError: If a plugin asks while it is being imported, or if ``EBMCORE_STRICT`` is set and any plugin is broken.
        """
        with self._lock:
            if self._importing is not None:
                raise PluginError(
                    f"{self._importing} asks for components while it is being imported: ask inside the function that needs them"
                )
            if not self._complete:
                for report in self._reports.values():
                    if report.state is State.AVAILABLE:
                        self._import(report)
                self._note_conflicts()
                self._complete = True  # only now, so that a user who interrupted an import can ask again
            if self._strict:
                self._raise_if_any_is_broken()
            return self._registry

    def _import(self, report: PluginReport) -> None:
        """Import one plugin and commit what it registers, all of it or nothing."""
        try:
            with self._while_importing(report), preserve_global_state() as changed:
                components = call_hooks(report, [entry_point.load() for entry_point in report.entry_points])
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: an import must not end the host
            report.state, report.reason, report.error = State.FAILED, _format(error), error
            return
        self._note_changes(report.distribution, ", ".join(report.modules), changed)
        self._registry.add(components)
        report.state = State.LOADED

    @contextmanager
    def _while_importing(self, report: PluginReport) -> Iterator[None]:
        self._importing = report.distribution
        try:
            yield
        finally:
            self._importing = None

    def _forget(self, distribution: str) -> None:
        self._registry.remove(distribution)
        for remembered in (self._loaded, self._broken):
            for component in [c for c in remembered if c.distribution == distribution]:
                del remembered[component]

    def _note_conflicts(self) -> None:
        shared = self._registry.conflicts()
        for report in self._reports.values():
            if report.state not in (State.LOADED, State.CONFLICT):
                continue
            names = [c.name for c in shared if c.distribution == report.distribution]
            report.state = State.CONFLICT if names else State.LOADED
            report.reason = f"also provided by another plugin: {', '.join(names)}" if names else ""

    def _note_changes(self, distribution: str, imported: str, changed: Sequence[str]) -> None:
        if changed and distribution in self._reports:
            self._reports[distribution].notes.append(
                f"importing {imported} changes {', '.join(changed)}; ebmcore restored the old values"
            )

    def _raise_if_any_is_broken(self) -> None:
        broken = [r for r in self._reports.values() if r.state in (State.FAILED, State.INCOMPATIBLE, State.CONFLICT)]
        if broken:
            failures = "; ".join(report.failure() for report in broken)
            raise PluginError(f"EBMCORE_STRICT is set, and {failures}") from broken[0].error

    def _broken_provider(self, kind: str, name: str) -> PluginReport | None:
        """The plugin that would have provided ``name`` if it were in working order."""
        distribution, _, bare = name.rpartition(":")
        for report in self._reports.values():
            if report.state not in (State.FAILED, State.DISABLED, State.INCOMPATIBLE):
                continue
            if distribution == report.distribution:
                return report
            names = names_in_source(report)
            provides = (
                (kind, bare) in names
                or known_plugins().get((kind, bare)) == report.distribution
                or (not names and bare in [e.name for e in report.entry_points])
            )
            if not distribution and provides:
                return report
        return None


@functools.cache
def get_manager() -> PluginManager:
    """The host of this process; distributions are scanned once, when first needed."""
    return PluginManager(distributions(), os.environ)


def refresh() -> None:
    """Look again at what is installed, after a ``pip install`` in a live session.

    Components of new plugins appear, those of removed plugins disappear, and plugins that had failed are tried again. A plugin
    that was imported stays as it is: another version of it needs a new Python, and a warning says so.
    """
    importlib.invalidate_caches()
    forget()
    get_manager().rescan(distributions(), os.environ)


def _format(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"

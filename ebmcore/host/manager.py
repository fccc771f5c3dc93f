"""Imports plugins one by one, and keeps a broken one from touching anything else."""

from __future__ import annotations

import functools
import importlib
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from importlib_metadata import Distribution, distributions

from ebmcore.errors import PluginError, UnknownComponentError, UsageError
from ebmcore.host.discovery import discover, forget, names_in_source
from ebmcore.host.isolation import preserve_global_state
from ebmcore.host.kinds import Target, check_target, load_target
from ebmcore.host.registration import call_hooks
from ebmcore.host.registry import SESSION, Component, OwnClass, Registry, known_plugins
from ebmcore.host.report import PluginReport, State
from ebmcore.host.settings import Settings

PATIENCE = 60.0  # seconds that a module which is being imported waits for another thread that imports plugins


class PluginManager:
    """The plugin host. Safe to use from several threads.

    One thread at a time looks for plugins and imports them, under `_lock`. Nothing else takes that lock, so that a module that
    is being imported can always register components and find those that are known.

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
        self._importing = threading.local()  # its ``plugin`` is the one that this thread is importing
        self._own: dict[tuple[str, str], OwnClass] = {}
        self._loaded: dict[Component, Any] = {}
        self._broken: dict[Component, BaseException] = {}
        self.rescan(installed, environ)

    def rescan(self, installed: Iterable[Distribution], environ: Mapping[str, str]) -> None:
        """Look again at what is installed. Imported plugins stay; plugins that failed are tried again."""
        with self.alone():
            found = discover(installed)
            settings = Settings.read(environ, found)  # raises before anything has changed
            self._complete = False  # first, so that other threads wait for the rest
            for name, report in self._reports.items():
                if report.state not in (State.LOADED, State.CONFLICT):
                    continue
                if not report.entry_points:  # a temporary plugin, which is not installed
                    found[name] = report
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
            self._reports, self._strict = dict(sorted(found.items())), settings.strict
            self._registry.prefer = settings.prefer
            self._broken.clear()

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
            return self._own.get((kind, name)) or registry.find(kind, name)
        except UnknownComponentError as unknown:
            report = self._broken_provider(kind, name)
            if report is None:
                raise
            raise PluginError(f"the {kind} {name!r} is not available: {report.failure()}") from (report.error or unknown)

    def load(self, component: Component) -> Any:
        """See `ebmcore.host.load`. Failures are remembered and raised again."""
        loaded = self._loaded.get(component)
        if loaded is not None:
            return loaded
        with self.alone():
            loaded, cause = self._loaded.get(component), self._broken.get(component)
            if loaded is None and cause is None:
                try:
                    with preserve_global_state() as changed:
                        loaded = load_target(component.kind, component.target)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # SystemExit too: an import must not end the host
                    cause = self._broken[component] = error
                else:
                    self._loaded[component] = loaded
                    self._note_changes(component.distribution, component.import_path, changed)
            if cause is None:
                return loaded
            report = self._reports.get(component.distribution)
            advice = f". {report.advice()}" if report else ""
            raise PluginError(
                f"the {component.kind} {component.id} ({component.import_path}) is broken: {_format(cause)}{advice}"
            ) from cause

    def provenance(self, cls: type[Any]) -> dict[str, str | None]:
        """See `ebmcore.host.provenance`."""
        path = f"{cls.__module__}:{cls.__qualname__}"
        found = next((c for c, loaded in list(self._loaded.items()) if loaded is cls), None)
        found = found or next((c for c in self.components() if c.import_path == path), None)
        origin = found.origin if found else {"id": None, "distribution": None, "version": None}
        return {"class": path, **origin}

    def register(self, kind: str, name: str, target: Target) -> None:
        """See `ebmcore.host.register`."""
        self._refuse_while_importing()
        component = Component(kind, name, target, SESSION, "")
        if not isinstance(target, str):
            check_target(kind, target)
        self._registry.add([component])
        self._forget_loaded(lambda c: (c.kind, c.id) == (kind, component.id))  # a module may have changed behind its name

    def add_own(self, component: OwnClass) -> None:
        """Let `find` know a user's own class by its id; it is not listed, as nobody installed it."""
        self._own[component.kind, component.id] = component

    def own(self) -> list[OwnClass]:
        """The user's own classes."""
        return list(self._own.values())

    @contextmanager
    def temporary(self, plugin: object, distribution: str) -> Iterator[list[Component]]:
        """See `ebmcore.host.temporary_plugin`."""
        with self.alone():
            registry = self._complete_registry()  # first, so that this plugin cannot hide failures of installed ones
            if distribution in self._reports:
                raise UsageError(f"there is a plugin {distribution} already: give the temporary plugin another name")
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
            with self.alone():
                self._forget(distribution)
                self._reports = {name: report for name, report in self._reports.items() if name != distribution}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the thread that looks for plugins or imports them.

        Raises:
            PluginError: If a module that is being imported has waited for longer than `PATIENCE`. The thread that holds the
                lock may need that very module, and then both would wait for ever.
        """
        if not self._lock.acquire(timeout=PATIENCE if _is_in_import() else -1):
            raise PluginError(
                f"a module that is being imported asks for components, and has waited {PATIENCE:g} s for another thread that "
                "imports plugins, perhaps this module: ask inside the function that needs them"
            )
        try:
            yield
        finally:
            self._lock.release()

    def _complete_registry(self) -> Registry:
        """The components of all working plugins. The first call imports the plugins' light modules.

        Raises:
            PluginError: If a plugin asks while it is being imported, or if ``EBMCORE_STRICT`` is set and any plugin is broken.
        """
        self._refuse_while_importing()
        if not self._complete:
            with self.alone():
                for report in self._reports.values():
                    if report.state is State.AVAILABLE:
                        self._import(report)
                self._note_conflicts()
                self._complete = True  # only now, so that a user who interrupted an import can ask again
        if self._strict:
            self._raise_if_any_is_broken()
        return self._registry

    def _refuse_while_importing(self) -> None:
        plugin = getattr(self._importing, "plugin", None)
        if plugin is not None:
            raise PluginError(
                f"{plugin} asks for components while it is being imported: ask inside the function that needs them"
            )

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
        self._importing.plugin = report.distribution
        try:
            yield
        finally:
            self._importing.plugin = None

    def _forget(self, distribution: str) -> None:
        self._registry.remove(distribution)
        self._forget_loaded(lambda c: c.distribution == distribution)

    def _forget_loaded(self, which: Callable[[Component], bool]) -> None:
        for remembered in (self._loaded, self._broken):
            for component in filter(which, list(remembered)):
                remembered.pop(component, None)

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


_BUILDING = threading.Lock()


def get_manager() -> PluginManager:
    """The host of this process; distributions are scanned once, when first needed."""
    with _BUILDING:  # the cache alone lets each thread that comes at first use build one
        return _manager()


@functools.cache
def _manager() -> PluginManager:
    return PluginManager(distributions(), os.environ)


def refresh() -> None:
    """Look again at what is installed, after a ``pip install`` in a live session.

    Components of new plugins appear, those of removed plugins disappear, and plugins that had failed are tried again. A plugin
    that was imported stays as it is: another version of it needs a new Python, and a warning says so.
    """
    manager = get_manager()
    with manager.alone():  # Python's own caches are not safe to empty from two threads
        importlib.invalidate_caches()
        forget()
        manager.rescan(distributions(), os.environ)


def _is_in_import() -> bool:
    """Whether this thread is executing a module that is being imported."""
    return any(frame.f_code.co_filename.startswith("<frozen importlib") for frame, _ in traceback.walk_stack(None))


def _format(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"

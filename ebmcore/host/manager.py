"""Registers plugins one by one, and keeps a broken one from touching anything else."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pluggy
from importlib_metadata import Distribution, EntryPoint, distributions, version

from ebmcore.errors import PluginError, UnknownComponentError, UsageError
from ebmcore.host import hookspecs
from ebmcore.host.discovery import GROUP, discover, forget, names_in_source
from ebmcore.host.isolation import undisturbed
from ebmcore.host.registry import FIRST_PARTY, SESSION, Component, Register, Registry, callers_level, check_kind
from ebmcore.host.report import PluginReport, State
from ebmcore.host.settings import Settings


class PluginManager:
    """The host. Safe to use from several threads.

    Args:
        installed: All installed distributions; those with entry points in the group ``ebmcore`` are plugins.
        environ: Where the ``EBMCORE_...`` variables are read.
    """

    def __init__(self, installed: Iterable[Distribution], environ: Mapping[str, str]) -> None:
        self._lock = threading.RLock()
        self._registry = Registry()
        self._reports: dict[str, PluginReport] = {}
        self._strict = False
        self._complete = False
        self._registering: str | None = None  # the plugin whose hook is running
        self._staged: list[Component] = []
        self._classes: dict[Component, type[Any]] = {}
        self._broken: dict[Component, BaseException] = {}
        self._pluggy = _Pluggy(GROUP)
        self._pluggy.add_hookspecs(hookspecs)
        # Historic: each later pm.register() calls that plugin's hook alone, so its failure is its own.
        register = Register(self._stage)
        self._pluggy.hook.ebmcore_register.call_historic(_refuse_result, kwargs={"register": register})
        self.rescan(installed, environ)

    def rescan(self, installed: Iterable[Distribution], environ: Mapping[str, str]) -> None:
        """Look again at what is installed. What was imported stays; what failed gets another chance."""
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
                        stacklevel=callers_level(),
                    )
                found[name] = report
            for name, variable in settings.left_out.items():
                found[name].state, found[name].reason = State.DISABLED, f"by {variable}"
            self._reports, self._strict = found, settings.strict
            self._registry.prefer = settings.prefer
            self._broken.clear()
            self._complete = False

    @property
    def registry(self) -> Registry:
        """All components of all working plugins; the first use imports the plugins' light modules.

        Raises:
            PluginError: If a plugin asks for it while it is being imported; or, where ``EBMCORE_STRICT`` is set, if any plugin is
                not in working order.
        """
        with self._lock:
            if self._registering is not None:
                raise PluginError(
                    f"{self._registering} asks for components while it is being imported: ask inside the function that needs them"
                )
            if not self._complete:
                with self._impatient(lambda: self._registering or "a plugin"):
                    for report in self._reports.values():
                        if report.state is State.AVAILABLE:
                            self._import(report)
                self._note_conflicts()
                self._complete = True  # and not before: an interrupted user may ask again
            if self._strict:
                self._raise_if_any_is_broken()
            return self._registry

    def reports(self) -> list[PluginReport]:
        """The state of every installed plugin, sorted by distribution."""
        return list(self._reports.values())

    def find(self, kind: str, name: str) -> Component:
        """See `ebmcore.host.find`. A name that a broken plugin should provide raises with that plugin's failure."""
        registry = self.registry
        try:
            return registry.find(kind, name)
        except UnknownComponentError as unknown:
            report = self._suspect(kind, name)
            if report is None:
                raise
            raise PluginError(f"the {kind} {name!r} cannot be had: {_failure(report)}") from (report.error or unknown)

    def load(self, component: Component) -> type[Any]:
        """The class of a component; failures name the cause, the distribution and the fix, and are remembered."""
        with self._lock:
            if component in self._classes:
                return self._classes[component]
            if component not in self._broken:
                try:
                    with self._impatient(lambda: component.distribution), undisturbed() as changed:
                        target = component.target if isinstance(component.target, type) else _load(component.target)
                        _check_target(component.kind, target)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # SystemExit and its like too: an import must not end the host
                    self._broken[component] = error
                else:
                    self._classes[component] = target
                    self._note_changes(component.distribution, component.import_path, changed)
                    return target
            cause = self._broken[component]
            origin = (
                "" if component.distribution not in self._reports else f". {_advice(self._reports[component.distribution])}"
            )
            raise PluginError(
                f"the {component.kind} {component.id} ({component.import_path}) is broken: {_said(cause)}{origin}"
            ) from cause

    def provenance(self, cls: type[Any]) -> dict[str, str | None]:
        """See `ebmcore.host.provenance`."""
        path = f"{cls.__module__}:{cls.__qualname__}"
        found = next((c for c, loaded in self._classes.items() if loaded is cls), None)
        found = found or next((c for c in self.registry.components() if c.import_path == path), None)
        if found is None:
            return {"class": path, "id": None, "distribution": None, "version": None}
        return {"class": path, "id": found.id, "distribution": found.distribution, "version": found.version}

    def register(self, kind: str, name: str, target: str | type[Any]) -> None:
        """See `ebmcore.host.register`."""
        with self._lock:
            component = _component(kind, name, target, SESSION, "")
            if isinstance(target, type):
                _check_target(kind, target)
            own = [c for c in self.registry.components() if c.distribution == SESSION and (c.kind, c.name) != (kind, name)]
            self._forget(SESSION)
            self._registry.add([*own, component])

    @contextmanager
    def temporary(self, plugin: object, distribution: str) -> Iterator[list[Component]]:
        """See `ebmcore.host.temporary_plugin`."""
        with self._lock:
            before = self.registry  # the installed plugins come first, so that this one cannot hide their failures
            if distribution in self._reports:
                raise UsageError(f"{distribution} is installed: give the temporary plugin another name")
            report = PluginReport(distribution, "0", state=State.LOADED)
            try:
                before.add(self._call_hook(report, [plugin]))
            except (Exception, SystemExit) as error:
                raise PluginError(f"the temporary plugin {distribution} cannot be registered: {_said(error)}") from error
            self._reports = dict(sorted((self._reports | {distribution: report}).items()))
        try:
            yield [c for c in before.components() if c.distribution == distribution]
        finally:
            with self._lock:
                self._forget(distribution)
                self._reports.pop(distribution, None)

    def _import(self, report: PluginReport) -> None:
        """Import one plugin and commit what it registers, all of it or nothing."""
        self._registering = report.distribution
        try:
            with undisturbed() as changed:
                modules = [entry_point.load() for entry_point in report.entry_points]
                components = self._call_hook(report, modules)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit and its like too: an import must not end the host
            report.state, report.reason, report.error = State.FAILED, _said(error), error
            return
        finally:
            self._registering = None
        self._note_changes(report.distribution, ", ".join(report.modules), changed)
        self._registry.add(components)
        report.state = State.LOADED

    @contextmanager
    def _impatient(self, importing: Callable[[], str]) -> Iterator[None]:
        """Name the plugin on stderr that is being imported when imports take long: nothing can end one that hangs."""

        def tell() -> None:
            name = importing()
            remedy = f"; EBMCORE_DISABLED_PLUGINS={name} leaves it out" if name in self._reports else ""
            sys.stderr.write(f"ebmcore: imports have taken {SLOW:g} s, now that of {name}{remedy}\n")
            sys.stderr.flush()

        clock = threading.Timer(SLOW, tell)
        clock.daemon = True
        clock.start()
        try:
            yield
        finally:
            clock.cancel()

    def _call_hook(self, report: PluginReport, modules: Sequence[object]) -> list[Component]:
        """What ``modules`` register. If one of them is wrong, none of them stays with pluggy."""
        self._registering, self._staged = report.distribution, []
        try:
            for module in modules:
                name = getattr(module, "__name__", type(module).__name__)
                self._pluggy.register(module, f"{report.distribution}:{name}")
                self._check_hooks(module, name)
            return [
                _component(c.kind, c.name, c.target, report.distribution, report.version, c.deprecated_aliases)
                for c in self._staged
            ]
        except BaseException:
            self._unregister(report.distribution)
            raise
        finally:
            self._registering = None

    def _check_hooks(self, module: object, name: str) -> None:
        try:
            self._pluggy.check_pending()
        except pluggy.PluginValidationError as error:
            known = [hook for hook in vars(hookspecs) if hook.startswith("ebmcore_")]
            misspelt = next((word for word in str(error).split("'") if word.startswith("ebmcore_")), "")
            close = difflib.get_close_matches(misspelt, known, n=1, cutoff=0)
            raise TypeError(
                f"{name} implements the unknown hook {misspelt!r}; did you mean {' or '.join(close)}?"
            ) from error
        if not self._pluggy.get_hookcallers(module):
            raise TypeError(f"{name} implements no hook: is @ebmcore.hookimpl missing?")

    def _stage(self, kind: str, name: str, target: str | type[Any], *, deprecated_aliases: Sequence[str] = ()) -> None:
        if self._registering is None:
            raise RuntimeError("components are registered inside ebmcore_register, not after it; see also ebmcore.register")
        if isinstance(deprecated_aliases, str):
            raise TypeError(f"deprecated_aliases must be a sequence of names, got the string {deprecated_aliases!r}")
        staged = _component(kind, name, target, self._registering, "", tuple(deprecated_aliases))
        if (kind, name) in [(c.kind, c.name) for c in self._staged]:
            raise ValueError(f"the {kind} {name!r} is registered twice")
        self._staged.append(staged)

    def _forget(self, distribution: str) -> None:
        self._registry.remove(distribution)
        self._unregister(distribution)
        for known in (self._classes, self._broken):
            for component in [c for c in known if c.distribution == distribution]:
                del known[component]

    def _unregister(self, distribution: str) -> None:
        for name, plugin in self._pluggy.list_name_plugin():
            if name.partition(":")[0] == distribution and plugin is not None:
                self._pluggy.unregister(plugin)

    def _note_conflicts(self) -> None:
        shared = self._registry.conflicts()
        for report in self._reports.values():
            if report.state not in (State.LOADED, State.CONFLICT):
                continue
            names = [c.name for c in shared if c.distribution == report.distribution]
            report.state = State.CONFLICT if names else State.LOADED
            report.reason = f"also provided by another plugin: {', '.join(names)}" if names else ""

    def _note_changes(self, distribution: str, what: str, changed: Sequence[str]) -> None:
        if changed and distribution in self._reports:
            self._reports[distribution].notes.append(f"importing {what} changes {', '.join(changed)}; ebmcore put it back")

    def _raise_if_any_is_broken(self) -> None:
        wrong = [r for r in self._reports.values() if r.state in (State.FAILED, State.INCOMPATIBLE, State.CONFLICT)]
        if wrong:
            raise PluginError(f"EBMCORE_STRICT is set, and {'; '.join(map(_failure, wrong))}") from wrong[0].error

    def _suspect(self, kind: str, name: str) -> PluginReport | None:
        """The plugin that would have provided ``name``, if it is not in working order."""
        distribution, _, bare = name.rpartition(":")
        for report in self._reports.values():
            if report.state not in (State.FAILED, State.DISABLED, State.INCOMPATIBLE):
                continue
            provides = (
                (kind, bare) in names_in_source(report)
                or FIRST_PARTY.get((kind, bare)) == report.distribution
                or (bare in [e.name for e in report.entry_points] and not names_in_source(report))
            )
            if distribution == report.distribution or (not distribution and provides):
                return report
        return None


SLOW = 15.0  # seconds until imports are said to take long: one may hang


class _Pluggy(pluggy.PluginManager):
    """Looks for hooks among the names that a plugin chose; Python's own, four fifths of a small module's, are none."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        return None if name.startswith("__") else super().parse_hookimpl_opts(plugin, name)


@functools.cache
def get_manager() -> PluginManager:
    """The host of this process; distributions are scanned once, at first need."""
    return PluginManager(distributions(), os.environ)


def refresh() -> None:
    """See `ebmcore.host.refresh`."""
    import importlib

    importlib.invalidate_caches()
    forget()
    get_manager().rescan(distributions(), os.environ)


def _refuse_result(result: object) -> None:
    """Called by pluggy with what a hook returned, unless that is `None`."""
    if hasattr(result, "close"):
        result.close()  # a coroutine or generator, of which nothing has run
    raise TypeError(
        f"ebmcore_register must return nothing, but returned a {type(result).__name__}: it must be a plain function"
    )


def _component(
    kind: str, name: str, target: str | type[Any], distribution: str, version: str, deprecated_aliases: tuple[str, ...] = ()
) -> Component:
    check_kind(kind)
    for given in (name, *deprecated_aliases):
        if not (isinstance(given, str) and given and not set(given) & set(":=, \t\n")):
            raise ValueError(
                f"a component's name must be a non-empty string without ':', '=', commas and spaces, got {given!r}"
            )
    if not isinstance(target, type) and not (isinstance(target, str) and target.count(":") == 1):
        raise TypeError(f"the target of {name!r} must be a class or 'package.module:Class', got {target!r}")
    return Component(kind, name, target, distribution, version, deprecated_aliases)


def _load(target: str) -> Any:
    return EntryPoint(name="target", value=target, group=GROUP).load()


# What a class of each kind must have.
_METHODS = {
    "sampler": ("init", "step", "refresh"),
    "energy": ("forward",),
    "metric": ("__call__",),
    "observer": ("on_start", "on_log", "on_checkpoint", "on_end"),
}


def _check_target(kind: str, target: Any) -> None:
    if not inspect.isclass(target):
        raise TypeError(f"the target of a {kind} must be a class, got {target!r}")
    if inspect.isabstract(target):
        raise TypeError(f"the class is abstract: it lacks {', '.join(sorted(getattr(target, '__abstractmethods__', ())))}")
    if kind == "loss":
        from ebmcore.losses import BaseLoss

        if not issubclass(target, BaseLoss):
            raise TypeError("a loss must derive from ebmcore.BaseLoss")
    # A class always has __call__ (it makes instances); what counts is its own.
    missing = [
        n for n in _METHODS.get(kind, ()) if not any(n in vars(base) for base in target.__mro__ if base is not object)
    ]
    if missing:
        raise TypeError(f"a {kind} must have {', '.join(n + '()' for n in missing)}")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _failure(report: PluginReport) -> str:
    return f"the plugin {report.distribution} ({', '.join(report.modules)}) is {report.state}: {report.reason}. {_advice(report)}"


def _advice(report: PluginReport) -> str:
    if report.state is State.DISABLED:
        return "Change that variable to use it."
    return (
        f"It comes from {report.distribution} {report.version}, with ebmcore {version('ebmcore')}: "
        f"pip install --upgrade {report.distribution}, or leave it out with EBMCORE_DISABLED_PLUGINS={report.distribution}"
    )

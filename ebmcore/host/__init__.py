"""The plugin host: finds the components and commands that other distributions provide.

How to write a plugin
---------------------
A plugin is a distribution with one entry point in the group ``ebmcore``::

    [project.entry-points.ebmcore]
    pcd = "ebm_plugin_pcd"

whose target is a light module (it must not import torch) that implements hooks::

    import ebmcore

    @ebmcore.hookimpl
    def ebmcore_register(register):
        register.loss("pcd", "ebm_plugin_pcd.loss:PersistentContrastiveDivergence")

The class behind the import string is loaded when it is first needed. Once the distribution is installed,
``ebmcore list`` shows ``pcd``, ``ebmcore.create_loss("pcd", energy, sampler)`` makes one, and its options appear on the
command line. An installed plugin changes no run until it is named. `ebmcore.host.hookspecs` documents every hook.

Beside losses, samplers, energies, data sets, metrics and observers, a plugin can register recipes (YAML files for
``ebmcore train --recipe NAME``) and commands (functions that become subcommands of ``ebmcore``)::

        register.recipe("du-mordatch-2019", "ebm_plugin_pcd:recipes/du-mordatch-2019.yaml")
        register.command("diagnose", "ebm_plugin_diagnose.cli:diagnose")

In a notebook, ``ebmcore.register("loss", "my-cd", MyCD)`` registers a class for the session, and `ebmcore.refresh` looks again
after an installation. In a plugin's tests, `ebmcore.temporary_plugin` registers a module for the length of a ``with`` block.

Environment variables name plugins by distribution and are read before any plugin is imported:

- ``EBMCORE_PLUGINS``: comma-separated list of the allowed plugins; unset allows all, empty none;
- ``EBMCORE_DISABLED_PLUGINS``: comma-separated list of plugins to leave out;
- ``EBMCORE_PREFER``: ``name=distribution`` pairs that decide between two providers of one bare name;
- ``EBMCORE_STRICT``: if true, any plugin that is failed, incompatible or in conflict raises an error at once.

A plugin that cannot be imported costs nothing until somebody asks for what it provides; then the error names the cause, the
distribution and the remedy. ``ebmcore doctor`` examines every plugin in a process of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, overload

import pluggy

from ebmcore._keywords import reject_unknown
from ebmcore.errors import PluginError, UsageError
from ebmcore.host.kinds import CLASSES, KINDS, Target
from ebmcore.host.manager import get_manager, refresh
from ebmcore.host.registry import SESSION, Component, Register
from ebmcore.host.report import PluginReport

__all__ = [
    "KINDS",
    "SESSION",
    "Component",
    "PluginReport",
    "Register",
    "create",
    "find",
    "hookimpl",
    "list_components",
    "load",
    "plugins",
    "provenance",
    "refresh",
    "register",
    "temporary_plugin",
]

ClassKind = Literal["loss", "sampler", "energy", "dataset", "metric", "observer"]

hookimpl = pluggy.HookimplMarker("ebmcore")
"""Decorator that marks a function as the implementation of the hook of the same name."""


def list_components(kind: str | None = None) -> list[Component]:
    """The installed components, sorted by kind and id. Imports the plugins' light modules and no component.

    Args:
        kind: One of `KINDS`; without it, components of all kinds are listed.
    """
    return get_manager().components(kind)


def find(kind: str, name: str) -> Component:
    """The component of that name or canonical id (``ebm-plugin-pcd:pcd``).

    Raises:
        UnknownComponentError: If no plugin provides it; the message names close matches and the distribution to install.
        AmbiguousComponentError: If several do and ``EBMCORE_PREFER`` does not decide.
        PluginError: If the plugin that should provide it is broken.
    """
    return get_manager().find(kind, name)


@overload
def load(kind: ClassKind, name: str) -> type[Any]: ...
@overload
def load(kind: Literal["recipe"], name: str) -> Path: ...
@overload
def load(kind: Literal["command"], name: str) -> Callable[[Sequence[str]], int | None]: ...
@overload
def load(kind: str, name: str) -> Any: ...
def load(kind: str, name: str) -> Any:
    """Return the object that a name or canonical id stands for, imported when first needed.

    Returns:
        The class of a component; for a ``"recipe"`` the path of its YAML file, which is not read; for a ``"command"`` its
        function.

    Raises:
        UnknownComponentError: If no plugin provides it.
        PluginError: If it cannot be imported, or lacks what its kind demands.
    """
    manager = get_manager()
    return manager.load(manager.find(kind, name))


def create(kind: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Create an instance of a component; the ``create_...`` functions of `ebmcore` are this function with a type.

    Raises:
        UnknownKeywordError: For a keyword that its constructor does not take; the message lists the accepted ones.
        UsageError: If the kind is ``"recipe"`` or ``"command"``, which have no instances.
    """
    if kind in KINDS and kind not in CLASSES:
        raise UsageError(f"a {kind} has no instances: use ebmcore.host.load({kind!r}, {name!r})")
    cls = load(kind, name)
    reject_unknown(f"{kind} {name!r}", cls, kwargs)
    if kind == "loss":
        _check_sampler(name, cls, args, kwargs)
    try:
        return cls(*args, **kwargs)
    except SystemExit as error:
        raise PluginError(f"making the {kind} {name!r} ({cls.__module__}:{cls.__qualname__}) called sys.exit()") from error


def _check_sampler(name: str, cls: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `UsageError` if a loss misses its sampler, or is given one that it does not take."""
    try:
        inspect.signature(cls).bind(*args, **kwargs)
    except TypeError as error:
        if cls.needs_sampler and len(args) == 1 and "sampler" not in kwargs:
            raise UsageError(f"the loss {name!r} needs a sampler: give one after the energy") from error
        if len(args) > 1 and not cls.needs_sampler:
            raise UsageError(f"the loss {name!r} takes no sampler: leave it out, and give options by name") from error


def plugins() -> list[PluginReport]:
    """A `ebmcore.host.report.PluginReport` for each installed plugin, sorted by distribution. Imports no plugin."""
    return get_manager().reports()


def provenance(component: object) -> dict[str, str | None]:
    """Canonical id, distribution and version of an object's class, and its import path; for checkpoints."""
    return get_manager().provenance(type(component))


def register(kind: str, name: str, target: Target) -> None:
    """Register a component for this session, for example in a notebook; its canonical id is ``session:name``.

    Registering the same kind and name again replaces it. Like any other component, it conflicts with an installed one of that
    name.

    Args:
        kind: One of `KINDS`, for example ``"loss"``.
        name: The name under which it is found.
        target: The class of a component or the function of a command; or the import string ``"package.module:Class"``, and
            ``"package:path.yaml"`` for a recipe.

    Raises:
        TypeError: If the class or function lacks what its kind demands.

    Example:
        >>> import ebmcore
        >>> from ebmcore.testing import Identity
        >>> ebmcore.register("sampler", "stay", Identity)
        >>> type(ebmcore.create_sampler("stay"))
        <class 'ebmcore.testing.samplers.Identity'>
    """
    get_manager().register(kind, name, target)


def temporary_plugin(plugin: object, distribution: str = "temporary-plugin") -> AbstractContextManager[list[Component]]:
    """Register a plugin that is not installed for the length of a ``with`` block; for the tests of its author.

    Args:
        plugin: A module, or any object, with implementations of hooks.
        distribution: The distribution named in the ids of its components.

    Returns:
        A context manager that gives the list of its components.

    Raises:
        PluginError: If it cannot be registered; nothing of it stays.

    Example:
        >>> import ebmcore
        >>> class Plugin:
        ...     @ebmcore.hookimpl
        ...     def ebmcore_register(self, register):
        ...         register.sampler("still", "ebmcore.testing:Identity")
        >>> with ebmcore.temporary_plugin(Plugin()):
        ...     type(ebmcore.create_sampler("still"))
        <class 'ebmcore.testing.samplers.Identity'>
    """
    return get_manager().temporary(plugin, distribution)

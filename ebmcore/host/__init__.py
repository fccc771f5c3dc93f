"""The plugin host: finds losses, samplers, energies, data sets, metrics and observers that other distributions provide.

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

The class behind the import string is loaded when it is first asked for. Once the distribution is installed,
``ebmcore list`` shows ``pcd``, ``ebmcore.create_loss("pcd", energy, sampler)`` makes one, and its options appear on the
command line; an installed plugin changes no run until it is named. `ebmcore.host.hookspecs` documents every hook.

In a notebook, ``ebmcore.register("loss", "my-cd", MyCD)`` registers a class for the session, and `ebmcore.refresh` looks again
after an installation. In a plugin's tests, `ebmcore.temporary_plugin` registers a module for the length of a ``with`` block.

Environment variables, all by distribution name and obeyed before any plugin is imported:

- ``EBMCORE_PLUGINS``: unset allows all plugins, empty none, else a comma-separated list of the allowed ones;
- ``EBMCORE_DISABLED_PLUGINS``: a comma-separated list of plugins to leave out;
- ``EBMCORE_PREFER``: ``name=distribution`` pairs that decide between two providers of one bare name;
- ``EBMCORE_STRICT``: if true, a plugin that is failed, incompatible or in conflict is an error at once.

A plugin that cannot be imported costs nothing until somebody asks for what it provides; then the error names the cause, the
distribution and the remedy. ``ebmcore doctor`` examines every plugin in a process of its own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pluggy

from ebmcore.errors import PluginError
from ebmcore.host.registry import KINDS, SESSION, Component, Register
from ebmcore.host.report import PluginReport

__all__ = [
    "KINDS",
    "SESSION",
    "Component",
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

hookimpl = pluggy.HookimplMarker("ebmcore")


def list_components(kind: str | None = None) -> list[Component]:
    """The installed components, sorted by kind and id. Imports the plugins' light modules, no component."""
    from ebmcore.host.manager import get_manager

    return get_manager().registry.components(kind)


def find(kind: str, name: str) -> Component:
    """The component of that name or canonical id (``ebm-plugin-pcd:pcd``).

    Raises:
        UnknownComponentError: If no plugin provides it; the message names close matches and the distribution to install.
        AmbiguousComponentError: If several do and ``EBMCORE_PREFER`` does not decide.
        PluginError: If the plugin that should provide it is broken.
    """
    from ebmcore.host.manager import get_manager

    return get_manager().find(kind, name)


def load(kind: str, name: str) -> type[Any]:
    """The component's class, imported at first use.

    Raises:
        PluginError: If it cannot be imported, or is not what its kind demands.
    """
    from ebmcore.host.manager import get_manager

    manager = get_manager()
    return manager.load(manager.find(kind, name))


def create(kind: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """An instance of the component; unknown keywords are rejected with the accepted ones named."""
    from ebmcore._keywords import reject_unknown

    cls = load(kind, name)
    reject_unknown(f"{kind} {name!r}", cls, kwargs)
    try:
        return cls(*args, **kwargs)
    except SystemExit as error:
        raise PluginError(f"making the {kind} {name!r} ({cls.__module__}:{cls.__qualname__}) called sys.exit()") from error


def plugins() -> list[PluginReport]:
    """A `ebmcore.host.report.PluginReport` for each installed plugin, sorted by distribution. Imports no plugin."""
    from ebmcore.host.manager import get_manager

    return get_manager().reports()


def provenance(component: object) -> dict[str, str | None]:
    """Canonical id, distribution and version of an object's class, and its import path; for checkpoints."""
    from ebmcore.host.manager import get_manager

    return get_manager().provenance(type(component))


def register(kind: str, name: str, target: str | type[Any]) -> None:
    """Register a component for this session, in a notebook say; its canonical id is ``session:name``.

    The same kind and name again replaces it. Like any other component, it is in conflict with an installed one of that name.

    Args:
        kind: ``"loss"``, ``"sampler"``, ``"energy"``, ``"dataset"``, ``"metric"`` or ``"observer"``.
        name: What it is to be called.
        target: The class, or the import string ``"package.module:Class"``.

    Raises:
        TypeError: If the class is not what its kind demands.

    Example:
        >>> import ebmcore
        >>> from ebmcore.testing import Identity
        >>> ebmcore.register("sampler", "stay", Identity)
        >>> type(ebmcore.create_sampler("stay"))
        <class 'ebmcore.testing.samplers.Identity'>
    """
    from ebmcore.host.manager import get_manager

    get_manager().register(kind, name, target)


def temporary_plugin(plugin: object, distribution: str = "temporary-plugin") -> AbstractContextManager[list[Component]]:
    """Register a plugin that is not installed for the length of a ``with`` block; for the tests of its author.

    Args:
        plugin: A module, or any object, with implementations of hooks.
        distribution: What it is called in the ids of its components.

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
    from ebmcore.host.manager import get_manager

    return get_manager().temporary(plugin, distribution)


def refresh() -> None:
    """Look again at what is installed, after a ``pip install`` in a live session.

    New plugins give their components, removed ones lose them, and one that had failed gets another chance. A plugin that is
    imported stays as it is: another version of it needs a new Python, and a warning says so.
    """
    from ebmcore.host import manager

    manager.refresh()

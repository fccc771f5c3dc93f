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

Environment variables, all by distribution name and obeyed before any plugin is imported:

- ``EBMCORE_PLUGINS``: unset allows all plugins, empty none, else a comma-separated list of the allowed ones;
- ``EBMCORE_DISABLED_PLUGINS``: a comma-separated list of plugins to leave out;
- ``EBMCORE_PREFER``: ``name=distribution`` pairs that decide between two providers of one bare name.
"""

from __future__ import annotations

from typing import Any

import pluggy

from ebmcore.host.registry import KINDS, Component

__all__ = [
    "KINDS",
    "Component",
    "create",
    "find",
    "hookimpl",
    "list_components",
    "load",
    "plugins",
    "provenance",
    "versions_in_use",
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
    return cls(*args, **kwargs)


def plugins() -> list[Any]:
    """A `ebmcore.host.report.PluginReport` for each installed plugin, sorted by distribution. Imports no plugin."""
    from ebmcore.host.manager import get_manager

    return get_manager().reports()


def provenance(component: object) -> dict[str, str | None]:
    """Canonical id, distribution and version of an object's class, and its import path; for checkpoints."""
    from ebmcore.host.manager import get_manager

    return get_manager().provenance(type(component))


def versions_in_use() -> dict[str, str]:
    """Distribution and version of every plugin of which a component was loaded; for checkpoints."""
    from ebmcore.host.manager import get_manager

    return get_manager().versions_in_use()

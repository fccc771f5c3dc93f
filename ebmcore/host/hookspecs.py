"""The hooks that ebmcore calls. One function each; its docstring says when it is called."""

from __future__ import annotations

import pluggy

from ebmcore.host.registry import Register

hookspec = pluggy.HookspecMarker("ebmcore")


@hookspec(historic=True)
def ebmcore_register(register: Register) -> None:
    """Called once, when the plugin is first needed: name the components that the distribution provides.

    Args:
        register: Has one method for each kind, ``register.loss(name, target)`` and so on. The target is a class, or the
            import string ``"package.module:Class"``, which is imported at first use. If the hook raises, nothing of what it
            registered stays.
    """

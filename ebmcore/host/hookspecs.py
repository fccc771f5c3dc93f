"""The hooks that ebmcore calls. One function each; its docstring says when it is called."""

from __future__ import annotations

import pluggy

from ebmcore.host.registry import Register

hookspec = pluggy.HookspecMarker("ebmcore")


@hookspec
def ebmcore_register(register: Register) -> None:
    """Register the components that the distribution provides. Called once, when any component is first needed.

    Args:
        register: Has one method for each kind: ``register.loss(name, target)`` and so on. The target is a class, or the
            import string ``"package.module:Class"``, which is imported when the component is first used. The target of
            ``register.command`` is a function or its import string, that of ``register.recipe`` a YAML file as
            ``"package:path/in/the/package.yaml"``. If the hook raises, nothing that it registered stays.
    """

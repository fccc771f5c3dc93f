"""Finds the plugin or the user's own class whose code raised an error."""

from __future__ import annotations

import itertools
import traceback

from ebmcore.errors import EbmcoreError
from ebmcore.host.manager import get_manager
from ebmcore.host.registry import Component, OwnClass


def origin(error: BaseException) -> str:
    """The plugin whose code raised an error, its version and the line; empty if the code is the kernel's or of no plugin."""
    found = _raiser(error)
    if found is None:
        return ""
    component, line = found
    own = isinstance(component, OwnClass)
    return (
        f"{component.distribution} ({line})" if own else f"the plugin {component.distribution} {component.version} ({line})"
    )


def is_of_own_class(error: BaseException) -> bool:
    """Whether the code of a user's own class raised an error."""
    found = _raiser(error)
    return found is not None and isinstance(found[0], OwnClass)


def _raiser(error: BaseException) -> tuple[Component, str] | None:
    """A component of the plugin or file whose code raised an error, and the line.

    The innermost frame counts that belongs to a plugin or to the kernel: other libraries, such as torch, act for their caller.
    """
    try:
        components = [*get_manager().components(), *get_manager().own()]
    except EbmcoreError:  # a wrong environment variable
        return None
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__")).split(".")
        if module[0] == "ebmcore":
            return None
        closest = max(components, key=lambda component: _shared_packages(module, component), default=None)
        if closest is not None and _shared_packages(module, closest):
            return closest, f"{frame.f_code.co_filename}:{line}"
    return None


def _shared_packages(module: list[str], component: Component) -> int:
    """How many leading parts of its name a module has in common with the module of a component."""
    own = component.import_path.partition(":")[0].split(".")
    return sum(1 for _ in itertools.takewhile(lambda parts: parts[0] == parts[1], zip(module, own, strict=False)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch has no memory left; by name and text, as torch may not be imported and has no type for a CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)

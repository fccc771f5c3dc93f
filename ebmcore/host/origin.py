"""Finds the plugin or the user's own class whose code raised an error."""

from __future__ import annotations

import itertools
import sys
import traceback
from pathlib import Path

from ebmcore.errors import EbmcoreError
from ebmcore.host.manager import get_manager
from ebmcore.host.registry import Component


def origin(error: BaseException) -> str:
    """The plugin whose code raised an error, its version and the line; empty if the code is the kernel's or of no plugin.

    The innermost frame counts that belongs to a plugin or to the kernel: other libraries, such as torch, act for their caller.
    """
    try:
        components = get_manager().components()
    except EbmcoreError:  # a wrong environment variable
        return ""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__")).split(".")
        if module[0] == "ebmcore":
            return ""
        closest = max(components, key=lambda component: _shared_packages(module, component), default=None)
        if closest is not None and _shared_packages(module, closest):
            return f"the plugin {closest.distribution} {closest.version} ({frame.f_code.co_filename}:{line})"
    return ""


def own_line(error: BaseException) -> str:
    """The file and line of a user's own class, or of a file beside it, that raised an error; empty if it was other code.

    As in `origin`, other libraries act for their caller.
    """
    modules = [sys.modules.get(cls.target.__module__) for cls in get_manager().own() if isinstance(cls.target, type)]
    files = [getattr(module, "__file__", None) for module in modules]
    folders = [Path(file).absolute().parent for file in files if file]
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == "ebmcore":
            return ""
        if "site-packages" not in file.parts and any(file.is_relative_to(folder) for folder in folders):
            return f"{file}:{line}"
    return ""


def _shared_packages(module: list[str], component: Component) -> int:
    """How many leading parts of its name a module has in common with the module of a component."""
    own = component.import_path.partition(":")[0].split(".")
    return sum(1 for _ in itertools.takewhile(lambda parts: parts[0] == parts[1], zip(module, own, strict=False)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch has no memory left; by name and text, as torch may not be imported and has no type for a CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)

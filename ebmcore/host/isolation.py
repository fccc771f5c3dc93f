"""Importing a plugin without letting it change the settings of the whole process."""

from __future__ import annotations

import importlib
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NamedTuple


class _Setting(NamedTuple):
    """One setting of the process, by the module that holds it and the functions that read and write it."""

    module: str
    description: str
    read: str
    write: str
    is_random: bool = False


_SETTINGS = (
    _Setting("numpy.random", "the random state of NumPy", "get_state", "set_state", is_random=True),
    _Setting("torch", "the random state of torch", "get_rng_state", "set_rng_state", is_random=True),
    _Setting("torch", "the default dtype", "get_default_dtype", "set_default_dtype"),
    _Setting("torch", "the number of threads", "get_num_threads", "set_num_threads"),
)


@contextmanager
def preserve_global_state() -> Iterator[list[str]]:
    """Context manager that restores global settings on exit and appends the names of those that were changed to its list.

    The settings are the warning filters, the global random states of Python, NumPy and torch, torch's default dtype and its
    number of threads; those of NumPy and torch only where the library is imported already, and a thread that imports it at that
    moment is waited for. Standard output is redirected to standard error, because programs read the output of the command line.

    The settings belong to the process, so one thread at a time may be inside. Random states are restored only where there is no
    other thread: one that draws numbers meanwhile would draw them again.
    """
    changed: list[str] = []
    is_only_thread = threading.active_count() == 1
    python_state = random.getstate()
    filters = list(warnings.filters)
    settings = [setting for setting in _SETTINGS if is_only_thread or not setting.is_random]
    saved = [(setting, _read(setting)) for setting in settings if _is_imported(setting.module)]
    try:
        with redirect_stdout(sys.stderr):
            yield changed
    finally:
        if is_only_thread:
            random.setstate(python_state)  # not reported: well-behaved libraries draw from it when they are imported
        if _restore_filters(filters):
            changed.append("the warning filters")
        for setting, value in saved:
            if not _equal(_read(setting), value):
                _function(setting, setting.write)(value)
                changed.append(setting.description)


def _is_imported(module: str) -> bool:
    if module not in sys.modules:
        return False
    try:
        importlib.import_module(module)  # waits for another thread that is importing it: reading torch half-way can crash
    except (ImportError, RuntimeError):  # that import failed, or waits for this thread
        return False
    return True


def _function(setting: _Setting, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(sys.modules[setting.module], name)
    return function


def _read(setting: _Setting) -> Any:
    return _function(setting, setting.read)()


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    same = a == b
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def _restore_filters(before: list[Any]) -> bool:
    """Undo changes of the warning filters that concern everyone's warnings, and return whether there were any.

    New filters that name a message, a module or a category of their own stay: libraries add such filters on import.
    """
    now = list(warnings.filters)
    new = [f for f in now if f not in before]
    specific = [f for f in new if f[1] or f[3] or f[2].__module__ != "builtins"]  # message, module, category
    if specific == new and [f for f in now if f in before] == before:
        return False
    warnings.filters[:] = specific + before  # type: ignore[index]
    with warnings.catch_warnings():
        pass  # makes Python notice that the list has changed
    return True

"""Importing what others wrote without letting it change the settings of the whole process."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


@dataclass
class _Setting:
    """One setting of the process and its value when the import began."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]

    def __post_init__(self) -> None:
        self.value = self.read()

    def put_back(self) -> bool:
        """Restore the value; whether there was anything to restore."""
        changed = not _equal(self.read(), self.value)
        if changed:
            self.write(self.value)
        return changed


@contextmanager
def undisturbed() -> Iterator[list[str]]:
    """Run an import; afterwards put back the settings of the process that it changed, and name them in the list.

    These are the warning filters, the global random states of Python, NumPy and torch, torch's default dtype and its number of
    threads. NumPy's and torch may be imported only inside: their settings are then those right after their own import. What is
    printed goes to stderr, because the output of the command line may be read by a program.
    """
    changed: list[str] = []
    of_python = random.getstate()
    settings: list[_Setting] = []
    watching = []
    for name, settings_of in _SETTINGS.items():
        if name in sys.modules:
            settings += settings_of(sys.modules[name])
        else:
            watching.append(_FirstImport(name, settings_of, settings))
    sys.meta_path[:0] = watching
    filters = list(warnings.filters)
    try:
        with redirect_stdout(sys.stderr):
            yield changed
    finally:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in watching]
        random.setstate(of_python)  # not named: well-behaved libraries draw from Python's generator when they are imported
        if _put_back_filters(filters):
            changed.append("the warning filters")
        changed += [setting.name for setting in settings if setting.put_back()]


def _settings_of_numpy(numpy_random: ModuleType) -> list[_Setting]:
    return [_Setting("the random state of NumPy", numpy_random.get_state, numpy_random.set_state)]


def _settings_of_torch(torch: ModuleType) -> list[_Setting]:
    return [
        _Setting("the random state of torch", torch.get_rng_state, torch.set_rng_state),
        _Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
        _Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    ]


_SETTINGS = {"numpy.random": _settings_of_numpy, "torch": _settings_of_torch}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    same = a == b
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def _put_back_filters(before: list[Any]) -> bool:
    """Undo changes of the warning filters that concern everyone's warnings; whether there were any.

    Filters with a message, a module or a category of their own stay: libraries add such when they are imported.
    """
    now = list(warnings.filters)
    new = [f for f in now if f not in before]
    own = [f for f in new if f[1] or f[3] or f[2].__module__ != "builtins"]  # message, module, category
    if own == new and [f for f in now if f in before] == before:
        return False
    warnings.filters[:] = own + before  # type: ignore[index]
    with warnings.catch_warnings():
        pass  # makes Python notice that the list has changed
    return True


class _FirstImport:
    """Adds the settings of a module to others right after its import, before whoever imports it can change them."""

    def __init__(self, name: str, settings_of: Callable[[ModuleType], list[_Setting]], settings: list[_Setting]) -> None:
        self.name = name
        self.settings_of = settings_of
        self.settings = settings
        self.looking = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self.name or self.looking:
            return None
        self.looking = True
        try:
            spec = find_spec(name)
        finally:
            self.looking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_tell(module: ModuleType) -> None:
            execute(module)
            self.settings += self.settings_of(module)

        spec.loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec

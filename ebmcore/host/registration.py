"""Calling a plugin's hook and collecting what it registers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import pluggy

from ebmcore.host import hookspecs
from ebmcore.host.kinds import Target
from ebmcore.host.registry import Component, Register
from ebmcore.host.report import PluginReport


def call_hooks(report: PluginReport, modules: Sequence[object]) -> list[Component]:
    """The components that a plugin's modules register. If one of them is faulty, an error says why and none is registered.

    Each plugin has a pluggy manager of its own, so that a fault in one cannot reach another.
    """
    manager = pluggy.PluginManager("ebmcore")
    manager.add_hookspecs(hookspecs)
    for module in modules:
        manager.register(module)
        _check_hooks(manager, module)
    staged: dict[tuple[str, str], Component] = {}
    running = True

    def register(kind: str, name: str, target: Target) -> None:
        if not running:
            raise RuntimeError("components are registered inside ebmcore_register, not after it; see also ebmcore.register")
        component = Component(kind, name, target, report.distribution, report.version)
        if (kind, name) in staged:
            raise ValueError(f"the {kind} {name!r} is registered twice")
        staged[kind, name] = component

    try:
        results = manager.hook.ebmcore_register(register=Register(register))
    finally:
        running = False
    for result in results:
        _refuse_result(result)
    return list(staged.values())


def _check_hooks(manager: pluggy.PluginManager, module: object) -> None:
    name = getattr(module, "__name__", type(module).__name__)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = [hook for hook in vars(hookspecs) if hook.startswith("ebmcore_")]
        misspelt = next((word for word in str(error).split("'") if word.startswith("ebmcore_")), "")
        close = difflib.get_close_matches(misspelt, known, n=1, cutoff=0)
        raise TypeError(f"{name} implements the unknown hook {misspelt!r}; did you mean {' or '.join(close)}?") from error
    if not manager.get_hookcallers(module):
        raise TypeError(f"{name} implements no hook: is @ebmcore.hookimpl missing?")


def _refuse_result(result: object) -> None:
    if hasattr(result, "close"):
        result.close()  # a coroutine or generator that has not run
    raise TypeError(
        f"ebmcore_register must return nothing, but returned a {type(result).__name__}: it must be a plain function"
    )

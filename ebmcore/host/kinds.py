"""The kinds of components, and what the target of each kind must be. Classes are known by names only: no room is imported."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from importlib_metadata import EntryPoint

from ebmcore.errors import UnknownComponentError

Target = str | type[Any] | Callable[..., Any]


class ClassRules(NamedTuple):
    """Requirements on a class to be a component of its kind.

    Args:
        base: Full name of a class that it must derive from, if any.
        methods: Methods that it, or a class above it other than ``object``, must define.
    """

    base: str = ""
    methods: tuple[str, ...] = ()


CLASSES = {
    "loss": ClassRules(base="ebmcore.losses.BaseLoss"),
    "sampler": ClassRules(methods=("init", "step", "refresh")),
    "energy": ClassRules(methods=("forward",)),
    "dataset": ClassRules(),
    "metric": ClassRules(methods=("__call__",)),
    "observer": ClassRules(methods=("on_start", "on_log", "on_checkpoint", "on_end")),
}
"""Kinds whose target is a class; ``ebmcore.create_KIND`` makes an instance of it."""

KINDS = (*CLASSES, "recipe", "command")
"""All kinds. The target of a recipe is a YAML file in a package, that of a command a function."""


def check_kind(kind: str) -> None:
    """Raise `UnknownComponentError` unless ``kind`` is one of `KINDS`."""
    if kind not in KINDS:
        raise UnknownComponentError(f"there is no kind {kind!r} of components; the kinds are {', '.join(KINDS)}")


def check_form(kind: str, name: str, target: object) -> None:
    """Raise `TypeError` unless ``target`` has the form that its kind takes. Imports nothing."""
    is_string = isinstance(target, str) and target.count(":") == 1
    if kind == "recipe":
        accepted, form = is_string, "'package:path/in/the/package.yaml'"
    elif kind == "command":
        accepted, form = is_string or inspect.isfunction(target), "a function or 'package.module:function'"
    else:
        accepted, form = is_string or inspect.isclass(target), "a class or 'package.module:Class'"
    if not accepted:
        raise TypeError(f"the target of {name!r} must be {form}, got {target!r}")


def load_target(kind: str, target: Target) -> Any:
    """The class of a component, the function of a command or the path of a recipe, checked against the rules of its kind."""
    if kind == "recipe":
        return _recipe_path(str(target))
    loaded = EntryPoint(name="target", value=target, group="ebmcore").load() if isinstance(target, str) else target
    check_target(kind, loaded)
    return loaded


def check_target(kind: str, target: Any) -> None:
    """Raise `TypeError` unless a class or function has what its kind demands."""
    if kind == "command":
        _check_command(target)
        return
    if not inspect.isclass(target):
        raise TypeError(f"the target of {_a(kind)} must be a class, got {target!r}")
    if inspect.isabstract(target):
        raise TypeError(f"the class is abstract: it lacks {', '.join(sorted(getattr(target, '__abstractmethods__', ())))}")
    rules = CLASSES[kind]
    if rules.base and rules.base not in (f"{base.__module__}.{base.__qualname__}" for base in target.__mro__):
        raise TypeError(f"{_a(kind)} must derive from {rules.base}")
    # Every class has __call__, because it makes instances, so only what the class itself or its bases define counts.
    defined = {name for base in target.__mro__ if base is not object for name in vars(base)}
    missing = [f"{name}()" for name in rules.methods if name not in defined]
    if missing:
        raise TypeError(f"{_a(kind)} must have {', '.join(missing)}")


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "eo" else f"a {kind}"


def _check_command(target: Any) -> None:
    if inspect.isclass(target) or not callable(target):
        raise TypeError(f"the target of a command must be a function, got {target!r}")
    try:
        inspect.signature(target).bind([])
    except TypeError as error:
        raise TypeError(
            f"a command must be a function of one argument, the list of command-line arguments: {error}"
        ) from None


def _recipe_path(target: str) -> Path:
    package, _, name = target.partition(":")
    root = Path(str(files(package))).resolve()
    path = (root / name).resolve()
    if path.suffix not in (".yaml", ".yml") or root not in path.parents:
        raise ValueError(f"a recipe must be a YAML file inside the package {package}, got {name!r}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path

"""Unknown keywords are errors that list the accepted ones."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from ebmcore.errors import UnknownKeywordError


def accepted_keywords(function: Callable[..., Any]) -> list[str] | None:
    """Names that ``function`` (or a class) takes as keywords; `None` if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]


def constructor_keywords(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """Keywords that a constructor takes, those included that its ``**kwargs`` hand on to the one above it."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            found = {**parameters, **found}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    return {name: p for name, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name != "self"}


def takes_any_keyword(cls: type[Any]) -> bool:
    """Whether a constructor takes keywords of any name: its ``**kwargs`` reach no constructor that names its own."""
    bases = [base for base in cls.__mro__ if "__init__" in vars(base)]
    own = [vars(base)["__init__"] for base in bases if base.__module__.partition(".")[0] not in ("torch", "builtins")]
    return bool(own) and all(accepted_keywords(init) is None for init in own)


def reject_unknown(owner: str, function: Callable[..., Any], given: Iterable[str]) -> None:
    """Raise `UnknownKeywordError` if ``given`` holds a name that ``function`` does not take."""
    accepted = accepted_keywords(function)
    if accepted is None:
        return
    unknown = [name for name in given if name not in accepted]
    if unknown:
        close = difflib.get_close_matches(unknown[0], accepted, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownKeywordError(
            f"{owner} got the unknown keyword {unknown[0]!r}; it accepts: {', '.join(accepted) or 'none'}.{hint}"
        )


class StrictKeywords:
    """Mixin: every constructor of a subclass names its accepted keywords when it is given another.

    A constructor that ends in ``**options`` and hands them to the one above accepts that one's keywords, by name: they are in
    its signature, for ``inspect``, ``help`` and the command line, and any other is an error. Wrapping ``__init__`` where it is
    defined keeps that signature; a metaclass or ``__new__`` would hide it.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        init = cls.__dict__.get("__init__")
        if init is None:
            return

        @functools.wraps(init)
        def checked(self: Any, *args: Any, **kwargs: Any) -> None:
            reject_unknown(type(self).__name__, checked, kwargs)
            init(self, *args, **kwargs)

        setattr(checked, "__signature__", _with_those_above(init, cls))  # noqa: B010 - mypy forbids the plain assignment
        setattr(cls, "__init__", checked)  # noqa: B010


def _with_those_above(init: Callable[..., None], cls: type[Any]) -> inspect.Signature:
    """The signature of a constructor, its ``**options`` replaced by the keywords of the constructor above it."""
    try:
        signature = inspect.signature(init, eval_str=True)  # annotations are read in their own module, not in a subclass's
    except NameError:  # a type that is imported for type checkers only
        signature = inspect.signature(init)
    *own, last = signature.parameters.values()
    if last.kind is not last.VAR_KEYWORD:
        return signature
    above = inspect.signature(_next_constructor(cls)).parameters.values()
    names = {p.name for p in own}
    inherited = [p for p in above if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) and p.name not in names]
    return signature.replace(parameters=[*own, *inherited])


def _next_constructor(cls: type[Any]) -> Callable[..., None]:
    """What ``super().__init__`` is in the constructor of ``cls``."""
    found: Callable[..., None] = next(base.__dict__["__init__"] for base in cls.__mro__[1:] if "__init__" in base.__dict__)
    return found

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

    Wrapping ``__init__`` where it is defined keeps the signature that ``inspect``, ``help`` and the command line read;
    a metaclass or ``__new__`` would hide it.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        init = cls.__dict__.get("__init__")
        if init is None:
            return

        @functools.wraps(init)
        def checked(self: Any, *args: Any, **kwargs: Any) -> None:
            reject_unknown(type(self).__name__, init, kwargs)
            init(self, *args, **kwargs)

        setattr(cls, "__init__", checked)  # noqa: B010 - mypy forbids the plain assignment

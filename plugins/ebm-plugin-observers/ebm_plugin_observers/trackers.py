"""What the observers of experiment trackers share."""

from __future__ import annotations

import importlib.util

from ebmcore.errors import UsageError


def require_library(name: str) -> None:
    """Raises `UsageError` with the line that installs the library of a tracker, unless it is there.

    Example:
        >>> require_library("nothing")
        Traceback (most recent call last):
        ...
        ebmcore.errors.UsageError: the observer 'nothing' needs its library: pip install 'ebm-plugin-observers[nothing]'
    """
    if importlib.util.find_spec(name) is None:
        raise UsageError(f"the observer {name!r} needs its library: pip install 'ebm-plugin-observers[{name}]'")

"""The data set that reads a file or directory: ``--data FILE`` is ``--data NAME --data.path FILE``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from ebmcore import host
from ebmcore.errors import EbmcoreError, UnknownComponentError, UsageError
from ebmcore.host.code import is_code
from ebmcore.host.registry import known_readers

PLACES_HELP = "where the data of the run are now"


def name_reader(arguments: Sequence[str]) -> list[str]:
    """Arguments with the name of the data set and its path in place of ``--data.name FILE``."""
    named = []
    following = iter(arguments)
    for argument in following:
        flag, sign, value = argument.partition("=")
        if flag != "--data.name":
            named.append(argument)
            continue
        value = value if sign else next(following, "")
        name = reader(value) if value and not value.startswith("-") else None
        named += [f"{flag}={value}"] if name is None else [f"{flag}={name}", f"--data.path={value}"]
    return named


def reader(value: str) -> str | None:
    """The data set that reads the file or directory of that name; `None` if the value names a data set.

    A data set reads files if it has a static method ``reads(path: Path) -> bool`` and an option ``path``.

    Raises:
        UsageError: If no installed data set reads it, or several do.
    """
    if is_code(value):
        return None
    path = Path(value)
    try:
        host.find("dataset", value)
    except UnknownComponentError:
        if not (path.suffix or os.path.dirname(value) or path.exists()):
            return None
    except EbmcoreError:  # its name, but broken or provided twice: raised when it is made
        return None
    else:
        return None
    known = host.list_components("dataset")
    readers = [component for component in known if _reads(component, path)]
    if len(readers) > 1:
        ids = [component.id for component in readers]
        raise UsageError(f"several data sets read {value}: {', '.join(ids)}. Name one: --data {ids[0]} --data.path {value}")
    if readers:
        names = [component.name for component in known]
        return readers[0].name if names.count(readers[0].name) == 1 else readers[0].id
    if not path.exists():
        raise UsageError(f"there is no file or directory {value}, and no installed plugin provides a data set of that name")
    plugin = known_readers().get(path.suffix.lower())
    missing = plugin is not None and plugin not in (report.distribution for report in host.plugins())
    advice = f"pip install {plugin}, or make one that does" if missing else "make one that does"
    raise UsageError(f"no installed data set reads {value}: {advice}: ebmcore new plugin NAME --kind dataset")


def _reads(component: host.Component, path: Path) -> bool:
    try:
        cls = host.load("dataset", component.id)
        return hasattr(cls, "reads") and bool(cls.reads(path))
    except EbmcoreError:  # a broken plugin reads nothing
        return False
    except Exception as error:
        warnings.warn(f"{component.id} cannot say whether it reads {path}: {error}", UserWarning, stacklevel=2)
        return False

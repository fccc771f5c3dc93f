"""What the host knows of each plugin. Failures are data until somebody asks for what failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Where a plugin stands."""

    AVAILABLE = "available"  # installed, not imported yet
    LOADED = "loaded"
    DISABLED = "disabled"  # by an environment variable
    INCOMPATIBLE = "incompatible"  # needs another version of ebmcore
    CONFLICT = "conflict"  # provides a name that another plugin provides too
    FAILED = "failed"


@dataclass
class PluginReport:
    """One installed plugin: a distribution with an entry point in the group ``ebmcore``."""

    distribution: str
    version: str
    summary: str
    modules: list[str]
    state: State = State.AVAILABLE
    reason: str = ""
    error: BaseException | None = field(default=None, repr=False)

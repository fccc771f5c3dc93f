"""What the host knows of each plugin. Failures are data until somebody asks for what failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from importlib_metadata import EntryPoint


class State(StrEnum):
    """Where a plugin stands."""

    AVAILABLE = "available"  # installed, not imported yet
    LOADED = "loaded"
    DISABLED = "disabled"  # by an environment variable
    INCOMPATIBLE = "incompatible"  # needs what is not installed, or another version of it
    CONFLICT = "conflict"  # provides a name that another plugin provides too
    FAILED = "failed"


@dataclass
class PluginReport:
    """One installed plugin: a distribution with entry points in the group ``ebmcore``."""

    distribution: str
    version: str = "unknown"
    summary: str = ""
    entry_points: list[EntryPoint] = field(default_factory=list)
    state: State = State.AVAILABLE
    reason: str = ""
    notes: list[str] = field(default_factory=list)  # what is wrong with it without keeping it from working
    error: BaseException | None = field(default=None, repr=False)

    @property
    def modules(self) -> list[str]:
        """Targets of its entry points."""
        return [entry_point.value for entry_point in self.entry_points]

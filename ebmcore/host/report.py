"""Reports on plugins. A failure is recorded, and raised when somebody asks for what failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from importlib_metadata import EntryPoint, version


class State(StrEnum):
    """The state of a plugin."""

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
    notes: list[str] = field(default_factory=list)  # faults that do not keep it from working
    error: BaseException | None = field(default=None, repr=False)

    @property
    def modules(self) -> list[str]:
        """Targets of its entry points."""
        return [entry_point.value for entry_point in self.entry_points]

    def failure(self) -> str:
        """One sentence for an error: which plugin, its state, the reason and the remedy."""
        return f"the plugin {self.distribution} ({', '.join(self.modules)}) is {self.state}: {self.reason}. {self.advice()}"

    def advice(self) -> str:
        """Advice on what the user can do about a failure of the plugin."""
        if self.state is State.DISABLED:
            return "Change that variable to use it."
        return (
            f"It comes from {self.distribution} {self.version}, with ebmcore {version('ebmcore')}: "
            f"pip install --upgrade {self.distribution}, or leave it out with EBMCORE_DISABLED_PLUGINS={self.distribution}"
        )

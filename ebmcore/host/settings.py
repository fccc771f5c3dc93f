"""The environment variables that control plugins. All name distributions, and take effect before any plugin is imported."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from packaging.utils import canonicalize_name

from ebmcore.errors import UsageError

VARIABLES = {
    "EBMCORE_PLUGINS": "plugins to allow, separated by commas; unset allows all, empty none",
    "EBMCORE_DISABLED_PLUGINS": "plugins to leave out, separated by commas",
    "EBMCORE_PREFER": "name=distribution pairs, separated by commas, that decide between two providers of one bare name",
    "EBMCORE_STRICT": "true: a plugin that is failed, incompatible or in conflict raises an error at once, not when asked for",
}
_BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
    "": False,
}


@dataclass(frozen=True)
class Settings:
    """Settings of the host, from environment variables."""

    left_out: dict[str, str] = field(default_factory=dict)  # distribution -> the variable that leaves it out
    prefer: dict[str, str] = field(default_factory=dict)  # bare name -> distribution
    strict: bool = False

    @classmethod
    def read(cls, environ: Mapping[str, str], installed: Collection[str]) -> Settings:
        """Parse ``EBMCORE_...`` of ``environ``; ``installed`` are the canonical names of the plugins.

        Raises:
            UsageError: For a variable that does not exist, a plugin that is not installed, or a value that cannot be read.
        """
        for variable in environ:
            if variable.startswith("EBMCORE_") and variable not in VARIABLES:
                close = difflib.get_close_matches(variable, VARIABLES, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(VARIABLES)}"
                raise UsageError(f"there is no environment variable {variable}; {hint}")
        left_out: dict[str, str] = {}
        if "EBMCORE_PLUGINS" in environ:
            allowed = _distributions("EBMCORE_PLUGINS", environ, installed)
            left_out |= dict.fromkeys(set(installed) - allowed, "EBMCORE_PLUGINS")
        disabled = _distributions("EBMCORE_DISABLED_PLUGINS", environ, installed)
        left_out |= dict.fromkeys(disabled, "EBMCORE_DISABLED_PLUGINS")
        return cls(left_out, _preferences(environ, installed), _boolean("EBMCORE_STRICT", environ))


def _distributions(variable: str, environ: Mapping[str, str], installed: Collection[str]) -> set[str]:
    named: set[str] = {canonicalize_name(part) for part in _parts(environ.get(variable, ""))}
    check_installed(variable, named, installed)
    return named


def _preferences(environ: Mapping[str, str], installed: Collection[str]) -> dict[str, str]:
    preferences: dict[str, str] = {}
    for part in _parts(environ.get("EBMCORE_PREFER", "")):
        name, _, distribution = (side.strip() for side in part.partition("="))
        if not (name and distribution):
            raise UsageError(f"EBMCORE_PREFER must hold name=distribution pairs, but holds {part!r}")
        preferences[name] = canonicalize_name(distribution)
    check_installed("EBMCORE_PREFER", set(preferences.values()), installed)
    return preferences


def _boolean(variable: str, environ: Mapping[str, str]) -> bool:
    text = environ.get(variable, "").strip().lower()
    if text not in _BOOLEANS:
        raise UsageError(f"{variable} must be one of 1, true, yes, on, 0, false, no, off, but is {environ[variable]!r}")
    return _BOOLEANS[text]


def check_installed(asked_by: str, named: set[str], installed: Collection[str]) -> None:
    """Raise `UsageError` unless all plugins that are ``named`` are installed; the message lists those that are."""
    unknown = sorted(named - set(installed))
    if unknown:
        raise UsageError(
            f"{asked_by} names {', '.join(unknown)}, which is not installed; "
            f"installed plugins: {', '.join(sorted(installed)) or 'none'}"
        )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]

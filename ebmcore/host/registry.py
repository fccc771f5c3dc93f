"""The table of components: what is registered under which name, and by whom."""

from __future__ import annotations

import difflib
import functools
import threading
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from ebmcore.errors import AmbiguousComponentError, UnknownComponentError
from ebmcore.host.kinds import KINDS, Target, check_form, check_kind

SESSION = "session"  # takes the place of the distribution in the ids of components that are registered by hand


def known_plugins() -> dict[tuple[str, str], str]:
    """The distribution that provides each known kind and name, installed or not. Used only to advise what to install."""
    return {(kind, name): plugin for kind in KINDS for name, plugin in _known().get(kind, {}).items()}


def known_readers() -> dict[str, str]:
    """The distribution that reads files of each known suffix; of a directory, the suffix is empty."""
    return _known()["reads"]


@functools.cache
def _known() -> dict[str, dict[str, str]]:
    return tomllib.loads((files("ebmcore.host") / "known-plugins.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Component:
    """One registered component: a name, its target, and the distribution that provides it.

    Raises:
        UnknownComponentError: If the kind does not exist.
        ValueError: If the name cannot be used on a command line or in an id.
        TypeError: If the target does not have the form that the kind takes.
    """

    kind: str
    name: str
    target: Target
    distribution: str
    version: str

    def __post_init__(self) -> None:
        check_kind(self.kind)
        name = self.name
        if not (isinstance(name, str) and name and name[0] != "-" and not set(name) & set(":=, \t\n")):
            raise ValueError(
                "a component's name must be a non-empty string without ':', '=', commas and spaces that does not begin "
                f"with '-', got {name!r}"
            )
        check_form(self.kind, name, self.target)

    @property
    def id(self) -> str:
        """Canonical id, unique and always accepted in place of the name."""
        return f"{self.distribution}:{self.name}"

    @property
    def import_path(self) -> str:
        """``package.module:Class``, or the file of a recipe."""
        if isinstance(self.target, str):
            return self.target
        return f"{self.target.__module__}:{self.target.__qualname__}"

    @property
    def origin(self) -> dict[str, str | None]:
        """Where it comes from, for checkpoints."""
        return {"id": self.id, "distribution": self.distribution, "version": self.version}


class OwnClass(Component):
    """A class in a file or module of the user: its distribution is that place, its version a digest of the file."""

    @property
    def origin(self) -> dict[str, str | None]:
        # The file without its folder, as a run may be resumed from another one.
        name = f"{Path(self.distribution).name}:{self.name}"
        return {"id": name, "distribution": None, "version": None, "sha256": self.version}


class RegisterKind(Protocol):
    """``register.loss(name, target)``, and the same for each other kind."""

    def __call__(self, name: str, target: Target) -> None: ...


class Register:
    """Argument of `ebmcore_register`: one method for each kind of component."""

    loss: RegisterKind
    sampler: RegisterKind
    energy: RegisterKind
    dataset: RegisterKind
    metric: RegisterKind
    observer: RegisterKind
    recipe: RegisterKind
    command: RegisterKind

    def __init__(self, register: Callable[[str, str, Target], None]) -> None:
        for kind in KINDS:
            setattr(self, kind, functools.partial(register, kind))


class Registry:
    """Components by kind and name. Filled by the manager, one plugin at a time. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for a moment, and never while code of a plugin runs
        self._components: dict[tuple[str, str], list[Component]] = {}
        self.prefer: Mapping[str, str] = {}

    def add(self, components: Iterable[Component]) -> None:
        """Add components; one that the same distribution registered under the same kind and name is replaced."""
        with self._lock:
            for component in components:
                providers = self._components.setdefault((component.kind, component.name), [])
                providers[:] = [*(c for c in providers if c.id != component.id), component]

    def remove(self, distribution: str) -> None:
        """Forget what a distribution provides."""
        with self._lock:
            for providers in self._components.values():
                providers[:] = [c for c in providers if c.distribution != distribution]

    def components(self, kind: str | None = None) -> list[Component]:
        """All components, or those of one kind, sorted by kind and id."""
        if kind is not None:
            check_kind(kind)
        found = (c for providers in self._providers() for c in providers if kind in (None, c.kind))
        return sorted(found, key=lambda c: (KINDS.index(c.kind), c.id))

    def conflicts(self) -> list[Component]:
        """Components whose bare name another distribution provides too, where no preference decides."""
        shared = (p for p in self._providers() if len(p) > 1 and self.prefer.get(p[0].name) is None)
        return sorted((c for p in shared for c in p), key=lambda c: c.name)

    def find(self, kind: str, name: str) -> Component:
        """The component of that name or canonical id; see `ebmcore.host.find`."""
        matching = [c for c in self.components(kind) if name in (c.name, c.id)]
        preferred = [c for c in matching if self.prefer.get(name) == c.distribution]
        if len(preferred or matching) == 1:
            return (preferred or matching)[0]
        if matching:
            ids = ", ".join(c.id for c in matching)
            raise AmbiguousComponentError(
                f"several plugins provide the {kind} {name!r}: {ids}. Use one of these ids, or decide with "
                f"EBMCORE_PREFER={name}={matching[0].distribution}"
            )
        raise UnknownComponentError(self._advice(kind, name))

    def _providers(self) -> list[list[Component]]:
        with self._lock:
            return [list(providers) for providers in self._components.values()]

    def _advice(self, kind: str, name: str) -> str:
        """Advice on a name that nobody provides: install its distribution, or correct the name."""
        nobody = f"no installed plugin provides the {kind} {name!r}"
        distribution, _, bare = name.rpartition(":")
        known = known_plugins()
        provider = known.get((kind, bare))
        # A name may be a stranger's on the package index, so that none is advised but those that are known.
        if provider and distribution in ("", provider):
            return f"{nobody}: pip install {provider}"
        installed = [c.name for c in self.components(kind)]
        elsewhere = {n: plugin for (k, n), plugin in known.items() if k == kind and n not in installed}
        close = difflib.get_close_matches(bare, [*installed, *elsewhere], n=3)
        if close:
            hints = [c if c in installed else f"{c} (pip install {elsewhere[c]})" for c in close]
            return f"{nobody}; did you mean {' or '.join(hints)}?"
        return f"{nobody}; installed: {', '.join(installed) or 'none'} (see 'ebmcore list {kind}')"

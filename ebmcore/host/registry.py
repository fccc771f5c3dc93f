"""The table of components: what is registered under which name, and by whom."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ebmcore.errors import AmbiguousComponentError, UnknownComponentError

KINDS = ("loss", "sampler", "energy", "dataset", "metric", "observer")

# Only for advice: which distribution to install for a name that nobody provides.
FIRST_PARTY = {
    ("loss", "cd"): "ebm-plugin-cd",
    ("loss", "pcd"): "ebm-plugin-pcd",
    ("energy", "rbm"): "ebm-plugin-rbm",
    ("sampler", "gibbs"): "ebm-plugin-rbm",
    ("sampler", "langevin"): "ebm-plugin-langevin",
    ("sampler", "mala"): "ebm-plugin-langevin",
    ("energy", "mlp"): "ebm-plugin-nets",
    ("energy", "conv"): "ebm-plugin-nets",
    ("dataset", "digits"): "ebm-plugin-datasets",
    ("dataset", "bars-and-stripes"): "ebm-plugin-datasets",
    ("dataset", "two-moons"): "ebm-plugin-datasets",
    ("dataset", "ring-of-gaussians"): "ebm-plugin-datasets",
    ("metric", "exact-ll"): "ebm-plugin-likelihood",
    ("metric", "ais-ll"): "ebm-plugin-likelihood",
}


@dataclass(frozen=True)
class Component:
    """One registered component: a name, where its class is, and the distribution that brings it."""

    kind: str
    name: str
    target: str | type[Any]
    distribution: str
    version: str

    @property
    def id(self) -> str:
        """Canonical id, unique and always accepted in place of the name."""
        return f"{self.distribution}:{self.name}"

    @property
    def import_path(self) -> str:
        """``package.module:Class``."""
        if isinstance(self.target, str):
            return self.target
        return f"{self.target.__module__}:{self.target.__qualname__}"


class Register:
    """What `ebmcore_register` receives: one method for each kind of component."""

    loss: Callable[[str, str | type[Any]], None]
    sampler: Callable[[str, str | type[Any]], None]
    energy: Callable[[str, str | type[Any]], None]
    dataset: Callable[[str, str | type[Any]], None]
    metric: Callable[[str, str | type[Any]], None]
    observer: Callable[[str, str | type[Any]], None]

    def __init__(self, stage: Callable[[str, str, str | type[Any]], None]) -> None:
        for kind in KINDS:
            setattr(self, kind, functools.partial(stage, kind))


class Registry:
    """Components by kind and name. Filled by the manager, one plugin at a time."""

    def __init__(self, prefer: dict[str, str] | None = None) -> None:
        self._components: dict[tuple[str, str], list[Component]] = {}
        self._prefer = prefer or {}

    def add(self, components: Iterable[Component]) -> None:
        for component in components:
            self._components.setdefault((component.kind, component.name), []).append(component)

    def components(self, kind: str | None = None) -> list[Component]:
        """All components, or those of one kind, sorted by kind and id."""
        if kind is not None:
            check_kind(kind)
        found = (c for providers in self._components.values() for c in providers if kind in (None, c.kind))
        return sorted(found, key=lambda c: (KINDS.index(c.kind), c.id))

    def conflicts(self, distribution: str) -> list[str]:
        """Bare names of this distribution that another one provides too."""
        shared = (providers for providers in self._components.values() if len(providers) > 1)
        return sorted(c.name for providers in shared for c in providers if c.distribution == distribution)

    def find(self, kind: str, name: str) -> Component:
        """The component of that name or canonical id; see `ebmcore.host.find`."""
        check_kind(kind)
        matching = [c for c in self.components(kind) if name in (c.name, c.id)]
        preferred = [c for c in matching if self._prefer.get(name) == c.distribution]
        if len(preferred or matching) == 1:
            return (preferred or matching)[0]
        if matching:
            ids = ", ".join(c.id for c in matching)
            raise AmbiguousComponentError(
                f"several plugins provide the {kind} {name!r}: {ids}. Use one of these ids, or decide with "
                f"EBMCORE_PREFER={name}={matching[0].distribution}"
            )
        raise UnknownComponentError(self._unknown(kind, name))

    def _unknown(self, kind: str, name: str) -> str:
        bare = name.rpartition(":")[2]
        distribution = FIRST_PARTY.get((kind, bare))
        if distribution:
            return f"no installed plugin provides the {kind} {name!r}: pip install {distribution}"
        installed = [c.name for c in self.components(kind)]
        known = installed + [known for k, known in FIRST_PARTY if k == kind and known not in installed]
        close = difflib.get_close_matches(bare, known, n=3)
        if close:
            hints = [c if c in installed else f"{c} (pip install {FIRST_PARTY[kind, c]})" for c in close]
            return f"no installed plugin provides the {kind} {name!r}; did you mean {' or '.join(hints)}?"
        names = ", ".join(installed) or "none"
        return f"no installed plugin provides the {kind} {name!r}; installed: {names} (see 'ebmcore list {kind}')"


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UnknownComponentError(f"there is no kind {kind!r} of components; the kinds are {', '.join(KINDS)}")

"""The table of components: what is registered under which name, and by whom."""

from __future__ import annotations

import difflib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ebmcore.errors import AmbiguousComponentError, UnknownComponentError

KINDS = ("loss", "sampler", "energy", "dataset", "metric", "observer")
SESSION = "session"  # stands for a distribution in the ids of components that no distribution brings

# Only for advice: which distribution to install for a name that nobody provides.
FIRST_PARTY = {
    ("loss", "cd"): "ebm-plugin-cd",
    ("loss", "pcd"): "ebm-plugin-pcd",
    ("loss", "fpcd"): "ebm-plugin-fpcd",
    ("loss", "ptcd"): "ebm-plugin-tempering",
    ("energy", "rbm"): "ebm-plugin-rbm",
    ("energy", "gaussian-rbm"): "ebm-plugin-rbm",
    ("energy", "potts-rbm"): "ebm-plugin-rbm",
    ("sampler", "tempering"): "ebm-plugin-tempering",
    ("sampler", "gibbs"): "ebm-plugin-rbm",
    ("sampler", "langevin"): "ebm-plugin-langevin",
    ("sampler", "mala"): "ebm-plugin-langevin",
    ("energy", "mlp"): "ebm-plugin-nets",
    ("energy", "conv"): "ebm-plugin-nets",
    ("dataset", "mnist"): "ebm-plugin-datasets",
    ("dataset", "digits"): "ebm-plugin-datasets",
    ("dataset", "bars-and-stripes"): "ebm-plugin-datasets",
    ("dataset", "two-moons"): "ebm-plugin-datasets",
    ("dataset", "ring-of-gaussians"): "ebm-plugin-datasets",
    ("metric", "exact-ll"): "ebm-plugin-likelihood",
    ("metric", "grid-ll"): "ebm-plugin-likelihood",
    ("metric", "reverse-ais-ll"): "ebm-plugin-likelihood",
    ("metric", "ais-ll"): "ebm-plugin-likelihood",
    ("metric", "pseudo-ll"): "ebm-plugin-likelihood",
}


@dataclass(frozen=True)
class Component:
    """One registered component: a name, where its class is, and the distribution that brings it."""

    kind: str
    name: str
    target: str | type[Any]
    distribution: str
    version: str
    deprecated_aliases: tuple[str, ...] = ()

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


class RegisterKind(Protocol):
    """``register.loss(name, target, deprecated_aliases=())``, and the same for each other kind."""

    def __call__(self, name: str, target: str | type[Any], *, deprecated_aliases: Sequence[str] = ()) -> None: ...


class Register:
    """What `ebmcore_register` receives: one method for each kind of component."""

    loss: RegisterKind
    sampler: RegisterKind
    energy: RegisterKind
    dataset: RegisterKind
    metric: RegisterKind
    observer: RegisterKind

    def __init__(self, stage: Callable[..., None]) -> None:
        for kind in KINDS:
            setattr(self, kind, functools.partial(stage, kind))


class Registry:
    """Components by kind and name. Filled by the manager, one plugin at a time."""

    def __init__(self) -> None:
        self._components: dict[tuple[str, str], list[Component]] = {}
        self._warned: set[tuple[str, str]] = set()
        self.prefer: Mapping[str, str] = {}

    def add(self, components: Iterable[Component]) -> None:
        for component in components:
            self._components.setdefault((component.kind, component.name), []).append(component)

    def remove(self, distribution: str) -> None:
        """Forget what a distribution provides."""
        for key, providers in list(self._components.items()):
            self._components[key] = [c for c in providers if c.distribution != distribution]

    def components(self, kind: str | None = None) -> list[Component]:
        """All components, or those of one kind, sorted by kind and id."""
        if kind is not None:
            check_kind(kind)
        found = (c for providers in self._components.values() for c in providers if kind in (None, c.kind))
        return sorted(found, key=lambda c: (KINDS.index(c.kind), c.id))

    def conflicts(self) -> list[Component]:
        """What is provided under a bare name that another distribution provides too, with no preference that decides."""
        shared = (p for p in self._components.values() if len(p) > 1 and self.prefer.get(p[0].name) is None)
        return sorted((c for p in shared for c in p), key=lambda c: c.name)

    def find(self, kind: str, name: str) -> Component:
        """The component of that name or canonical id; see `ebmcore.host.find`."""
        check_kind(kind)
        components = self.components(kind)
        matching = [c for c in components if name in (c.name, c.id)]
        renamed = not matching
        if renamed:
            matching = [c for c in components if name.removeprefix(f"{c.distribution}:") in c.deprecated_aliases]
        preferred = [c for c in matching if self.prefer.get(name) == c.distribution]
        if len(preferred or matching) == 1:
            found = (preferred or matching)[0]
            if renamed:
                self._warn_once(found, name)
            return found
        if matching:
            ids = ", ".join(c.id for c in matching)
            raise AmbiguousComponentError(
                f"several plugins provide the {kind} {name!r}: {ids}. Use one of these ids, or decide with "
                f"EBMCORE_PREFER={name}={matching[0].distribution}"
            )
        raise UnknownComponentError(self._unknown(kind, name))

    def _warn_once(self, component: Component, alias: str) -> None:
        if (component.id, alias) in self._warned:
            return
        self._warned.add((component.id, alias))
        new = component.id if ":" in alias else component.name
        warnings.warn(
            f"the {component.kind} {alias!r} of {component.distribution} is now called {new!r}: use that name",
            FutureWarning,
            stacklevel=callers_level(),
        )

    def _distributions(self) -> set[str]:
        return {SESSION, *(c.distribution for c in self.components())}

    def _unknown(self, kind: str, name: str) -> str:
        distribution, _, bare = name.rpartition(":")
        distribution = distribution if distribution not in self._distributions() else ""
        distribution = distribution or FIRST_PARTY.get((kind, bare), "")
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


def callers_level() -> int:
    """The stack level, counted from the caller of this function, of the first line outside ebmcore."""
    package = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    return level


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UnknownComponentError(f"there is no kind {kind!r} of components; the kinds are {', '.join(KINDS)}")

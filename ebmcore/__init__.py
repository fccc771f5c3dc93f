"""Energy-based models in PyTorch: a small kernel, and everything else a plugin.

An energy-based model is ``p(x) = exp(-E(x)) / Z``: low energy means high probability. `create_loss`, `create_sampler`,
`create_energy`, `create_dataset`, `create_metric` and `create_observer` make components of installed plugins by name;
`BaseLoss`, `BaseContrastiveDivergence` and `BaseSampler` are what new ones derive from; `ebmcore.host` documents how to publish
them.

Importing this module does not import torch; using a name that needs it does. Types of the names are in ``__init__.pyi``.
"""

from __future__ import annotations

import importlib
from typing import Any

# Which names of the public face each module has; the modules belong to it, too.
_NAMES = {
    "chains": ["PersistentChains"],
    "compiling": [],
    "conditions": [],
    "distributed": [],
    "distributions": [],
    "energies": ["value_and_grad"],
    "errors": [],
    "host": ["Component", "Register", "hookimpl", "list_components", "load", "refresh", "register", "temporary_plugin"],
    "losses": ["BaseContrastiveDivergence", "BaseLoss"],
    "persistent": ["BasePersistentContrastiveDivergence"],
    "random": [],
    "samplers": ["BaseSampler", "ChainState", "Sampler", "run", "sample"],
    "tempering": ["tempered"],
    "testing": [],
    "training": ["from_pretrained", "load_run"],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def create_loss(name, /, energy, *args, **kwargs):
    """Returns the loss ``name`` for an energy and, where it needs one, a sampler: ``create_loss("pcd", energy, sampler)``."""
    return _create("loss", name, energy, *args, **kwargs)


def create_sampler(name, /, *args, **kwargs):
    """Returns the sampler ``name``, e.g. ``create_sampler("langevin", step_size=0.01)``."""
    return _create("sampler", name, *args, **kwargs)


def create_energy(name, /, *args, **kwargs):
    """Returns the energy ``name`` for examples of a shape, e.g. ``create_energy("rbm", shape=(1, 8, 8), hidden=64)``."""
    return _create("energy", name, *args, **kwargs)


def create_dataset(name, /, *args, **kwargs):
    """Returns the data set ``name``, e.g. ``create_dataset("digits")``."""
    return _create("dataset", name, *args, **kwargs)


def create_metric(name, /, *args, **kwargs):
    """Returns the metric ``name``, a callable of an energy and data: ``create_metric("ais-ll")``."""
    return _create("metric", name, *args, **kwargs)


def create_observer(name, /, *args, **kwargs):
    """Returns the observer ``name``, to hand to ``ebmcore.training.fit``."""
    return _create("observer", name, *args, **kwargs)


def _create(kind, name, /, *args, **kwargs):
    from ebmcore import host

    return host.create(kind, name, *args, **kwargs)


_CREATE = [name for name in globals() if name.startswith("create_")]
__all__ = [*_NAMES, *_HOME, *_CREATE, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name == "__version__":
        from importlib_metadata import version

        value = version("ebmcore")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""Energy-based models in PyTorch: a small kernel, and everything else a plugin.

An energy-based model is ``p(x) = exp(-E(x)) / Z``: low energy means high probability. `create_loss`, `create_sampler`,
`create_energy`, `create_dataset`, `create_metric` and `create_observer` make components of installed plugins by name;
`BaseContrastiveDivergence` and `BaseSampler` are what new ones are made from; `ebmcore.host` tells how to publish them.

Importing this module does not import torch; using a name that needs it does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebmcore.chains import PersistentChains
    from ebmcore.energies import value_and_grad
    from ebmcore.host import Component, Register, hookimpl, list_components, load, refresh, register, temporary_plugin
    from ebmcore.losses import BaseContrastiveDivergence, BaseLoss
    from ebmcore.persistent import BasePersistentContrastiveDivergence
    from ebmcore.samplers import BaseSampler, ChainState, Sampler, run
    from ebmcore.tempering import tempered

_HOME = {
    "BaseContrastiveDivergence": "losses",
    "BaseLoss": "losses",
    "BasePersistentContrastiveDivergence": "persistent",
    "BaseSampler": "samplers",
    "ChainState": "samplers",
    "Component": "host",
    "PersistentChains": "chains",
    "Register": "host",
    "Sampler": "samplers",
    "hookimpl": "host",
    "list_components": "host",
    "load": "host",
    "refresh": "host",
    "register": "host",
    "run": "samplers",
    "tempered": "tempering",
    "temporary_plugin": "host",
    "value_and_grad": "energies",
}

__all__ = [
    "BaseContrastiveDivergence",
    "BaseLoss",
    "BasePersistentContrastiveDivergence",
    "BaseSampler",
    "ChainState",
    "Component",
    "PersistentChains",
    "Register",
    "Sampler",
    "create_dataset",
    "create_energy",
    "create_loss",
    "create_metric",
    "create_observer",
    "create_sampler",
    "hookimpl",
    "list_components",
    "load",
    "refresh",
    "register",
    "run",
    "tempered",
    "temporary_plugin",
    "value_and_grad",
]


def create_loss(name: str, /, energy: Any, *args: Any, **kwargs: Any) -> Any:
    """The loss ``name`` for an energy and, where it needs one, a sampler: ``create_loss("pcd", energy, sampler)``."""
    from ebmcore import host

    return host.create("loss", name, energy, *args, **kwargs)


def create_sampler(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """The sampler ``name``, e.g. ``create_sampler("langevin", step_size=0.01)``."""
    from ebmcore import host

    return host.create("sampler", name, *args, **kwargs)


def create_energy(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """The energy ``name`` for examples of a shape, e.g. ``create_energy("rbm", shape=(1, 8, 8), hidden=64)``."""
    from ebmcore import host

    return host.create("energy", name, *args, **kwargs)


def create_dataset(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """The data set ``name``, e.g. ``create_dataset("digits")``."""
    from ebmcore import host

    return host.create("dataset", name, *args, **kwargs)


def create_metric(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """The metric ``name``, e.g. ``create_metric("ais-ll")``."""
    from ebmcore import host

    return host.create("metric", name, *args, **kwargs)


def create_observer(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """The observer ``name``, to hand to ``ebmcore.training.fit``."""
    from ebmcore import host

    return host.create("observer", name, *args, **kwargs)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

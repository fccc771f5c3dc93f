"""The conformance kit: what ``check_estimator`` is to scikit-learn, for losses and samplers of energy-based models.

A component that passes keeps the rules that are easy to break and hard to notice: which chains continue, what sampling leaves
behind on the model, whether the gradient is the likelihood's, whether losses learn and samplers sample what they say. A
component that breaks a rule fails with a message that names the rule and how far off it is.

How to use it
-------------
In a plugin's tests, one line::

    test_conformance = ebmcore.testing.conformance("ebm-plugin-pcd")

or none, with ``pytest --ebm-conformance ebm-plugin-pcd``; without pytest, ``ebmcore check pcd`` prints a table.

A component declares in class attributes which checks apply: see `ebmcore.BaseLoss`, `ebmcore.BaseContrastiveDivergence`
and `ebmcore.BaseSampler`. ``docs/conformance.md`` lists every check.

The targets, energies whose distribution is known exactly, and the samplers of the kit are there for your own tests too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebmcore.testing.awkward import Holed, Labelled, Moody, Raising, Watched
    from ebmcore.testing.enumeration import outcomes, stationary_law, transition_matrix
    from ebmcore.testing.runner import Result, conformance, run_checks, summary
    from ebmcore.testing.samplers import (
        Affine,
        Cached,
        CachingDrift,
        Drift,
        ExactGaussian,
        ExactSamples,
        Identity,
        Poison,
        SiteGibbs,
        Table,
    )
    from ebmcore.testing.targets import (
        Boltzmann,
        DoubleWell,
        EnumerableRBM,
        Gaussian,
        Ising,
        Mixture,
        Potts,
        Quadratic,
    )

_HOME = {
    "awkward": ("Holed", "Labelled", "Moody", "Raising", "Watched"),
    "runner": ("Result", "conformance", "run_checks", "summary"),
    "enumeration": ("outcomes", "stationary_law", "transition_matrix"),
    "samplers": (
        "Affine",
        "Cached",
        "CachingDrift",
        "Drift",
        "ExactGaussian",
        "ExactSamples",
        "Identity",
        "Poison",
        "SiteGibbs",
        "Table",
    ),
    "targets": ("Boltzmann", "DoubleWell", "EnumerableRBM", "Gaussian", "Ising", "Mixture", "Potts", "Quadratic"),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Affine",
    "Boltzmann",
    "Cached",
    "CachingDrift",
    "DoubleWell",
    "Drift",
    "EnumerableRBM",
    "ExactGaussian",
    "ExactSamples",
    "Gaussian",
    "Holed",
    "Identity",
    "Ising",
    "Labelled",
    "Mixture",
    "Moody",
    "Poison",
    "Potts",
    "Quadratic",
    "Raising",
    "Result",
    "SiteGibbs",
    "Table",
    "Watched",
    "conformance",
    "outcomes",
    "run_checks",
    "stationary_law",
    "summary",
    "transition_matrix",
]


def __getattr__(name: str) -> Any:
    # Importing this package imports no torch, so that pytest can collect conformance tests without it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

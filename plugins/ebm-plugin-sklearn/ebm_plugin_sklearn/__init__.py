"""Energy-based models as a scikit-learn estimator: ``from ebm_plugin_sklearn import EnergyBasedModel``.

This distribution registers no component, so it has no entry point: the estimator makes those of other plugins by name.
"""

from __future__ import annotations

from ebm_plugin_sklearn.estimator import EnergyBasedModel

__all__ = ["EnergyBasedModel"]

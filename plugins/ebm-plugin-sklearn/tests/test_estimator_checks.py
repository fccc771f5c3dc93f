"""scikit-learn's own checks of an estimator, for a density and for a transformer."""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from ebm_plugin_sklearn import EnergyBasedModel

DENSITY = EnergyBasedModel()
TRANSFORMER = EnergyBasedModel({"name": "gaussian-rbm", "hidden": 3}, sampler="gibbs")


def expected(estimator):
    """Training goes by batches of rows drawn without regard to weights, as scikit-learn's own stochastic estimators do."""
    if estimator is DENSITY:
        return {}
    return {"check_sample_weight_equivalence_on_dense_data": "a repeated row and one of twice the weight meet other batches"}


@parametrize_with_checks([DENSITY, TRANSFORMER], expected_failed_checks=expected)
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)

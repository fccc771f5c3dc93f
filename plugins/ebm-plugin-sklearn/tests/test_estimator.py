"""The estimator beyond scikit-learn's checks: what it computes, and what it refuses."""

from __future__ import annotations

import pickle
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from torch import nn

import ebmcore
from ebm_plugin_sklearn import EnergyBasedModel
from ebmcore.errors import UsageError
from ebmcore.testing import ExactGaussian, Quadratic

RBM = {"name": "rbm", "hidden": 2, "weight_std": 0.5}
STATES = np.array(list(product([0.0, 1.0], repeat=4)))


def points(n=100, mean=0.0, std=1.0):
    return np.random.default_rng(0).normal(mean, std, (n, 2))


def binary():
    return EnergyBasedModel(RBM, sampler="gibbs", epochs=2, random_state=0).fit(STATES)


def gaussian(**options):
    return EnergyBasedModel(Quadratic((2,)), sampler=ExactGaussian(), **{"random_state": 0} | options)


def test_parameters_are_those_of_the_data():
    """Of a Gaussian energy with exact negatives: mean and precision."""
    model = gaussian(epochs=60, lr=0.05, batch_size=500).fit(points(2000, mean=1.0, std=0.5))
    mean, precision = model.energy_.mean, model.energy_.precision
    assert torch.allclose(mean, torch.ones_like(mean), atol=0.1)
    assert torch.allclose(precision, 4 * torch.ones_like(precision), rtol=0.15)


def test_normalised_scores_sum_to_one():
    """The probabilities of all states of an RBM, whose normaliser is known."""
    model = binary()
    assert np.exp(model.score_samples(STATES)).sum() == pytest.approx(1, abs=1e-9)
    assert model.score(STATES) == pytest.approx(model.score_samples(STATES).mean())


def test_other_scores_are_minus_the_energy():
    model = EnergyBasedModel(epochs=1, random_state=0).fit(points())
    assert model.log_partition_ is None
    x = points(3)
    expected = -model.energy_(torch.tensor(x)).detach().numpy()
    np.testing.assert_array_equal(model.score_samples(x), expected)


@pytest.mark.parametrize("x", [STATES * 2 - 1, STATES * 255])
def test_values_out_of_the_space_are_refused(x):
    """Spins or grey levels, in scores and in hidden units as in training; a rounding error of a scaler is none."""
    model = binary()
    model.score_samples(STATES * (1 + 2**-52))
    for call in (model.score_samples, model.transform, model.score):
        with pytest.raises(UsageError, match=r"the examples are for binary units, whose values are in \[0, 1\]"):
            call(x)


def test_scores_without_normaliser_warn():
    """As a search over a grid compares them; each score of it warns."""
    search = GridSearchCV(EnergyBasedModel("mlp", epochs=1, random_state=0), {"lr": [1e-3, 1e-2]}, cv=2)
    with pytest.warns(UserWarning, match=r"log Z of this energy is not known.* give GridSearchCV a scoring") as warned:
        search.fit(points(20))
    assert len(warned) == 4


def test_large_machines_are_not_normalised():
    """An RBM of more units than can be enumerated has no known normaliser."""
    x = np.random.default_rng(0).integers(0, 2, (20, 26)).astype(float)
    model = EnergyBasedModel({"name": "rbm", "hidden": 26}, sampler="gibbs", epochs=1).fit(x)
    assert model.log_partition_ is None


def test_transform_is_the_hidden_probabilities():
    model = binary()
    weight, bias = (t.detach().numpy() for t in (model.energy_.weight, model.energy_.hidden_bias))
    np.testing.assert_allclose(model.transform(STATES), 1 / (1 + np.exp(-(STATES @ weight + bias))), rtol=1e-12)


def test_features_have_names():
    names = ["energybasedmodel0", "energybasedmodel1"]
    assert list(binary().get_feature_names_out()) == names
    assert list(binary().set_output(transform="pandas").transform(STATES).columns) == names


@pytest.mark.parametrize("name", ["transform", "fit_transform", "get_feature_names_out", "set_output"])
def test_transformers_have_hidden_units(name):
    """Before training already, however the energy is given."""
    instance = ebmcore.create_energy("rbm", shape=(4,), hidden=2)
    loss = ebmcore.create_loss("pcd", instance, ebmcore.create_sampler("gibbs"), n_chains=10)
    for model in (EnergyBasedModel(RBM), EnergyBasedModel(instance), EnergyBasedModel(None, loss)):
        assert hasattr(model, name)
    for energy in ("mlp", Quadratic((2,)), "unknown", {"hidden": 3}, None):
        assert not hasattr(EnergyBasedModel(energy), name)


def test_samples_are_of_the_energy():
    """With an exact sampler, the moments of the Gaussian that it was given."""
    x = gaussian(epochs=1, lr=1e-9).fit(points()).sample(4000, n_steps=1, random_state=0)
    np.testing.assert_allclose(x.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(x.std(0), 1, atol=0.05)


def test_samples_follow_their_seed():
    model = EnergyBasedModel(epochs=1, random_state=0).fit(points())
    first, same, other = (model.sample(3, n_steps=5, random_state=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).all()


def test_models_follow_their_seed():
    x = points()
    first, same, other = (EnergyBasedModel(epochs=1, random_state=seed).fit(x).score_samples(x) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).all()


def test_global_randomness_is_left_alone():
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    EnergyBasedModel(epochs=1, random_state=0).fit(points()).sample(2, n_steps=1, random_state=0)
    assert torch.equal(before, torch.get_rng_state())
    assert (numpys == np.random.get_state()[1]).all()


def test_instances_stay_as_they_were():
    """A copy of an energy, or of a loss with its energy, is trained."""
    x, energy = points(), Quadratic((2,))
    loss = ebmcore.create_loss("pcd", Quadratic((2,)), ExactGaussian(), n_chains=10)
    before = pickle.dumps((energy.state_dict(), loss.energy.state_dict()))
    for model in (EnergyBasedModel(energy, sampler=ExactGaussian()), EnergyBasedModel(None, loss)):
        fitted = model.fit(x)
        assert (fitted.score_samples(x) != -energy(torch.tensor(x)).detach().numpy()).all()
    assert pickle.dumps((energy.state_dict(), loss.energy.state_dict())) == before


class Around(Quadratic):
    """A normal law around a value of its own for each of three classes."""

    def __init__(self):
        super().__init__((2,))
        self.centers = nn.Parameter(torch.zeros(3))

    def forward(self, x, y):
        return super().forward(x - self.centers[y][:, None])


class Named(Around):
    def forward(self, x, *, y):
        return super().forward(x, y)


@pytest.mark.parametrize("energy", [Around(), Named()])
def test_labels_are_conditions(energy):
    """Of any kind: class numbers are those of `classes_`, and each class is scored under its own label."""
    names = np.array(["high", "low", "mid"])
    y = np.random.default_rng(1).choice(names, 600)
    X = points(600, std=0.5) + np.array([{"low": -2.0, "mid": 0.0, "high": 2.0}[name] for name in y])[:, None]
    options = {"name": "langevin", "step_size": 0.05}
    model = EnergyBasedModel(energy, "cd", options, epochs=30, lr=0.03, batch_size=100, random_state=0).fit(X, y)
    assert model.classes_.tolist() == names.tolist()
    grid = np.array([[2.0, 2.0], [-2.0, -2.0], [0.0, 0.0]])
    scores = np.array([model.score_samples(grid, [name] * 3) for name in names])
    assert scores.argmax(1).tolist() == [0, 1, 2]
    with pytest.warns(UserWarning, match="log Z of this energy is not known"):
        assert model.score(X, y) == pytest.approx(model.score_samples(X, y).mean())
    assert model.sample(3, y=names, n_steps=5, random_state=0).shape == (3, 2)
    for call, message in (
        (lambda: model.score_samples(X), "needs labels beside the examples: pass them as y"),
        (lambda: model.score_samples(grid, ["low", "mid", "none"]), "y holds 'none', but the classes of the model are"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


class Sloped(Quadratic):
    """An energy that takes a gradient inside."""

    def forward(self, x):
        x = x if x.requires_grad else x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(super().forward(x).sum(), x, create_graph=True)
        return 0.5 * slope.square().sum(1)


def test_energies_with_gradients_are_scored():
    model = EnergyBasedModel(Sloped((2,)), "cd", ExactGaussian(), epochs=1, random_state=0).fit(points())
    assert model.score_samples([[0.0, 0.0], [5.0, 5.0]]).argmax() == 0


def test_used_spectral_norms_are_copied():
    """An instance that was called before, as its older form keeps the result of a computation."""
    energy = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 1)), nn.Flatten(0))
    energy(torch.zeros(3, 2))
    model = EnergyBasedModel(energy, epochs=1, random_state=0).fit(points())
    assert pickle.loads(pickle.dumps(model)).score_samples(points(5)) == pytest.approx(model.score_samples(points(5)))


def test_default_sampler_is_that_of_the_energy():
    """Block Gibbs for binary units; Langevin dynamics for values of any size, also where the energy offers both."""
    continuous = {"name": "gaussian-rbm", "hidden": 2}
    for energy, x, name in ((RBM, STATES, "gibbs"), (continuous, points(), "langevin"), ("mlp", points(), "langevin")):
        sampler = EnergyBasedModel(energy, epochs=1, random_state=0).fit(x).sampler_
        assert type(sampler).__name__.lower() == name


def test_options_are_reached_by_name():
    """As a parameter grid does, with the default sampler too."""
    model = EnergyBasedModel(RBM, sampler=None).set_params(
        loss__k_steps=3, sampler__step_size=0.1, energy__hidden=4, epochs=2
    )
    assert model.loss == {"name": "pcd", "k_steps": 3}
    assert model.sampler == {"name": "langevin", "step_size": 0.1}
    assert (model.energy["hidden"], RBM["hidden"], model.epochs) == (4, 2, 2)
    assert clone(model).get_params()["loss__k_steps"] == 3
    search = GridSearchCV(
        EnergyBasedModel(RBM, sampler="gibbs", epochs=1), {"loss__k_steps": [1, 2]}, cv=2, error_score="raise"
    )
    assert search.fit(STATES).best_params_["loss__k_steps"] in (1, 2)
    with pytest.raises(UsageError, match="sampler__step_size is an option of a component by name"):
        gaussian().set_params(sampler__step_size=0.1)


def test_partial_fit_trains_on():
    """The first call makes a model, the second trains the same one further."""
    x, model = points(), gaussian(lr=0.01)
    first = model.partial_fit(x).energy_.mean.clone()
    loss = model.loss_
    second = model.partial_fit(x).energy_.mean
    assert model.loss_ is loss
    assert not torch.equal(first, second)
    assert torch.equal(gaussian(lr=0.01, epochs=1).fit(x).energy_.mean, first)


def test_rows_become_images():
    model = EnergyBasedModel({"name": "conv", "channels": (4,)}, shape=(1, 2, 3), epochs=1).fit(points(30).repeat(3, 1))
    assert model.sample(2, n_steps=1).shape == (2, 6)
    assert model.score_samples(np.zeros((4, 6))).shape == (4,)


def test_average_is_what_is_kept():
    """An option of `fit` reaches it: the moving average is the trained energy."""
    plain, averaged = (gaussian(fit_options=options, lr=0.1).fit(points(mean=1)) for options in (None, {"ema_decay": 0.99}))
    assert averaged.energy_.mean.abs().sum() < plain.energy_.mean.abs().sum()


def test_weights_reach_the_loss(monkeypatch):
    """As weights of the training examples."""
    seen = []

    def fit(loss, data, **options):
        seen.append(data.train_weights)
        return ebmcore.training.fit(loss, data, **options)

    monkeypatch.setattr("ebm_plugin_sklearn.estimator.fit", fit)
    gaussian(epochs=1).fit(points(3), sample_weight=[1, 2, 0])
    gaussian(epochs=1).fit(points(3))
    assert seen[0].tolist() == [1, 2, 0]
    assert seen[1] is None


def test_pipeline_classifies_digits():
    """Hidden units between a scaler and a classifier."""
    x, y = (array[:500] for array in load_digits(return_X_y=True))
    training = {"optimizer": "sgd", "lr": 0.2, "batch_size": 10, "epochs": 20, "random_state": 0}
    rbm = EnergyBasedModel({"name": "rbm", "hidden": 32}, sampler="gibbs", **training)
    assert make_pipeline(MinMaxScaler(), rbm, LogisticRegression(C=10, max_iter=1000)).fit(x, y).score(x, y) > 0.9


def test_grid_search_chooses_by_likelihood():
    """Among learning rates, the one that trains; scores are those of a normalised model."""
    x = np.tile(STATES[[0, 15]], (40, 1))
    grid = {"lr": [1e-6, 0.2]}
    model = EnergyBasedModel(RBM, sampler="gibbs", optimizer="sgd", batch_size=8, random_state=0)
    search = GridSearchCV(model, grid, cv=2).fit(x)
    assert search.best_params_ == {"lr": 0.2}
    assert -4 * np.log(2) < search.best_score_ < -np.log(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": {"hidden": (8,)}}, "must hold the name of the component"),
        ({"energy": "rbm"}, r"the energy 'rbm' needs hidden: energy=\{'name': 'rbm', 'hidden': ...\}"),
        (
            {"sampler": "langevin"},
            r"the sampler 'langevin' needs step_size: sampler=\{'name': 'langevin', 'step_size': ...\}",
        ),
        ({"energy": None}, "name an energy, such as 'mlp'"),
        ({"shape": (1, 3)}, r"shape \(1, 3\) has 3 values, but X has 2 features"),
        ({"fit_options": {"lr": 0.1, "seed": 1}}, "fit_options must not hold lr, seed"),
        ({"epochs": 0}, "epochs must be"),
        ({"sampler": "gibbs", "state_space": "binary"}, "the sampler|SupportsBlockGibbs"),
        ({"state_space": "binary"}, "is for continuous data"),
        ({"loss": ebmcore.create_loss("pcd", Quadratic((2,)), ExactGaussian(), n_chains=10)}, "pass energy=None"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        EnergyBasedModel(**options).fit(points())


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [1.0, np.nan], [1.0]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"sample_weight must be|inconsistent numbers of samples"):
        gaussian().fit(points(2), sample_weight=weights)


def test_impossible_samples_are_refused():
    model = gaussian(epochs=1).fit(points())
    with pytest.raises(UsageError, match="n_samples must be at least 1, got 0"):
        model.sample(0)
    with pytest.raises(UsageError, match="n_steps must be at least 1, got 0"):
        model.sample(n_steps=0)
    model.sampler_ = None
    with pytest.raises(UsageError, match="needs no sampler, and none was given"):
        model.sample()
    model = EnergyBasedModel(Quadratic((2,)), sampler={"name": "langevin", "step_size": 0.1}, epochs=1).fit(points())
    model.sampler_.step_size = 1e3
    with pytest.raises(UsageError, match="lower the sampler's step size"):
        model.sample(2)

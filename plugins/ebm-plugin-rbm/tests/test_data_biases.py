"""Visible biases that start from the data, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from ebm_plugin_rbm.gaussian import GaussianRBM
from ebm_plugin_rbm.potts import PottsRBM
from ebm_plugin_rbm.rbm import RBM
from ebmcore.errors import UsageError

BITS = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
VALUES = torch.nn.functional.one_hot(torch.tensor([[0, 2], [0, 1], [0, 2], [1, 2]]), 3).float()
MAKERS = [(RBM, (3,), BITS), (GaussianRBM, (3,), BITS), (PottsRBM, (2, 3), VALUES)]


def test_binary_biases_are_log_odds():
    """One example of each value is added, so that a unit that is always 1 has a finite bias."""
    rbm = RBM((3,), hidden=2, visible_bias="data")
    rbm.start_from_data(BITS)
    torch.testing.assert_close(rbm.visible_bias.data, torch.tensor([5 / 1, 2 / 4, 2 / 4]).log())
    assert not rbm.hidden_bias.any()


def test_model_begins_at_independent_units():
    """Without weights between the layers, the mean of the model is that of the data, and its likelihood the closed form."""
    rbm = RBM((3,), hidden=2, weight_std=0.0, visible_bias="data")
    rbm.start_from_data(BITS)
    p = torch.tensor([5 / 6, 2 / 6, 2 / 6], dtype=torch.float64)
    expected = (BITS * p.log() + (1 - BITS) * (1 - p).log()).sum(1)
    torch.testing.assert_close(-rbm(BITS).double() - rbm.log_partition(), expected, atol=1e-6, rtol=0)


def test_categorical_biases_are_log_frequencies():
    potts = PottsRBM((2, 3), hidden=2, visible_bias="data")
    potts.start_from_data(VALUES)
    expected = torch.tensor([[4 / 7, 2 / 7, 1 / 7], [1 / 7, 2 / 7, 4 / 7]]).log()
    torch.testing.assert_close(potts.visible_bias.data, expected.flatten())


def test_gaussian_biases_are_means():
    x = torch.randn(50, 1, 2, 2, generator=torch.Generator().manual_seed(0)) + 3
    rbm = GaussianRBM((1, 2, 2), hidden=2, visible_bias="data", std=0.5)
    rbm.start_from_data(x)
    torch.testing.assert_close(rbm.visible_bias.data, x.mean(0).flatten())
    torch.testing.assert_close(rbm.log_variance.data, torch.full((4,), 2 * math.log(0.5)))


@pytest.mark.parametrize(("cls", "shape", "x"), MAKERS)
def test_weights_count_as_copies(cls, shape, x):
    """Weights 0 and 1 choose examples, and the scale of weights does not matter."""
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0])
    biases = []
    for examples, given in ((x, weights), (x, 0.01 * weights), (x[weights > 0], None)):
        rbm = cls(shape, hidden=2, visible_bias="data")
        rbm.start_from_data(examples, given)
        biases.append(rbm.visible_bias.data)
    torch.testing.assert_close(biases[0], biases[2])
    torch.testing.assert_close(biases[1], biases[2])


@pytest.mark.parametrize(("cls", "shape", "x"), MAKERS)
def test_machine_awaits_data_once(cls, shape, x):
    """It asks for data until it was given some, and its state says so to a copy."""
    assert not cls(shape, hidden=2).awaits_data
    rbm, copy = (cls(shape, hidden=2, visible_bias="data") for _ in range(2))
    assert rbm.awaits_data
    rbm.start_from_data(x)
    assert not rbm.awaits_data
    copy.load_state_dict(rbm.state_dict())
    assert not copy.awaits_data


def test_precision_of_the_machine_is_kept():
    rbm = RBM((3,), hidden=2, visible_bias="data").double()
    rbm.start_from_data(BITS)
    assert rbm.visible_bias.dtype == torch.float64
    assert not rbm.awaits_data


@pytest.mark.parametrize(
    "weights",
    [
        torch.tensor([1.0, 1.0, 1.0, torch.inf]),
        torch.ones(3),
        torch.zeros(4),
        torch.tensor([1.0, -1.0, 1.0, 1.0]),
        torch.tensor([1.0, torch.nan, 1.0, 1.0]),
    ],
)
def test_wrong_weights_raise_with_advice(weights):
    rbm = RBM((3,), hidden=2, visible_bias="data")
    with pytest.raises(UsageError, match=r"weights must be \(4,\) finite numbers of at least 0, not all of them 0"):
        rbm.start_from_data(BITS, weights)
    assert rbm.awaits_data


def test_other_shapes_raise_with_advice():
    with pytest.raises(UsageError, match=r"examples have the shape \(3,\), but the RBM \(1, 3\)"):
        RBM((1, 3), hidden=2, visible_bias="data").start_from_data(BITS)


@pytest.mark.parametrize(("cls", "shape", "x"), MAKERS)
def test_unknown_start_raises_with_advice(cls, shape, x):
    with pytest.raises(ValueError, match="visible_bias must be 'zero' or 'data', got 'means'"):
        cls(shape, hidden=2, visible_bias="means")

"""Neural-network energies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ebmcore
from ebm_plugin_nets.conditional import ConditionalConv
from ebm_plugin_nets.conv import Conv
from ebm_plugin_nets.mlp import MLP
from ebmcore.energies import frozen, value_and_grad


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 5, 7), (1,)])
def test_an_mlp_takes_any_shape(shape):
    assert MLP(shape)(torch.randn(5, *shape)).shape == (5,)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (2, 9), (1, 3, 4, 5), (1, 1, 1)])
def test_conv_takes_one_to_three_axes(shape):
    """A convolution takes one to three spatial axes of any size."""
    assert Conv(shape, channels=(4, 8))(torch.randn(5, *shape)).shape == (5,)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3, 4, 5)])
def test_a_convolution_refuses_other_shapes_with_advice(shape):
    with pytest.raises(ValueError, match="use the energy 'mlp'"):
        Conv(shape)


def test_mlp_equals_its_layers():
    """An MLP is the sum of its layers."""
    torch.manual_seed(0)
    mlp = MLP((2,), hidden=(3,))
    first, last = mlp.net[1], mlp.net[3]
    x = torch.randn(4, 2)
    expected = nn.functional.silu(x @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(mlp(x), expected.squeeze(1))


def test_an_mlp_without_hidden_layers_is_linear():
    assert sum(p.numel() for p in MLP((3,), hidden=()).parameters()) == 4


def test_mlp_on_images_equals_vectors():
    """An MLP on images equals one on vectors."""
    torch.manual_seed(0)
    image = MLP((1, 4, 4))
    flat = MLP((16,))
    flat.load_state_dict(image.state_dict())
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(image(x), flat(x.flatten(1)))


@pytest.mark.parametrize("energy", [MLP((4,), spectral_norm=True), Conv((1, 4, 4), channels=(4,), spectral_norm=True)])
def test_spectral_norm_bounds_each_layer(energy):
    """Spectral normalisation bounds the norm of each layer."""
    shape = (4,) if isinstance(energy, MLP) else (1, 4, 4)
    for _ in range(200):
        energy(torch.randn(2, *shape))  # power iterations
    for layer in energy.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, abs=1e-2)


def test_sampling_makes_no_power_iteration():
    energy = MLP((4,), spectral_norm=True).train()
    before = {name: t.clone() for name, t in energy.named_buffers()}
    with frozen(energy):
        value_and_grad(energy, torch.randn(2, 4))
    assert before
    assert all(torch.equal(t, before[name]) for name, t in energy.named_buffers())


@pytest.mark.parametrize("make", [lambda: MLP((0,)), lambda: MLP((2,), hidden=(0,)), lambda: Conv((1, 4), channels=())])
def test_empty_layers_are_an_error(make):
    with pytest.raises(ValueError, match="at least 1"):
        make()


def test_they_are_installed_under_their_names():
    assert isinstance(ebmcore.create_energy("mlp", (2,), hidden=(8,)), MLP)
    assert isinstance(ebmcore.create_energy("conv", (1, 8, 8)), Conv)
    assert isinstance(ebmcore.create_energy("conditional-conv", (1, 8, 8), 2), ConditionalConv)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 9), (1, 3, 4, 5)])
def test_each_label_has_its_output(shape):
    """Under label y the energy is the conv whose last layer is row y of the head."""
    torch.manual_seed(0)
    energy, x = ConditionalConv(shape, n_classes=3, channels=(4, 8)), torch.randn(6, *shape)
    single = Conv(shape, channels=(4, 8))
    by_label = []
    for y in range(3):
        weights = {"head.weight": energy.head.weight[y : y + 1], "head.bias": energy.head.bias[y : y + 1]}
        single.load_state_dict(energy.state_dict() | weights)
        by_label.append(single(x))
    y = torch.tensor([0, 2, 1, 1, 0, 2])
    torch.testing.assert_close(energy(x, y), torch.stack(by_label)[y, torch.arange(6)])


def test_other_labels_get_no_gradient():
    """A class learns from its own examples: the other rows of the head have a gradient of 0."""
    energy = ConditionalConv((1, 4, 4), n_classes=3, channels=(4,))
    energy(torch.randn(5, 1, 4, 4), torch.ones(5, dtype=torch.int64)).sum().backward()
    assert (energy.head.weight.grad.abs().sum(1) > 0).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0.0, 1.0]), r"class numbers \(2,\) int64, one for each example, got \(2,\) torch.float32"),
        (torch.tensor([0, 1, 2]), r"class numbers \(2,\) int64, one for each example, got \(3,\)"),
        (torch.tensor([[0], [1]]), r"got \(2, 1\)"),
        (torch.tensor([0, 3]), r"labels must be from 0 to 2, got 0 to 3: set n_classes"),
        (torch.tensor([-1, 1]), "labels must be from 0 to 2, got -1 to 1"),
    ],
)
def test_wrong_labels_raise(y, message):
    energy = ConditionalConv((1, 4, 4), n_classes=3, channels=(4,))
    with pytest.raises(ValueError, match=message):
        energy(torch.zeros(2, 1, 4, 4), y)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="n_classes must be at least 2, got 1: for one class use the energy 'conv'"):
        ConditionalConv((1, 4, 4), n_classes=1)

"""Residual energies: alone, as a classifier, and for each level of noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ebmcore
from ebm_plugin_nets.classifier import Classifier
from ebm_plugin_nets.layers import Residual
from ebm_plugin_nets.noise_conditional import NoiseConditional
from ebm_plugin_nets.resnet import ResNet

SHAPES = [(1,), (5,), (1, 8, 8), (3, 5, 7), (2, 9), (1, 3, 4, 5), (1, 1, 1)]
NORMS = [{}, {"spectral_norm": True}, {"group_norm": True}, {"spectral_norm": True, "group_norm": True}]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def energies(shape, **options):
    """Each of the three, as a function of examples alone."""
    torch.manual_seed(0)
    options = {"widths": (8, 16)} | options
    conditional = NoiseConditional(shape, **options).double()
    sigma = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64)
    return {
        "resnet": ResNet(shape, **options).double(),
        "classifier": Classifier(shape, 3, **options).double(),
        "noise-conditional": lambda x: conditional(x, sigma=sigma[torch.arange(len(x)) % 4]),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norms", NORMS)
def test_any_shape_and_normalisation(shape, norms):
    """Vectors and examples of one to three spatial axes of any size give one finite energy each."""
    for name, energy in energies(shape, **norms).items():
        found = energy(noise(4, *shape))
        assert found.shape == (4,), name
        assert found.isfinite().all(), name


@pytest.mark.parametrize("shape", [(5,), (3, 6, 6)])
@pytest.mark.parametrize("norms", NORMS)
def test_second_derivatives_reach_the_parameters(shape, norms):
    """The trace of the second derivatives is not 0 and trains the layers: score matching needs it."""
    for name, energy in energies(shape, **norms).items():
        x = noise(4, *shape).requires_grad_()
        (grad,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        v = noise(4, *shape, seed=1)
        (along,) = torch.autograd.grad(grad, x, v, create_graph=True)
        curvature = (along * v).flatten(1).sum(1)
        assert (curvature != 0).all(), name
        (again,) = torch.autograd.grad(curvature.sum(), x)
        assert again.isfinite().all(), name
        assert (again != 0).any(), name


@pytest.mark.parametrize("shape", [(5,), (3, 6, 6)])
def test_group_norm_keeps_examples_apart(shape):
    """In training mode, too, the energy of an example does not depend on the others of the batch."""
    x = noise(4, *shape)
    energy = energies(shape, group_norm=True)["resnet"].train()
    torch.testing.assert_close(energy(x), torch.cat([energy(row[None]) for row in x]))


@pytest.mark.parametrize("width", [2, 7, 8, 12, 32, 100])
def test_group_norm_keeps_features(width):
    """Groups are of several features: a vector of that width is not normalised to 0."""
    energy = ResNet((5,), widths=(width,), group_norm=True).double()
    (norm, _) = energy.features.blocks[0].normed
    assert width // norm.num_groups >= min(width, 8)
    assert (norm(noise(4, width)) != 0).all()


def test_blocks_add_to_their_input():
    """Blocks whose second layers are 0 leave what the stem and the skips make of an example."""
    torch.manual_seed(0)
    features, x = Residual((5,), (8, 8, 16), spectral_norm=False, group_norm=False).double(), noise(4, 5)
    for block in features.blocks:
        nn.init.zeros_(block.second.weight)
        nn.init.zeros_(block.second.bias)
    assert isinstance(features.blocks[0].skip, nn.Identity)
    wanted = features.blocks[2].skip(features.blocks[1].skip(features.stem(x)))
    torch.testing.assert_close(features(x), nn.functional.silu(wanted))


def test_each_further_block_halves_the_resolution():
    features = Residual((1, 9, 16), (4, 4, 4), spectral_norm=False, group_norm=False)
    sizes = []
    for block in features.blocks:
        block.register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape[2:])))
    features(torch.zeros(2, 1, 9, 16))
    assert sizes == [(9, 16), (5, 8), (3, 4)]


@pytest.mark.parametrize("shape", [(5,), (1, 4, 4)])
def test_spectral_norm_bounds_residual_layers(shape):
    """Spectral normalisation bounds the norm of each layer, those of the skips and of the embedding too."""
    torch.manual_seed(0)
    energy = NoiseConditional(shape, widths=(8, 16), spectral_norm=True)
    for _ in range(200):
        energy(torch.randn(2, *shape), sigma=torch.ones(2))  # power iterations
    layers = [layer for layer in energy.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert len(layers) == 1 + 2 * 2 + 1 + 2 + 1 + 2  # stem, blocks, a skip, shifts, head, embedding
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, abs=1e-2)


def test_classifier_sums_over_classes():
    """exp(-E) is the sum of exp(logits), and its gradient that of the logits weighted by the classes' probabilities."""
    torch.manual_seed(0)
    energy, x = Classifier((1, 4, 4), 3, widths=(8,)).double(), noise(6, 1, 4, 4).requires_grad_()
    logits = energy.logits(x)
    assert logits.shape == (6, 3)
    torch.testing.assert_close((-energy(x)).exp(), logits.exp().sum(1), rtol=1e-10, atol=0)
    (found,) = torch.autograd.grad(energy(x).sum(), x)
    (wanted,) = torch.autograd.grad(-(logits.softmax(1).detach() * logits).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_each_example_has_its_level():
    """An energy is that of its own level, and in any order of the batch."""
    torch.manual_seed(0)
    energy, x = NoiseConditional((5,), widths=(8,)).double(), noise(4, 5)
    sigma = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64)
    found = energy(x, sigma=sigma)
    alone = torch.cat([energy(x[i : i + 1], sigma=sigma[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(found, alone)
    outputs = energy(x[:1].expand(4, 5), sigma=sigma) * sigma  # of the network, which sees the level too
    assert (outputs.diff().abs() > 1e-3).all()


def test_slope_grows_as_noise_falls():
    """Where the network is the same function at all levels, the energy is that function over the level."""
    torch.manual_seed(0)
    energy, x = NoiseConditional((5,), widths=(8, 16)).double(), noise(4, 5)
    for block in energy.features.blocks:
        nn.init.zeros_(block.shift.weight)
    low, high = (energy(x, sigma=torch.full((4,), level, dtype=torch.float64)) for level in (0.01, 10.0))
    torch.testing.assert_close(low, 1000 * high)


def test_levels_are_given_by_name():
    """Labels of a data set are not taken for levels: ``sigma`` has no place among positional arguments."""
    energy = NoiseConditional((5,))
    with pytest.raises(TypeError, match="positional"):
        energy(torch.zeros(2, 5), torch.ones(2))
    with pytest.raises(ValueError, match=r"sigma must be \(2,\), one level of noise for each example, got \(1,\)"):
        energy(torch.zeros(2, 5), sigma=torch.ones(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet((1, 2, 3, 4, 5)), "one to three spatial axes"),
        (lambda: ResNet(()), "one to three spatial axes"),
        (lambda: ResNet((5,), widths=()), r"sizes must be at least 1, got shape=\(5,\) and widths=\(\)"),
        (lambda: ResNet((0,)), "sizes must be at least 1"),
        (lambda: ResNet((5,), widths=(0,)), "sizes must be at least 1"),
        (lambda: ResNet((5,), widths=(8, 1), group_norm=True), "widths must be at least 2"),
        (lambda: Classifier((5,), 1), "n_classes must be at least 2, got 1: for one class use the energy 'resnet'"),
    ],
)
def test_impossible_sizes_raise_with_advice(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_residual_energies_are_installed():
    assert isinstance(ebmcore.create_energy("resnet", (2,)), ResNet)
    assert isinstance(ebmcore.create_energy("classifier", (1, 8, 8), 2), Classifier)
    assert isinstance(ebmcore.create_energy("noise-conditional", (3, 8, 8)), NoiseConditional)

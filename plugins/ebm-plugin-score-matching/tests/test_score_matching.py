"""Losses of score matching against closed forms: a correlated Gaussian, and a small network with its Laplacian by autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import ebmcore
from ebm_plugin_score_matching.base import project
from ebm_plugin_score_matching.denoising import DenoisingScoreMatching
from ebm_plugin_score_matching.exact import ScoreMatching
from ebm_plugin_score_matching.finite_difference import FiniteDifferenceScoreMatching
from ebm_plugin_score_matching.sliced import SlicedScoreMatching
from ebmcore.errors import UsageError
from ebmcore.testing import Gaussian, Quadratic
from ebmcore.testing.targets import binary_states

SHAPES = [(2,), (1, 2, 1), (3,), (3, 2, 2)]
DIFFERENTIATING = [(ScoreMatching, {}), (SlicedScoreMatching, {}), (DenoisingScoreMatching, {"sigma": 0.3})]
ALL = [*DIFFERENTIATING, (FiniteDifferenceScoreMatching, {})]


def covariance(d, seed=3):
    """An anisotropic covariance whose axes are neither those of the data nor their diagonals."""
    axes = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    return axes @ torch.diag(torch.linspace(0.4, 2.0, d, dtype=torch.float64)) @ axes.T


def gaussian(shape, seed=3):
    return Gaussian(covariance(math.prod(shape), seed), shape)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(loss, seed=100):
    loss.generator = torch.Generator().manual_seed(seed)
    return loss


class Net(nn.Module):
    """A network that is no quadratic form, on examples of any shape."""

    def __init__(self, shape):
        super().__init__()
        torch.manual_seed(1)
        n = math.prod(shape)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(n, 12), nn.SiLU(), nn.Linear(12, 12), nn.Softplus(), nn.Linear(12, 1)
        )
        self.double()

    def forward(self, x):
        return self.net(x).squeeze(1) + 0.5 * x.flatten(1).square().sum(1)


def hessians(energy, x):
    """The matrices of second derivatives ``(B, d, d)``, one example at a time."""
    d = x[0].numel()
    rows = [torch.autograd.functional.hessian(lambda row: energy(row[None])[0], one) for one in x]
    return torch.stack([row.reshape(d, d) for row in rows])


def slopes(energy, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(energy(x).sum(), x)[0].flatten(1)


def gradients(loss, x, *args):
    return torch.autograd.grad(loss(x, *args), list(loss.energy.parameters()), materialize_grads=True)


def quadratic_loss(precision, mean, second_moment):
    """Score matching of ``(x - m)' P (x - m) / 2``: half the mean of ``|P (x - m)|^2``, minus the trace of ``P``."""
    p = 0.5 * (precision + precision.T)
    return 0.5 * torch.trace(p @ second_moment(mean) @ p) - torch.trace(p)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_exact_loss_of_a_gaussian(shape, chunk_size):
    """The gradient for the whole precision matrix and the mean is that of the closed form, to 1e-10."""
    energy, x = gaussian(shape), 1 + noise(50, *shape)
    found = gradients(ScoreMatching(energy, chunk_size=chunk_size), x)

    def second_moment(mean):
        z = x.flatten(1) - mean
        return z.T @ z / len(x)

    wanted = torch.autograd.grad(
        quadratic_loss(energy.precision, energy.mean, second_moment), [energy.precision, energy.mean]
    )
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_laplacian_is_the_trace(shape, chunk_size):
    """Of a network the terms are half the squared gradient minus the trace of the matrix of second derivatives, to 1e-10."""
    energy, x = Net(shape), noise(6, *shape)
    trace = hessians(energy, x).diagonal(0, 1, 2).sum(1)
    wanted = 0.5 * slopes(energy, x).square().sum(1) - trace
    found = ScoreMatching(energy, chunk_size=chunk_size).terms(x)
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-10)


def test_chunks_have_the_gradients_of_a_loop():
    energy, x = Net((3, 2, 2)), noise(6, 3, 2, 2)
    loop = gradients(ScoreMatching(energy, chunk_size=1), x)
    for chunk_size in (None, 5):
        for f, w in zip(gradients(ScoreMatching(energy, chunk_size=chunk_size), x), loop, strict=True):
            torch.testing.assert_close(f, w, rtol=0, atol=1e-10)


def losses_of_one_direction(energy):
    return {
        "hutchinson": ScoreMatching(energy, n_probes=1),
        "rademacher": SlicedScoreMatching(energy),
        "normal": SlicedScoreMatching(energy, projection="normal"),
        "plain": SlicedScoreMatching(energy, variance_reduced=False),
        "plain normal": SlicedScoreMatching(energy, variance_reduced=False, projection="normal"),
    }


@pytest.mark.parametrize("name", list(losses_of_one_direction(Quadratic())))
def test_one_direction_is_its_definition(name):
    """With the directions that it draws, each estimate is its formula, to 1e-10."""
    shape = (3, 2, 2)
    energy, x = Net(shape), noise(6, *shape)
    loss = seeded(losses_of_one_direction(energy)[name], 7)
    found = loss.terms(x).detach()
    v = project(x, "normal" if "normal" in name else "rademacher", torch.Generator().manual_seed(7)).flatten(1)
    g = slopes(energy, x)
    squared = (g * v).sum(1).square() if "plain" in name else g.square().sum(1)
    wanted = 0.5 * squared - torch.einsum("bi,bij,bj->b", v, hessians(energy, x), v)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_all_signs_average_to_the_exact_loss(shape, monkeypatch):
    """The mean over all directions of 1 and -1 has the value and the gradient of the exact loss, to 1e-8."""
    energy, x, d = Net(shape), noise(6, *shape), math.prod(shape)
    signs = 2 * binary_states(d, x) - 1
    wanted = [ScoreMatching(energy)(x), *gradients(ScoreMatching(energy), x)]
    for name, loss in losses_of_one_direction(energy).items():
        if "normal" in name:
            continue
        totals = [torch.zeros_like(w) for w in wanted]
        for row in signs:
            monkeypatch.setattr(
                f"{type(loss).__module__}.project", lambda x, *_, row=row: row.view(1, *shape).expand_as(x).clone()
            )
            for total, part in zip(totals, [loss(x), *gradients(loss, x)], strict=True):
                total += part.detach() / len(signs)
        for total, w in zip(totals, wanted, strict=True):
            torch.testing.assert_close(total, w.detach(), rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize("name", list(losses_of_one_direction(Quadratic())))
def test_estimates_average_to_the_exact_loss(name):
    """The mean over 100,000 directions is the exact loss within four standard errors, for each projection."""
    energy = gaussian((2,))
    x = noise(1, 2).expand(100_000, 2)
    terms = seeded(losses_of_one_direction(energy)[name]).terms(x).detach()
    error = terms.std() / math.sqrt(len(terms))
    assert (terms.mean() - ScoreMatching(energy)(x[:1])).abs() < 4 * error
    assert error > 0


def test_normal_projections_have_covariance_one():
    """Directions have mean 0 and the covariance I over all axes, in both projections."""
    for projection in ("rademacher", "normal"):
        v = project(noise(100_000, 1, 2, 2), projection, torch.Generator().manual_seed(0)).flatten(1)
        assert (v.mean(0)).abs().max() < 0.02
        assert (v.T.cov() - torch.eye(4)).abs().max() < 0.02


def test_variance_reduction_reduces_variance():
    x, energy = noise(20_000, 4), gaussian((4,))
    plain, reduced = (
        seeded(SlicedScoreMatching(energy, projection="normal", variance_reduced=on)).terms(x).var() for on in (False, True)
    )
    assert reduced < 0.8 * plain


def test_several_directions_are_averaged():
    """Sixteen directions have a sixteenth of the variance of one."""
    energy, x = Net((4,)), noise(1, 4).expand(20_000, 4)
    for make in (lambda n: SlicedScoreMatching(energy, n_slices=n), lambda n: ScoreMatching(energy, n_probes=n)):
        one, many = (seeded(make(n)).terms(x).var().item() for n in (1, 16))
        assert many == pytest.approx(one / 16, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_denoising_is_its_definition(shape, sigma):
    """With the noise that it draws, the loss is half the mean of ``|sigma grad E(x + sigma n) - n|^2``, to 1e-10."""
    energy, x = Net(shape), noise(6, *shape)
    found = seeded(DenoisingScoreMatching(energy, sigma=sigma), 7).terms(x).detach()
    n = torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=x.dtype)
    wanted = 0.5 * (sigma * slopes(energy, x + sigma * n) - n.flatten(1)).square().sum(1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(2,), (1, 3, 1)])
@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"sigma": 0.6}, 0.36),
        ({"sigma": [0.5, 1.0]}, (0.5**4 + 1) / (0.5**2 + 1)),
        ({"sigma": 0.5, "sigma_max": 1.0}, (0.5**2 + 1) / 2),
    ],
)
def test_denoising_learns_noisy_precision(shape, options, added):
    """The gradient is 0, within four standard errors, at the inverse of ``S + c I`` with the predicted c, and not nearby."""
    s = covariance(math.prod(shape))
    x = noise(200_000, s.shape[0]) @ torch.linalg.cholesky(s).T
    for c, right in ((added, True), (0.9 * added, False)):
        energy = Gaussian(s + c * torch.eye(len(s)), shape)
        loss = seeded(DenoisingScoreMatching(energy, **options))
        assert loss.fitted_precision(0.7) == pytest.approx(1 / (0.7 + added))
        parts = [gradients(loss, part.view(-1, *shape))[0] for part in x.chunk(50)]
        sums = torch.stack([0.5 * (part + part.T) for part in parts])
        off = sums.mean(0).abs() / (sums.std(0) / math.sqrt(len(sums)))
        assert bool((off < 4).all()) == right


class Levels(nn.Module):
    """A noise-conditional energy that notes the levels and labels that it receives."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.seen = []

    def forward(self, x, y=None, *, sigma):
        self.seen.append((x, y, sigma))
        return 0.5 * self.scale * x.flatten(1).square().sum(1) / (1 + sigma**2)


def test_noise_conditional_energy_receives_each_level():
    """The energy gets the level of each example, by which that example is disturbed, beside its label."""
    energy, y = Levels(), torch.arange(40_000)
    loss = seeded(DenoisingScoreMatching(energy, sigma=[0.01, 1.0, 100.0]))
    loss(torch.zeros(40_000, 2, dtype=torch.float64), y)
    ((x, labels, sigma),) = energy.seen
    assert torch.equal(labels, y)
    for level in (0.01, 1.0, 100.0):
        rows = sigma == torch.tensor(level, dtype=torch.float32).double()
        assert rows.double().mean().item() == pytest.approx(1 / 3, abs=0.02)
        assert x[rows].std().item() == pytest.approx(level, rel=0.03)


def test_range_is_uniform_in_the_logarithm():
    loss = seeded(DenoisingScoreMatching(Levels(), sigma=0.01, sigma_max=10.0))
    place = (loss.draw_levels(noise(40_000, 2)) / 0.01).log() / math.log(1000)
    counts = torch.histc(place, 10, 0, 1)
    assert counts.sum() == 40_000
    assert counts.min() > 3700
    assert counts.max() < 4300


def test_right_model_of_each_level_has_no_gradient():
    """A noise-conditional model of normal data that is right at each level has the gradient 0, within four standard errors."""
    loss = seeded(DenoisingScoreMatching(Levels(), sigma=0.1, sigma_max=3.0))
    parts = torch.stack([gradients(loss, part)[0] for part in noise(100_000, 2).chunk(50)])
    assert parts.mean().abs() < 4 * parts.std() / math.sqrt(len(parts))
    assert parts.std() > 0


def test_levels_count_alike():
    """Without a model the loss is the same at each level, d / 2."""
    energy = Quadratic((4,), precision=0.0).double()
    for sigma in (0.01, 1.0, 100.0):
        loss = seeded(DenoisingScoreMatching(energy, sigma=sigma))
        assert loss(torch.zeros(20_000, 4, dtype=torch.float64)).item() == pytest.approx(2.0, rel=0.02)


def test_energies_take_the_smallest_level():
    """Outside of a step a noise-conditional energy is scored at the smallest level unless one is given."""
    energy = Levels()
    loss, x = DenoisingScoreMatching(energy, sigma=[0.5, 0.25]), noise(3, 2)
    assert torch.equal(loss.energies(x), energy(x, sigma=torch.full((3,), 0.25, dtype=torch.float64)))
    assert torch.equal(loss.energies(x, sigma=x[:, 0]), energy(x, sigma=x[:, 0]))


def test_level_from_data_is_refused():
    """Data whose condition is called ``sigma``, too, are not trained on under another level than they say."""
    loss = DenoisingScoreMatching(Levels(), sigma=0.5)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'sigma'"):
        loss(noise(3, 2), sigma=torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.01, 1.0])
def test_differences_are_exact_for_a_gaussian(shape, eps):
    """On a quadratic energy, values and gradients are those of sliced score matching along the same directions, to 1e-8."""
    energy, x = gaussian(shape), noise(50, *shape)
    loss = seeded(FiniteDifferenceScoreMatching(energy, eps=eps), 7)
    sliced = seeded(SlicedScoreMatching(energy, variance_reduced=False), 7)
    torch.testing.assert_close(loss.terms(x), sliced.terms(x), rtol=0, atol=1e-8)
    for f, w in zip(gradients(seeded(loss, 8), x), gradients(seeded(sliced, 8), x), strict=True):
        torch.testing.assert_close(f, w, rtol=0, atol=1e-8)


def test_error_of_differences_is_of_second_order():
    """Halving ``eps`` divides the distance from sliced score matching by four."""
    energy, x = Net((3, 2, 2)), noise(50, 3, 2, 2)
    sliced = seeded(SlicedScoreMatching(energy, variance_reduced=False), 7).terms(x)
    off = [
        (seeded(FiniteDifferenceScoreMatching(energy, eps=eps), 7).terms(x) - sliced).norm().item()
        for eps in (0.1, 0.05, 0.025)
    ]
    assert off[0] / off[1] == pytest.approx(4, rel=0.05)
    assert off[1] / off[2] == pytest.approx(4, rel=0.05)


def test_rounding_limits_eps_in_float32():
    """For energies near 100 the default step is right to 1 % in float32; at 0.001 rounding hides the curvature."""
    energy, x = Net((4,)).float(), noise(100, 4).float()
    with torch.no_grad():
        energy.net[-1].bias += 100
    v = project(x, "rademacher", torch.Generator().manual_seed(7)).double()
    found = {eps: seeded(FiniteDifferenceScoreMatching(energy, eps=eps), 7).terms(x).detach() for eps in (0.1, 0.001)}
    curvatures = torch.einsum("bi,bij,bj->b", v, hessians(energy.double(), x.double()), v)
    wanted = 0.5 * (slopes(energy, x.double()) * v).sum(1).square() - curvatures
    off = {eps: ((terms - wanted).norm() / wanted.norm()).item() for eps, terms in found.items()}
    assert off[0.1] < 0.01
    assert off[0.001] > 0.5


def test_differences_leave_autocast():
    """Energies of the differences are in float32 under autocast, whose bfloat16 has no digits left for them."""
    energy, x = Net((4,)).float(), noise(64, 4).float()
    plain = seeded(FiniteDifferenceScoreMatching(energy))(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = seeded(FiniteDifferenceScoreMatching(energy))(x)
    torch.testing.assert_close(mixed, plain)


def test_differences_refuse_half_precision():
    loss = FiniteDifferenceScoreMatching(Net((4,)).bfloat16())
    with pytest.raises(UsageError, match=r"float32 at least, got torch.bfloat16: use the precision 32-true or bf16-mixed"):
        loss(noise(8, 4).bfloat16())


@pytest.mark.parametrize(("component", "options"), ALL)
def test_weights_make_a_weighted_mean(component, options):
    """With weights the loss is the mean of weight times term, and weight 0 leaves an example out."""
    energy, x = Net((4,)), noise(6, 4)
    w = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 1.0])
    loss = component(energy, **options)
    terms = seeded(loss).terms(x)
    loss.data_weights = w
    torch.testing.assert_close(seeded(loss)(x), (terms * w).mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("component", "options"), ALL)
def test_no_gradient_means_no_graph(component, options):
    """Under no_grad the value is the same, and no graph hangs on it."""
    loss, x = component(Net((4,)), **options), noise(6, 4)
    with torch.no_grad():
        value = seeded(loss)(x)
    assert not value.requires_grad
    torch.testing.assert_close(value, seeded(loss)(x).detach(), rtol=0, atol=0)


@pytest.mark.parametrize(("component", "options"), ALL)
def test_linear_energy_has_no_curvature(component, options):
    """The second derivatives of a linear energy are 0: a loss raises no error of autograd."""
    linear = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double()
    assert component(linear, **options)(noise(6, 3)).isfinite()


@pytest.mark.parametrize(("component", "options"), DIFFERENTIATING)
def test_compiled_energy_is_refused(component, options):
    """A compiled energy, as a whole, in place or in a part, is refused where a gradient is differentiated."""
    whole = torch.compile(Net((4,)), backend="eager")
    part, in_place = Net((4,)), Net((4,))
    part.net = torch.compile(part.net, backend="eager")
    in_place.compile(backend="eager")
    for energy in (whole, part, in_place):
        with pytest.raises(UsageError, match=r"compiled energy: pass the energy .* 'finite-difference-score-matching'"):
            component(energy, **options)


def test_differences_train_a_compiled_energy():
    """The gradients of a compiled energy are those of the energy, to 1e-10."""
    energy, x = Net((4,)), noise(8, 4)
    compiled = seeded(FiniteDifferenceScoreMatching(torch.compile(energy, backend="aot_eager")))
    compiled(x).backward()
    found = [p.grad for p in energy.parameters()]
    for f, w in zip(found, gradients(seeded(FiniteDifferenceScoreMatching(energy)), x), strict=True):
        torch.testing.assert_close(f, w, rtol=0, atol=1e-10)


def test_only_differences_do_without_double_backward():
    assert [component.double_backward for component, _ in ALL] == [True, True, True, False]


@pytest.mark.parametrize(
    ("component", "options", "message"),
    [
        (ScoreMatching, {"n_probes": 0}, "n_probes must be a whole number of at least 1, got 0"),
        (ScoreMatching, {"chunk_size": 1.5}, "chunk_size must be a whole number"),
        (ScoreMatching, {"probes": 1}, "Did you mean 'n_probes'"),
        (SlicedScoreMatching, {"n_slices": True}, "n_slices must be a whole number"),
        (SlicedScoreMatching, {"projection": "sphere"}, "projection must be 'rademacher' or 'normal', got 'sphere'"),
        (DenoisingScoreMatching, {"sigma": 0.0}, "sigma must be a number above 0, got 0.0"),
        (DenoisingScoreMatching, {"sigma": []}, "got an empty list"),
        (DenoisingScoreMatching, {"sigma": [0.1, -1.0]}, "sigma must be a number above 0, got -1.0"),
        (DenoisingScoreMatching, {"sigma": "0.1"}, "sigma must be a number above 0, got '0.1'"),
        (DenoisingScoreMatching, {"sigma": math.inf}, "sigma must be a number above 0, got inf"),
        (DenoisingScoreMatching, {"sigma": 1.0, "sigma_max": 0.5}, "sigma_max must be above sigma=1.0, got 0.5"),
        (DenoisingScoreMatching, {"sigma": [0.1, 0.2], "sigma_max": 0.5}, "give a list or a range, not both"),
        (FiniteDifferenceScoreMatching, {"eps": 0}, "eps must be a number above 0, got 0"),
    ],
)
def test_invalid_options_raise_with_advice(component, options, message):
    """A value that cannot work raises an error with advice."""
    with pytest.raises((ValueError, TypeError), match=message):
        component(Quadratic(), **options)


def test_they_are_installed_under_their_names():
    names = ("score-matching", "sliced-score-matching", "denoising-score-matching", "finite-difference-score-matching")
    assert [ebmcore.host.load("loss", f"ebm-plugin-score-matching:{name}") for name in names] == [c for c, _ in ALL]

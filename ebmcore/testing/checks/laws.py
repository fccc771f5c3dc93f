"""Rules for the distribution that a sampler samples: exact transition matrices, and tests against exact samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore.energies import frozen
from ebmcore.samplers import run
from ebmcore.testing.applies import CONTINUOUS, DISCRETE, EXACT, NOT_EXACT, RANDOM, REVERSIBLE, takes
from ebmcore.testing.cases import SamplerCase, generator
from ebmcore.testing.enumeration import NotEnumerableError, stationary_law, transition_matrix
from ebmcore.testing.rules import Condition, check, expect
from ebmcore.testing.statistics import P_VALUE, SIGMAS, N, binned, chi_square_p, mean_in_sigmas
from ebmcore.testing.targets import DoubleWell, Enumerable, Gaussian, Mixture

INVARIANT = 1e-12  # float64, sums of a few hundred products
SOLVED = 1e-10  # float64, a linear system of a few hundred equations
BINS = 20


def _matrices(case: SamplerCase) -> Iterator[tuple[str, Tensor, Tensor]]:
    if case.declares("has_memory"):
        return  # the positions alone are no Markov chain
    for target in case.discrete:
        for at, temperature, sampler in case.laws():
            try:
                matrix = transition_matrix(sampler, target)
            except NotEnumerableError:
                continue
            yield f"{type(target).__name__}{at}", matrix, target.probabilities(temperature)


def _laws_of_the_whole(case: SamplerCase) -> Iterator[tuple[str, Tensor, Tensor]]:
    for target in case.tiny if case.declares("has_memory") else ():
        for at, temperature, sampler in case.laws():
            try:
                law = stationary_law(sampler, target)
            except NotEnumerableError:
                continue
            yield f"{type(target).__name__}{at}", law, target.probabilities(temperature)


_UNIFORM = "whose random numbers are uniform, Bernoulli or categorical, drawn for each chain"
ENUMERABLE = Condition(
    f"to samplers on small discrete spaces {_UNIFORM}, whose chains have no memory",
    lambda case: bool(list(_matrices(case))),
)
CARRIES_MORE = Condition(
    f"to samplers on small discrete spaces {_UNIFORM}, whose chains have a memory",
    lambda case: bool(list(_laws_of_the_whole(case))),
)
BIASED = Condition(
    "to samplers that declare a predicted_bias and are not exact",
    lambda case: not case.declares("exact") and _bias(case.make(), 1.0) is not None,
)


KNOWN = Condition(
    "to samplers that are exact or, on continuous spaces, predict their bias",
    lambda case: case.declares("exact") or (case.continuous and _bias(case.make(), 1.0) is not None),
)


def _bias(sampler: Any, precision: float) -> float | None:
    predicted = getattr(sampler, "predicted_bias", None)
    bias: float | None = None if predicted is None else predicted(precision)
    return bias


def _run(sampler: Any, energy: nn.Module, x: Tensor, n_steps: int, g: torch.Generator) -> Tensor:
    with frozen(energy), torch.no_grad():
        state = sampler.init(energy, x, generator=g)
    return run(sampler, energy, state, n_steps, generator=g)[0].x


@check(NOT_EXACT, since="0.1")
def check_a_sampler_says_what_it_samples(case: SamplerCase) -> None:
    """A sampler is declared exact, or predicts its bias on a Gaussian: otherwise its distribution is unknown."""
    expect(case.continuous, "in a discrete space there is no bias to predict: declare exact = True, if it is")
    declared = _bias(case.make(), 1.0) is not None
    expect(declared, "it declares neither exact = True nor predicted_bias(precision)")


@check(EXACT, ENUMERABLE, since="0.1")
def check_the_transition_matrix_leaves_the_target_invariant(case: SamplerCase) -> None:
    """On small discrete targets the exact transition matrix P has p P = p, to 1e-12."""
    for where, matrix, p in _matrices(case):
        off = float((p @ matrix - p).abs().max())
        expect(off < INVARIANT, f"on {where} one step moves a probability by {off:.3g} (bound {INVARIANT:.0e})")


@check(EXACT, CARRIES_MORE, since="0.1")
def check_the_law_of_the_whole_state_has_the_target_in_it(case: SamplerCase) -> None:
    """On targets of two units, the exact long-run law of a chain's whole state has the target as its marginal, to 1e-10."""
    for where, law, p in _laws_of_the_whole(case):
        off = float((law - p).abs().sum() / 2)
        expect(off < SOLVED, f"on {where} the long-run law is off by a total variation of {off:.3g} (bound {SOLVED:.0e})")


@check(REVERSIBLE, ENUMERABLE, since="0.1")
def check_the_transition_matrix_is_in_detailed_balance(case: SamplerCase) -> None:
    """On small discrete targets p(a) P(a, b) = p(b) P(b, a), to 1e-12."""
    for where, matrix, p in _matrices(case):
        flow = p[:, None] * matrix
        off = float((flow - flow.T).abs().max())
        expect(off < INVARIANT, f"on {where} the flows between two states differ by {off:.3g}: it is not reversible")


@check(EXACT, DISCRETE, since="0.1")
def check_exact_samples_of_a_discrete_target_stay_exact(case: SamplerCase) -> None:
    """100,000 exact samples of a discrete target pass a chi-square test after three steps (40, where chains have a memory)."""
    for target in case.discrete:
        for at, temperature, sampler in case.laws():
            g = generator(3)
            x = _run(sampler, target, target.sample(N, temperature, generator=g), case.settled(3), g)
            _expect_law(target, x, temperature, f"on {type(target).__name__}{at}, from exact samples")


def _expect_law(target: Enumerable, x: Tensor, temperature: float, where: str) -> None:
    p = target.probabilities(temperature)
    counts = torch.bincount(target.codes(x), minlength=len(p))
    value = chi_square_p(counts, p)
    apart = float((counts / len(x) - p).abs().sum() / 2)
    expect(value > P_VALUE, f"{where}: chi-square p-value {value:.2g}, total variation {apart:.4f}")


@check(EXACT, CONTINUOUS, since="0.1")
def check_exact_samples_of_a_density_stay_exact(case: SamplerCase) -> None:
    """100,000 exact samples of densities with two modes pass a chi-square test after five steps (40, if chains have a memory)."""
    densities = [t for t in (Mixture((0.3, 0.7)), DoubleWell(height=1.0, tilt=0.7)) if case.fits(t)]
    for target in densities:
        edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
        for at, temperature, sampler in case.laws():
            g = generator(4)
            start = target.sample(N, (2,), temperature, generator=g).float()
            x = _run(sampler, target, start, case.settled(5), g)
            uniform = torch.full((BINS,), 1 / BINS)
            for component in range(2):
                at_edges = target.quantiles(edges, temperature) if component == 0 else _normal(edges, temperature)
                value = chi_square_p(binned(x[:, component], at_edges), uniform)
                where = f"component {component} of {type(target).__name__}{at}"
                expect(value > P_VALUE, f"{where}: chi-square p-value {value:.2g}, from exact samples")


def _normal(p: Tensor, variance: float) -> Tensor:
    quantiles: Tensor = torch.special.ndtri(p)
    return math.sqrt(variance) * quantiles


def _gaussian(*shape: int) -> Gaussian:
    """A correlated Gaussian with standard deviations from 0.7 to 1.4."""
    factor = torch.randn(4, 4, generator=generator(5))
    rotation = torch.linalg.qr(factor).Q
    covariance = rotation @ torch.diag(torch.tensor([0.5, 0.8, 1.3, 2.0])) @ rotation.T
    return Gaussian(0.5 * (covariance + covariance.T), shape)


@check(EXACT, CONTINUOUS, since="0.1")
def check_moments_on_gaussians(case: SamplerCase) -> None:
    """On a correlated Gaussian, flat or as an image, 100,000 exact samples keep mean and covariance over as many steps."""
    for shape in ((4,), (1, 2, 2)):
        target = _gaussian(*shape)
        for at, temperature, sampler in case.laws():
            g = generator(6)
            x = _run(sampler, target, target.sample(N, temperature, generator=g), case.settled(5), g).flatten(1)
            _expect_moments(x, temperature * target.covariance, f"shape {shape}{at}")


def _expect_moments(x: Tensor, covariance: Tensor, where: str) -> None:
    off = float(mean_in_sigmas(x, 0.0).max())
    expect(off < SIGMAS, f"{where}: the mean is {off:.1f} standard errors off")
    products = (x[:, :, None] * x[:, None, :]).flatten(1)
    sigmas = mean_in_sigmas(products, covariance.flatten())
    worst = int(sigmas.argmax())
    found, wanted = float(products.double().mean(0)[worst]), float(covariance.flatten()[worst])
    expect(
        float(sigmas.max()) < SIGMAS,
        f"{where}: a covariance is {found:.4f} and not {wanted:.4f}, {float(sigmas.max()):.1f} standard errors off",
    )


@check(REVERSIBLE, CONTINUOUS, RANDOM, since="0.1")
def check_steps_are_in_detailed_balance(case: SamplerCase) -> None:
    """From exact samples, steps there and back are equally frequent: E[f(x) g(x') - g(x) f(x')] = 0."""
    target, g = DoubleWell(height=1.0, tilt=0.7), generator(7)
    sampler = case.make()
    x = target.sample(N, (2,), getattr(sampler, "temperature", 1.0), generator=g).float()
    y = _run(sampler, target, x, 1, g)
    a, b = x[:, 0].double(), y[:, 0].double()
    pairs = {
        "x and x^2": a * b.square() - a.square() * b,
        "x > 0 and x": (a > 0) * b - a * (b > 0),
        "x^2 and |x|^3": a.square() * b.abs() ** 3 - a.abs() ** 3 * b.square(),
    }
    gaussian = Gaussian(0.2 * torch.eye(4) + 0.8)
    x = gaussian.sample(N, getattr(sampler, "temperature", 1.0), generator=g)
    y = _run(sampler, gaussian, x, 1, g)
    for i, j in torch.combinations(torch.arange(4)).tolist():
        pairs[f"components {i} and {j} of a Gaussian"] = x[:, i] * y[:, j] - x[:, j] * y[:, i]
    for what, flow in pairs.items():
        off = float(mean_in_sigmas(flow, 0.0))
        expect(off < SIGMAS, f"the flow of {what} is {off:.1f} standard errors off 0: it is not reversible")


@check(BIASED, CONTINUOUS, since="0.1")
def check_the_bias_on_gaussians_is_the_predicted_one(case: SamplerCase) -> None:
    """An unadjusted sampler reaches the normal law with the variance that predicted_bias gives and independent components."""
    for at, temperature, sampler in case.laws():
        for precision in (1.0, _stiffest(sampler)):
            bias = _bias(sampler, precision)
            assert bias is not None, "the check applies where predicted_bias gives a number"
            predicted, g = temperature / precision * (1 + bias), generator(8)
            target = Gaussian(torch.eye(4) / precision, (1, 2, 2))
            x = target.sample(N, temperature, generator=g)
            x = _run(sampler, target, x, 60, g).flatten(1)
            where = f"precision {precision:g}{at}, predicted variance {predicted:.4g}"
            _expect_moments(x, predicted * torch.eye(4), where)
            edges = _normal(torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1], predicted)
            value = chi_square_p(binned(x[:, 0], edges), torch.full((BINS,), 1 / BINS))
            expect(value > P_VALUE, f"{where}: the law is not normal, chi-square p-value {value:.2g}")


def _stiffest(sampler: Any) -> float:
    """The largest power of 2 as precision at which the bias is at most 1: an error of the step size shows best there."""
    precisions = (2.0**i for i in range(1, 12))
    biases = {p: _bias(sampler, p) for p in precisions}
    return max((p for p, bias in biases.items() if bias is not None and 0 < bias <= 1), default=2.0)


@check(takes("temperature"), CONTINUOUS, since="0.1")
def check_the_noise_follows_from_step_size_and_temperature(case: SamplerCase) -> None:
    """At temperature T the variance on a Gaussian is T times as large: there is no other temperature hidden in the noise."""
    found = {}
    for temperature in (1.0, 0.25):
        sampler, g = case.make(temperature=temperature), generator(9)
        x = math.sqrt(temperature) * torch.randn(N // 4, 4, generator=g)
        x = _run(sampler, Gaussian(torch.eye(4)), x, 40, g)
        found[temperature] = float(x.double().square().mean())
    ratio = found[0.25] / found[1.0]
    error = 0.25 * 2 * math.sqrt(2 / N)
    expect(abs(ratio - 0.25) < SIGMAS * error, f"temperature 0.25 gives {ratio:.4f} times the variance of temperature 1")


@check(BIASED, CONTINUOUS, since="0.1")
def check_nothing_is_clipped_unless_asked(case: SamplerCase) -> None:
    """On a Gaussian, with the same noise, an unadjusted step is affine in the position, out to 1,000 standard deviations."""
    sampler, energy = case.make(), Gaussian(torch.eye(4)).double()
    x = case.start(8).double()
    near, far, between = (_run(sampler, energy, x * scale, 1, generator(10)) for scale in (0.0, 1000.0, 500.0))
    off = float((0.5 * (near + far) - between).abs().max())
    expect(off < 1e-6, f"a step from 1,000 standard deviations is off the affine one by {off:.3g}: is the gradient clipped?")


@check(RANDOM, KNOWN, since="0.1")
def check_it_finds_the_target_from_a_bad_start(case: SamplerCase) -> None:
    """Chains that all start at one bad place reach the target within 500 steps."""
    if case.continuous:
        _from_far_away(case)
        _from_one_well(case)
    for target in case.discrete if case.declares("exact") else ():
        _from_one_state(case, target)


def _from_far_away(case: SamplerCase) -> None:
    sampler, energy, g = case.make(), Gaussian(torch.eye(4)), generator(11)
    temperature = getattr(sampler, "temperature", 1.0)
    variance = temperature * (1 + (_bias(sampler, 1.0) or 0.0))
    x = torch.full((5000, 4), 5.0)
    for _ in range(10):
        x = _run(sampler, energy, x, 50, g)
        off = float(mean_in_sigmas(x, 0.0).max())
        ratio = float(x.double().var()) / variance
        if off < SIGMAS and abs(ratio - 1) < SIGMAS * math.sqrt(2 / x.numel()):
            return
    mean = float(x.mean())
    expect(False, f"500 steps from 5 standard deviations away: mean {mean:.3f}, variance {ratio:.3f} times the right one")


def _from_one_well(case: SamplerCase) -> None:
    target, g = Mixture((0.3, 0.7)), generator(13)
    if not (case.declares("exact") and case.fits(target)):
        return  # an unadjusted sampler has another mass there
    sampler = case.make()
    temperature = getattr(sampler, "temperature", 1.0)
    wanted = 1 - float((target.sample(N, (1,), temperature, generator=generator(1)) < 0).double().mean())
    x = torch.full((20_000, 2), -1.5)
    for _ in range(10):
        x = _run(sampler, target, x, 50, g)
        found = float((x[:, 0] > 0).double().mean())
        if abs(found - wanted) < SIGMAS * math.sqrt(wanted * (1 - wanted) * (1 / len(x) + 1 / N)):
            return
    expect(
        False,
        f"500 steps from the smaller of two wells: {found:.1%} are in the larger one, which holds {wanted:.1%}",
    )


def _from_one_state(case: SamplerCase, target: Enumerable) -> None:
    sampler, g = case.make(), generator(12)
    temperature = getattr(sampler, "temperature", 1.0)
    p = target.probabilities(temperature)
    x = target.states()[:1].expand(20_000, *target.states().shape[1:]).contiguous()
    for _ in range(10):
        x = _run(sampler, target, x, 50, g)
        value = chi_square_p(torch.bincount(target.codes(x), minlength=len(p)), p)
        if value > P_VALUE:
            return
    expect(False, f"500 steps from the first state of {type(target).__name__}: chi-square p-value {value:.2g}")

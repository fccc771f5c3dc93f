"""Rules for the gradient of a loss: identities in float64, enumerated expectations, and a fit."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from ebmcore.testing.applies import ANY_SHAPE, ENERGY_ALONE, IS_CD, takes
from ebmcore.testing.awkward import Shifted
from ebmcore.testing.cases import LossCase, generator, network
from ebmcore.testing.instruments import largest
from ebmcore.testing.rules import Condition, check, expect
from ebmcore.testing.samplers import ExactSamples, Identity, Table
from ebmcore.testing.statistics import SIGMAS, N, mean_in_sigmas
from ebmcore.testing.targets import Boltzmann, Enumerable, EnumerableRBM

EXACT = 1e-10  # float64
MOVES = Condition(
    "to losses whose chains start at the data or persist", lambda c: c.persistent or c.component.starts_at_data
)


def gradients_of(value: Tensor, energy: nn.Module) -> list[Tensor]:
    """The gradient of ``value`` with respect to every parameter; 0 where there is none."""
    parameters = list(energy.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference."""
    return largest(*(s - t for s, t in zip(a, b, strict=True)))


def _expect_alike(found: list[Tensor], wanted: list[Tensor], what: str, bound: float = EXACT) -> None:
    norm = math.sqrt(sum(float(w.square().sum()) for w in wanted))
    along = sum(float((f * w).sum()) for f, w in zip(found, wanted, strict=True)) / max(norm**2, 1e-300)
    off = apart(found, wanted)
    expect(
        off <= bound, f"{what} is off by {off:.3g} (bound {bound:.1g}); along the right one it is {along:.6g} times as long"
    )


@check(IS_CD, since="0.1")
def check_the_gradient_is_that_of_the_energy_gap(case: LossCase) -> None:
    """For given negatives, the gradient of compute_loss is that of mean E(x) - mean E(pred_x), to 1e-10 in float64."""
    for shape in ((4,), (1, 2, 2)) if case.takes_any_shape else (case.shape,):
        energy = case.energy(*shape).double()
        loss = case.make(energy, Identity(), examples=shape)
        x, pred_x = case.start(6, *shape).double(), 1 + case.start(9, *shape, seed=2).double()
        found = gradients_of(loss.compute_loss(x, pred_x), energy)
        wanted = gradients_of(energy(x).mean() - energy(pred_x).mean(), energy)
        _expect_alike(found, wanted, f"the gradient for examples of shape {shape}")


@check(IS_CD, since="0.1")
def check_no_energy_and_no_gradient_is_too_large(case: LossCase) -> None:
    """Nothing is clamped or clipped on the way: the same identity for energies of a million and negatives far out."""
    energy = case.energy(*case.shape).double()
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.mul_(100)
    untouched = copy.deepcopy(energy)  # a hook on the parameters would change both sides
    loss = case.make(energy, Identity())
    x, pred_x = case.start(6).double(), 1e3 * case.start(9, seed=2).double()
    value = loss.compute_loss(x, pred_x)
    wanted_value = untouched(x).mean() - untouched(pred_x).mean()
    found = gradients_of(value, energy)
    wanted = gradients_of(wanted_value, untouched)
    off = float((value / wanted_value - 1).detach().abs())
    right = off <= EXACT or case.component.trains_more  # whose other terms are its own
    expect(right, f"a loss of {float(wanted_value.detach()):.3g} comes out as {float(value.detach()):.6g}")
    _expect_alike(found, wanted, "the gradient for large energies", EXACT * largest(*wanted))


@check(IS_CD, since="0.1")
def check_forward_gives_the_loss_of_its_negatives(case: LossCase) -> None:
    """The loss of forward() has the gradient of mean E(x) - mean E(pred_x) for the pred_x that it returns."""
    energy = case.energy(*case.shape).double()
    x = case.start(8).double()
    value, pred_x = case.make(energy)(x)
    found = gradients_of(value, energy)
    _expect_alike(
        found, gradients_of(energy(x).mean() - energy(pred_x.detach()).mean(), energy), "the gradient of forward()"
    )


@check(ENERGY_ALONE, ANY_SHAPE, since="0.1")
def check_a_constant_added_to_the_energy_changes_nothing(case: LossCase) -> None:
    """E and E + 1000 give the same loss: no regulariser is on unless asked for."""
    x = case.start(8).double()
    low = case.use(case.make(network(4).double()), x=x)
    high = case.use(case.make(Shifted(network(4).double())), x=x)
    off = abs(float(low[0] - high[0]))
    expect(off <= 1e-8, f"adding 1000 to the energy changes the loss by {off:.3g}: is a regulariser on by default?")
    n = len(list(network(4).parameters()))
    _expect_alike(high[-n:], low[-n:], "the gradient under E + 1000")


@check(IS_CD, takes("energy_l2"), since="0.1")
def check_the_regulariser_is_exact_and_reported_apart(case: LossCase) -> None:
    """energy_l2 adds that weight times the mean squared energies of both halves, and metrics["energy_l2"] holds the term."""
    weight, energy = 0.3, case.energy(*case.shape).double()
    x, pred_x = case.start(6).double(), case.start(9, seed=2).double()
    plain, both = case.make(energy, Identity()), case.make(energy, Identity(), energy_l2=weight)
    value = both.compute_loss(x, pred_x)
    term = weight * (energy(x).square().mean() + energy(pred_x).square().mean())
    wanted = gradients_of(plain.compute_loss(x, pred_x) + term, energy)
    _expect_alike(gradients_of(value, energy), wanted, "the gradient with energy_l2")
    reported = both.metrics.get("energy_l2")
    expect(reported is not None, 'metrics has no "energy_l2"')
    off = float((reported - term.detach()).abs())
    expect(off <= EXACT, f'metrics["energy_l2"] is off by {off:.3g}')


@check(IS_CD, ANY_SHAPE, since="0.1")
def check_averaged_over_the_model_it_is_the_likelihood_gradient(case: LossCase) -> None:
    """With every state as negative, weighted with its probability, the gradient is the likelihood's, to 1e-10 in float64."""
    energy = EnumerableRBM((4,), 3).double()
    loss, states, p = case.make(energy, Identity()), energy.states(), energy.probabilities()
    data = states[[3, 5, 5, 12]]
    found = [torch.zeros_like(q) for q in energy.parameters()]
    for state, weight in zip(states, p, strict=True):
        for total, g in zip(found, gradients_of(loss.compute_loss(data, state[None]), energy), strict=True):
            total += weight * g
    _expect_alike(found, _likelihood_gradient(energy, data), "the averaged gradient")


def _likelihood_gradient(energy: Enumerable, data: Tensor) -> list[Tensor]:
    return gradients_of(energy(data).mean() + torch.logsumexp(-energy(energy.states()), 0), energy)


def _in_sigmas(energy: nn.Module, found: list[Tensor], wanted: list[Tensor], pred_x: Tensor) -> float:
    """Number of standard errors of the negative phase by which a gradient is off; energies linear in their parameters."""
    worst = []
    for i, parameter in enumerate(energy.parameters()):
        # One row for each negative: the derivative of its energy.
        statistics = _per_example(energy, i, pred_x)
        error = statistics.std(0) / math.sqrt(len(pred_x))
        off = (found[i] - wanted[i]).abs().view(parameter.shape)
        worst.append(off / error.clamp(min=1e-9))
    return largest(*worst)


def _per_example(energy: nn.Module, i: int, x: Tensor) -> Tensor:
    states, which = torch.unique(x.detach(), dim=0, return_inverse=True)
    return torch.stack([gradients_of(energy(s[None]).sum(), energy)[i] for s in states])[which]


@check(IS_CD, ANY_SHAPE, since="0.1")
def check_exact_negatives_give_the_likelihood_gradient(case: LossCase) -> None:
    """With 100,000 exact negatives from its sampler, the gradient is the enumerated likelihood's within its standard error."""
    energy = Boltzmann(4).double()
    data = energy.states()[[3, 5, 5, 12]].repeat(N // 4, 1)
    loss = case.make(energy, ExactSamples(energy), **case.chains(N))
    value, pred_x = loss(data)
    off = _in_sigmas(energy, gradients_of(value, energy), _likelihood_gradient(energy, data[:4]), pred_x)
    expect(off < SIGMAS, f"the gradient is {off:.1f} standard errors off the likelihood's (bound {SIGMAS})")


@check(IS_CD, ANY_SHAPE, MOVES, since="0.1")
def check_the_bias_falls_as_the_second_eigenvalue_says(case: LossCase) -> None:
    """After k transitions from a known start the negatives' law is the enumerated one: its bias falls as eigenvalue^k."""
    energy = Boltzmann(4, scale=0.7).double()
    matrix, value, law = _slow_chain(energy)
    sampler = Table(energy, matrix)
    p = energy.probabilities()
    codes = torch.multinomial(law, N, replacement=True, generator=generator(11))
    start = energy.states()[codes]
    shares = torch.bincount(codes, minlength=16).double() / N
    for k in (1, 2, 4):
        loss = case.make(energy, sampler, k_steps=k, **case.chains(N))
        if case.persistent:
            case.fill(loss, start)
        loss.generator = generator(12)
        result, pred_x = loss(start)
        after = shares @ torch.linalg.matrix_power(matrix, k)
        negative = gradients_of((after * energy(energy.states())).sum(), energy)
        positive = gradients_of(energy(start).mean(), energy)
        wanted = [a - b for a, b in zip(positive, negative, strict=True)]
        off = _in_sigmas(energy, gradients_of(result, energy), wanted, pred_x)
        expect(off < SIGMAS, f"k_steps={k}: the gradient is {off:.1f} standard errors off its enumerated expectation")
        slow = (law - p) / p  # the right eigenvector: its mean over the negatives falls by the eigenvalue in each step
        contrast = slow[energy.codes(pred_x)]
        predicted = value**k * float((slow * (law - p)).sum())
        sigmas = float(mean_in_sigmas(contrast, predicted))
        expect(
            sigmas < SIGMAS,
            f"k_steps={k}: bias {contrast.mean():.4f}, but eigenvalue {value:.3f}^{k} predicts {predicted:.4f}",
        )


def _slow_chain(energy: Enumerable) -> tuple[Tensor, float, Tensor]:
    """A reversible chain (random-site Gibbs), its second eigenvalue, and a start that differs from the model along it alone."""
    states, p = energy.states(), energy.probabilities()
    n = states.shape[1]
    near = (states[:, None] - states[None]).abs().sum(2) == 1
    matrix = torch.where(near, p / (p[:, None] + p) / n, 0.0)
    matrix += torch.diag(1 - matrix.sum(1))
    root = p.sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * matrix / root)
    direction = vectors[:, -2] * root  # a left eigenvector
    direction = direction * 0.95 * float((p / direction.abs()).min())  # the largest step that keeps probabilities positive
    return matrix, float(values[-2]), p + direction

"""Rules for energies: what they return, and that their capabilities agree with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ebmcore import tempered
from ebmcore.energies import (
    SupportsBlockGibbs,
    SupportsEnumeration,
    SupportsHiddenUnits,
    SupportsInitialDistribution,
    SupportsValueAndGrad,
)
from ebmcore.samplers import BaseSampler, ChainState, Info
from ebmcore.tempering import SupportsTempering
from ebmcore.testing.cases import EnergyCase, generator
from ebmcore.testing.enumeration import transition_matrix
from ebmcore.testing.instruments import Trace, global_random_state
from ebmcore.testing.rules import Condition, check, expect
from ebmcore.testing.targets import Enumerable, binary_states

DISCRETE = Condition("to energies of binary or categorical units", lambda case: case.discrete)


def has(capability: type) -> Condition:
    """Applies to energies with a capability."""
    return Condition(f"to energies with the capability {capability.__name__}", lambda case: case.can(capability))


class _Listed(Enumerable):
    """An energy of discrete units of shape ``(1, 2, 2)``, with its states listed and its conditionals passed through."""

    def __init__(self, case: EnergyCase, energy: nn.Module, beta: float | None = None) -> None:
        super().__init__()
        self.case = case
        self.energy = energy
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.energy(x)
        return energies

    def states(self) -> Tensor:
        states = binary_states(4, torch.zeros((), dtype=torch.float64)).view(-1, 1, 2, 2)
        return states[(states.sum(-1) == 1).all(-1).flatten()] if self.case.space == "categorical" else states

    def sample_hidden(self, x: Tensor, **kwargs: Any) -> Tensor:
        hidden: Tensor = self.energy.sample_hidden(x, **self._at(x) | kwargs)  # type: ignore[operator]
        return hidden

    def sample_visible(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        visible: Tensor = self.energy.sample_visible(hidden, **self._at(hidden) | kwargs)  # type: ignore[operator]
        return visible

    def _at(self, like: Tensor) -> dict[str, Tensor]:
        return {} if self.beta is None else {"beta": torch.full((len(like),), self.beta, dtype=like.dtype)}


class _Sweep(BaseSampler):
    """One sweep through both conditionals."""

    def step(self, energy: Any, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        hidden = energy.sample_hidden(state.x, generator=generator)
        return ChainState(energy.sample_visible(hidden, generator=generator)), {}


@check(since="0.1")
def check_it_returns_one_energy_for_each_example(case: EnergyCase) -> None:
    """(B, *shape) gives (B,) finite energies; in evaluation mode an example's does not depend on the others of the batch."""
    energy, x = case.make().eval(), case.batch()
    values = energy(x)
    expect(tuple(values.shape) == (5,), f"5 examples give a tensor {tuple(values.shape)}")
    expect(bool(values.isfinite().all()), "an energy is not finite")
    alone = torch.cat([energy(row[None]) for row in x])
    off = float((values - alone).detach().abs().max())
    expect(off < 1e-4, f"an example alone has another energy than in a batch: off by {off:.3g}")


@check(since="0.1")
def check_it_is_differentiable(case: EnergyCase) -> None:
    """The energy has finite gradients with respect to the example and to each parameter that is trained."""
    energy = case.make()
    x = case.batch().requires_grad_()
    energy(x).square().sum().backward()
    missed = [n for n, p in energy.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
    expect(not missed, f"no finite gradient reaches {', '.join(missed)}")
    expect(x.grad is not None and bool(x.grad.isfinite().all()), "no finite gradient reaches the example")


@check(since="0.1")
def check_its_gradients_are_those_of_its_values(case: EnergyCase) -> None:
    """Gradients of the example and of each trained parameter are the differences of energies around it, in float64.

    Discrete examples are left out, since no other examples are close to them. Every parameter must have an effect.
    """
    energy, x = case.make().double().eval(), case.batch(32).double().requires_grad_()
    around = {} if case.discrete else {"the example": x}
    around |= {name: p for name, p in energy.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(energy(x).sum(), list(around.values()), materialize_grads=True)
    for (name, tensor), gradient in zip(around.items(), gradients, strict=True):
        attempts = [_slopes(energy, x, tensor, gradient, *attempt) for attempt in _ATTEMPTS]
        agree = any(abs(found - wanted) <= bound * max(1.0, abs(wanted)) for found, wanted, bound in attempts)
        found, wanted, _ = attempts[0]
        expect(agree, f"along {name} the gradient is {found:.6g}, but the energies change by {wanted:.6g}")
        needless = not gradient.any() and not any(wanted for _, wanted, _ in attempts)
        expect(
            not (needless and _has_no_effect(energy, x, tensor)), f"{name} has no effect: what is not trained is a buffer"
        )


# Seed of the direction, step and bound. One may meet a kink, and an energy that is in float32 within shows in large steps only.
_ATTEMPTS = ((0, 1e-5, 1e-4), (1, 1e-5, 1e-4), (2, 1e-3, 1e-2))


@torch.no_grad()
def _slopes(
    energy: nn.Module, x: Tensor, tensor: Tensor, gradient: Tensor, seed: int, step: float, bound: float
) -> tuple[float, float, float]:
    """The slope of the energies' sum along a random direction: by the gradient, and by the difference of two values."""
    direction = torch.randn(tensor.shape, generator=generator(seed), dtype=tensor.dtype)
    before, ends = tensor.clone(), []
    for sign in (1, -1):
        tensor.copy_(before + sign * step * direction)
        ends.append(float(energy(x.clone()).sum()))
    tensor.copy_(before)
    return float((gradient.conj() * direction).real.sum()), (ends[0] - ends[1]) / (2 * step), bound


@torch.no_grad()
def _has_no_effect(energy: nn.Module, x: Tensor, tensor: Tensor) -> bool:
    """Whether energies are the same for very different values of a tensor, in evaluation and in training."""
    changes, own = False, tensor.clone()
    for training in (True, False):
        energy.train(training)
        before = energy(x.clone())
        for seed in range(8):
            tensor.copy_(10 * torch.randn(tensor.shape, generator=generator(seed), dtype=tensor.dtype))
            changes |= not torch.allclose(energy(x.clone()), before, rtol=0, atol=0, equal_nan=True)
        tensor.copy_(own)
    return not changes


@check(since="0.1")
def check_evaluating_it_changes_nothing(case: EnergyCase) -> None:
    """In evaluation mode the same examples have the same energies again, bit for bit, and nothing else changes.

    Nothing else means the examples, modes, parameters and buffers, and the global random generators.
    """
    energy, x = case.make().eval(), case.batch() if case.discrete else 3 * case.batch()
    with torch.no_grad():
        energy(x.clone())  # the first call makes what an energy makes lazily
        energy.eval()
        given, trace, random = x.clone(), Trace.of(energy), global_random_state()
        first, second = energy(x), energy(x)
    expect(torch.equal(x, given), "it changes the examples in place: work on a copy")
    changes = trace.changes(energy)
    expect(not changes, "; ".join(changes[:4]))
    touched = [name for name, state in global_random_state().items() if random.get(name, state) != state]
    expect(not touched, f"it draws from the global generator of {', '.join(touched)}: an energy has no randomness")
    same = torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
    expect(
        same, f"the same examples have other energies the second time, by up to {float((first - second).abs().max()):.3g}"
    )


@check(since="0.1")
def check_it_moves_to_float64(case: EnergyCase) -> None:
    """energy.double() takes float64 and gives float64."""
    values = case.make().double()(case.batch().double())
    expect(values.dtype == torch.float64, f"after double() energies are {values.dtype}")


@check(has(SupportsValueAndGrad), since="0.1")
def check_value_and_grad_agree_with_forward(case: EnergyCase) -> None:
    """value_and_grad() gives the energy and its gradient, to 1e-10 in float64."""
    energy = case.make().double()
    x = torch.randn(5, 1, 2, 2, generator=generator(2), dtype=torch.float64).requires_grad_()
    value, grad = energy.value_and_grad(x.detach())
    wanted = energy(x)
    (slope,) = torch.autograd.grad(wanted.sum(), x)
    off = max(float((value - wanted).detach().abs().max()), float((grad - slope).detach().abs().max()))
    expect(off < 1e-10, f"value_and_grad() is off forward() and its gradient by {off:.3g}")


@check(has(SupportsBlockGibbs), DISCRETE, since="0.1")
def check_the_conditionals_agree_with_the_energy(case: EnergyCase) -> None:
    """A sweep through both conditionals leaves exp(-E) invariant, as an exact transition matrix, to 1e-12."""
    _expect_invariant(_Listed(case, case.make().double()), "one sweep")


@check(has(SupportsBlockGibbs), has(SupportsTempering), DISCRETE, since="0.1")
def check_the_conditionals_agree_with_the_energy_at_each_temperature(case: EnergyCase) -> None:
    """Conditionals given beta, and those of tempered(beta), leave the distribution of tempered(beta) invariant, to 1e-12."""
    energy = case.make().double()
    for beta in (0.0, 0.4, 1.0):
        hot = _Listed(case, tempered(energy, torch.tensor(beta, dtype=torch.float64)))
        _expect_invariant(hot, f"a sweep of tempered({beta})")
        matrix = transition_matrix(_Sweep(), _Listed(case, energy, beta))
        off = float((matrix - transition_matrix(_Sweep(), hot)).abs().max())
        expect(off < 1e-12, f"conditionals given beta={beta} are off those of tempered({beta}) by {off:.3g}")


def _expect_invariant(target: Enumerable, what: str) -> None:
    matrix, p = transition_matrix(_Sweep(), target), target.probabilities()
    off = float((p @ matrix - p).abs().max())
    expect(off < 1e-12, f"{what} moves a probability by {off:.3g} (bound 1e-12)")


@check(has(SupportsBlockGibbs), has(SupportsHiddenUnits), since="0.1")
def check_hidden_logits_are_those_of_its_draws(case: EnergyCase) -> None:
    """Of 20,000 draws of the hidden units given an example, sigmoid(hidden_logits) of each are 1, within 6 standard errors."""
    energy, x = case.make().double(), case.batch(1).double()
    p = energy.hidden_logits(x).detach().sigmoid()
    drawn = energy.sample_hidden(x.expand(20_000, *x.shape[1:]), generator=generator(4)).double()
    expect(tuple(p.shape) == (1, drawn.shape[1]), f"hidden_logits are {tuple(p.shape)} for {drawn.shape[1]} hidden units")
    off = float(((drawn.mean(0) - p[0]).abs() / (p[0] * (1 - p[0]) / len(drawn)).sqrt().clamp_min(1e-6)).max())
    expect(off < 6, f"the share of ones among its draws is {off:.0f} standard errors off sigmoid(hidden_logits)")


@check(has(SupportsTempering), since="0.1")
def check_tempering_ends_at_the_energy(case: EnergyCase) -> None:
    """tempered(1) is the energy, tempered(0) the same for all examples; beta may be one for each row, or several (K, N)."""
    energy, x = case.make().double(), case.batch(6).double()
    beta = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    found, wanted = tempered(energy, beta)(x), energy(x)
    off = float((found[:3] - wanted[:3]).detach().abs().max())
    expect(off < 1e-10, f"tempered(1) is off the energy by {off:.3g}")
    spread = float((found[3:].max() - found[3:].min()).detach())
    expect(spread < 1e-10, f"at beta = 0 energies still differ by {spread:.3g}")
    several = tempered(energy, torch.stack([beta, 1 - beta]))(x)
    expect(tuple(several.shape) == (2, 6), f"beta (2, 6) gives energies {tuple(several.shape)} of 6 examples, not (2, 6)")
    off = float((several - torch.stack([found, tempered(energy, 1 - beta)(x)])).detach().abs().max())
    expect(off < 1e-10, f"two betas at once are off each by itself by {off:.3g}")


@check(has(SupportsEnumeration), DISCRETE, since="0.1")
def check_log_partition_is_the_sum_over_all_states(case: EnergyCase) -> None:
    """log_partition() is the logarithm of the sum of exp(-E) over all states, to 1e-10, in float64 for a model of any dtype."""
    energy = case.make()
    found = energy.log_partition()
    expect(found.dtype == torch.float64, f"log_partition() is {found.dtype}: likelihoods need float64")
    wanted = _Listed(case, energy.double()).log_partition()
    off = float((energy.log_partition() - wanted).detach().abs())
    expect(off < 1e-10, f"log_partition() is off the sum over all states by {off:.3g} nats")


@check(has(SupportsInitialDistribution), since="0.1")
def check_chains_can_start_at_its_initial_distribution(case: EnergyCase) -> None:
    """initial_distribution(shape) samples examples of that shape, in the model's dtype, with the given generator alone."""
    energy = case.make().double()
    initial = energy.initial_distribution(torch.Size((1, 2, 2)))
    a, b = (initial.sample(200, generator=generator(3)) for _ in range(2))
    expect(tuple(a.shape) == (200, 1, 2, 2), f"200 examples of shape (1, 2, 2) come as {tuple(a.shape)}")
    expect(a.dtype == torch.float64, f"the model is in float64, its chains start in {a.dtype}")
    expect(torch.equal(a, b), "two draws from generators in the same state differ")
    outside = sorted(set(a.unique().tolist()) - {0.0, 1.0}) if case.discrete else []
    expect(not outside, f"{case.space} chains start at {outside[:3]}")
    many = case.space == "categorical" and bool((a.sum(-1) != 1).any())
    expect(not many, "categorical chains do not start one-hot along the last axis")

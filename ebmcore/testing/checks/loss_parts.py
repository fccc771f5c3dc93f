"""Rules for the base of every loss: parts, steps, metrics, energies, weights and compilation, kept as the contract says."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore.testing.applies import ANY_SHAPE, IS_CD, LABELLED_CD, ON_CD_BASE, ONE_BACKWARD, TAKES_SAMPLER
from ebmcore.testing.awkward import Labelled, Watched
from ebmcore.testing.cases import SPACES, LossCase, generator
from ebmcore.testing.rules import ConformanceError, check, expect
from ebmcore.testing.samplers import CachingDrift, Drift, Identity

FAMILIES = ("contrastive-divergence", "other")
LABELS = ("conditions", "targets", None)


@check(since="0.1")
def check_what_it_declares_is_known(case: LossCase) -> None:
    """family, state_space and labels have one of the values that training and the kit know."""
    known = {"family": FAMILIES, "state_space": (*SPACES, None), "labels": LABELS}
    for name, values in known.items():
        given = getattr(case.component, name)
        expect(given in values, f"{name} is {given!r}: declare one of {', '.join(map(repr, values))}")


@check(since="0.1")
def check_every_parameter_is_in_one_group(case: LossCase) -> None:
    """parameter_groups() holds each parameter that is trained exactly once, and no parameter of another module."""
    loss = case.make()
    names = {id(p): name for name, p in loss.named_parameters()}
    counts = Counter(id(p) for group in loss.parameter_groups() for p in group["params"])
    strange = sum(key not in names for key in counts)
    expect(not strange, f"{strange} parameters of the groups do not belong to the loss")
    twice = [names[key] for key, n in counts.items() if n > 1]
    expect(not twice, f"{', '.join(twice)} are in several groups")
    left = [name for name, p in loss.named_parameters() if p.requires_grad and id(p) not in counts]
    expect(not left, f"{', '.join(left)} are in no group and would never be trained")


@check(since="0.1")
def check_it_trains_after_compile(case: LossCase) -> None:
    """compile() takes no options and leaves the loss trainable: calls and backward() work as before."""
    loss = case.make()
    expect(type(loss).compile is not nn.Module.compile, "compile() is torch's own, which cannot differentiate twice")
    loss.compile()
    expect(loss._compiled_call_impl is None, "compile() compiles the call of the loss: compile what it samples alone")
    plain = case.make()
    for compiled_or_not in (loss, plain):
        compiled_or_not.generator = generator()
        case.value(compiled_or_not, case.start(8)).backward()
    for (name, p), q in zip(loss.named_parameters(), plain.parameters(), strict=True):
        if q.grad is not None:
            alike = p.grad is not None and torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)
            expect(alike, f"after compile() {name} has another gradient")


@check(ONE_BACKWARD, since="0.1")
def check_it_differentiates_no_gradient(case: LossCase) -> None:
    """A loss that declares double_backward = False trains an energy whose gradient cannot be differentiated."""
    loss = case.make(_OnceDifferentiable(case.energy(*case.shape), lambda *_, **__: None))
    case.value(loss, case.start(8)).backward()


class _OnceDifferentiable(Watched):
    """An energy that raises `ConformanceError` where its gradient by positions is differentiated."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(_Once.apply(x), *args, **kwargs)  # type: ignore[no-untyped-call]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Never.apply(grad)  # type: ignore[no-untyped-call]


class _Never(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise ConformanceError("it differentiates a gradient of the energy: declare double_backward = True")


@check(since="0.1")
def check_metrics_of_the_whole_call_are_kept(case: LossCase) -> None:
    """Metrics written while chains start, are kept or are scored are still there when the call has ended."""
    loss, written = case.make(), set()

    def write(name: str) -> None:
        loss.metrics[name] = torch.zeros(())
        written.add(name)

    loss.energy.register_forward_pre_hook(lambda *_: write(f"evaluation_{len(written)}"))
    for method in ("start_chains", "keep_chains", "draw_negatives") if case.on_cd_base else ():
        _before(loss, method, write)
    case.call(loss, case.start(8))
    lost = sorted(written - set(loss.metrics))
    expect(
        not lost, f"{len(lost)} of {len(written)} metrics are lost at the end of the call, e.g. {lost[:1]}: add to metrics"
    )


def _before(loss: Any, method: str, write: Any) -> None:
    inner = getattr(loss, method)

    def outer(*args: Any, **kwargs: Any) -> Any:
        write(f"in_{method}")
        return inner(*args, **kwargs)

    object.__setattr__(loss, method, outer)


@check(since="0.1")
def check_the_step_is_part_of_the_state(case: LossCase) -> None:
    """The number of the training step is in state_dict(), and loading sets it."""
    used, fresh = case.make(), case.make()
    used.step = 7
    fresh.load_state_dict(copy.deepcopy(used.state_dict()))
    hint = "call the base's methods that save and load"
    expect(fresh.step == 7, f"after loading the state of a loss at step 7 the step is {fresh.step}: {hint}")


@check(ANY_SHAPE, since="0.1")
def check_energies_are_those_of_the_energy(case: LossCase) -> None:
    """energies(x) returns the energy of each example, in float32 at least."""
    loss, x = case.make(), case.start(8)
    found, wanted = loss.energies(x), loss.energy(x)
    expect(found.shape == (8,) and torch.equal(found, wanted), "energies(x) are not those of the energy")
    half = case.make(case.energy(*case.shape).bfloat16()).energies(x.bfloat16())
    expect(half.dtype == torch.float32, f"of an energy in bfloat16 energies(x) are in {half.dtype}")


@check(TAKES_SAMPLER, since="0.1")
def check_the_sampler_receives_a_frozen_energy(case: LossCase) -> None:
    """The sampler starts and moves chains with parameters frozen, in evaluation mode and without gradients."""
    sampler = CachingDrift()
    loss = case.make(sampler=sampler)
    for _ in range(2):
        case.call(loss.train(), case.start(8))
    expect(bool(sampler.stale), "the sampler made no step")
    expect(not sampler.flags, f"{'; '.join(dict.fromkeys(sampler.flags))}: start chains within frozen(energy)")


@check(TAKES_SAMPLER, since="0.1")
def check_what_the_sampler_cached_is_up_to_date(case: LossCase) -> None:
    """A sampler that keeps energy and gradient in its state, as MALA does, never moves by those of older parameters."""
    sampler = CachingDrift()
    loss = case.make(sampler=sampler)
    for _ in range(3):
        case.call(loss, case.start(16))
        with torch.no_grad():
            for parameter in loss.energy.parameters():
                parameter.add_(0.25)
    stale = max(sampler.stale, default=0.0)
    expect(stale < 1e-3, f"the sampler moved by an energy or gradient that is off by {stale:.3g}: call sampler.refresh()")


@check(IS_CD, since="0.1")
def check_the_loss_depends_on_values_alone(case: LossCase) -> None:
    """compute_loss of a clone, a view or a converted copy of the negatives is that of the negatives."""
    loss, x = case.make(), case.start(8)
    _, pred_x = case.call(loss, x)
    _expect_one_loss(loss, x, pred_x, ())


@check(LABELLED_CD, since="0.1")
def check_the_loss_depends_on_values_alone_with_labels(case: LossCase) -> None:
    """The same with labels, which belong to the negatives of the last draw in any tensor object."""
    energy = Labelled()
    with torch.no_grad():
        energy.weight.copy_(10.0 * torch.arange(8))
    loss, x, labels = case.make(energy, Drift()), case.start(8), torch.arange(8)
    for shift in range(3):
        _, pred_x = loss(x, labels.roll(shift))
    _expect_one_loss(loss, x, pred_x, (labels.roll(shift),))


def _expect_one_loss(loss: Any, x: Tensor, pred_x: Tensor, labels: tuple[Tensor, ...]) -> None:
    others = {"a clone": pred_x.clone(), "a converted copy": pred_x.double().to(pred_x.dtype), "a view": pred_x[:].detach()}
    values = {}
    for what, negatives in {"": pred_x, **others}.items():
        loss.generator = generator(4)
        values[what] = float(loss.compute_loss(x, negatives, *labels).detach())
    for what, value in values.items():
        expect(value == values[""], f"the loss of the negatives is {values['']:.6g}, of {what} of them {value:.6g}")


@check(ON_CD_BASE, ANY_SHAPE, since="0.1")
def check_weights_of_the_energy_gap_are_weights(case: LossCase) -> None:
    """energy_gap with weights is the difference of weighted means; their scale does not matter, and weight 0 leaves a row out."""
    energy = case.energy(4).double()
    loss = case.make(energy, Identity()).double()
    x, pred_x = case.start(6).double(), case.start(9, seed=2).double()
    v, w = torch.arange(6.0).double(), torch.arange(9.0).double().flip(0)
    wanted = float((((v / v.sum()) * energy(x)).sum() - ((w / w.sum()) * energy(pred_x)).sum()).detach())
    for scale in (1.0, 1e-3, 1e3):
        found = float(loss.energy_gap(x, pred_x, data_weights=scale * v, negative_weights=scale * w).detach())
        expect(abs(found - wanted) < 1e-10, f"with weights times {scale:g} the gap is {found:.6g}, not {wanted:.6g}")
    without = float(loss.energy_gap(x[1:], pred_x[:-1], data_weights=v[1:], negative_weights=w[:-1]).detach())
    expect(abs(without - wanted) < 1e-10, f"without rows of weight 0 the gap is {without:.6g}, not {wanted:.6g}")


@check(ON_CD_BASE, ANY_SHAPE, since="0.1")
def check_negatives_can_be_given_conditions(case: LossCase) -> None:
    """energy_gap scores negatives under negative_conditions, which come before those of the data and of the last draw."""
    energy = Labelled().double()
    with torch.no_grad():
        energy.weight.copy_(10.0 * torch.arange(8))
    loss = case.make(energy, Identity()).double()
    x, pred_x = case.start(8).double(), case.start(8, seed=2).double()
    labels, others = torch.arange(8), torch.arange(8).flip(0) // 2
    found = loss.energy_gap(x, pred_x, labels, negative_conditions={"0": others})
    wanted = energy(x, labels).mean() - energy(pred_x, others).mean()
    off = float((found - wanted).detach().abs())
    expect(off < 1e-10, f"the gap under negative_conditions is off by {off:.3g}")

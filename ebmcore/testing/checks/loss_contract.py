"""Rules for what a loss returns, takes, saves and moves."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ebmcore.testing.applies import ANY_LOSS_ENERGY, ANY_SHAPE, COMPARABLE, IS_CD, ON_CD_BASE, STARTS_AT_DATA
from ebmcore.testing.awkward import Moody
from ebmcore.testing.cases import N_CHAINS, LossCase, generator
from ebmcore.testing.checks.stepping import difference, equal
from ebmcore.testing.processes import process_group
from ebmcore.testing.rules import ConformanceError, check, expect
from ebmcore.testing.samplers import Affine, Cached, Drift, Identity


@check(since="0.1")
def check_it_returns_a_finite_scalar_loss(case: LossCase) -> None:
    """forward() returns a finite 0-dim loss, or a tuple whose first item is it; one of the CD family (loss, pred_x)."""
    x = case.start(8)
    result = case.call(case.make(), x)
    loss = result[0] if isinstance(result, tuple) else result
    expect(isinstance(loss, Tensor) and loss.shape == (), f"the loss is {_shown(loss)}: return a 0-dim tensor")
    expect(bool(loss.isfinite()), f"the loss is {loss}")
    expect(loss.requires_grad, "the loss has no gradient")
    if not case.cd:
        return
    expect(isinstance(result, tuple) and len(result) == 2, f"a CD loss returns (loss, pred_x), not {_shown(result)}")
    pred_x = result[1]
    right = isinstance(pred_x, Tensor) and pred_x.shape[1:] == x.shape[1:] and pred_x.dtype == x.dtype and len(pred_x) > 0
    expect(right, f"pred_x is {_shown(pred_x)}: return the negative samples (M, *shape) in the dtype of the data")


def _shown(value: object) -> str:
    return f"a tensor {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@check(since="0.1")
def check_gradients_reach_the_energy_and_nothing_else(case: LossCase) -> None:
    """backward() gives every parameter of the energy a finite gradient; other parameters where trains_more is declared."""
    x = case.start(8).requires_grad_()
    loss = case.make()
    case.value(loss, x).backward()
    # A loss of another family may have parameters of its own, such as a normaliser.
    own = {id(p) for p in (loss if case.trains_more else loss.energy).parameters()}
    sums = {n: 0.0 if p.grad is None else float(p.grad.abs().sum()) for n, p in loss.energy.named_parameters()}
    missed = [n for n, total in sums.items() if not 0 < total < torch.inf]
    # The last bias of the network shifts all energies alike and so has the gradient 0; an energy of its own may have several.
    alike = {n for n in missed if sums[n] == 0} if case.own_energy and any(sums.values()) else {"layers.3.bias"}
    expect(set(missed) <= alike, f"no finite gradient reaches {', '.join(missed)}")
    strays = [n for n, t in (*loss.named_parameters(), *loss.named_buffers()) if t.grad is not None and id(t) not in own]
    expect(not strays, f"gradients also reach {', '.join(strays)}: declare trains_more = True if they are to be trained")
    if case.cd:
        chain = loss.chain
        expect(chain is None or (chain.grad is None and not chain.requires_grad), "gradients also reach the chains")


@check(IS_CD, since="0.1")
def check_negatives_are_detached(case: LossCase) -> None:
    """The negatives that forward() returns carry no graph."""
    _, pred_x = case.call(case.make(), case.start(8))
    expect(pred_x.grad_fn is None and not pred_x.requires_grad, "pred_x requires grad: detach the negatives")


@check(IS_CD, since="0.1")
def check_negatives_stay_as_they_were_returned(case: LossCase) -> None:
    """The caller owns what forward() returned: a later call does not change it, and changing it does not change the chains."""
    loss, x = case.make(), case.start(N_CHAINS)
    _, pred_x = case.call(loss, x)
    before = pred_x.clone()
    case.call(loss, x)
    expect(torch.equal(pred_x, before), "a later call changes the negatives of an earlier one: return a copy")
    if case.persistent:
        chain = loss.chain.clone()
        pred_x.zero_()
        expect(torch.equal(loss.chain, chain), "the negatives share memory with the chains: return a copy")


@check(IS_CD, since="0.1")
def check_chains_persist_only_where_declared(case: LossCase) -> None:
    """A loss holds chains after a call if and only if it is declared persistent."""
    loss = case.make()
    case.call(loss, case.start(8))
    holds = loss.chain is not None
    expect(holds == case.persistent, f"persistent is {case.persistent}, but after a call it holds {len(loss.chains)} chains")


@check(IS_CD, ANY_LOSS_ENERGY, since="0.1")
def check_data_and_negatives_are_scored_in_one_mode(case: LossCase) -> None:
    """Data and negatives are scored in the mode in which the energy was, training or evaluation, under the same parameters."""
    words = {True: "training", False: "evaluation"}
    for training in (True, False):
        energy = Moody(case.shape).train(training)
        was = [m.training for m in energy.modules()]
        loss = case.make(energy, Identity())
        modes: list[list[bool]] = []
        parameters: list[Tensor] = []

        def note(
            module: nn.Module, _: object, modes: list[list[bool]] = modes, parameters: list[Tensor] = parameters
        ) -> None:
            modes.append([m.training for m in module.modules()])
            parameters.append(torch.cat([p.detach().flatten() for p in module.parameters()]))

        energy.register_forward_pre_hook(note)
        case.call(loss, case.start(8))
        expect(bool(modes), "the energy was not evaluated")
        other = sum(mode != was for mode in modes)
        expect(
            not other, f"an energy in {words[training]} mode has modules in another mode in {other} of {len(modes)} forwards"
        )
        same = all(torch.equal(parameters[0], other) for other in parameters)
        expect(same, "data and negatives are scored under different parameters")


@check(IS_CD, since="0.1")
def check_the_sampler_stays_as_it_is(case: LossCase) -> None:
    """A call changes no attribute of the sampler, such as its step size: no checkpoint would hold the change."""
    sampler = Drift()
    loss, before = case.make(sampler=sampler), dict(vars(sampler))
    for _ in range(2):
        case.call(loss, case.start(8))
    changed = [name for name, value in vars(sampler).items() if before.get(name) != value]
    expect(not changed, f"it changes {', '.join(changed)} of its sampler: keep what it adapts in a buffer of the loss")


@check(IS_CD, ANY_LOSS_ENERGY, since="0.1")
def check_sampling_moves_no_batch_statistics(case: LossCase) -> None:
    """In training mode the energy sees each example and each negative once, to score it, however many steps are made."""
    for k in (1, 5):
        energy = Moody(case.shape).train()
        rows: list[int] = []
        loss = case.make(energy, Cached(), k_steps=k)
        case.call(loss, case.start(8))
        energy.register_forward_pre_hook(lambda module, args, rows=rows: rows.append(len(args[0]) * module.training))
        _, pred_x = case.call(loss, case.start(8))
        wanted = 8 + len(pred_x)
        found = sum(rows)
        expect(found == wanted, f"with k_steps={k} batch norm in training mode saw {found} rows, not the {wanted} to score")


@check(ANY_LOSS_ENERGY, since="0.1")
def check_training_mode_is_for_what_is_trained_on(case: LossCase) -> None:
    """Evaluations without gradients, such as those of samplers, are in evaluation mode: they move no batch statistics."""
    energy = Moody(case.shape).train()
    without: list[int] = []
    energy.register_forward_pre_hook(lambda module, args: without.append(module.training and not torch.is_grad_enabled()))
    loss = case.make(energy)
    for _ in range(2):
        case.call(loss, case.start(8))
    expect(bool(without), "the energy was not evaluated")
    expect(not any(without), f"{sum(without)} of {len(without)} evaluations were in training mode and without gradients")


@check(STARTS_AT_DATA, since="0.1")
def check_chains_start_at_a_copy_of_the_data(case: LossCase) -> None:
    """Chains start at the data, at a copy, in each call."""
    x = case.start(8)
    loss = case.make(sampler=Affine(shift=3.0))
    for _ in range(2):
        _, pred_x = case.call(loss, x)
        expect(torch.equal(pred_x, x + 3), f"chains do not start at the data but {difference([pred_x - 3], [x])} from it")
    _, pred_x = case.call(case.make(sampler=Identity()), x)
    expect(pred_x.data_ptr() != x.data_ptr(), "chains start at the batch itself: start at a copy")


@check(IS_CD, since="0.1")
def check_it_makes_k_transitions(case: LossCase) -> None:
    """The sampler makes k_steps transitions in each call."""
    x = case.start(8)
    start = case.use(case.make(sampler=Identity()), x=x)[1]
    moved = case.use(case.make(sampler=Affine(shift=1.0), k_steps=5), x=x)[1]
    steps = (moved - start).mean().item()
    expect(torch.allclose(moved, start + 5, atol=1e-5), f"k_steps=5 made {steps:.3g} transitions")


@check(since="0.1")
def check_the_first_call_and_any_batch_size_work(case: LossCase) -> None:
    """A fresh loss takes its first batch with no other call before, then smaller and larger ones."""
    loss = case.make()
    for n in (8, 3, 1, 40, 8):
        value = case.value(loss, case.start(n))
        expect(bool(value.isfinite()), f"the loss of a batch of {n} is {value.item()}")


@check(since="0.1")
def check_metrics_are_detached_scalars(case: LossCase) -> None:
    """metrics holds detached 0-dim tensors of the last call."""
    loss = case.make()
    case.call(loss, case.start(8))
    first = dict(loss.metrics)
    wrong = [n for n, t in first.items() if not isinstance(t, Tensor) or t.shape != () or t.requires_grad]
    expect(not wrong, f"{', '.join(wrong)} in metrics is no detached 0-dim tensor")
    case.call(loss, case.start(8, seed=9))
    stale = first and all(loss.metrics.get(name) is t for name, t in first.items())
    expect(not stale, "metrics still holds what the previous call wrote")


@check(since="0.1")
def check_forward_hooks_fire(case: LossCase) -> None:
    """Calling the loss is calling a torch module: its forward hooks fire exactly once."""
    loss = case.make()
    fired: list[int] = []
    loss.register_forward_hook(lambda *_: fired.append(1))
    case.call(loss, case.start(8))
    expect(len(fired) == 1, f"a forward hook fired {len(fired)} times: leave __call__ to torch.nn.Module")


@check(since="0.1")
def check_to_moves_everything(case: LossCase) -> None:
    """to() in all its forms, double(), and moving the energy itself move all state, and to() returns the loss."""
    device = torch.get_default_device()
    moves: dict[str, Callable[[Any], Any]] = {
        "double()": lambda m: m.double(),
        "to(dtype)": lambda m: m.to(torch.float64),
        "to(device, dtype)": lambda m: m.to(device, torch.float64),
        "to(tensor)": lambda m: m.to(torch.zeros(1, dtype=torch.float64)),
        "to(device=, dtype=)": lambda m: m.to(device=device, dtype=torch.float64),
        "energy.double()": lambda m: (m.energy.double(), m)[1],
    }
    if case.has_parameters:
        del moves["energy.double()"]  # a second network does not follow the energy alone
    x = case.start(8)
    for name, move in moves.items():
        loss = case.make()
        case.call(loss, x)
        expect(move(loss) is loss, f"{name} does not return the loss")
        result = case.call(loss, x.double())
        parts = result if isinstance(result, tuple) else (result,)
        wrong = [str(t.dtype) for t in parts if t.dtype != torch.float64]
        expect(not wrong, f"after {name} a float64 batch gives {', '.join(wrong)}")
        if case.cd:
            placed = (loss.dtype, loss.device) == (torch.float64, x.device)
            expect(placed, f"after {name} loss.dtype is {loss.dtype} and loss.device {loss.device}")
            chain = loss.chain
            expect(chain is None or chain.dtype == torch.float64, f"after {name} the chains are still {_shown(chain)}")


@check(since="0.1")
def check_the_state_of_a_used_loss_loads_into_a_fresh_one(case: LossCase) -> None:
    """state_dict() of a used loss loads strictly into a fresh one, which then holds the same."""
    used, fresh = case.make(), case.make()
    case.use(used)
    with torch.no_grad():
        for parameter in used.parameters():
            parameter.add_(0.125)
    state = {name: t.clone() for name, t in used.state_dict().items()}
    try:
        fresh.load_state_dict(copy.deepcopy(state), strict=True)
    except RuntimeError as error:
        raise ConformanceError(f"it does not load: {' '.join(str(error).split())}") from error
    found = fresh.state_dict()
    expect(state.keys() == found.keys(), f"the keys {sorted(state.keys() ^ found.keys())} are in one of the two only")
    lost = [name for name, t in state.items() if not torch.equal(t, found[name])]
    expect(not lost, f"{', '.join(lost)} differ after loading")


@check(since="0.1")
def check_the_model_stands_once_in_the_state(case: LossCase) -> None:
    """Each parameter of the energy appears once in state_dict(), under "energy."."""
    loss = case.make()
    case.call(loss, case.start(8))
    own = {parameter.data_ptr() for parameter in loss.energy.parameters()}
    copies = [key for key, tensor in loss.state_dict().items() if tensor.data_ptr() in own]
    wanted = [f"energy.{name}" for name, _ in loss.energy.named_parameters()]
    expect(sorted(copies) == sorted(wanted), f"the parameters appear there as {', '.join(copies)}")


@check(since="0.1")
def check_resumed_is_not_stopped(case: LossCase) -> None:
    """Training that resumes in a fresh loss from a state_dict() is bit for bit training that did not stop."""
    on, fresh = case.make(), case.make()
    _train(case, on, 0, 4)
    fresh.load_state_dict(copy.deepcopy(on.state_dict()))
    a, b = _train(case, on, 4, 8), _train(case, fresh, 4, 8)
    expect(equal(a, b), f"after 4 more steps the resumed run has {difference(a, b)}: state_dict() misses some state")


def _train(case: LossCase, loss: Any, first: int, last: int) -> list[Tensor]:
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05)
    for step in range(first, last):
        loss.generator = generator(step)
        value = case.value(loss, case.start(8, seed=step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return [t.detach().clone() for t in loss.state_dict().values()]


@check(since="0.1")
def check_copies_are_independent(case: LossCase) -> None:
    """A deep copy continues as the original would, and leaves the original alone."""
    loss = case.make()
    case.use(loss)
    before = {name: t.clone() for name, t in loss.state_dict().items()}
    other = copy.deepcopy(loss)
    theirs = case.use(other, seed=4)
    changed = [name for name, t in before.items() if not torch.equal(t, loss.state_dict()[name])]
    expect(not changed, f"using the copy changed {', '.join(changed)} of the original")
    ours = case.use(loss, seed=4)
    expect(equal(ours, theirs), f"the copy continues differently from the original: {difference(ours, theirs)}")


@check(ON_CD_BASE, since="0.1")
def check_the_family_is_that_of_its_base(case: LossCase) -> None:
    """A loss on BaseContrastiveDivergence is of its family; one without the gradient of the energy gap gives the reason."""
    says = f"family is {case.component.family!r}, so that the rules about its gradient do not apply"
    expect(case.cd, f"{says}: derive from BaseLoss, or name this check in expected_failures with the reason")


@check(since="0.1")
def check_the_constructor_takes_the_energy_first(case: LossCase) -> None:
    """The constructor takes the energy and keeps it as `energy`, then the sampler where needed, then k_steps for CD."""
    names = list(inspect.signature(case.component).parameters)
    wanted = ["energy", *(["sampler"] if case.component.needs_sampler else []), *(["k_steps"] if case.cd else [])]
    energy = case.energy(*case.shape)
    expect(case.make(energy).energy is energy, "the attribute energy is not the energy that it was given")
    expect(names[: len(wanted)] == wanted, f"it begins with {', '.join(names[: len(wanted)])}, not {', '.join(wanted)}")


@check(COMPARABLE, ANY_SHAPE, since="0.1")
def check_two_processes_give_the_gradient_of_the_whole_batch(case: LossCase) -> None:
    """In a group of two processes, gradients are those of one process on the whole batch, and negatives differ by rank."""
    x, chains = case.start(16), case.start(16, seed=7)
    loss = case.make(sampler=_fixed(case), **case.chains(16))
    if case.persistent:
        case.fill(loss, chains)
    whole = _gradients(loss, loss, x)
    results = process_group(_one_rank, 2, case, x, chains)
    for rank, (grads, _) in enumerate(results):
        alike = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, grads, strict=True))
        expect(alike, f"the gradients of rank {rank} differ from those of the whole batch by {difference(whole, grads)}")
    if case.cd:
        same = torch.equal(results[0][1], results[1][1])
        what = "hold the same chains" if case.persistent else "draw the same negatives"
        expect(not same, f"both ranks {what}, with generators of different seeds")


def _fixed(case: LossCase) -> Affine:
    """A sampler whose negatives are known: computed from the start, or one fixed point if the start is random."""
    known = case.persistent or (case.cd and case.component.starts_at_data)
    return Affine(0.5 if known else 0.0, 0.25)


def _one_rank(rank: int, case: LossCase, x: Tensor, chains: Tensor) -> tuple[list[Tensor], Tensor]:
    half = slice(8 * rank, 8 * rank + 8)
    loss = case.make(sampler=_fixed(case), **case.chains(16))
    if case.persistent:
        loss.initialize_persistent_chain((16, 4))  # 16 over both ranks
        with torch.no_grad():
            loss.chain.copy_(chains[half])
    # The constant of an energy has no part in some losses of other families.
    grads = _gradients(loss, DistributedDataParallel(loss, find_unused_parameters=not case.cd), x[half])
    if not case.cd:
        return grads, x
    # Chains that persist must differ before the first step already.
    other = case.make(sampler=Identity() if case.persistent else Drift(), **case.chains(16))
    other.generator = generator(100 + rank)
    _, pred_x = other(x[:8])
    return grads, (other.chain if case.persistent else pred_x).clone()


def _gradients(loss: Any, called: Any, x: Tensor) -> list[Tensor]:
    result = called(x)
    (result[0] if isinstance(result, tuple) else result).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in loss.energy.parameters()]

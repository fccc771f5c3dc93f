"""Rules for what a sampler returns and keeps, and for the independence of chains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebmcore.compiling import CannotCompileError, ImpureStepError, trace
from ebmcore.energies import frozen
from ebmcore.samplers import ChainState, run
from ebmcore.testing.applies import ANY_ENERGY, CONTINUOUS, EXACT, RANDOM
from ebmcore.testing.awkward import Holed
from ebmcore.testing.cases import SamplerCase, generator
from ebmcore.testing.checks.stepping import difference, equal
from ebmcore.testing.instruments import HalfPrecisionComparisons, PermutedRandomness
from ebmcore.testing.rules import Condition, check, expect

CACHES = Condition("to samplers whose state is more than positions", lambda case: _state_is_more_than_positions(case))


def _init(case: SamplerCase, sampler: Any, energy: Any, x: Tensor, seed: int = 2) -> ChainState:
    with frozen(energy), torch.no_grad():
        state: ChainState = sampler.init(energy, x, generator=generator(seed))
    return state


def _state_is_more_than_positions(case: SamplerCase) -> bool:
    return set(_init(case, case.make(), case.energy(*case.shape), case.start()).tensors()) != {"x"}


@check(since="0.1")
def check_a_step_returns_a_state_and_information_per_chain(case: SamplerCase) -> None:
    """step() returns a ChainState like the one it got, detached, and a mapping from names to tensors (N,)."""
    sampler, energy, x = case.make(), case.energy(*case.shape), case.start()
    state = _init(case, sampler, energy, x)
    expect(isinstance(state, ChainState), f"init() returns a {type(state).__name__}, not a ChainState")
    expect(torch.equal(state.x, x), "init() does not start at the positions that it was given")
    with frozen(energy), torch.no_grad():
        result = sampler.step(energy, state, generator=generator())
    expect(isinstance(result, tuple) and len(result) == 2, "step() does not return (state, info)")
    after, info = result
    expect(type(after) is type(state), f"step() turns a {type(state).__name__} into a {type(after).__name__}")
    was = {name: (tuple(t.shape), t.dtype) for name, t in state.tensors().items()}
    now = {name: (tuple(t.shape), t.dtype) for name, t in after.tensors().items()}
    expect(was == now, f"step() turns tensors {was} into {now}")
    ragged = [name for name, t in state.tensors().items() if t.shape[:1] != x.shape[:1]]
    expect(not ragged, f"{', '.join(ragged)} of the state has not one row for each chain")
    graph = [name for name, t in after.tensors().items() if t.requires_grad]
    expect(not graph, f"{', '.join(graph)} of the state carries a graph")
    wrong = [name for name, t in info.items() if not isinstance(t, Tensor) or t.shape != x.shape[:1]]
    expect(not wrong, f"{', '.join(wrong)} in info is no tensor with one value for each chain")
    lost = [name for name, t in info.items() if not t.isfinite().all()]
    expect(not lost, f"{', '.join(lost)} in info is not finite")
    beyond = [name for name, t in info.items() if name.endswith("_rate") and ((t < 0) | (t > 1)).any()]
    expect(not beyond, f"{', '.join(beyond)} in info is a rate outside of [0, 1]")


@check(since="0.1")
def check_a_step_is_pure(case: SamplerCase) -> None:
    """step() changes no tensor of the state that it got, and the sampler remembers nothing from one call to the next."""
    sampler, energy = case.make(), case.energy(*case.shape)
    state, other = _init(case, sampler, energy, case.start()), _init(case, sampler, energy, case.start(seed=8))
    before = {name: t.clone() for name, t in state.tensors().items()}

    def step(start: ChainState) -> list[Tensor]:
        with frozen(energy), torch.no_grad():
            return list(sampler.step(energy, start, generator=generator(4))[0].tensors().values())

    first = step(state)
    changed = [name for name, t in state.tensors().items() if not torch.equal(t, before[name])]
    expect(not changed, f"step() changed {', '.join(changed)} of the state that it was given, in place")
    step(other)
    again = step(state)
    expect(equal(first, again), f"the same state and generator later give {difference(first, again)}: a chain is hidden")


@check(since="0.1")
def check_chains_resume_from_their_state(case: SamplerCase) -> None:
    """Chains that resume in a fresh sampler from the tensors of their state are bit for bit those that did not stop."""
    energy = case.energy(*case.shape)
    on, g = case.make(), generator(5)
    state = run(on, energy, _init(case, on, energy, case.start()), 3, generator=g)[0]
    saved = {name: t.clone() for name, t in state.tensors().items()}
    position = g.get_state()
    there = list(run(on, energy, state, 3, generator=g)[0].tensors().values())
    g.set_state(position)
    resumed = run(case.make(), energy, state.with_tensors(saved), 3, generator=g)[0]
    here = list(resumed.tensors().values())
    expect(equal(here, there), f"the resumed chains give {difference(here, there)}: something of them is not in their state")


@check(since="0.1")
def check_chains_do_not_know_each_other(case: SamplerCase) -> None:
    """Permuting the chains, and the random numbers with them, permutes the result."""
    sampler, energy, x = case.make(), case.energy(*case.shape), case.start()
    order = torch.randperm(len(x), generator=generator(6))
    plain = case.use(sampler, x=x, energy=energy)
    with PermutedRandomness(order):
        permuted = case.use(sampler, x=x[order], energy=energy)
    wanted = [t[order] for t in plain]
    alike = all(torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5) for a, b in zip(permuted, wanted, strict=True))
    expect(alike, f"permuting the chains changes them: {difference(permuted, wanted)}")


@check(since="0.1")
def check_refresh_keeps_positions_and_renews_what_was_cached(case: SamplerCase) -> None:
    """refresh() recomputes what follows from the positions, may change what the state names in records, and keeps the rest."""
    sampler, energy, x = case.make(), case.energy(*case.shape), case.start()
    used = run(sampler, energy, _init(case, sampler, energy, x), 2, generator=generator())[0]
    old = _init(case, sampler, energy, used.x, seed=2).tensors()
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.mul_(1.5).add_(0.1)
    new = _init(case, sampler, energy, used.x, seed=2).tensors()
    with frozen(energy), torch.no_grad():
        refreshed = sampler.refresh(energy, used).tensors()
    expect(torch.equal(refreshed["x"], used.x), "refresh() moves the chains")
    for name, value in used.tensors().items():
        follows = torch.allclose(old[name].double(), value.double(), atol=1e-4)  # from the positions; replicas do not
        depends = not torch.equal(old[name], new[name])
        if depends and not follows:
            continue
        if name in used.records:
            continue
        wanted = new[name] if depends else value
        off = float((refreshed[name].double() - wanted.double()).abs().max())
        what = "is still what the old parameters gave" if depends else "belongs to the chain and was lost"
        expect(off <= 1e-5, f"after refresh() {name} {what}: off by {off:.3g}")


@check(since="0.1")
def check_a_memory_is_declared(case: SamplerCase) -> None:
    """A chain whose state is more than its position and what follows from it, such as replicas or a momentum, has_memory."""
    sampler, energy = case.make(), case.energy(*case.shape)
    used = run(sampler, energy, _init(case, sampler, energy, case.start()), 3, generator=generator(3))[0]
    afresh = _init(case, sampler, energy, used.x).tensors()
    kept = [
        name
        for name, t in used.tensors().items()
        if not torch.allclose(t.double(), afresh[name].double(), atol=1e-4, equal_nan=True)
    ]
    if case.declares("has_memory"):
        expect(
            bool(kept), "it declares has_memory, but three steps leave nothing that init() would not give at that position"
        )
    else:
        expect(not kept, f"init() does not give {', '.join(kept)} of a used state: declare has_memory = True")


@check(CACHES, since="0.1")
def check_what_is_cached_follows_the_chain(case: SamplerCase) -> None:
    """After each step, refresh() under the same parameters changes nothing: the cache belongs to the current position."""
    sampler, energy = case.make(), case.energy(*case.shape)
    state = run(sampler, energy, _init(case, sampler, energy, case.start()), 5, generator=generator())[0]
    with frozen(energy), torch.no_grad():
        refreshed = sampler.refresh(energy, state)
    for name, t in state.tensors().items():
        off = float((t.double() - refreshed.tensors()[name].double()).abs().max())
        expect(off <= 1e-4, f"after 5 steps {name} is off what refresh() gives by {off:.3g}: the cache is stale")


@check(CONTINUOUS, ANY_ENERGY, RANDOM, since="0.1")
def check_a_chain_without_energy_is_given_up_and_the_others_go_on(case: SamplerCase) -> None:
    """A chain whose energy is NaN is not finite afterwards and is never replaced; the others move as if it were not there."""
    sampler, x = case.make(), 0.1 * case.start()
    energy = Holed(case.energy(*case.shape), edge=50.0)
    lost = x.clone()
    lost[:5, 0] = 60.0
    state = run(sampler, energy, _init(case, sampler, energy, lost), 2, generator=generator())[0]
    finite = state.x.isfinite().all(1)
    expect(
        not finite[:5].any(),
        f"{int(finite[:5].sum())} of 5 chains without an energy are still at finite positions, where it goes unnoticed: keep the "
        "energy in the state, or make the position NaN",
    )
    beside = run(sampler, energy, _init(case, sampler, energy, x), 2, generator=generator())[0]
    expect(torch.equal(state.x[5:], beside.x[5:]), "chains beside one without an energy move differently than without it")


@check(CONTINUOUS, ANY_ENERGY, EXACT, RANDOM, since="0.1")
def check_a_proposal_without_energy_is_rejected(case: SamplerCase) -> None:
    """An exact sampler never moves to where the energy is NaN."""
    sampler, energy = case.make(), Holed(case.energy(*case.shape), edge=0.5)
    x = case.start(500)
    x[:, 0] = -x[:, 0].abs()
    state = run(sampler, energy, _init(case, sampler, energy, x), 20, generator=generator())[0]
    inside = int(energy.inside(state.x).sum())
    expect(inside == 0, f"{inside} of 500 chains moved to where the energy is NaN")
    expect(bool(state.x.isfinite().all()), "rejecting such a proposal made a chain NaN or infinite")


@check(CONTINUOUS, EXACT, RANDOM, since="0.1")
def check_acceptance_is_not_in_half_precision(case: SamplerCase) -> None:
    """An exact sampler compares no numbers in bfloat16, for a model of any dtype: acceptance needs the digits."""
    for dtype in (torch.float32, torch.bfloat16):
        sampler, energy, x = case.make(), case.energy(*case.shape).to(dtype), case.start().to(dtype)
        state = _init(case, sampler, energy, x)
        with HalfPrecisionComparisons() as watching:
            run(sampler, energy, state, 2, generator=generator())
        found = ", ".join(dict.fromkeys(watching.found))
        expect(not watching.found, f"with a model in {dtype} numbers in half precision are compared by {found}")


@check(since="0.1")
def check_compiled_steps_are_the_steps(case: SamplerCase) -> None:
    """A step is a pure function of tensors: traced into a graph, as loss.compile() does, three give what they give without."""
    sampler, energy = case.make(), case.energy(*case.shape)
    state = _init(case, sampler, energy, case.start())
    eager, info = run(sampler, energy, state, 3, generator=generator())
    try:
        with frozen(energy), torch.no_grad():
            graph = trace(sampler, energy, state, 3)
            compiled, totals = graph(sampler, energy, state, 3, generator=generator())
    except ImpureStepError as error:
        raise AssertionError(f"the step is no pure function of tensors: {error}") from error
    except CannotCompileError:  # such as torch.multinomial's draws: pure, but made step by step
        return
    means = {name: total / 3 for name, total in totals.items()}
    a, b = ([*moved.tensors().values(), *more.values()] for moved, more in ((eager, info), (compiled, means)))
    alike = all(torch.allclose(s.double(), t.double(), rtol=1e-5, atol=1e-6) for s, t in zip(a, b, strict=True))
    expect(alike, f"compiled, the step gives {difference(a, b)}")

"""Rules for chains: each continues, none is lost, duplicated, mixed up or kept when it is NaN or infinite."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from ebmcore.distributions import Bernoulli
from ebmcore.errors import DivergenceError
from ebmcore.testing.applies import ANY_SHAPE, CONDITIONS, IS_CD, PERSISTENT, takes
from ebmcore.testing.awkward import EnergyError, Labelled, Raising, Watched
from ebmcore.testing.cases import N_CHAINS, LossCase, generator
from ebmcore.testing.checks.gradients import apart, gradients_of
from ebmcore.testing.rules import ConformanceError, check, expect
from ebmcore.testing.samplers import Affine, Cached, Drift, Identity, Poison
from ebmcore.testing.statistics import SIGMAS, N
from ebmcore.testing.targets import EnumerableRBM

STORE = 100


def numbered(case: LossCase, n: int) -> Tensor:
    """``n`` chains that can be told apart: chain ``i`` is at ``(i, i, ...)``."""
    return torch.arange(float(n)).view(-1, *(1,) * len(case.shape)).repeat(1, *case.shape)


def draw(case: LossCase, loss: Any, x: Tensor) -> Tensor:
    """The negatives of one call, by forward(): a variant need not use the base's draw_negatives()."""
    with torch.no_grad():
        pred_x: Tensor = case.call(loss, x)[1]
    return pred_x


def _numbers(x: Tensor) -> list[int]:
    return [int(v) for v in x.flatten(1)[:, 0]]


@check(PERSISTENT, since="0.1")
def check_a_chain_goes_on_where_it_stopped(case: LossCase) -> None:
    """Each call moves a drawn chain by k_steps transitions from where it was, and no other chain."""
    n = 16
    loss = case.make(sampler=Affine(shift=1.0), k_steps=3)
    start = 1000.0 * numbered(case, n)
    case.fill(loss, start)
    for call in range(1, 4):
        _, pred_x = case.call(loss, case.start(n))
        wanted = start + 3.0 * call
        found = pred_x[pred_x.flatten(1)[:, 0].argsort()]
        expect(torch.equal(found, wanted), f"after {call} calls of 3 transitions chains moved {(found - start)[0, 0]:.4g}")
        chain = loss.chain[loss.chain.flatten(1)[:, 0].argsort()]
        expect(torch.equal(chain, wanted), "the store does not hold what was returned")


@check(PERSISTENT, since="0.1")
def check_no_chain_is_lost_or_doubled(case: LossCase) -> None:
    """Under a sampler that stays where it is, 100 chains drawn 64 at a time are the same 100 chains after 200 calls."""
    loss = case.make(sampler=Identity(), n_chains=STORE)
    case.fill(loss, numbered(case, STORE))
    for call in range(200):
        draw(case, loss, case.start(64))
        left = len(set(_numbers(loss.chain)))
        expect(
            left == STORE, f"{left} of {STORE} chains are left after {call + 1} calls: write a chain back to its own slot"
        )


@check(PERSISTENT, since="0.1")
def check_no_chain_is_drawn_twice(case: LossCase) -> None:
    """The chains of one call are different ones; all of them, if the batch is larger than their number."""
    loss = case.make(sampler=Identity(), n_chains=STORE)
    case.fill(loss, numbered(case, STORE))
    for n in (64, 64, STORE, 150):
        drawn = _numbers(draw(case, loss, case.start(n)))
        wanted = min(n, STORE)
        expect(len(drawn) == wanted, f"a batch of {n} drew {len(drawn)} of {STORE} chains, not {wanted}")
        expect(
            len(set(drawn)) == wanted, f"{len(drawn) - len(set(drawn))} of {len(drawn)} chains were drawn twice in one call"
        )


@check(PERSISTENT, since="0.1")
def check_every_chain_is_drawn_equally_often(case: LossCase) -> None:
    """Over 400 calls with 64 of 100 chains, each chain is drawn as often as expected."""
    loss = case.make(sampler=Identity(), n_chains=STORE)
    case.fill(loss, numbered(case, STORE))
    calls = 400
    counts = torch.zeros(STORE)
    for _ in range(calls):
        counts[_numbers(draw(case, loss, case.start(64)))] += 1
    share = 0.64
    sigmas = (counts - calls * share).abs() / (calls * share * (1 - share)) ** 0.5
    worst = int(sigmas.argmax())
    off = float(sigmas.max())
    bound = SIGMAS + 0.5  # the largest of a hundred
    expect(
        off < bound, f"chain {worst} was drawn in {int(counts[worst])} of {calls} calls, {off:.1f} standard deviations off"
    )


@check(PERSISTENT, since="0.1")
def check_a_smaller_last_batch_keeps_the_chains(case: LossCase) -> None:
    """Two epochs of 100 rows in batches of 64 neither destroy, resize nor restart the chains."""
    loss = case.make(sampler=Identity(), n_chains=STORE)
    case.fill(loss, numbered(case, STORE))
    live = loss.chain
    for _ in range(2):
        for batch in case.start(100).split(64):
            draw(case, loss, batch)
    expect(loss.chain.shape == live.shape, f"{tuple(loss.chain.shape)} chains are left of {tuple(live.shape)}")
    left = len(set(_numbers(loss.chain)) & set(range(STORE)))
    expect(left == STORE, f"{STORE - left} of {STORE} chains were restarted when the batch size changed")


@check(PERSISTENT, since="0.1")
def check_chains_are_allocated_as_the_contract_says(case: LossCase) -> None:
    """chain is None until first used; initialize_persistent_chain returns the live tensor, and later the same one."""
    loss = case.make(case.energy(*case.shape).double())
    expect(loss.chain is None, "chain is not None before the first use")
    chain = loss.initialize_persistent_chain((N_CHAINS, *case.shape))
    right = tuple(chain.shape) == (N_CHAINS, *case.shape) and chain.dtype == torch.float64 and chain.device == loss.device
    expect(right, f"asked for {(N_CHAINS, *case.shape)} in float64, got {tuple(chain.shape)} in {chain.dtype}")
    alike = N_CHAINS - len(chain.unique(dim=0))
    expect(not alike, f"{alike} of {N_CHAINS} new chains are where another one is")
    same = loss.initialize_persistent_chain([N_CHAINS, *case.shape]) is chain and loss.chain is chain
    expect(same, "the same shape again, as a list, does not return the same live tensor")
    case.call(loss, case.start(8).double())
    expect(loss.chain is chain, "the first call replaces the chains that were there")
    expect(
        tuple(loss.initialize_persistent_chain((5, *case.shape)).shape) == (5, *case.shape),
        "another shape starts no new chains",
    )


@check(PERSISTENT, ANY_SHAPE, since="0.1")
def check_chains_start_in_the_state_space_of_the_energy(case: LossCase) -> None:
    """Chains of an energy with an initial distribution of its own (Bernoulli, on binary data) start in its state space."""

    class Binary(EnumerableRBM):
        def initial_distribution(self, shape: torch.Size) -> Bernoulli:
            return Bernoulli(torch.zeros(shape))

    loss = case.make(Binary((4,), 3), Identity())
    x = (case.start(8) > 0).float()
    strange = sorted(set(draw(case, loss, x).unique().tolist()) - {0.0, 1.0})
    expect(not strange, f"chains of binary units start at {strange[:3]}: ask the energy for its initial distribution")


@check(PERSISTENT, takes("restart_prob"), since="0.1")
def check_a_restart_is_a_fresh_sample_of_the_initial_distribution(case: LossCase) -> None:
    """With restart_prob=1 the negatives have mean and variance of the initial distribution, wherever the chains were before."""
    loss = case.make(sampler=Identity(), n_chains=N, restart_prob=1.0)
    fresh = loss.initial_distribution(case.shape).sample(N, generator=generator(3))
    case.fill(loss, torch.full((N, *case.shape), 7.0))
    pred_x = draw(case, loss, case.start(N))
    for what, a, b in (("mean", pred_x, fresh), ("mean square", pred_x.square(), fresh.square())):
        error = ((a.double().var(0) + b.double().var(0)) / N).sqrt()
        off = float(((a.double().mean(0) - b.double().mean(0)).abs() / error.clamp(min=1e-9)).max())
        expect(off < SIGMAS, f"the {what} of restarted chains is {off:.1f} standard errors off the initial distribution's")


@check(PERSISTENT, takes("restart_prob"), since="0.1")
def check_chains_restart_as_often_as_asked(case: LossCase) -> None:
    """restart_prob=0.3 restarts 30 % of the drawn chains and leaves the others where they are; 0 restarts none."""
    for probability in (0.3, 0.0):
        loss = case.make(sampler=Identity(), n_chains=N, restart_prob=probability)
        case.fill(loss, 100 + numbered(case, N))
        pred_x = draw(case, loss, case.start(N))
        restarted = pred_x.flatten(1)[:, 0] < 100 - 10
        found = float(restarted.double().mean())
        error = (probability * (1 - probability) / N) ** 0.5
        expect(abs(found - probability) <= SIGMAS * error, f"restart_prob={probability} restarted {found:.2%} of the chains")
        kept = pred_x.flatten(1)[~restarted, 0]
        expect(torch.equal(kept, kept.round()), "a chain that was not restarted has moved")


@check(PERSISTENT, since="0.1")
def check_ids_and_ages_follow_the_chains(case: LossCase) -> None:
    """Each chain has an id that never changes, and an age: how often it was written back since it was started."""
    loss = case.make(sampler=Identity(), n_chains=STORE)
    case.fill(loss, numbered(case, STORE))
    before = dict(zip(loss.chains.ids.tolist(), _numbers(loss.chain), strict=True))
    expect(len(before) == STORE, f"{STORE} chains have {len(before)} ids")
    calls = 5
    for _ in range(calls):
        draw(case, loss, case.start(64))
    after = dict(zip(loss.chains.ids.tolist(), _numbers(loss.chain), strict=True))
    mixed = sum(before[i] != number for i, number in after.items() if i in before)
    expect(before.keys() == after.keys() and not mixed, f"{mixed} of {STORE} ids changed their chain")
    ages = int(loss.chains.ages.sum())
    expect(ages == 64 * calls, f"after {calls} calls with 64 chains the ages sum to {ages}, not {64 * calls}")
    if case.accepts("restart_prob"):
        loss = case.make(sampler=Identity(), restart_prob=1.0)
        for _ in range(3):
            draw(case, loss, case.start(N_CHAINS))
        oldest = int(loss.chains.ages.max())
        expect(oldest == 1, f"chains that restart in each call are up to {oldest} calls old, not 1")


@check(PERSISTENT, CONDITIONS, since="0.1")
def check_labels_travel_with_their_chain(case: LossCase) -> None:
    """A chain is scored under the label that it was started with, by position or keyword, not under the batch's labels."""
    for by_keyword in (False, True):
        _check_labels(case, by_keyword)


def _check_labels(case: LossCase, by_keyword: bool) -> None:
    seen: dict[int, set[int]] = {}

    def watch(x: Tensor, label: Tensor | None = None) -> None:
        if label is None:
            raise ConformanceError("the energy was called without the label: hand on *args and **kwargs")
        for number, y in zip(_numbers(x), label.tolist(), strict=True):
            seen.setdefault(number, set()).add(y)

    def call(loss: Any, x: Tensor, labels: Tensor) -> None:
        loss(x, label=labels) if by_keyword else loss(x, labels)

    energy, data = Watched(Labelled(), watch), -1 - case.start(STORE).abs()  # chains are numbered from 0, the data lie below
    loss = case.make(energy, Identity(), n_chains=STORE)
    call(loss, data, torch.arange(STORE) % 8)
    with torch.no_grad():
        loss.chain.copy_(numbered(case, STORE))
    seen.clear()
    for label in range(6):
        call(loss, data[:64], torch.full((64,), label))
    seen = {number: labels for number, labels in seen.items() if number >= 0}
    expect(len(seen) == STORE, f"{len(seen)} of {STORE} chains were scored")
    mixed = {number: labels for number, labels in seen.items() if len(labels) > 1}
    example = next(iter(mixed.items()), None)
    expect(not mixed, f"{len(mixed)} chains changed their label, e.g. (chain, labels) {example}")
    counts = torch.bincount(torch.tensor([labels.pop() for labels in seen.values()]), minlength=8).tolist()
    expect(sorted(counts) == [12] * 4 + [13] * 4, f"the labels of 100 chains are {counts}, not 12 or 13 each")

    if case.accepts("restart_prob"):
        loss = case.make(energy, Identity(), restart_prob=1.0)
        call(loss, data[:N_CHAINS], torch.zeros(N_CHAINS, dtype=torch.int64))
        seen = {}
        call(loss, data[:N_CHAINS], torch.full((N_CHAINS,), 5))
        found = set().union(*seen.values())
        expect(found == {5}, f"chains that restart beside examples of label 5 are scored under {sorted(found)}")


@check(PERSISTENT, since="0.1")
def check_the_whole_state_of_the_sampler_persists(case: LossCase) -> None:
    """State of a chain (here a counter) stays with it; values cached under old parameters are refreshed."""
    sampler = Cached()
    loss = case.make(sampler=sampler, k_steps=2)
    for call in range(3):
        draw(case, loss, case.start(N_CHAINS))
        steps = sampler.steps[-2].unique().tolist()
        expect(steps == [2.0 * call], f"in call {call + 1} the chains' counters stand at {steps}, not [{2.0 * call}]")
        with torch.no_grad():
            for parameter in loss.energy.parameters():
                parameter.add_(0.5)
    stale = max(sampler.stale)
    expect(stale < 1e-4, f"a cached energy was {stale:.3g} off after the parameters changed: call sampler.refresh")


@check(PERSISTENT, since="0.1")
def check_chains_keep_their_digits(case: LossCase) -> None:
    """Fifty draws cause no rounding: chains are stored in the dtype of the data."""
    loss = case.make(sampler=Identity())
    rows = 0.05 + 0.9 * numbered(case, N_CHAINS) / (N_CHAINS - 1)
    case.fill(loss, rows)
    for _ in range(50):
        draw(case, loss, case.start(N_CHAINS))
    found = loss.chain[loss.chain.flatten(1)[:, 0].argsort()]
    off = float((found.double() - rows.double()).abs().max()) if found.shape == rows.shape else float("nan")
    expect(off == 0, f"after 50 draws chains are off by {off:.3g}")


@check(PERSISTENT, since="0.1")
def check_no_chain_is_lost_when_the_energy_raises(case: LossCase) -> None:
    """An energy that raises while sampling leaves the chains as they were."""
    loss = case.make(Watched(case.energy(*case.shape), Raising(after=10_000)), Drift())
    case.call(loss, case.start(8))
    before = {name: t.clone() for name, t in loss.state_dict().items()}
    loss.energy.watch.left = 0
    with contextlib.suppress(EnergyError):
        case.call(loss, case.start(8))
    changed = [name for name, t in before.items() if not torch.equal(t, loss.state_dict()[name])]
    expect(not changed, f"after the energy raised, {', '.join(changed)} changed")


@check(IS_CD, since="0.1")
def check_a_lost_chain_has_no_weight(case: LossCase) -> None:
    """A chain that is not finite is counted, has no influence on loss and gradient, and is not kept."""
    lost = 3
    energy = case.energy(*case.shape).double()
    loss = case.make(energy, Poison(lost))
    x = case.start(N_CHAINS).double()
    value, pred_x = case.call(loss, x, targets=False)
    expect(bool(value.isfinite()), f"with {lost} of {len(pred_x)} chains lost the loss is {value.item()}")
    found = gradients_of(value, energy)
    expect(all(bool(g.isfinite().all()) for g in found), "with some chains lost the gradient is not finite")
    finite = pred_x[pred_x.isfinite().all(1)]
    expect(
        len(finite) == len(pred_x) - lost,
        f"{len(pred_x) - len(finite)} of {lost} lost chains are NaN in pred_x: replace none",
    )
    wanted = gradients_of(energy(x).mean() - energy(finite).mean(), energy)
    off = apart(found, wanted)
    expect(off < 1e-10, f"the lost chains move the gradient by {off:.3g}")
    counted = loss.metrics.get("quarantined")
    expect(counted is not None and int(counted) == lost, f'metrics["quarantined"] is {counted}, not {lost}')
    if case.persistent:
        expect(bool(loss.chain.isfinite().all()), "a chain that is not finite stays in the store")
        young = int((loss.chains.ages == 0).sum())
        expect(
            young == lost,
            f"{young} chains have the age of a new one, not the {lost} that were started in place of lost ones",
        )


@check(IS_CD, since="0.1")
def check_losing_every_chain_is_an_error(case: LossCase) -> None:
    """When no chain is finite, the loss raises an error instead of returning a number."""
    loss: Any = case.make(sampler=Poison(1000))
    try:
        value, _ = case.call(loss, case.start(8))
    except DivergenceError:
        return
    except RuntimeError as error:
        expect("finite" in str(error), f"the error does not say that no chain is finite: {error}")
        return
    expect(False, f"every chain was lost and the loss is {value.item()}")

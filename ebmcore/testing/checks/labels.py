"""Rules for labels: conditions of the energy stay with their example, targets never reach the energy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebmcore.testing.applies import CONDITIONS, TARGETS
from ebmcore.testing.awkward import Labelled, Watched
from ebmcore.testing.cases import LossCase, generator
from ebmcore.testing.rules import ConformanceError, check, expect
from ebmcore.testing.samplers import Identity

N = 8
APART = 1000.0  # between two examples; what a loss makes of one lies nearer to it than to any other
NEAR = 50.0


@check(CONDITIONS, since="0.1")
def check_each_example_is_scored_under_its_own_label(case: LossCase) -> None:
    """Data, and points derived from them (noise, negatives), are scored under their example's label, by position or keyword."""
    x, labels = APART * (1 + torch.arange(float(N)))[:, None].repeat(1, 4), (3 * torch.arange(N) + 1) % N
    for by_keyword in (False, True):
        seen: set[tuple[int, int]] = set()

        def watch(x: Tensor, label: Tensor | None = None, seen: set[tuple[int, int]] = seen) -> None:
            if label is None:
                raise ConformanceError("the energy was called without the label: hand on *args and **kwargs")
            if len(label) != len(x):
                raise ConformanceError(f"the energy was called with {len(x)} examples and {len(label)} labels")
            place = (x[:, 0] / APART).round()
            near = ((x.flatten(1) - APART * place[:, None]).abs() < NEAR).all(1) & (place >= 1) & (place <= N)
            seen |= set(zip((place[near].long() - 1).tolist(), label[near].tolist(), strict=True))

        loss = case.make(Watched(Labelled(), watch), Identity()).double()
        loss(x.double(), label=labels) if by_keyword else loss(x.double(), labels)
        if case.interpolates:  # its points are near no example
            continue
        mixed = sorted({example for example, label in seen if label != int(labels[example])})
        expect(not mixed, f"{len(mixed)} of {N} examples were scored under another label than their own")
        unseen = N - len({example for example, _ in seen})
        expect(not unseen, f"{unseen} of {N} examples were not scored")


@check(TARGETS, since="0.1")
def check_targets_never_reach_the_energy(case: LossCase) -> None:
    """loss(x, targets) works, the energy and the chains receive no target, and other targets give another loss."""

    def watch(x: Tensor, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            raise ConformanceError("the energy was called with the targets: they are not its conditions")

    x = case.start(N)
    targets = case.arguments(N) or (torch.arange(N) % 2,)
    loss = case.make(Watched(case.energy(*case.shape), watch))
    values = []
    for given in (targets, targets, tuple(t.roll(1, 0) for t in targets)):
        fresh = case.make(Watched(case.energy(*case.shape), watch))
        fresh.load_state_dict(loss.state_dict())
        fresh.generator = generator(3)
        result = fresh(x, *given)
        values.append(float((result[0] if isinstance(result, tuple) else result).detach()))
    expect(values[0] == values[1], "the same targets give two losses")
    expect(values[0] != values[2], "other targets give the same loss: declare labels = None")
    held = list(fresh.chains.conditions) if case.on_cd_base else []
    expect(not held, "the chains hold the targets: call draw_negatives(x) without them")

"""Rules for data sets."""

from __future__ import annotations

import torch

from ebmcore.testing.cases import DatasetCase
from ebmcore.testing.instruments import global_random_state
from ebmcore.testing.rules import check, expect

SPACES = ("continuous", "binary", "categorical")


@check(since="0.1")
def check_it_holds_examples_of_its_shape(case: DatasetCase) -> None:
    """train and test are finite floating-point tensors (N, *shape) with at least one row."""
    data = case.make()
    for name in ("train", "test"):
        x = getattr(data, name)
        shape = tuple(x.shape[1:])
        expect(len(x) > 0 and shape == tuple(data.shape), f"{name} is {tuple(x.shape)}, but shape says {tuple(data.shape)}")
        expect(x.is_floating_point() and bool(x.isfinite().all()), f"{name} holds {x.dtype} or numbers that are not finite")


@check(since="0.1")
def check_it_lies_in_its_state_space(case: DatasetCase) -> None:
    """state_space is "continuous", "binary" or "categorical", and the examples lie in it."""
    data = case.make()
    expect(data.state_space in SPACES, f"state_space is {data.state_space!r}, not one of {', '.join(SPACES)}")
    values = torch.cat([data.train.flatten(), data.test.flatten()]).unique()
    if data.state_space != "continuous":
        strange = sorted(set(values.tolist()) - {0.0, 1.0})[:3]
        expect(not strange, f"{data.state_space} examples hold {strange}: units are 0 or 1, categorical ones one-hot")


@check(since="0.1")
def check_it_is_the_same_each_time(case: DatasetCase) -> None:
    """Two instances with the same options hold the same data, and making them draws from no global generator."""
    before = global_random_state()
    a, b = (case.component(**case.options) for _ in range(2))  # with no seed of the kit before them
    same = torch.equal(a.train, b.train) and torch.equal(a.test, b.test)
    expect(same, "two instances differ: fix a seed among the options")
    touched = [name for name, state in global_random_state().items() if before.get(name, state) != state]
    expect(not touched, f"it drew from the global generator of {', '.join(touched)}")

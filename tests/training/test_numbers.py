"""Bounds of numeric options."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

from ebmcore.errors import DivergenceError, UsageError
from ebmcore.training import fit
from ebmcore.training.numbers import BOUNDS, LARGEST, LARGEST_WHOLE, check_magnitudes, check_numbers, refusing_sizes

OPTIONAL = {"devices", "num_nodes", "epochs", "steps", "measure_every", "clip_grad", "ema_decay"}
NO_NUMBERS = [
    "text",
    "1e3",
    True,
    [],
    {},
    [1],
    math.nan,
    math.inf,
    -math.inf,
    1e26,
    10**30,
    2**63,
    pytest.param(10**5000, id="digits"),
    -(2**64),
]
REAL = {"lr", "clip_grad", "ema_decay"}


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("name", BOUNDS)
def test_senseless_number_is_refused(name, value):
    with pytest.raises(UsageError, match=f"^{name} must be .*, got ") as caught:
        check_numbers({name: value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_none_is_for_optional_numbers(name):
    if name in OPTIONAL:
        check_numbers({name: None})
    else:
        with pytest.raises(UsageError, match=f"{name} must be"):
            check_numbers({name: None})


@pytest.mark.parametrize("name", sorted(BOUNDS.keys() - REAL))
def test_fraction_is_no_whole_number(name):
    with pytest.raises(UsageError, match=f"{name} must be a whole number"):
        check_numbers({name: 2.0})


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("epochs", [1, np.int64(3)], [0, -1]),
        ("steps", [1, 10**9], [0, -1]),
        ("batch_size", [1, 10**6], [0, -1]),
        ("accumulate", [1, 2**20], [0, 2**20 + 1]),
        ("log_every", [1], [0]),
        ("checkpoint_every", [1], [0]),
        ("measure_every", [1], [0]),
        ("devices", [1, 128], [0, -1, 129]),
        ("seed", [-1, 0, 2**63 - 1, -(2**63)], [-(2**63) - 1]),
        ("lr", [1e-12, 1, np.float32(0.5), 1e6], [0, -0.5, 1.1e6]),
        ("clip_grad", [1e-3, 1e12], [0.0, -1, 2e12]),
        ("ema_decay", [0, 0.999], [1, 1.5, -0.1]),
    ],
)
def test_range_has_its_ends(name, accepted, refused):
    for value in accepted:
        check_numbers({name: value})
    for value in refused:
        with pytest.raises(UsageError, match=f"{name} must be (at least|above)"):
            check_numbers({name: value})


def test_every_number_of_fit_is_bounded():
    """Each option of fit that is annotated as a number, with its default, is in the table."""
    parameters = inspect.signature(fit).parameters.values()
    assert {p.name for p in parameters if p.annotation.split(" ")[0] in ("int", "float")} == BOUNDS.keys() | {
        "keep"
    }  # which may be a text
    defaults = {p.name: p.default for p in parameters if p.name in BOUNDS}
    check_numbers(defaults | {"batch_size": 64})  # whose default depends on the data


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, 2 * LARGEST, 1e26, LARGEST_WHOLE + 1, -(2**70), pytest.param(10**5000, id="digits")],
)
def test_senseless_magnitude_is_refused(value):
    for options in ({"a": value}, {"a": [1, value]}, {"a": [[value]]}):
        with pytest.raises(UsageError, match=r"^--x\.a must be a number from") as caught:
            check_magnitudes(options, name="--x")
        assert len(str(caught.value)) < 200


def test_usual_magnitudes_pass():
    check_magnitudes({"a": [1, -LARGEST, LARGEST_WHOLE, True, None, "inf"], "b": {"c": 0.0}})


def test_infinite_default_passes():
    """A constructor may mean "no bound" by infinity; another option may not take it."""
    check_magnitudes({"a": {"limit": math.inf}}, {"a": {"limit": math.inf}})
    with pytest.raises(UsageError):
        check_magnitudes({"a": {"limit": -math.inf}}, {"a": {"limit": math.inf}})


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(10**15),
        lambda: torch.zeros(-1),
        lambda: torch.zeros(2**40, 2**40),
        lambda: np.zeros(10**15),
        lambda: float(10**400),
    ],
)
def test_absurd_size_is_one_line(make):
    with pytest.raises(UsageError, match="^a size is too large, or below 0: ") as caught, refusing_sizes():
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), DivergenceError("overflow"), KeyError("alloc")])
def test_other_trouble_is_left_alone(error):
    with pytest.raises(type(error)) as caught, refusing_sizes():
        raise error
    assert caught.value is error

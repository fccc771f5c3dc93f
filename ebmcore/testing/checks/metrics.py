"""Rules for metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ebmcore.errors import EbmcoreError
from ebmcore.testing.cases import MetricCase, generator
from ebmcore.testing.instruments import Trace, global_random_state
from ebmcore.testing.rules import Condition, check, expect
from ebmcore.testing.samplers import ExactGaussian, Identity, SiteGibbs
from ebmcore.testing.targets import Boltzmann, Potts, Quadratic, binary_states

TOLERANCE = 0.05  # nats, at the metric's default effort on four units


def _target(case: MetricCase) -> tuple[Any, Any, float]:
    """An energy, data of it, and the exact mean log-likelihood of these."""
    if getattr(case.component, "state_space", None) == "continuous":
        x = torch.randn(500, 2, generator=generator(1))
        exact = -0.5 * float(x.double().square().sum(1).mean()) - math.log(2 * math.pi)
        return Quadratic((2,)), SimpleNamespace(train=x, test=x, shape=(2,), state_space="continuous"), exact
    energy = Boltzmann(4)
    states = energy.states()
    data = SimpleNamespace(train=states, test=states, shape=(4,), state_space="binary")
    return energy, data, float(energy.probabilities().log().mean())


def _measure(case: MetricCase, energy: Any = None, seed: int = 0) -> dict[str, Any]:
    target, data, _ = _target(case)
    sampler = ExactGaussian() if data.state_space == "continuous" else SiteGibbs()
    result: dict[str, Any] = case.make()(energy or target, data, sampler=sampler, generator=generator(seed))
    return result


LIKELIHOOD = Condition("to metrics that report a log_likelihood", lambda case: "log_likelihood" in _measure(case))


@check(since="0.1")
def check_it_returns_named_numbers(case: MetricCase) -> None:
    """A metric returns a dictionary: its values are strings, or numbers that are not NaN or infinite."""
    result = _measure(case)
    wrong = [
        n for n, v in result.items() if not isinstance(v, str) and not (isinstance(v, int | float) and math.isfinite(v))
    ]
    expect(bool(result) and not wrong, f"{', '.join(wrong) or 'nothing'} in the result is a finite number")


@check(LIKELIHOOD, since="0.1")
def check_the_log_likelihood_is_the_exact_one(case: MetricCase) -> None:
    """On a Boltzmann machine of four units, or a Gaussian in the plane, the log-likelihood is the exact one, to 0.05 nats."""
    exact = _target(case)[2]
    found = _measure(case)["log_likelihood"]
    expect(abs(found - exact) < TOLERANCE, f"it reports {found:.4f} nats, the exact value is {exact:.4f}")


@check(since="0.1")
def check_it_refuses_before_it_measures(case: MetricCase) -> None:
    """What the metric cannot measure is refused by its check(), with an error of ebmcore, and what it can is not."""
    for what, energy, data, sampler in _occasions():
        metric = case.make()
        measuring = _error(metric, energy, data, sampler=sampler, generator=generator(0))
        refusing = _error(getattr(metric, "check", _refuse_nothing), energy, data, sampler=sampler)
        expect(
            refusing is None or isinstance(refusing, EbmcoreError),
            f"on {what} its check() raises {refusing!r}: raise a UsageError with advice",
        )
        expect(
            measuring is None or refusing is not None,
            f"on {what} it raises {measuring!r}, but only when it measures: hours of training are lost. Raise in "
            "check(energy, data, *, sampler), which is called before training",
        )
        expect(refusing is None or measuring is not None, f"its check() refuses {what}, which it can measure: {refusing}")


def _occasions() -> list[tuple[str, Any, Any, Any]]:
    """Energies, data and samplers that a metric may or may not be able to measure, in words and as they are."""
    machine, potts, plane, many = Boltzmann(4), Potts(), Quadratic((2,)), Quadratic((26,))
    normal = torch.randn(20, 3, generator=generator(1))
    bits = binary_states(4, normal).repeat(1, 7)[:, :26]
    return [
        ("4 binary units", machine, _data(machine.states(), "binary"), SiteGibbs()),
        ("4 binary units without a sampler", machine, _data(machine.states(), "binary"), None),
        ("4 binary units without test examples", machine, _data(machine.states(), "binary", n_test=0), SiteGibbs()),
        ("26 binary units, too many to enumerate,", many, _data(bits, "binary"), SiteGibbs()),
        ("categorical units without a sampler", potts, _data(potts.states(), "categorical"), None),
        ("two real variables", plane, _data(normal[:, :2], "continuous"), Identity()),
        ("two real variables with a sampler of binary units", plane, _data(normal[:, :2], "continuous"), SiteGibbs()),
        ("three real variables", Quadratic((3,)), _data(normal, "continuous"), Identity()),
    ]


def _data(x: Tensor, state_space: str, n_test: int | None = None) -> Any:
    return SimpleNamespace(train=x, test=x[:n_test], shape=tuple(x.shape[1:]), state_space=state_space)


def _error(function: Callable[..., object], *args: Any, **kwargs: Any) -> Exception | None:
    """What a function raises; its warnings are about the quality of a result, which does not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*args, **kwargs)
        except Exception as error:
            return error
    return None


def _refuse_nothing(energy: Any, data: Any, *, sampler: Any = None) -> None:
    """What a metric without check() refuses."""


@check(since="0.1")
def check_measuring_leaves_no_trace(case: MetricCase) -> None:
    """The energy is as it was, the global generators are untouched, and the same generator gives the same result."""
    energy = _target(case)[0].train()
    trace, random = Trace.of(energy), global_random_state()
    a, b = _measure(case, energy), _measure(case, energy)
    changes = trace.changes(energy)
    expect(not changes, "; ".join(changes[:4]))
    touched = [name for name, state in global_random_state().items() if random.get(name, state) != state]
    expect(not touched, f"it drew from the global generator of {', '.join(touched)}")
    expect(a == b, f"the same generator gives {a} and {b}")
    expect(next(energy.parameters()).dtype == torch.float32, "it changed the model's dtype")

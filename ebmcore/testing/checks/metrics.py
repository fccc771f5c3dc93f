"""Rules for metrics."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from ebmcore.testing.cases import MetricCase, generator
from ebmcore.testing.instruments import Trace, global_random_state
from ebmcore.testing.rules import Condition, check, expect
from ebmcore.testing.samplers import ExactGaussian, SiteGibbs
from ebmcore.testing.targets import Boltzmann, Quadratic

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

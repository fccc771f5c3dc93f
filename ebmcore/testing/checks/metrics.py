"""What a metric returns."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from ebmcore.testing.cases import Condition, MetricCase, check, expect, generator
from ebmcore.testing.instruments import Trace, global_random_state
from ebmcore.testing.samplers import SiteGibbs
from ebmcore.testing.targets import Boltzmann

TOLERANCE = 0.05  # nats, at the metric's default effort on four units


def _measure(case: MetricCase, energy: Boltzmann | None = None, seed: int = 0) -> dict[str, Any]:
    energy = energy or Boltzmann(4)
    data = SimpleNamespace(train=energy.states(), test=energy.states(), shape=(4,), state_space="binary")
    result: dict[str, Any] = case.make()(energy, data, sampler=SiteGibbs(), generator=generator(seed))
    return result


LIKELIHOOD = Condition("to metrics that report a log_likelihood", lambda case: "log_likelihood" in _measure(case))


@check(since="0.1")
def check_it_returns_named_numbers(case: MetricCase) -> None:
    """A metric returns a dict from names to finite numbers or words."""
    result = _measure(case)
    wrong = [
        n for n, v in result.items() if not isinstance(v, str) and not (isinstance(v, int | float) and math.isfinite(v))
    ]
    expect(bool(result) and not wrong, f"{', '.join(wrong) or 'nothing'} in the result is a finite number")


@check(LIKELIHOOD, since="0.1")
def check_the_log_likelihood_is_the_enumerated_one(case: MetricCase) -> None:
    """On a Boltzmann machine of four units the log-likelihood is the enumerated one, to 0.05 nats."""
    energy = Boltzmann(4)
    exact = energy.probabilities().log().mean().item()
    found = _measure(case)["log_likelihood"]
    expect(abs(found - exact) < TOLERANCE, f"it reports {found:.4f} nats, the exact value is {exact:.4f}")


@check(since="0.1")
def check_measuring_leaves_no_trace(case: MetricCase) -> None:
    """The energy is as it was, the global generators are untouched, and the same generator gives the same result."""
    energy = Boltzmann(4).train()
    trace, random = Trace.of(energy), global_random_state()
    a, b = _measure(case, energy), _measure(case, energy)
    changes = trace.changes(energy)
    expect(not changes, "; ".join(changes[:4]))
    touched = [name for name, state in global_random_state().items() if random.get(name, state) != state]
    expect(not touched, f"it drew from the global generator of {', '.join(touched)}")
    expect(a == b, f"the same generator gives {a} and {b}")
    expect(next(energy.parameters()).dtype == torch.float32, "it changed the model's dtype")

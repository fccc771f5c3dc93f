"""What an observer must take."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ebmcore.testing.cases import ObserverCase
from ebmcore.testing.rules import ConformanceError, check, expect

# What training tells its observers of, with arguments of the kinds that it gives.
EVENTS: dict[str, tuple[Any, ...]] = {
    "on_start": (0, 10),
    "on_log": (1, {"loss": 0.5}),
    "on_checkpoint": (1, Path("step-1")),
    "on_end": (),
}


@check(since="0.1")
def check_it_takes_every_event(case: ObserverCase) -> None:
    """on_start, on_log, on_checkpoint and on_end are there and take what training gives."""
    observer = case.make()
    for event, arguments in EVENTS.items():
        method = getattr(observer, event, None)
        if not callable(method):
            raise ConformanceError(f"it has no {event}: derive from ebmcore.training.BaseObserver")
        try:
            inspect.signature(method).bind(*arguments)
        except TypeError as error:
            expect(False, f"{event} does not take {arguments}: {error}")


@check(since="0.1")
def check_it_names_no_event_that_does_not_exist(case: ObserverCase) -> None:
    """Each method that begins with on_ is an event of training: a misspelt one would never be called."""
    named = {name for name in dir(case.component) if name.startswith("on_")}
    expect(named <= set(EVENTS), f"training never calls {', '.join(sorted(named - set(EVENTS)))}")

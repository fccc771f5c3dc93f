"""The end of a run that a signal asks for: Ctrl-C, or the SIGTERM by which a cluster takes a machine away."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ebmcore._termination import end_by_signal

_REPEATED = 2  # seconds in which a launcher may pass on a signal that reached this process already
_OUTLIVED = 30  # seconds in which a step in progress has read its data


class InterruptedRun(KeyboardInterrupt):
    """A run ended early because of a signal, after a whole step and with a checkpoint.

    Args:
        message: After which step it ended, and what there is.
        signum: Number of the signal.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class Unmeasured(BaseException):
    """A signal came while metrics were measured, which may take longer than the time that is left."""


class WorkerStart:
    """What a process that reads data does first: a signal to all processes of a run is left to the one that trains.

    That one needs the data of the step in progress. A reader outlives Ctrl-C, and SIGTERM for half a minute; without the one that
    trains it ends.

    Args:
        own: What the user's ``DataLoader`` does first, if anything.
    """

    def __init__(self, own: Callable[[int], None] | None = None) -> None:
        self.own = own

    def __call__(self, number: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "alarm"):  # Windows sends no SIGTERM, and has none
            signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_OUTLIVED))
        if self.own is not None:
            self.own(number)


@contextmanager
def signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Context in which the first SIGINT or SIGTERM calls ``stop``, and a later one does what it did before.

    A signal that is ignored, or has a handler of the user's own, is left alone. Only the main thread of a process receives
    signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler, end_by_signal)  # what the user has set, or told to ignore, stays
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) in usual}
    first: list[float] = []

    def handle(number: int, _: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            stop(number)
        elif time.monotonic() - first[0] > _REPEATED:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

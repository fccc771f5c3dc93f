"""The end of a process by SIGTERM, with a line that says so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LAUNCHED = ("LOCAL_RANK", "SLURM_PROCID")


def end_by_signal(number: int, _: FrameType | None) -> None:
    """Handle SIGTERM: say so, and end at once, since an exception while torch is imported would abort the process."""
    os.write(2, b"ebmcore: ended by SIGTERM\n")
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


@contextmanager
def saying_end() -> Iterator[None]:
    """Context in which SIGTERM ends the process with a line, unless it is ignored or has a handler already.

    A process that a launcher has started may wait for others in code that a handler does not interrupt: it ends as usual.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL or any(name in os.environ for name in _LAUNCHED):
        yield
        return
    signal.signal(signal.SIGTERM, end_by_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

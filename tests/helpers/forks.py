"""Processes that are forked from one that has imported everything, so that each starts in milliseconds."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

# For a process that forks others, as threads do not survive that: those of torch, and of pyarrow, which pandas imports if it can.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
SECONDS = 60  # until a process counts as one that hangs


def fork(work, output):
    """Runs ``work()`` in a process of its own, whose exit status it returns; ``output`` gets what it prints."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with Path(output).open("w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            try:
                status = work() or 0
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(status)


def end_of(child, seconds=SECONDS):
    """Waits for a process; returns its exit status, or minus the signal that ended it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    kill(child)
    os.waitpid(child, 0)
    raise TimeoutError(f"a process still ran after {seconds} seconds")


def kill(child):
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)

"""Bounds of numeric options, checked before anything is made with them."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ebmcore.errors import EbmcoreError, UsageError

INT64 = 2**63 - 1  # what torch's sizes and seeds hold
LARGEST_WHOLE = 2**32  # a component's seeds are below it, and no size or count that ends within a lifetime is beyond
LARGEST = 1e12  # beyond it energies have no digit after the point in float32, and training counts as diverged


@dataclass(frozen=True)
class Bounds:
    """Range of a numeric option.

    Args:
        low: The smallest value.
        high: The largest value.
        whole: Whether it must be a whole number.
        above: Whether ``low`` itself is too small.
        below: Whether ``high`` itself is too large.
        optional: Whether it may be `None`.
    """

    low: float
    high: float = INT64
    whole: bool = True
    above: bool = False
    below: bool = False
    optional: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise `UsageError` for a value that is no number of that range."""
        if value is None and self.optional:
            return
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            wanted = "a whole number" if self.whole else "a number"
        elif self._holds(value):
            return
        else:
            first = f"above {self.low:g}" if self.above else f"at least {self.low}"
            last = f"below {self.high:g}" if self.below else f"at most {self.high}"
            wanted = f"{first} and {last}"
        raise UsageError(f"{name} must be {wanted}{', or None' if self.optional else ''}, got {shown(value)}")

    def _holds(self, value: Any) -> bool:
        """Whether the value is in the range, which NaN is not."""
        return (value > self.low or (value == self.low and not self.above)) and (
            value < self.high or (value == self.high and not self.below)
        )


BOUNDS = {
    "epochs": Bounds(1, optional=True),
    "steps": Bounds(1, optional=True),
    "batch_size": Bounds(1),
    "accumulate": Bounds(1, 2**20),  # the gradients of one step
    "log_every": Bounds(1),
    "checkpoint_every": Bounds(1),
    "measure_every": Bounds(1, optional=True),
    "seed": Bounds(-INT64 - 1),
    "num_workers": Bounds(0, 512),
    "devices": Bounds(1, 128, optional=True),  # each is a process of its own, and no machine has more
    "num_nodes": Bounds(1, 2**16, optional=True),
    "lr": Bounds(0, 1e6, whole=False, above=True),
    "clip_grad": Bounds(0, LARGEST, whole=False, above=True, optional=True),
    "ema_decay": Bounds(0, 1, whole=False, below=True, optional=True),
}
"""Ranges of the numeric options of `ebmcore.training.fit`."""


def check_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check those of the options that `BOUNDS` names; return all, those as Python's own numbers.

    Raises:
        UsageError: For the first that is not a number of its range.

    Example:
        >>> check_numbers({"steps": 100, "lr": 0.1})
        {'steps': 100, 'lr': 0.1}
    """
    checked = dict(options)
    for name, bounds in BOUNDS.items():
        if name in options:
            bounds.check(name, options[name])
            if options[name] is not None:
                checked[name] = int(options[name]) if bounds.whole else float(options[name])
    return checked


def check_magnitudes(options: Any, defaults: Any = None, name: str = "") -> None:
    """Check that each number within ``options`` is finite and of a size that some option can have, before it is used.

    A constructor's own default passes, as infinity means "no bound" in some.

    Args:
        options: Plain data: mappings, lists and values.
        defaults: The defaults, in the same structure.
        name: What the options are called in messages; a key is added after a dot.

    Raises:
        UsageError: For the first number that is not.

    Example:
        >>> check_magnitudes({"hidden": [64, 64], "temperature": 1.0})
    """
    if isinstance(options, Mapping):
        for key, value in options.items():
            default = defaults.get(key) if isinstance(defaults, Mapping) else None
            check_magnitudes(value, default, f"{name}.{key}" if name else key)
    elif isinstance(options, (list, tuple)):
        for value in options:
            check_magnitudes(value, None, name)
    elif isinstance(options, (int, float)) and options != defaults:
        largest = LARGEST_WHOLE if isinstance(options, int) else LARGEST
        if not -largest <= options <= largest:
            raise UsageError(f"{name} must be a number from {-largest} to {largest}, got {shown(options)}")


_OF_SIZES = re.compile("alloc|out of memory|overflow|negative", re.IGNORECASE)


@contextmanager
def refusing_sizes() -> Iterator[None]:
    """Context in which sizes that no memory holds raise `UsageError`: torch raises `RuntimeError`, numpy `MemoryError`."""
    try:
        yield
    except EbmcoreError:
        raise
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _OF_SIZES.search(str(error)):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"a size is too large, or below 0: {reason}") from error


def shown(value: Any) -> str:
    """The value as text; of a number of thousands of digits, which Python refuses to write, its length."""
    return f"a number of {value.bit_length():,} bits" if isinstance(value, int) and value.bit_length() > 512 else repr(value)

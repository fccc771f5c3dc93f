"""Numbers that a loss tells of its last call, computed when somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

from torch import Tensor


class Diagnostics(MutableMapping[str, Tensor]):
    """A mapping of names to detached tensors, some of which are computed at first reading: unread, they cost nothing.

    Args:
        values: What it begins with; those of another one that nobody has read stay uncomputed.

    Example:
        >>> import torch
        >>> metrics = Diagnostics({"loss": torch.tensor(1.0)})
        >>> metrics.later("mean", torch.mean, torch.ones(3))
        >>> list(metrics), metrics["mean"]
        (['loss', 'mean'], tensor(1.))
    """

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        self._values: dict[str, Tensor | partial[Tensor]] = {}
        if values:
            self._values |= values._values if isinstance(values, Diagnostics) else values

    def later(self, name: str, function: Callable[..., Tensor], *args: Any) -> None:
        """Compute ``function(*args)`` when ``name`` is read; the arguments must not change until then."""
        self._values[name] = partial(function, *args)

    def __getitem__(self, name: str) -> Tensor:
        value = self._values[name]
        if isinstance(value, partial):
            value = self._values[name] = value().detach()
        return value

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._values[name] = value

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)})"

"""Transitions of a sampler as compiled graphs."""

from __future__ import annotations

from typing import Any

from ebmcore.samplers import eager_transitions

__all__ = ["CompiledTransitions"]


class CompiledTransitions:
    """Stand-in until the room is rewritten."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return eager_transitions(*args, **kwargs)

"""Transitions of a sampler as compiled graphs: what ``loss.compile()`` turns on."""

from ebmcore.compiling.graph import CannotCompileError, ImpureStepError, trace
from ebmcore.compiling.transitions import CompiledTransitions

__all__ = ["CannotCompileError", "CompiledTransitions", "ImpureStepError", "trace"]

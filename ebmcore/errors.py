"""Errors that a user can act on: each message says what was given, what was expected and what to do next."""

from __future__ import annotations

__all__ = [
    "AmbiguousComponentError", "CheckpointError", "DivergenceError", "EbmcoreError", "LostProcessError",
    "MissingCapabilityError", "PluginError", "UnknownComponentError", "UnknownKeywordError", "UsageError",
]  # fmt: skip


class EbmcoreError(Exception):
    """Base of all errors about input or plugins, which the command line prints as one line."""


class UsageError(EbmcoreError, ValueError):
    """A value, a combination of components or a file that cannot work."""


class UnknownKeywordError(EbmcoreError, TypeError):
    """A keyword that a component does not take; the message lists the accepted ones."""


class UnknownComponentError(EbmcoreError, LookupError):
    """No installed plugin provides that name; the message says which distribution would."""


class AmbiguousComponentError(EbmcoreError, LookupError):
    """Two distributions provide the bare name; the message lists the canonical ids."""


class PluginError(EbmcoreError, RuntimeError):
    """An installed plugin, or one of its components, is broken; the cause is chained."""


class MissingCapabilityError(EbmcoreError, TypeError):
    """A sampler or metric needs a ``capability`` (a protocol, such as `ebmcore.energies.SupportsBlockGibbs`) of the energy."""

    def __init__(self, message: str, capability: type | None = None) -> None:
        super().__init__(message)
        self.capability = capability


class DivergenceError(EbmcoreError, RuntimeError):
    """The energy, the chains or the parameters are NaN or infinite."""


class CheckpointError(EbmcoreError, RuntimeError):
    """A checkpoint is missing, damaged or of another run."""


class LostProcessError(EbmcoreError, RuntimeError):
    """Another process of a distributed run has ended before its time."""

"""The fit loop, schedules, checkpoints and observers. Needs the extra ``train``: ``pip install ebmcore[train]``."""

from __future__ import annotations

from ebmcore.random import stream_generator, stream_seed
from ebmcore.training.checkpoints import latest_checkpoint, read_checkpoint, read_info
from ebmcore.training.data import DataSource, check_compatible
from ebmcore.training.fit import FitResult, fit
from ebmcore.training.observers import BaseObserver
from ebmcore.training.origins import check_installed, warn_of_other_versions
from ebmcore.training.run import Run, flat_config

__all__ = [
    "BaseObserver",
    "DataSource",
    "FitResult",
    "Run",
    "check_compatible",
    "check_installed",
    "fit",
    "flat_config",
    "latest_checkpoint",
    "read_checkpoint",
    "read_info",
    "stream_generator",
    "stream_seed",
    "warn_of_other_versions",
]

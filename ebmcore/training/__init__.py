"""The fit loop, schedules, checkpoints and observers. Needs the extra ``train``: ``pip install ebmcore[train]``."""

from __future__ import annotations

from ebmcore.random import stream_generator, stream_seed
from ebmcore.training.averaging import copy_energy
from ebmcore.training.batches import LabelledExamples
from ebmcore.training.checkpoints import latest_checkpoint, read_checkpoint, read_info
from ebmcore.training.data import DataSource, SupportsDataStart, as_floating, check_compatible, check_values
from ebmcore.training.fit import FitResult, fit
from ebmcore.training.observers import BaseObserver
from ebmcore.training.opening import labelled_examples
from ebmcore.training.origins import check_installed, warn_of_other_versions
from ebmcore.training.pretrained import from_pretrained
from ebmcore.training.run import Run, flat_config
from ebmcore.training.runs import TrainedRun, load_run
from ebmcore.training.start import start_from
from ebmcore.training.stopping import InterruptedRun

__all__ = [
    "BaseObserver",
    "DataSource",
    "FitResult",
    "InterruptedRun",
    "LabelledExamples",
    "Run",
    "SupportsDataStart",
    "TrainedRun",
    "as_floating",
    "check_compatible",
    "check_installed",
    "check_values",
    "copy_energy",
    "fit",
    "flat_config",
    "from_pretrained",
    "labelled_examples",
    "latest_checkpoint",
    "load_run",
    "read_checkpoint",
    "read_info",
    "start_from",
    "stream_generator",
    "stream_seed",
    "warn_of_other_versions",
]

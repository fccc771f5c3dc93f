"""Metrics for Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from ebm_plugin_observers.trackers import require_library
from ebmcore.training import BaseObserver, Run

ID = "wandb-id.txt"


class Wandb(BaseObserver):
    """Writes the configuration and the metrics of a run to Weights & Biases.

    Its files are in ``wandb`` in the run's directory. A resumed run continues there, by the id in ``wandb-id.txt``. What
    wandb reads from the environment, such as ``WANDB_API_KEY`` or ``WANDB_MODE=offline``, holds.

    Args:
        project: The project.
        run_name: Name of the run; `None` lets wandb make one up.
        mode: ``"online"``, ``"offline"`` or ``"disabled"``; `None` is what the environment says.

    Raises:
        UsageError: If wandb is not installed.

    Example:
        >>> observer = Wandb(project="digits", mode="offline")
    """

    example_options: ClassVar[dict[str, Any]] = {"mode": "offline"}

    def __init__(self, *, project: str = "ebmcore", run_name: str | None = None, mode: str | None = None) -> None:
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f"mode must be 'online', 'offline', 'disabled' or None, got {mode!r}")
        require_library("wandb")
        self.project = project
        self.run_name = run_name
        self.mode = mode

    def on_start(self, run: Run) -> None:
        import wandb

        known = None if run.directory is None else run.directory / ID
        resumed = known is not None and run.step > 0 and known.exists()
        self.tracked = wandb.init(
            project=self.project,
            name=self.run_name,
            mode=self.mode,
            config=dict(run.config),
            dir=run.directory,
            id=known.read_text(encoding="utf-8").strip() if resumed else None,
            resume="allow",
            reinit="create_new",  # a run that the caller has begun stays the current one
            settings=wandb.Settings(console="off"),
        )
        if known is not None and not resumed:
            known.write_text(self.tracked.id, encoding="utf-8")

    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        self.tracked.log(dict(metrics), step=run.step)

    def on_end(self, run: Run) -> None:
        self.tracked.finish(exit_code=int(sys.exception() is not None))

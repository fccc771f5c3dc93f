"""Snapshots of the parameters, closer together at the beginning of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ebmcore.training import BaseObserver, Run


class Archive(BaseObserver):
    """Keeps the parameters of the energy at steps 0, 1, r, r², r³, ...: most happens at the beginning.

    Snapshots are ``archive/step-00000000.safetensors``, ... in the run's directory, which ``safetensors.torch.load_model(energy,
    path)`` reads, of the moving average where one is kept. Observers see logged steps alone, so a snapshot is of the first logged
    step from each of these on: with ``log_every=10`` none is between 0 and 10. A run without a directory keeps none.

    Args:
        ratio: ``r``, the ratio of one step to the one before, above 1.

    Example:
        >>> [Archive(ratio=2).since(step) for step in (1, 2, 3, 10)]
        [1, 2, 2, 8]
    """

    def __init__(self, *, ratio: float = 2.0) -> None:
        if not 1 < ratio < math.inf:
            raise ValueError(f"ratio must be above 1, got {ratio!r}")
        self.ratio = ratio

    def since(self, step: int) -> int:
        """Returns the last of the steps 1, r, r², ... (rounded up) that is not after ``step``."""
        last, power = 1, 1.0
        while math.ceil(power) <= step:
            last, power = math.ceil(power), power * self.ratio
        return last

    def on_start(self, run: Run) -> None:
        if run.step == 0:
            self._keep(run)

    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        self._keep(run)

    def _keep(self, run: Run) -> None:
        if run.directory is None:
            return
        from safetensors.torch import save_model

        folder = run.directory / "archive"
        folder.mkdir(exist_ok=True)
        # By the files that are there, so that a resumed run keeps the same ones as one that was not.
        first = self.since(run.step) if run.step else 0
        if not any(_file(folder, step).exists() for step in range(first, run.step + 1)):
            unfinished = folder / "unfinished"
            save_model(run.energy, str(unfinished))
            unfinished.replace(_file(folder, run.step))


def _file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08}.safetensors"

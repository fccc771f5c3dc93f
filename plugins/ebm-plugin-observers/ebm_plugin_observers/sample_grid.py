"""Pictures of samples during a run."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import ebmcore
from ebmcore.distributions import Normal
from ebmcore.energies import SupportsInitialDistribution, supports
from ebmcore.errors import UsageError
from ebmcore.training import BaseObserver, Run, stream_generator

_PIXELS = 512  # smallest width of a picture


class SampleGrid(BaseObserver):
    """Draws samples of the energy as a picture, at an interval: images side by side, points of the plane as points.

    Each picture starts again at the distribution where the loss starts its chains, and draws with the run's sampler and random
    numbers of its own: training is the same with and without. Samples of a conditional energy have the labels of the first
    training examples in turn. Pictures are ``samples/step-00000500.png``, ... in the run's
    directory, and in TensorBoard where that is installed. A run without a directory draws none.

    Args:
        every: Training steps from one picture to the next. Observers see logged steps alone: a picture is of the first logged
            step from each of these on.
        n: Number of samples in a picture.
        n_steps: Number of transitions of each chain.
        seed: Seed of the chains.

    Raises:
        UsageError: When training begins, if the loss has no sampler, or examples are neither images nor points.

    Example:
        >>> observer = SampleGrid(every=100, n=16)
    """

    def __init__(self, *, every: int = 500, n: int = 64, n_steps: int = 100, seed: int = 0) -> None:
        for name, value in {"every": every, "n": n, "n_steps": n_steps}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        self.every = every
        self.n = n
        self.n_steps = n_steps
        self.seed = seed

    def on_start(self, run: Run) -> None:
        self.last = run.step
        self.writer = None
        self.examples = run.examples.x.detach().float().cpu()
        shape = tuple(self.examples.shape[1:])
        if not (shape == (2,) or len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
            kinds = "images (H, W), (1, H, W) and (3, H, W) and points (2,)"
            raise UsageError(f"sample-grid draws {kinds}, not examples of shape {shape}: leave it out")
        if run.sampler is None:
            raise UsageError("sample-grid draws with the sampler of the loss, and this loss has none: leave it out")
        if run.directory is not None:
            (run.directory / "samples").mkdir(exist_ok=True)
            if importlib.util.find_spec("tensorboard") is not None:
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(run.directory / "tensorboard"), filename_suffix=".samples")

    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        due = run.step // self.every > self.last // self.every
        self.last = run.step
        if run.directory is None or not due:
            return
        from matplotlib.image import imsave

        picture = self._picture(self._draw(run).cpu())
        imsave(run.directory / "samples" / f"step-{run.step:08}.png", picture)
        if self.writer is not None:
            self.writer.add_image("samples", picture, run.step, dataformats="HWC")

    def on_end(self, run: Run) -> None:
        if self.writer is not None:
            self.writer.close()

    def _draw(self, run: Run) -> Tensor:
        like = next((p for p in run.energy.parameters() if p.is_floating_point()), self.examples)
        shape = self.examples.shape[1:]
        generator = stream_generator(self.seed, "sample-grid", run.step, device=like.device)
        initial: Any = Normal(torch.zeros(shape, device=like.device))
        if hasattr(run.loss, "initial_distribution"):
            initial = run.loss.initial_distribution(shape, self.examples.to(like.device))
        elif supports(run.energy, SupportsInitialDistribution):
            initial = run.energy.initial_distribution(shape)
        start = initial.sample(self.n, generator=generator).to(like)
        rows = torch.arange(self.n) % len(self.examples)
        conditions = {name: t[rows.to(t.device)].to(like.device) for name, t in run.examples.conditions.items()}
        return ebmcore.sample(run.sampler, run.energy, start, self.n_steps, conditions=conditions, generator=generator)

    def _picture(self, x: Tensor) -> Any:
        if x.ndim == 2:
            return _scatter(x, self.examples)
        low, high = self.examples.min(), self.examples.max()
        shades = ((x.to(self.examples) - low) / (high - low).clamp_min(1e-12)).nan_to_num().clamp(0, 1)
        return _grid(shades if x.ndim == 4 else shades.unsqueeze(1))


def _grid(images: Tensor) -> Any:
    """Images ``(n, channels, H, W)`` side by side, as bytes ``(H', W', 3)``."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    tiles = F.pad(images.expand(-1, 3, -1, -1), (0, 1, 0, 1), value=0.5)
    tiles = torch.cat([tiles, tiles.new_full((rows * columns - len(tiles), *tiles.shape[1:]), 0.5)])
    one = tiles.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    factor = max(1, _PIXELS // one.shape[1])
    one = one.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    return (255 * one).round().to(torch.uint8).numpy()


def _scatter(x: Tensor, examples: Tensor) -> Any:
    """Points over those of the data, as bytes ``(H, W, 3)``."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.scatter(*examples.T, s=8, c="lightgrey", label="data")
    axis.scatter(*x.T, s=8, label="samples")
    axis.legend(loc="upper right")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

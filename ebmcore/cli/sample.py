"""``ebmcore sample``: samples of a trained energy, as a picture or an array."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebmcore.cli import printable
from ebmcore.cli.code import FLAG, HELP
from ebmcore.cli.files import PLACES_HELP
from ebmcore.cli.listing import Parser
from ebmcore.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ebmcore.training import TrainedRun

PICTURE = ".png"


def sample(arguments: Sequence[str]) -> None:
    """Draw samples with the run's own sampler or another, from the initial distribution of its chains."""
    prog = "ebmcore sample"
    parser = Parser(
        prog,
        description="Draw samples from a trained energy and picture them.",
        epilog="--sampler NAME [--sampler.OPTION ...]: another sampler than the run's, or one for a run that has none",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of the run")
    parser.add_argument("-n", type=int, default=64, metavar="N", help="number of samples (64)")
    parser.add_argument("--steps", type=int, default=1000, help="transitions of each chain (1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the chains (0)")
    add_run_options(parser)
    add_places(parser)
    add_conditions(parser, "classes that the samples take in turn")
    add_units(parser, "of an array")
    parser.add_argument(
        "--out", type=Path, required=True, help="a .png file; or .npy, .npz or .safetensors for the array (N, *shape)"
    )
    options, rest = parser.parse_known_args(arguments)
    unknown = [flag for flag in rest if flag.startswith("--") and not flag.startswith(("--sampler", "--config"))]
    if unknown:
        parser.error(f"unrecognized arguments: {unknown[0]}")
    from ebmcore.training.preparation import require_train_extra

    require_train_extra()
    from ebmcore.cli.arrays import WRITERS, write_arrays
    from ebmcore.cli.options import parse
    from ebmcore.cli.runs import relocate_data
    from ebmcore.training import load_run
    from ebmcore.training.configuration import create
    from ebmcore.training.directory import writing

    if options.out.suffix not in (PICTURE, *WRITERS):
        raise UsageError(f"--out must end in {', '.join((PICTURE, *WRITERS))}, got {options.out}")
    refuse_existing(options.out)
    asked = parse(prog, [*rest, *([FLAG] if options.allow_code else [])], parts=("sampler",)) if rest else {}
    run = load_run(options.run, checkpoint=options.checkpoint, allow_code=options.allow_code)
    relocate_data(run, vars(options))
    if run.sampler is None and not asked:
        raise UsageError(f"{options.run} was trained without a sampler: name one, '{prog} {options.run} --sampler NAME'")
    sampler = create(asked, "sampler") if asked else None
    conditions = run.conditions(options.condition)
    label = next(iter(conditions.values()), None)
    units = None if options.out.suffix == PICTURE else _units(run, options.units)
    # Chains of the training hold noise that is not of the model alone: each sample starts from the beginning.
    x = run.sample(options.n, options.steps, sampler=sampler, conditions=conditions, seed=options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.suffix == PICTURE:
        figure = _picture(x, run, label)
        with writing(options.out) as file:
            figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
    else:
        write_arrays(options.out, run.reader.unscaled(x) if units == DATA else x, label, units)
    print(printable(f"{options.n} samples in {options.out}{_IN_UNITS[units]}"))


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that use a trained run."""
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="step of the checkpoint (the last one)")
    parser.add_argument(FLAG, action="store_true", help=HELP)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add ``--data.path`` and ``--data.directory``."""
    from ebmcore.training.options import PLACES

    for place in PLACES:
        parser.add_argument(f"--data.{place}", dest=place, metavar="PLACE", help=PLACES_HELP)


def add_conditions(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--condition``, by names of classes or by numbers."""
    parser.add_argument(
        "--condition",
        type=_labels,
        metavar="LABELS",
        help=f"{text}: cat,dog or 0,1; a name that is a number wins over the class of that number",
    )


def _labels(text: str) -> list[str]:
    """Names or numbers between commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"takes names or numbers such as cat or 0,1,2, got {text!r}")
    return parts


DATA, MODEL = "data", "model"
_IN_UNITS = {None: "", DATA: ", in the units of the data's files", MODEL: ", on the scale of the training"}


def add_units(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--units``."""
    parser.add_argument(
        "--units",
        choices=(DATA, MODEL),
        help=f"numbers {text}: those of the data's files (data), or as they are scaled for the model (model)",
    )


def _units(run: TrainedRun, asked: str | None) -> str | None:
    """The units of samples: the asked ones, by default the data's; `None` where the data set knows only one."""
    reader = run.reader
    if reader is None:
        refuse_units(run, asked)
        return None
    if asked == DATA and not reader.invertible:
        raise UsageError("the data of the run were made bits by a threshold, which nothing undoes: leave out --units data")
    return asked or (DATA if reader.invertible else MODEL)


def refuse_units(run: TrainedRun, asked: str | None) -> None:
    """Raise `UsageError` if units are asked for where there is one scale alone."""
    if asked is not None:
        raise UsageError(f"the data set {run.config['data']['name']} scales no files: leave out --units")


def refuse_existing(out: Path) -> None:
    """Raise `UsageError` where a file or directory is. A link to nothing is replaced when the file is written."""
    if out.exists():
        raise UsageError(f"{out} exists: choose another --out")


def _picture(x: Tensor, run: TrainedRun, label: Tensor | None) -> Any:
    shape = run.examples.shape
    if shape == (2,) and run.examples.state_space == "continuous":
        if label is not None and len(label) > 1:
            raise UsageError(
                "a picture of the plane shows the energy under one label: give --condition one, or --out FILE.npz"
            )
        return _contours(x, run, label)
    if len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3)):
        return _grid(x, run)
    raise UsageError(f"examples of shape {shape} are neither images nor points of the plane: use --out FILE.npy")


def _range(x: Tensor, run: TrainedRun) -> tuple[float, float]:
    """The range of the training examples."""
    known = run.examples
    return (x.min().item(), x.max().item()) if known.low is None or known.high is None else (known.low, known.high)


def _grid(x: Tensor, run: TrainedRun) -> Any:
    from matplotlib.figure import Figure

    images = x if x.ndim == 4 else x.unsqueeze(1)
    columns = math.ceil(math.sqrt(len(images)))
    n_rows = math.ceil(len(images) / columns)
    low, high = _range(x.flatten(), run)
    outside = ((x < low) | (x > high)).double().mean().item()
    if outside:
        print(f"{outside:.2%} of the values are outside the range of the data, {low:g} to {high:g}: the picture clips them")
    figure = Figure(figsize=(columns / 2, n_rows / 2))
    axes = figure.subplots(n_rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image in zip(axes, images, strict=False):
        shown = ((image - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).squeeze(-1)
        axis.imshow(shown.numpy(), cmap="gray_r", vmin=0, vmax=1)
    return figure


def _contours(x: Tensor, run: TrainedRun, label: Tensor | None) -> Any:
    import torch
    from matplotlib.figure import Figure

    ticks = []
    for column in x.T:
        low, high = _range(column, run)
        low, high = min(low, column.min().item()), max(high, column.max().item())
        margin = 0.1 * (high - low)
        ticks.append(torch.linspace(low - margin, high + margin, 200))
    grid = torch.cartesian_prod(*ticks)
    energies = -run.score(grid, label).view(200, 200).T
    figure = Figure(figsize=(6, 5))
    axis = figure.subplots()
    depth = energies - energies.min()  # where it is more, the density is below e^-12 of its mode's
    filled = axis.contourf(ticks[0], ticks[1], depth, levels=torch.linspace(0, 12, 25), cmap="viridis_r", extend="max")
    figure.colorbar(filled, label="energy above its minimum")
    axis.scatter(x[:, 0], x[:, 1], s=8, c="white", edgecolors="black", linewidths=0.5)
    return figure

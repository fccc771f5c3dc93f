"""``ebmcore sample``: samples of a trained energy, as a picture or an array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebmcore.cli import printable
from ebmcore.cli.code import FLAG, HELP
from ebmcore.cli.listing import Parser
from ebmcore.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ebmcore.cli.runs import Parts
    from ebmcore.distributions import InitialDistribution


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
    parser.add_argument("--out", type=Path, required=True, help="a .png file, or .npy for the array (N, *shape)")
    parser.add_argument(FLAG, action="store_true", help=HELP)
    options, rest = parser.parse_known_args(arguments)
    unknown = [flag for flag in rest if flag.startswith("--") and not flag.startswith(("--sampler", "--config"))]
    if unknown:
        parser.error(f"unrecognized arguments: {unknown[0]}")
    if options.out.suffix not in (".png", ".npy"):
        raise UsageError(f"--out must end in .png or .npy, got {options.out}")
    if options.out.exists():
        raise UsageError(f"{options.out} exists: choose another --out")
    from ebmcore.training.preparation import require_train_extra

    require_train_extra()
    from ebmcore.cli.options import create, parse
    from ebmcore.cli.runs import admit_code, load_run
    from ebmcore.training import check_compatible, stream_generator
    from ebmcore.training.directory import writing
    from ebmcore.training.numbers import BOUNDS, Bounds, refusing_sizes

    Bounds(1).check("-n", options.n)
    BOUNDS["steps"].check("--steps", options.steps)
    BOUNDS["seed"].check("--seed", options.seed)
    asked = parse(prog, [*rest, *([FLAG] if options.allow_code else [])], parts=("sampler",)) if rest else {}
    admit_code(options.run, allowed=options.allow_code)
    _, parts, _ = load_run(options.run)
    sampler = create(asked, "sampler") if asked else parts.sampler
    if sampler is None:
        raise UsageError(f"{options.run} was trained without a sampler: name one, '{prog} {options.run} --sampler NAME'")
    check_compatible(parts.energy, sampler, parts.data)
    generator = stream_generator(options.seed, "sample")
    # Chains of the training hold noise that is not of the model alone: each sample starts from the beginning.
    with refusing_sizes():
        start = _initial_distribution(parts).sample(options.n, generator=generator)
        dtype = next((p.dtype for p in parts.energy.parameters() if p.is_floating_point()), start.dtype)
        x = sampler.sample(parts.energy, start.to(dtype), options.steps, generator=generator)
    if not x.isfinite().all():
        raise UsageError("some chains are NaN or infinite: lower the sampler's step size, or take fewer --steps")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with writing(options.out) as file:
        if options.out.suffix == ".npy":
            import numpy as np

            np.save(file, x.numpy())
        else:
            _picture(x, parts.energy, parts.data).savefig(file, format="png", dpi=150, bbox_inches="tight")
    print(printable(f"{options.n} samples in {options.out}"))


def _initial_distribution(parts: Parts) -> InitialDistribution:
    """Distribution that starts the chains; for a loss without one, the energy's own distribution or a standard normal."""
    import torch

    from ebmcore.distributions import Normal
    from ebmcore.energies import SupportsInitialDistribution, supports

    shape = torch.Size(parts.data.shape)
    if hasattr(parts.loss, "initial_distribution"):
        start: InitialDistribution = parts.loss.initial_distribution(shape, parts.data.train)
        return start
    if supports(parts.energy, SupportsInitialDistribution):
        own: InitialDistribution = parts.energy.initial_distribution(shape)  # type: ignore[operator]
        return own
    return Normal(torch.zeros(shape))


def _picture(x: Tensor, energy: nn.Module, data: Any) -> Any:
    shape = tuple(data.shape)
    if shape == (2,):
        return _contours(x, energy, data)
    if len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3)):
        return _grid(x, data)
    raise UsageError(f"examples of shape {shape} are neither images nor points of the plane: use --out FILE.npy")


def _grid(x: Tensor, data: Any) -> Any:
    from matplotlib.figure import Figure

    images = x if x.ndim == 4 else x.unsqueeze(1)
    columns = math.ceil(math.sqrt(len(images)))
    n_rows = math.ceil(len(images) / columns)
    low, high = data.train.min().item(), data.train.max().item()
    figure = Figure(figsize=(columns / 2, n_rows / 2))
    axes = figure.subplots(n_rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image in zip(axes, images, strict=False):
        shown = ((image - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).squeeze(-1)
        axis.imshow(shown.numpy(), cmap="gray_r", vmin=0, vmax=1)
    return figure


def _contours(x: Tensor, energy: nn.Module, data: Any) -> Any:
    import torch
    from matplotlib.figure import Figure

    both = torch.cat([x, data.test])
    low, high = both.min(0).values, both.max(0).values
    margin = 0.1 * (high - low)
    ticks = [torch.linspace(a, b, 200) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = torch.cartesian_prod(*ticks)
    with torch.no_grad():
        energies = energy.eval()(grid.to(x.dtype)).view(200, 200).T
    figure = Figure(figsize=(6, 5))
    axis = figure.subplots()
    depth = energies - energies.min()  # where it is more, the density is below e^-12 of its mode's
    filled = axis.contourf(ticks[0], ticks[1], depth, levels=torch.linspace(0, 12, 25), cmap="viridis_r", extend="max")
    figure.colorbar(filled, label="energy above its minimum")
    axis.scatter(x[:, 0], x[:, 1], s=8, c="white", edgecolors="black", linewidths=0.5)
    return figure

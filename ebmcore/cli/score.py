"""``ebmcore score``: the log-density of examples in a file, without the normaliser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ebmcore.cli import printable
from ebmcore.cli.listing import Parser
from ebmcore.cli.sample import MODEL, add_conditions, add_places, add_run_options, add_units, refuse_existing, refuse_units
from ebmcore.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ebmcore.training import TrainedRun


def score(arguments: Sequence[str]) -> None:
    """Write ``-E(x)`` of each example of a file."""
    parser = Parser(
        "ebmcore score",
        description="Compute the log-density -E(x) of examples, without the normaliser, which is the same for all of them.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of the run")
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="examples: a file that the data set of the run reads, or (N, *shape) in .npy, .npz or .safetensors",
    )
    add_run_options(parser)
    add_places(parser)
    add_conditions(parser, "class of all examples, or one for each, in place of the labels in FILE")
    add_units(parser, "in FILE")
    parser.add_argument("--out", type=Path, required=True, help="a .csv file with the columns row and score")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".csv":
        raise UsageError(f"--out must end in .csv, got {options.out}")
    refuse_existing(options.out)
    from ebmcore.training.preparation import require_train_extra

    require_train_extra()
    from ebmcore.cli.runs import relocate_data
    from ebmcore.training import load_run
    from ebmcore.training.directory import write_text

    run = load_run(options.run, checkpoint=options.checkpoint, allow_code=options.allow_code)
    relocate_data(run, vars(options))
    x, stored, source = _examples(run, options.file, options.units)
    conditions = stored if options.condition is None else options.condition
    scores = run.score(x, _labels(run, x, source, options.file) if conditions is None else conditions).tolist()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, "".join(["row,score\n", *(f"{row},{value:.9g}\n" for row, value in enumerate(scores))]))
    print(printable(f"{len(scores)} scores in {options.out}, {sum(scores) / len(scores):.4g} on average"))


def _labels(run: TrainedRun, x: Tensor, source: Any, path: Path) -> Mapping[str, Tensor] | None:
    """Class numbers of examples that a data set read of a file, where the energy takes labels and the file has some."""
    import torch

    from ebmcore.training import labelled_examples

    labels_of = getattr(source, "labels_of", None)
    numbers = torch.zeros(len(x), dtype=torch.int64)
    if labels_of is None or not labelled_examples(run.energy, SimpleNamespace(train=x, train_labels=numbers)).conditions:
        return None
    labels, known = labels_of(path), {str(name): number for number, name in enumerate(run.examples.classes or ())}
    if labels is None:
        return None
    strange = next((label for label in labels if str(label) not in known), None)
    if strange is not None:
        raise UsageError(
            f"{path} has the label {strange!r}, which is no class of the run: give the class of each example, --condition"
        )
    numbers = torch.tensor([known[str(label)] for label in labels])
    return labelled_examples(run.energy, SimpleNamespace(train=x, train_labels=numbers)).conditions


def _examples(run: TrainedRun, path: Path, units: str | None) -> tuple[Tensor, Tensor | None, Any]:
    """Examples, on the scale of the training, and labels of a file; and the data set that read them, where one did."""
    from ebmcore.cli.arrays import WRITERS, read_arrays, units_in

    reader, said = run.reader, units_in(path)
    if reader is None:
        refuse_units(run, units)
    elif not reader.invertible and units is None and said is None and path.suffix in WRITERS:
        raise UsageError(f"{path} may hold bits already, or what a threshold makes bits: add --units model or --units data")
    if path.suffix not in WRITERS or (reader is not None and said is None and units != MODEL and reader.reads(path)):
        source = run.data if reader is None else reader
        read = getattr(source, "examples_of", None)
        if read is None:
            raise UsageError(
                f"score reads {', '.join(WRITERS)}, and the data set {run.config['data']['name']} reads no other file, "
                f"got {path}: write an array with numpy.save"
            )
        if units == MODEL:
            raise UsageError(f"{path} is in the units of the data's files, as all but arrays are: leave out --units model")
        return read(path), None, source
    x, stored = read_arrays(path)
    return (x if reader is None or (units or said) == MODEL else reader.scaled(x)), stored, None

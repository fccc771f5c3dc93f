"""``ebmcore score``: the log-density of examples in a file, without the normaliser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ebmcore.cli import printable
from ebmcore.cli.listing import Parser
from ebmcore.cli.sample import add_run_options, labels, refuse_existing
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
        help="examples (N, *shape): .npy, .npz or .safetensors, or a file that the data set of the run reads",
    )
    add_run_options(parser)
    parser.add_argument("--condition", type=labels, metavar="LABELS", help="label of all examples, or one for each: 0,1,2")
    parser.add_argument("--out", type=Path, required=True, help="a .csv file with the columns row and score")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".csv":
        raise UsageError(f"--out must end in .csv, got {options.out}")
    refuse_existing(options.out)
    from ebmcore.training.preparation import require_train_extra

    require_train_extra()
    from ebmcore.training import load_run
    from ebmcore.training.directory import write_text

    run = load_run(options.run, checkpoint=options.checkpoint, allow_code=options.allow_code)
    x, stored = _examples(run, options.file)
    scores = run.score(x, stored if options.condition is None else options.condition).tolist()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, "".join(["row,score\n", *(f"{row},{value:.9g}\n" for row, value in enumerate(scores))]))
    print(printable(f"{len(scores)} scores in {options.out}, {sum(scores) / len(scores):.4g} on average"))


def _examples(run: TrainedRun, path: Path) -> tuple[Tensor, Tensor | None]:
    """Examples and labels of a file: of an array as they are, of another file as the data set of the run reads it."""
    from ebmcore.cli.arrays import WRITERS, read_arrays

    if path.suffix not in WRITERS:
        read = getattr(run.data, "examples_of", None)
        if read is None:
            raise UsageError(
                f"score reads {', '.join(WRITERS)}, and the data set {run.config['data']['name']} reads no other file, "
                f"got {path}: write an array with numpy.save"
            )
        return read(path), None
    x, stored = read_arrays(path)
    return x, stored

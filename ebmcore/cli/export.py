"""``ebmcore export``: the trained energy of a run, for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ebmcore.cli import printable
from ebmcore.cli.listing import Parser
from ebmcore.cli.sample import add_run_options


def export(arguments: Sequence[str]) -> None:
    """Write the energy of a run as a ``state_dict()``, a torch program, or a directory with a model card."""
    parser = Parser("ebmcore export", description="Write the trained energy of a run for other programs.")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of the run")
    add_run_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help=".safetensors or .pt: the weights; .pt2: a torch.export program; a new directory: weights, options and model card",
    )
    options = parser.parse_args(arguments)
    from ebmcore.training.preparation import require_train_extra

    require_train_extra()
    from ebmcore.training import load_run
    from ebmcore.training.pretrained import export as write

    run = load_run(options.run, checkpoint=options.checkpoint, allow_code=options.allow_code)
    write(run, options.out)
    print(printable(f"the energy of step {run.step} in {options.out}"))

"""``ebmcore evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ebmcore.errors import UsageError


def evaluate(arguments: Sequence[str]) -> None:
    """Measure the energy of a run: ``ebmcore evaluate RUN --metric NAME [--metric.OPTION ...] [--metric NAME ...]``."""
    from ebmcore.training.preparation import require_train_extra

    require_train_extra()
    from ebmcore.cli.code import split_off_flag
    from ebmcore.cli.options import create_metrics, parse
    from ebmcore.cli.runs import admit_code, load_run, measure
    from ebmcore.training.numbers import refusing_sizes

    prog = "ebmcore evaluate"
    if arguments and arguments[0] in ("-h", "--help"):
        parse(f"{prog} RUN", ["--help"], parts=("metric",))
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"name the directory of a run first: {prog} RUN --metric NAME")
    run, *rest = arguments
    asked = parse(prog, rest, parts=("metric",))
    if "metric" not in asked:
        raise UsageError(f"name a metric: {prog} {run} --metric NAME (see 'ebmcore list metric')")
    admit_code(Path(run), allowed=split_off_flag(rest)[1])
    config, parts, step = load_run(Path(run))
    metrics = create_metrics(asked)
    with refusing_sizes():
        measure(config, metrics, parts, Path(run), step)

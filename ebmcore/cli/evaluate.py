"""``ebmcore evaluate``."""

from __future__ import annotations

from collections.abc import Sequence

from ebmcore.errors import UsageError


def evaluate(arguments: Sequence[str]) -> None:
    """Measure the energy of a run: ``ebmcore evaluate RUN --metric NAME [--metric.OPTION ...] [--metric NAME ...]``."""
    from ebmcore.training.preparation import require_train_extra

    require_train_extra()
    from ebmcore.cli.code import split_off_flag
    from ebmcore.cli.options import parse
    from ebmcore.cli.runs import measure, relocate_data
    from ebmcore.training import load_run
    from ebmcore.training.configuration import create_metrics
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
    trained = load_run(run, checkpoint=asked.get("checkpoint"), allow_code=split_off_flag(rest)[1])
    relocate_data(trained, asked["data"])
    metrics = create_metrics(asked)
    with refusing_sizes():
        measure(trained.config, metrics, trained, trained.directory, trained.step)

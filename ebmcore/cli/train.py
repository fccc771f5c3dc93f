"""``ebmcore train``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ebmcore import host
from ebmcore.cli.listing import Parser
from ebmcore.errors import UsageError


def train(arguments: Sequence[str]) -> None:
    """Train an energy; or, with ``--resume RUN``, resume a run."""
    from ebmcore.training.fit import require_train_extra

    require_train_extra()
    from ebmcore.cli.options import PARTS, REQUIRED, create, create_metrics, parse
    from ebmcore.cli.runs import SavedConfig, build, check_plugins, measure, measuring, run_config
    from ebmcore.training import BaseObserver, fit
    from ebmcore.training.options import CHANGEABLE

    prog = "ebmcore train"
    arguments, resumed = _split_off_resume(arguments)
    if resumed is None:
        config = parse(prog, arguments)
        missing = [f"--{part}" for part in (*REQUIRED, "out") if not config.get(part)]
        if "loss" in config and "sampler" not in config and host.load("loss", config["loss"]["name"]).needs_sampler:
            missing.append(f"--sampler (the loss {config['loss']['name']} needs one)")
        if missing:
            raise UsageError(f"{', '.join(missing)} missing; e.g. {_EXAMPLE}")
        run = Path(config["out"])
    else:
        run = resumed
        saved = run_config(run)
        check_plugins(run)
        base = {**saved, "out": str(run)}
        given = {argument.partition("=")[0].removeprefix("--") for argument in arguments}
        if given & {"epochs", "steps"}:  # a new length replaces the old one, in either unit
            base |= {"epochs": None, "steps": None}
        config = parse(prog, arguments, base=base)
        changed = [name for name in config if name not in CHANGEABLE and config[name] != base.get(name)]
        if changed:
            raise UsageError(f"a resumed run keeps its {', '.join(changed)}: start another run to change that")
    parts = build(config)
    metrics = create_metrics(config)  # a wrong option raises before training, not after it
    if config["measure_every"] is not None and not metrics:
        raise UsageError("--measure_every needs a metric: name it with --metric NAME")
    options = {name: value for name, value in config.items() if name not in PARTS or name == "optimizer"}
    observers: list[BaseObserver] = [SavedConfig()]
    if "observer" in config:
        observers.append(create(config, "observer"))
    options |= {"measure": measuring(config, metrics, parts) if metrics else None, "observers": observers}
    result = fit(parts.loss, parts.data, **options, config=config, resume=resumed is not None)
    parts.energy = result.energy.cpu()
    if result.rank:
        return
    print(f"trained {result.step} steps; {run} holds the results")
    measure(config, metrics, parts, run, result.step)


_EXAMPLE = (
    "ebmcore train --energy rbm --energy.hidden 64 --sampler gibbs --loss pcd --data digits --epochs 30 --out runs/demo"
)


def _split_off_resume(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    parser = Parser("ebmcore train", add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", type=Path)
    options, rest = parser.parse_known_args(list(arguments))
    return rest, options.resume

"""``ebmcore train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ebmcore import host
from ebmcore.cli import printable
from ebmcore.cli.listing import Parser
from ebmcore.errors import UsageError


def train(arguments: Sequence[str]) -> None:
    """Train an energy; with ``--resume RUN`` resume a run, with ``--resume auto`` the run in ``--out``, or start it there."""
    from ebmcore.training.preparation import require_train_extra

    require_train_extra()
    from ebmcore.cli.runs import SavedConfig, measure, measuring
    from ebmcore.training import BaseObserver, fit, latest_checkpoint, start_from
    from ebmcore.training.configuration import PARTS, create_metrics, create_observers
    from ebmcore.training.numbers import refusing_sizes
    from ebmcore.training.runs import CONFIG, build, check_plugins, evaluation, run_config

    arguments, resume = _split_off_resume(arguments)
    if resume in (None, "auto"):
        config = _new_config(arguments)
        run = Path(config["out"])
        resuming = resume == "auto" and (run / CONFIG).exists()
        if resuming:
            check_plugins(run)
            _refuse_changes(config, {**run_config(run), "out": str(run)})
    else:
        run, resuming = Path(resume), True
        config = _resumed_config(run, arguments)
    with refusing_sizes():
        parts = build(config)
    if config["from"] is not None and not (resuming and latest_checkpoint(run / "checkpoints")):
        start_from(parts.loss, config["from"])
    metrics = create_metrics(config)  # a wrong option raises before training, not after it
    if config["measure_every"] is not None and not metrics:
        raise UsageError("--measure_every needs a metric: name it with --metric NAME")
    if resuming and metrics:
        evaluation(run)  # likewise
    options = {name: value for name, value in config.items() if name not in {*PARTS, "from"} or name == "optimizer"}
    observers: list[BaseObserver] = [SavedConfig(), *create_observers(config)]
    options |= {"measure": measuring(config, metrics, parts) if metrics else None, "observers": observers}
    result = fit(parts.loss, parts.data, **options, config=config, resume=resuming)
    if result.rank:
        return
    parts.energy = result.energy
    print(printable(f"trained {result.step} steps; {run} holds the results"))
    with refusing_sizes():
        measure(config, metrics, parts, run, result.step)


def _new_config(arguments: Sequence[str]) -> dict[str, Any]:
    from ebmcore.cli.options import parse
    from ebmcore.training.configuration import REQUIRED

    config = parse(_PROG, arguments)
    missing = [f"--{part}" for part in (*REQUIRED, "out") if not config.get(part)]
    if "loss" in config and "sampler" not in config and host.load("loss", config["loss"]["name"]).needs_sampler:
        missing.append(f"--sampler (the loss {config['loss']['name']} needs one)")
    if missing:
        raise UsageError(f"{', '.join(missing)} missing; e.g. {_EXAMPLE}")
    return config


def _resumed_config(run: Path, arguments: Sequence[str]) -> dict[str, Any]:
    from ebmcore.cli.options import parse
    from ebmcore.training.runs import check_plugins, run_config

    base = {**run_config(run), "out": str(run), "changed": []}
    check_plugins(run)
    given = {argument.partition("=")[0].removeprefix("--") for argument in arguments}
    if given & {"epochs", "steps"}:  # a new length replaces the old one, in either unit
        base |= {"epochs": None, "steps": None}
    config = parse(_PROG, arguments, base=base)
    _refuse_changes(config, base)
    return config


def _refuse_changes(config: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    from ebmcore.training.options import CHANGEABLE, PLACES, is_among
    from ebmcore.training.run import flat_config

    places = {f"data.{place}" for place in PLACES}

    def kept(options: Mapping[str, Any]) -> dict[str, Any]:
        flat = flat_config({name: value for name, value in options.items() if name not in CHANGEABLE})
        return {name: value for name, value in flat.items() if name not in places}

    now, then, allowed = kept(config), kept(saved), config.get("changed") or ()
    changed = [name for name in now | then if now.get(name) != then.get(name) and not is_among(name, allowed)]
    if changed:
        raise UsageError(
            f"a resumed run keeps its {', '.join(changed)}: start another run to change that, or name it in changed"
        )


_PROG = "ebmcore train"
_EXAMPLE = (
    "ebmcore train --energy rbm --energy.hidden 64 --sampler gibbs --loss pcd --data digits --epochs 30 --out runs/demo"
)


def _split_off_resume(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    parser = Parser(_PROG, add_help=False)
    parser.add_argument("--resume")
    options, rest = parser.parse_known_args(list(arguments))
    return rest, options.resume

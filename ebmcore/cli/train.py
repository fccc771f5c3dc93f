"""``ebmcore train``."""

from __future__ import annotations

import os
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
    from ebmcore.distributed import shutdown
    from ebmcore.training import BaseObserver, fit

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
        if _is_first_process() and run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise UsageError(f"{run} exists: choose another --out, or resume it with 'ebmcore train --resume {run}'")
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
    shutdown()  # of the process group: what follows is the first process's alone
    parts.energy = result.energy.cpu()
    if not _is_first_process():
        return
    print(f"trained {result.step} steps; {run} holds the results")
    measure(config, metrics, parts, run, result.step)


# Options that may differ in a resumed run; any other would make it another run.
CHANGEABLE = {
    "epochs", "steps", "metric", "observer", "lr", "schedules", "clip_grad", "accelerator", "devices", "precision",
    "log_every", "checkpoint_every", "measure_every", "compile", "progress",
}  # fmt: skip

_EXAMPLE = (
    "ebmcore train --energy rbm --energy.hidden 64 --sampler gibbs --loss pcd --data digits --epochs 30 --out runs/demo"
)


def _split_off_resume(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    parser = Parser("ebmcore train", add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", type=Path)
    options, rest = parser.parse_known_args(list(arguments))
    return rest, options.resume


def _is_first_process() -> bool:
    # Lightning starts one process for each further device with the same command line.
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"

"""A run's directory: its configuration, and the trained parts made from it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ebmcore import host
from ebmcore.errors import AmbiguousComponentError, CheckpointError, EbmcoreError, UsageError
from ebmcore.random import stream_seed
from ebmcore.training.checkpoints import latest_checkpoint, read_checkpoint, read_info
from ebmcore.training.configuration import PARTS, REQUIRED, Config, create, read_config
from ebmcore.training.data import DataSource, check_compatible, training_examples
from ebmcore.training.directory import check_file, read_text
from ebmcore.training.documents import MAX_JSON, load_json
from ebmcore.training.numbers import refusing_sizes
from ebmcore.training.options import binding, check_binding, check_options
from ebmcore.training.origins import check_installed, check_same, recorded_id, warn_of_other_versions
from ebmcore.training.preparation import build_loss

CONFIG = "config.yaml"
EVALUATION = "evaluation.json"


@dataclass
class Parts:
    """The components of a run; ``sampler`` is `None` where none was named."""

    data: DataSource
    energy: nn.Module
    sampler: Any
    loss: Any


def build(config: Config) -> Parts:
    """Data, energy, sampler and loss of a configuration; the energy's initial parameters come from its own stream."""
    incomplete = [part for part in REQUIRED if not isinstance(config.get(part), dict) or "name" not in config[part]]
    if incomplete:
        raise UsageError(f"the configuration names no {', '.join(incomplete)}")
    data = create(config, "data")
    missing = [name for name in ("train", "test", "shape", "state_space") if not hasattr(data, name)]
    if missing:
        raise UsageError(
            f"the dataset {config['data']['name']!r} has no {', '.join(missing)}: see ebmcore.training.DataSource"
        )
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(config.get("seed", 0), "init"))
        energy = create(config, "energy", shape=data.shape)
    sampler = create(config, "sampler") if "sampler" in config else None
    kind = host.load("loss", config["loss"]["name"])
    if kind.needs_sampler and sampler is None:
        raise UsageError(f"the configuration names no sampler, which the loss {config['loss']['name']} needs")
    check_compatible(energy, sampler, data, kind)
    loss = create(config, "loss", energy=energy, **({"sampler": sampler} if kind.needs_sampler else {}))
    build_loss(loss, data.shape, config.get("seed", 0))
    return Parts(data, energy, sampler, loss)


def load_run(run: Path) -> tuple[Config, Parts, int]:
    """Configuration, parts with the parameters of the last checkpoint, and its step.

    The energy carries the moving average of the parameters where the run kept one.
    """
    config = run_config(run)
    check_plugins(run)
    with refusing_sizes():
        parts = build(config)
    checkpoint = latest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(f"{run} holds no checkpoint yet: train it, or resume it with 'ebmcore train --resume {run}'")
    tensors, info = read_checkpoint(checkpoint)
    warn_of_other_versions(info, checkpoint)
    check_same(
        info, {"loss": parts.loss, "energy": parts.energy, "sampler": parts.sampler, "dataset": parts.data}, checkpoint
    )
    check_binding(info.get("run"), binding(config, training_examples(parts.data, parts.loss)), checkpoint)
    prefixes = ("average.module.", "loss.energy.")
    prefix = next((p for p in prefixes if any(name.startswith(p) for name in tensors)), prefixes[-1])
    try:
        parts.energy.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint} does not fit {run / CONFIG}: {error}") from error
    if not all(p.isfinite().all() for p in parts.energy.parameters()):  # of which no checkpoint is written
        raise CheckpointError(
            f"{checkpoint} holds parameters that are NaN or infinite: start the run again with another --out"
        )
    return config, parts, int(info["step"])


def check_plugins(run: Path) -> None:
    """Check first that the plugins of a run are installed; see `ebmcore.training.check_installed`."""
    checkpoint = latest_checkpoint(run / "checkpoints")
    if checkpoint is not None:
        check_installed(read_info(checkpoint), checkpoint)


def run_config(run: Path) -> Config:
    """The configuration that a run was started with; a name that several plugins provide by now means what it meant then."""
    if not (run / CONFIG).exists():
        raise UsageError(f"{run} is not the directory of a run: it holds no {CONFIG}")
    check_file(run / CONFIG)
    config = read_config(run / CONFIG)
    checkpoint = latest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        return config
    info = read_info(checkpoint)
    check_options(info.get("run"), config, checkpoint)
    for part in (*REQUIRED, "sampler"):
        kind = PARTS[part][0]
        try:
            host.find(kind, config[part]["name"])
        except AmbiguousComponentError:
            config[part]["name"] = recorded_id(info, kind, checkpoint) or config[part]["name"]
        except (EbmcoreError, KeyError, TypeError):
            continue  # raises when it is built
    return config


def evaluation(run: Path) -> dict[str, Any]:
    """The results that were written into a run's directory so far.

    Raises:
        UsageError: If the file is damaged or no regular one.
    """
    path = run / EVALUATION
    try:
        known = load_json(read_text(path, MAX_JSON), path)
    except FileNotFoundError:
        return {}
    except UsageError as error:
        raise UsageError(f"{path} is damaged ({error}): move it away") from error
    if not isinstance(known, dict):
        raise UsageError(f"{path} is damaged (it holds no results by their metrics): move it away")
    return known

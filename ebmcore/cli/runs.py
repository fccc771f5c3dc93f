"""A run's directory: its configuration, and the trained parts made from it again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ebmcore import host
from ebmcore.cli.code import admit
from ebmcore.cli.options import PARTS, REQUIRED, Config, components, create, fitting_energies, read_config
from ebmcore.errors import AmbiguousComponentError, CheckpointError, EbmcoreError, MissingCapabilityError, UsageError
from ebmcore.training import (
    BaseObserver,
    DataSource,
    Run,
    check_compatible,
    check_installed,
    latest_checkpoint,
    read_checkpoint,
    read_info,
    stream_generator,
    stream_seed,
    warn_of_other_versions,
)
from ebmcore.training.data import training_examples
from ebmcore.training.directory import check_file, read_text, write_text
from ebmcore.training.documents import MAX_JSON, load_json
from ebmcore.training.numbers import refusing_sizes
from ebmcore.training.options import binding, check_binding, check_options
from ebmcore.training.origins import check_same, recorded_id
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


def admit_code(run: Path, *, allowed: bool) -> None:
    """Register a user's own classes among the parts of a run, if that is allowed; see `ebmcore.cli.code`."""
    config = run_config(run)
    admit(components({part: config.get(part) for part in (*REQUIRED, "sampler")}), allowed=allowed)


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


class SavedConfig(BaseObserver):
    """Saves the resolved configuration, once training has accepted it."""

    def on_start(self, run: Run) -> None:
        assert run.directory is not None  # noqa: S101 - the command line has asked for one
        write_text(run.directory / CONFIG, yaml.safe_dump(dict(run.config), sort_keys=False))


def report(metric: str, result: dict[str, Any]) -> str:
    """One line for the terminal."""
    line = f"{metric}: log-likelihood {result['log_likelihood']:.2f} nats" if "log_likelihood" in result else metric
    if "interval_low" in result:
        line += f" (95 % interval {result['interval_low']:.2f} to {result['interval_high']:.2f})"
    rest = {k: v for k, v in result.items() if k not in ("log_likelihood", "interval_low", "interval_high")}
    return "; ".join(
        [line, *(f"{name} {value if isinstance(value, str) else f'{value:.6g}'}" for name, value in rest.items())]
    )


def measure(config: Config, metrics: Mapping[str, Any], parts: Parts, run: Path, step: int) -> None:
    """Measure the energy with each metric; print the results and write them into the run's directory."""
    check_metrics(metrics, parts)
    path, known = run / EVALUATION, evaluation(run)
    for name, metric in metrics.items():
        result = results(config, metric, parts, parts.energy)
        known |= {name: {"step": step, **result}}
        print(report(name, result), flush=True)  # an hour's work is not lost where it cannot be written
        write_text(path, json.dumps(known, indent=2))


def check_metrics(metrics: Mapping[str, Any], parts: Parts) -> None:
    """Raise what a metric raises about an energy, data or a sampler that it cannot measure, before hours of work are done."""
    for metric in metrics.values():
        check = getattr(metric, "check", None)
        if check is not None:
            with _measuring_with(metric):
                check(parts.energy, parts.data, sampler=parts.sampler)


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


def results(config: Config, metric: Any, parts: Parts, energy: nn.Module) -> dict[str, Any]:
    """Measure with one metric, on the CPU, wherever the energy was trained; its randomness is a stream of its own.

    Data and sampler are on the CPU, not every accelerator has the float64 of a likelihood, and the same run gives the same
    numbers everywhere.
    """
    generator = stream_generator(config.get("seed", 0), "metric")
    if not all(t.is_cpu for t in (*energy.parameters(), *energy.buffers())):
        energy = copy.deepcopy(energy).cpu()  # a copy, as training may continue with the energy where it is
    with _measuring_with(metric):
        found: dict[str, Any] = metric(energy, parts.data, sampler=parts.sampler, generator=generator)
    return found


@contextmanager
def _measuring_with(metric: Any) -> Iterator[None]:
    try:
        yield
    except MissingCapabilityError as error:
        error.add_note(fitting_energies(error))
        raise
    except Exception as error:
        error.add_note(f"while measuring with {type(metric).__name__} ({type(metric).__module__})")
        raise


def measuring(config: Config, metrics: Mapping[str, Any], parts: Parts) -> Callable[[nn.Module], dict[str, float]]:
    """All metrics as one function of the energy that gives numbers: what `ebmcore.training.fit` logs.

    Raises what a metric raises about an energy, data or a sampler that it cannot measure.
    """
    check_metrics(metrics, parts)

    def measured(energy: nn.Module) -> dict[str, float]:
        found = {name: results(config, metric, parts, energy) for name, metric in metrics.items()}
        return {f"{name}.{key}": v for name, result in found.items() for key, v in result.items() if not isinstance(v, str)}

    return measured

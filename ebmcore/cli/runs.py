"""What commands write into a run's directory: its configuration and the results of metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ebmcore.errors import MissingCapabilityError, UsageError
from ebmcore.training import BaseObserver, Run, TrainedRun, copy_energy, stream_generator
from ebmcore.training.configuration import Config, fitting_energies
from ebmcore.training.directory import write_text
from ebmcore.training.options import PLACES
from ebmcore.training.runs import CONFIG, EVALUATION, Parts, evaluation, keep_code


class SavedConfig(BaseObserver):
    """Saves the resolved configuration and the files of its classes, once training has accepted it."""

    def on_start(self, run: Run) -> None:
        assert run.directory is not None  # noqa: S101 - the command line has asked for one
        keep_code(run.directory, dict(run.config))
        write_text(run.directory / CONFIG, yaml.safe_dump(dict(run.config), sort_keys=False))


def relocate_data(run: TrainedRun, given: Mapping[str, Any]) -> None:
    """Say where the data of a run are now.

    Raises:
        UsageError: If its data set takes no such place.
    """
    options = run.config["data"]
    for place in (place for place in PLACES if given.get(place) is not None):
        if place not in options:
            raise UsageError(f"the data set {options['name']} of the run takes no {place}: leave out --data.{place}")
        options[place] = given[place]


def report(metric: str, result: dict[str, Any]) -> str:
    """One line for the terminal."""
    line = f"{metric}: log-likelihood {result['log_likelihood']:.2f} nats" if "log_likelihood" in result else metric
    if "interval_low" in result:
        line += f" (95 % interval {result['interval_low']:.2f} to {result['interval_high']:.2f})"
    rest = {k: v for k, v in result.items() if k not in ("log_likelihood", "interval_low", "interval_high")}
    return "; ".join(
        [line, *(f"{name} {value if isinstance(value, str) else f'{value:.6g}'}" for name, value in rest.items())]
    )


def measure(config: Config, metrics: Mapping[str, Any], parts: Parts | TrainedRun, run: Path, step: int) -> None:
    """Measure the energy with each metric; print the results and write them into the run's directory."""
    check_metrics(metrics, parts)
    path, known = run / EVALUATION, evaluation(run)
    for name, metric in metrics.items():
        result = results(config, metric, parts, parts.energy)
        known |= {name: {"step": step, **result}}
        print(report(name, result), flush=True)  # an hour's work is not lost where it cannot be written
        write_text(path, json.dumps(known, indent=2))


def check_metrics(metrics: Mapping[str, Any], parts: Parts | TrainedRun) -> None:
    """Raise what a metric raises about an energy, data or a sampler that it cannot measure, before hours of work are done."""
    for metric in metrics.values():
        check = getattr(metric, "check", None)
        if check is not None:
            with _measuring_with(metric):
                check(parts.energy, parts.data, sampler=parts.sampler)


def results(config: Config, metric: Any, parts: Parts | TrainedRun, energy: nn.Module) -> dict[str, Any]:
    """Measure with one metric, on the CPU, wherever the energy was trained; its randomness is a stream of its own.

    Data and sampler are on the CPU, not every accelerator has the float64 of a likelihood, and the same run gives the same
    numbers everywhere.
    """
    generator = stream_generator(config.get("seed", 0), "metric")
    if not all(t.is_cpu for t in (*energy.parameters(), *energy.buffers())):
        energy = copy_energy(energy).cpu()  # a copy, as training may continue with the energy where it is
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


def measuring(
    config: Config, metrics: Mapping[str, Any], parts: Parts | TrainedRun
) -> Callable[[nn.Module], dict[str, float]]:
    """All metrics as one function of the energy that gives numbers: what `ebmcore.training.fit` logs.

    Raises what a metric raises about an energy, data or a sampler that it cannot measure.
    """
    check_metrics(metrics, parts)

    def measured(energy: nn.Module) -> dict[str, float]:
        found = {name: results(config, metric, parts, energy) for name, metric in metrics.items()}
        return {f"{name}.{key}": v for name, result in found.items() for key, v in result.items() if not isinstance(v, str)}

    return measured

"""A run's configuration: the components that it names, made with their options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ebmcore import host
from ebmcore.energies import supports
from ebmcore.errors import EbmcoreError, MissingCapabilityError, UsageError
from ebmcore.training.documents import read_yaml
from ebmcore.training.numbers import refusing_sizes

Config = dict[str, Any]

# The parts of a run: option, kind of component, and what the run itself passes to its constructor.
PARTS: dict[str, tuple[str, set[str | int]]] = {
    "data": ("dataset", set()),
    "energy": ("energy", {"shape"}),
    "sampler": ("sampler", set()),
    "loss": ("loss", {"energy", "sampler"}),
    "metric": ("metric", set()),
    "observer": ("observer", set()),
    "optimizer": ("optimizer", {"params", "lr"}),
}
REQUIRED = ("data", "energy", "loss")
_COMMAND_LINE_ONLY = ("config", "recipe", "resume")


def create(config: Config, part: str, **given: Any) -> Any:
    """The component of one part of a run, made with its options.

    Raises:
        UsageError: If its constructor refuses a value.
    """
    return _create(PARTS[part][0], config[part], **given)


def create_metrics(config: Config) -> dict[str, Any]:
    """The metrics of a run, by name, made with their options."""
    return {metric["name"]: _create("metric", metric) for metric in config.get("metric", [])}


def _create(kind: str, chosen: Config, **given: Any) -> Any:
    options = {name: value for name, value in chosen.items() if name != "name"}
    try:
        with refusing_sizes():
            return host.create(kind, chosen["name"], **given, **options)
    except MissingCapabilityError as error:
        raise UsageError(f"the {kind} {chosen['name']!r}: {error} {fitting_energies(error)}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"the {kind} {chosen['name']!r}: {error}") from error
    except Exception as error:  # no wrong value, but trouble of its own
        error.add_note(f"while making the {kind} {chosen['name']!r}")
        raise


def fitting_energies(error: MissingCapabilityError) -> str:
    """Advice on a capability that an energy lacks: the installed energies that have it."""
    if error.capability is None:
        return ""
    fitting = []
    for component in host.list_components("energy"):
        try:
            if supports(host.load("energy", component.id), error.capability):
                fitting.append(component.id)
        except EbmcoreError:  # a broken plugin offers nothing
            continue
    return f"Energies that have it: {', '.join(fitting)}." if fitting else "No installed energy has it."


def read_config(path: Path) -> Config:
    """A YAML file of options."""
    try:
        config = read_yaml(path)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} must hold options, such as 'energy: {{name: rbm, hidden: 64}}'")
    for option in _COMMAND_LINE_ONLY:
        if option in config:
            raise UsageError(f"{option} is no option of a configuration file ({path}): give --{option} on the command line")
    return config

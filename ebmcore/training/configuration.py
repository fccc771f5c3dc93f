"""A run's configuration: the components that it names, made with their options."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ebmcore import host
from ebmcore._keywords import constructor_keywords
from ebmcore.energies import supports
from ebmcore.errors import EbmcoreError, MissingCapabilityError, UsageError
from ebmcore.host.code import is_code, register_class, what_runs
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
LISTED = ("metric", "observer")  # of which a run may have several
REQUIRED = ("data", "energy", "loss")
_COMMAND_LINE_ONLY = ("config", "recipe", "resume", "allow-code")

KindAndName = tuple[str, str]


def create(config: Config, part: str, **given: Any) -> Any:
    """The component of one part of a run, made with its options.

    Args:
        config: The configuration.
        part: The part, such as ``"energy"``.
        given: What the run passes to its constructor; ``shape`` only where it takes one.

    Raises:
        UsageError: If its constructor refuses a value.
    """
    if "shape" in given and "shape" not in constructor_keywords(host.load(PARTS[part][0], config[part]["name"])):
        del given["shape"]
    return _create(PARTS[part][0], config[part], **given)


def create_metrics(config: Config) -> dict[str, Any]:
    """The metrics of a run, by name, made with their options."""
    return {metric["name"]: _create("metric", metric) for metric in config.get("metric", [])}


def create_observers(config: Config) -> list[Any]:
    """The observers of a run, made with their options."""
    return [_create("observer", observer) for observer in config.get("observer", [])]


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


def components(config: Config) -> list[KindAndName]:
    """Kind and name of each component of a configuration; an optimizer is torch's."""
    named = [(part, config.get(part)) for part in PARTS if part not in (*LISTED, "optimizer")]
    named += [(part, one) for part in LISTED for one in config.get(part) or []]
    return [(PARTS[part][0], one["name"]) for part, one in named if isinstance(one, dict) and "name" in one]


def admit(names: Collection[KindAndName], *, given: Collection[KindAndName] = (), allowed: bool) -> None:
    """Register the user's own classes among the components of a run, by which their files and modules are run.

    Code comes from code, never from data: a name on the command line is run, and one from a file of options or from a run's
    ``config.yaml`` only with leave (``--allow-code``).

    Args:
        names: Kind and name of each component.
        given: Those of them that the command line names.
        allowed: Whether the others may be run too.

    Raises:
        UsageError: If one may not be run, before any is; or if it cannot be.
    """
    own = [(kind, name) for kind, name in names if is_code(name)]
    for kind, name in own:
        if not allowed and (kind, name) not in given:
            raise UsageError(
                f"the configuration names the {kind} {name}, for which {what_runs(name)} would be run: add "
                "--allow-code (in Python allow_code=True) if you trust it"
            )
    for kind, name in own:
        register_class(kind, name)


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

"""The options of `fit`, and how a checkpoint is bound to them and to the data."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from ebmcore.errors import CheckpointError, UsageError
from ebmcore.training.checkpoints import KEPT
from ebmcore.training.launch import Strategy
from ebmcore.training.numbers import Bounds
from ebmcore.training.observers import BaseObserver
from ebmcore.training.optimizers import OptimizerChoice
from ebmcore.training.run import flat_config
from ebmcore.training.schedules import SCHEDULES, Schedule, as_text

Precision = Literal["32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"]

# Options that may differ in a resumed run; any other would make it another run.
CHANGEABLE = {
    "epochs", "steps", "metric", "observer", "lr", "schedules", "clip_grad", "accelerator", "devices", "num_nodes", "strategy",
    "precision", "num_workers", "log_every", "checkpoint_every", "checkpoint_async", "keep", "measure", "measure_every",
    "compile", "progress", "changed",
}  # fmt: skip

# Options that say where the data are, which may be another place by now: the digest of the data is compared.
PLACES = ("path", "directory")

_NOT_COMPARED = {f"{part}.name" for part in ("data", "energy", "sampler", "loss")} | {f"data.{place}" for place in PLACES}
KEEP = Bounds(1)
_MISSING = object()
# What a message says in place of values of the description of data that are digests.
_DIGESTS = {"digest": "", "rows": " (its sampler gives other rows)"}
RESUME = "resume with"
_FLAG = bool, "True or False"
_KINDS: dict[str, tuple[Any, str]] = {
    "schedules": (Mapping, "a mapping of options to schedules"),
    "accelerator": (str, "the name of a kind of device, such as 'cpu'"),
    "out": (Path | None, "a path, or None"),
    "resume": _FLAG,
    "changed": (list | tuple, "a list of names, such as ['loss.k_steps']"),
    "checkpoint_async": _FLAG,
    "measure": (Callable | None, "a function of the energy that returns named numbers, or None"),
    "compile": _FLAG,
    "progress": _FLAG,
    "observers": (Sequence, "a list of observers"),
    "config": (Mapping | None, "a mapping, or None"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `ebmcore.training.fit`, as documented there."""

    epochs: int | None
    steps: int | None
    batch_size: int
    accumulate: int
    optimizer: OptimizerChoice
    lr: float
    schedules: Mapping[str, Schedule | str]
    clip_grad: float | None
    ema_decay: float | None
    seed: int
    num_workers: int
    accelerator: str
    devices: int | None
    num_nodes: int | None
    strategy: Strategy
    precision: Precision
    out: Path | None
    resume: bool
    changed: Sequence[str]
    log_every: int
    checkpoint_every: int
    checkpoint_async: bool
    keep: int | str
    measure: Callable[[nn.Module], Mapping[str, float]] | None
    measure_every: int | None
    compile: bool
    progress: bool
    observers: Sequence[BaseObserver]
    config: Mapping[str, Any] | None

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot work."""
        for name, choices in (("strategy", get_args(Strategy)), ("precision", get_args(Precision))):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, (kind, wanted) in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise UsageError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
        if not all(isinstance(name, str) for name in self.changed):
            raise UsageError(f"changed must be a list of names, such as ['loss.k_steps'], got {self.changed!r}")
        for observer in self.observers:
            if not hasattr(observer, "on_start"):
                raise UsageError(f"observers must be instances of BaseObserver, got {observer!r}")
        for option in self.schedules:
            if not isinstance(option, str):
                raise UsageError(f"schedules must have names of options as keys, got {option!r}")

        _ = self.kept

    @property
    def kept(self) -> tuple[int, str | None]:
        """How many of the last checkpoints are kept, and the metric whose best is kept beside them."""
        if not isinstance(self.keep, str):
            KEEP.check("keep", self.keep)
            return int(self.keep), None
        word, _, metric = self.keep.partition(" ")
        if word != "best" or not metric.strip():
            raise UsageError(f"keep must be a whole number, or 'best METRIC', got {self.keep!r}")
        return KEPT, metric.strip()

    def number_of_steps(self, batches_per_epoch: int | None) -> int:
        """Optimizer steps of the whole run; the last of ``epochs`` may reach into another pass."""
        if (self.epochs is None) == (self.steps is None):
            raise UsageError("give the length of training, either as epochs or as steps")
        if self.steps is not None:
            return self.steps
        if batches_per_epoch is None:
            raise UsageError("epochs: the data do not say how many they are, so give the length of training as steps")
        return -(-(self.epochs or 0) * batches_per_epoch // self.accumulate)

    def as_config(self) -> Mapping[str, Any]:
        """The configuration of the run: the given one, otherwise the options that are plain data."""
        if self.config is not None:
            return self.config
        values: dict[str, Any] = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("observers", "config")
        }
        values["out"] = None if self.out is None else str(self.out)
        kinds: tuple[type, ...] = (str, *SCHEDULES.values())
        values["schedules"] = {name: as_text(one) for name, one in self.schedules.items() if isinstance(one, kinds)}
        return {name: value for name, value in values.items() if not callable(value)}


def binding(config: Mapping[str, Any], data: Mapping[str, Any], made: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a checkpoint records of its run, as JSON.

    Args:
        config: The options; those are recorded that a resumed run keeps.
        data: The description of the data.
        made: What the components are made of, by dotted names; `None` where it is not compared.
    """
    return {"options": kept_options(config), "data": dict(data), "made": None if made is None else dict(made)}


def check_binding(
    recorded: Any, now: Mapping[str, Any], where: Path, advice: str = RESUME, changed: Sequence[str] = ()
) -> None:
    """Raise `CheckpointError` if a checkpoint is of a run with other options, components or data, whose name the message gives.

    Args:
        recorded: The `binding` in the checkpoint.
        now: That of this run.
        where: The checkpoint, for messages.
        advice: What to do with what it was written with.
        changed: Names of what may differ, as in messages; that of a component stands for all of its options.
    """
    check_options(recorded, now["options"], where, advice, changed)
    if now["made"] is not None:
        made = recorded.get("made")
        if not isinstance(made, Mapping):
            raise CheckpointError(f"{where} does not say what its run was made of: it is not a checkpoint of ebmcore")
        _check_known(
            changed, [*flat_config(recorded["options"]), *made, *flat_config(now["options"]), *now["made"], "dataset"]
        )
        _check_equal(made, now["made"], where, advice, changed)
    then, data = recorded["data"], now["data"]
    if then != data and "data" not in changed:
        known = dict(then) if isinstance(then, Mapping) else {}
        other = next((name for name in {**data, **known} if known.get(name) != data.get(name)), "digest")
        told = _DIGESTS.get(other, f" ({other} {known.get(other)!r}, not {data.get(other)!r})")
        raise CheckpointError(f"{where} is of a run on other data{told}: {advice} the same{or_allowed(advice)}")
    if "digest" not in data and "data" not in changed:
        warnings.warn(
            f"the content of the data is not compared with that of the run that wrote {where}, as another look need not give it "
            "again: make sure that it is the same",
            UserWarning,
            stacklevel=2,
        )


def check_options(
    recorded: Any, config: Mapping[str, Any], where: Path, advice: str = RESUME, changed: Sequence[str] = ()
) -> None:
    """Raise `CheckpointError` if a checkpoint is of a run with other options, before anything is made with these."""
    try:
        then = flat_config(recorded["options"])
        if not then or "data" not in recorded:
            raise KeyError("options")
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{where} does not say which run wrote it: it is not a checkpoint of ebmcore") from error
    # Names of components have more than one spelling: their origins are compared, by `ebmcore.training.origins`.
    compared = {name: value for name, value in then.items() if name not in _NOT_COMPARED}
    _check_equal(compared, flat_config(kept_options(config)), where, advice, changed)


def or_allowed(advice: str) -> str:
    """Return what else a resumed run may do than keep what differs."""
    return ", or name what differs in changed" if advice == RESUME else ""


def is_among(name: str, changed: Sequence[str]) -> bool:
    """Return whether an option is named, by its own name or by that of its component."""
    return any(name == one or name.startswith(f"{one}.") for one in changed)


def _check_known(changed: Sequence[str], known: Sequence[str]) -> None:
    names = {name.removeprefix("fit.") for name in known} | {name.partition(".")[0] for name in known} | {"data"}
    for name in changed:
        if not any(is_among(one, [name]) for one in names):
            close = difflib.get_close_matches(name, sorted(names), 3)
            advice = f"did you mean {', '.join(close)}?" if close else f"such are {', '.join(sorted(names)[:5])}, ..."
            raise UsageError(f"changed names {name!r}, which is no option of the run: {advice}")


def _check_equal(then: Mapping[str, Any], now: Mapping[str, Any], where: Path, advice: str, changed: Sequence[str]) -> None:
    for name, value in then.items():
        if now.get(name, _MISSING) != value and not is_among(name.removeprefix("fit."), changed):
            given = f"not {now[name]!r}" if name in now else "which is not given"
            raise CheckpointError(
                f"{where} is of a run with {name}={value!r}, {given}: {advice} that one{or_allowed(advice)}"
            )


def kept_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a resumed run keeps, as JSON."""
    return {name: _as_json(value) for name, value in config.items() if name not in CHANGEABLE | {"out", "resume"}}


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)

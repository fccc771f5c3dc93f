"""The options that a run's schedules change."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import torch

from ebmcore.errors import UsageError
from ebmcore.samplers import Sampler
from ebmcore.training.schedules import Schedule, as_schedule, close_match, from_value

Number = int | float


@dataclass(frozen=True)
class _Option:
    """A numeric option: its value before training, whether it is a whole number, and how it is set."""

    value: Number
    whole: bool
    set: Callable[[Number], None]


class ScheduledOptions:
    """Options of a loss, its sampler and an optimizer, each with its schedule.

    The value of a step is a function of the step alone, so that a resumed run has the values of an uninterrupted one. An option
    that no schedule names is never touched.

    Args:
        schedules: Schedules, or their texts, by option.
        loss: The loss; its sampler is its attribute ``sampler``.
        optimizer: The optimizer before its first step. A schedule of its option holds for every parameter group; the ratio of
            a group's own value to the optimizer's default is kept.
        n_steps: Number of steps of the whole run.

    Raises:
        UsageError: For an option that cannot be scheduled, with those that can.
    """

    def __init__(
        self, schedules: Mapping[str, Schedule | str], loss: object, optimizer: torch.optim.Optimizer, n_steps: int
    ) -> None:
        self.n_steps = n_steps
        self.optimizer_options = {name.removeprefix("optimizer.") for name in schedules if name.startswith("optimizer.")}
        known = _component_options(loss, "loss") | _optimizer_options(optimizer)
        self.chosen: list[tuple[_Option, Schedule]] = []
        for name, schedule in schedules.items():
            if name not in known:
                raise UsageError(
                    f"schedules: {name!r} is no numeric option of the loss, its sampler or the optimizer"
                    f"{close_match(name, known)}; what can be scheduled: {', '.join(known)}"
                )
            try:
                known[name].set(known[name].value)  # raises before the first step, if it follows from another option
                self.chosen.append((known[name], from_value(as_schedule(name, schedule), known[name].value)))
            except ValueError as error:
                raise UsageError(f"the schedule of {name}: {error}") from error

    def set(self, step: int) -> None:
        """Give each option its value of training step ``step``."""
        for option, schedule in self.chosen:
            value = schedule(step, self.n_steps)
            option.set(round(value) if option.whole else float(value))

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Give each option the value that it was made with again, also after an error."""
        try:
            yield
        finally:
            for option, _ in self.chosen:
                option.set(option.value)


def _component_options(component: object, prefix: str) -> dict[str, _Option]:
    """Numeric constructor options that a component keeps under their own names, and those of samplers within it."""
    options: dict[str, _Option] = {}
    for name, parameter in inspect.signature(type(component)).parameters.items():
        value: Any = getattr(component, name, None)
        if isinstance(value, Sampler) and not isinstance(value, type):
            options |= _component_options(value, "sampler" if (prefix, name) == ("loss", "sampler") else f"{prefix}.{name}")
        elif _is_number(value) and not _is_read_only(component, name):
            whole = isinstance(value, int) and "float" not in str(parameter.annotation)
            options[f"{prefix}.{name}"] = _Option(value, whole, partial(setattr, component, name))
    return options


def _optimizer_options(optimizer: torch.optim.Optimizer) -> dict[str, _Option]:
    return {
        f"optimizer.{name}": _Option(value, False, partial(_set_groups, optimizer, name, _ratios(optimizer, name)))
        for name, value in optimizer.defaults.items()
        if _is_number(value) and all(_is_number(group[name]) for group in optimizer.param_groups)
    }


def _ratios(optimizer: torch.optim.Optimizer, name: str) -> list[float]:
    default = optimizer.defaults[name]
    return [group[name] / default if default else 1.0 for group in optimizer.param_groups]


def _set_groups(optimizer: torch.optim.Optimizer, name: str, ratios: Sequence[float], value: Number) -> None:
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        group[name] = value if ratio == 1 else value * ratio


def _is_number(value: object) -> TypeGuard[Number]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_read_only(component: object, name: str) -> bool:
    attribute = inspect.getattr_static(type(component), name, None)
    return isinstance(attribute, property) and attribute.fset is None

"""Rule for the options of losses and samplers."""

from __future__ import annotations

import inspect

from torch import Tensor

from ebmcore.testing.cases import SteppingCase
from ebmcore.testing.rules import check, expect

HANDED_ON = ("energy", "sampler", "n_chains")  # the kit gives these itself


@check(since="0.1")
def check_it_keeps_each_option_under_its_own_name(case: SteppingCase) -> None:
    """Each number among the constructor's options is an attribute of that name: training schedules set it at each step."""
    instance = case.make()
    values = {name: p.default for name, p in inspect.signature(case.component).parameters.items()} | case.options
    for name, value in values.items():
        if name in HANDED_ON or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        expect(hasattr(instance, name), f"there is no attribute {name}: write self.{name} = {name}")
        kept = getattr(instance, name)
        expect(_number(kept) == value, f"{name}={value!r} is kept as {kept!r}: keep the number as it was given")


def _number(value: object) -> object:
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value

"""Rules for recipes, which hold settings of a run, as ``ebmcore train --config`` takes them."""

from __future__ import annotations

import inspect

from ebmcore import host
from ebmcore.errors import UnknownComponentError
from ebmcore.testing.cases import RecipeCase
from ebmcore.testing.rules import check, expect

NAMED = {"energy": "energy", "sampler": "sampler", "loss": "loss", "data": "dataset"}  # setting of a run, and its kind


@check(since="0.1")
def check_it_is_a_mapping_of_settings(case: RecipeCase) -> None:
    """The file is a YAML mapping from names of settings to their values, with a comment on where they come from."""
    settings = case.settings
    expect(isinstance(settings, dict) and bool(settings), f"it holds a {type(settings).__name__}, not a mapping")
    wrong = [key for key in settings if not isinstance(key, str)]
    expect(not wrong, f"{wrong} are not names of settings")
    expect("#" in case.component.read_text(encoding="utf-8"), "no comment says where its settings come from")


@check(since="0.1")
def check_its_components_take_their_options(case: RecipeCase) -> None:
    """Each installed component that it names takes the options that it gives, and at least one of them is installed."""
    expect(isinstance(case.settings, dict), "it holds no mapping")
    installed = 0
    for setting, kind in NAMED.items():
        given = case.settings.get(setting)
        if given is None:
            continue
        name, options = (given, {}) if isinstance(given, str) else (given.get("name"), given)
        try:
            component = host.load(kind, name)
        except UnknownComponentError:
            continue  # a plugin is tested alone, and its recipe may name the components of others
        installed += 1
        strange = sorted(set(options) - set(inspect.signature(component).parameters) - {"name"})
        expect(not strange, f"{setting} {name} takes no {', '.join(strange)}")
    expect(installed > 0, f"none of its components is installed; it may name {', '.join(NAMED)}")

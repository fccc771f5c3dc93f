"""The checks, one module for each group of rules. `MODULES` says which apply to which kind of component.

Importing a module of checks imports torch; this module does not, so that tests can be collected without it.
"""

from __future__ import annotations

import ast
from importlib.resources import files

MODULES: dict[str, tuple[str, ...]] = {
    "loss": ("component", "options", "stepping", "loss_contract", "loss_parts", "labels", "gradients", "fits", "chains"),
    "sampler": ("component", "options", "stepping", "sampler_contract", "laws"),
    "energy": ("component", "energies"),
    "dataset": ("component", "datasets"),
    "metric": ("component", "metrics"),
    "observer": ("component", "observers"),
    "recipe": ("recipes",),
    "command": ("commands",),
}


def names(kind: str) -> list[str]:
    """The names of the checks for a kind of component, in the order in which they run. Imports none of them."""
    found = []
    for module in MODULES[kind]:
        tree = ast.parse(files(__name__).joinpath(f"{module}.py").read_text(encoding="utf-8"))
        functions = (node.name for node in tree.body if isinstance(node, ast.FunctionDef))
        found += [name for name in functions if name.startswith("check_")]
    return found

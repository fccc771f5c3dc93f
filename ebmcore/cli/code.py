"""The flag ``--allow-code``; see `ebmcore.training.configuration.admit`."""

from __future__ import annotations

from collections.abc import Sequence

FLAG = "--allow-code"
HELP = "run the files and modules that a configuration names, as in energy: 'model.py:MyEnergy'; without it they are refused"


def split_off_flag(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Arguments without ``--allow-code``, and whether it was there."""
    rest = [argument for argument in arguments if argument != FLAG]
    return rest, len(rest) < len(arguments)

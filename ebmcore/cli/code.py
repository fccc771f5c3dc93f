"""Leave to run a user's own class, such as ``--energy model.py:MyEnergy``.

Code comes from code, never from data: a name on the command line is run, and one from a file of options or from a run's
``config.yaml`` only where the command line has ``--allow-code``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ebmcore.errors import UsageError
from ebmcore.host.code import is_code, register_class, what_runs

FLAG = "--allow-code"
HELP = "run the files and modules that a configuration names, as in energy: 'model.py:MyEnergy'; without it they are refused"

KindAndName = tuple[str, str]


def split_off_flag(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Arguments without ``--allow-code``, and whether it was there."""
    rest = [argument for argument in arguments if argument != FLAG]
    return rest, len(rest) < len(arguments)


def admit(names: Collection[KindAndName], *, given: Collection[KindAndName] = (), allowed: bool) -> None:
    """Register the user's own classes among the components of a run, by which their files and modules are run.

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
                f"the configuration names the {kind} {name}, for which {what_runs(name)} would be run: add {FLAG} if you trust it"
            )
    for kind, name in own:
        register_class(kind, name)

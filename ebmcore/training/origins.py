"""Origins of the components of a run: written into its checkpoints, and compared when one is loaded."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from importlib_metadata import version

from ebmcore import host
from ebmcore.errors import CheckpointError
from ebmcore.host.registry import known_plugins
from ebmcore.training.options import RESUME, or_allowed

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*")  # of a distribution or a version, nothing that a shell obeys


def origins(components: Mapping[str, object], observers: Sequence[object] = ()) -> dict[str, Any]:
    """Canonical id, class, distribution and version of each component, and the versions of what they run on; as JSON.

    Args:
        components: The components by kind; `None` stands for none.
        observers: Any number of observers.
    """
    known: dict[str, Any] = {kind: host.provenance(part) for kind, part in components.items() if part is not None}
    if observers:
        found = map(host.provenance, observers)
        known["observers"] = [origin for origin in found if origin["id"]]
    return {"ebmcore": version("ebmcore"), "torch": torch.__version__, "components": known}


def check_installed(info: Mapping[str, Any], where: Path) -> None:
    """Raise `CheckpointError` with what to install if a distribution that a checkpoint was written with is missing.

    Args:
        info: Result of `origins` at that time.
        where: The checkpoint, for messages.
    """
    missing = {distribution: f"{distribution}=={then}" for distribution, then, now in _versions(info, where) if now is None}
    known = [line for distribution, line in missing.items() if distribution in known_plugins().values()]
    others = [line for line in missing.values() if line not in known]  # whose names may be a stranger's on the package index
    advice = [f"pip install {' '.join(known)}"] if known else []
    advice += [f"get {', '.join(others)} from who made the run"] if others else []
    if advice:
        raise CheckpointError(f"{where} needs plugins that are not installed: {'; '.join(advice)}")


def warn_of_other_versions(info: Mapping[str, Any], where: Path) -> None:
    """Warn of each installed distribution that has another version than when a checkpoint was written."""
    for distribution, then, now in _versions(info, where):
        if now not in (then, None):
            warnings.warn(
                f"{where} was written with {distribution} {then}, but {now} is installed: results may differ",
                UserWarning,
                stacklevel=2,
            )


def check_same(
    info: Mapping[str, Any],
    components: Mapping[str, object],
    where: Path,
    advice: str = RESUME,
    changed: Sequence[str] = (),
) -> None:
    """Raise `CheckpointError` if a checkpoint was written with another component.

    Warn where the file of a user's own class has changed.

    Args:
        info: Result of `origins` at that time.
        components: The components by kind.
        where: The checkpoint, for messages.
        advice: What to do with the component that it was written with.
        changed: Kinds that may differ.
    """
    for kind, part in components.items():
        if kind in changed or (kind == "dataset" and "data" in changed):
            continue
        then, now = _recorded_origin(info, kind, where), host.provenance(part) if part is not None else {}
        if then.get("id") and now.get("id") and then["id"] != now["id"]:
            raise CheckpointError(
                f"{where} was written with the {kind} {then['id']}, not with {now['id']}: {advice} that one{or_allowed(advice)}"
            )
        if then.get("sha256") != now.get("sha256") and then.get("id") and now.get("id"):
            text = f"{where} was written with another version of the file of {now['id']}: results may differ"
            warnings.warn(text, UserWarning, stacklevel=2)


def recorded_id(info: Mapping[str, Any], kind: str, where: Path) -> str | None:
    """Return the canonical id of the component of that kind which a checkpoint was written with, if it had one."""
    found: str | None = _recorded_origin(info, kind, where).get("id")
    return found


def _recorded_origin(info: Mapping[str, Any], kind: str, where: Path) -> Mapping[str, Any]:
    return next((one for of, one in _recorded(info, where) if of == kind), {})


def _versions(info: Mapping[str, Any], where: Path) -> list[tuple[str, str, str | None]]:
    """Distribution, version in the checkpoint, and installed version."""
    recorded = [one for _, one in _recorded(info, where) if one["distribution"] not in (None, host.SESSION)]
    then = {"ebmcore": info["ebmcore"]} | {one["distribution"]: one["version"] for one in recorded}
    now = {report.distribution: report.version for report in host.plugins()} | {"ebmcore": version("ebmcore")}
    return [(name, number, now.get(name)) for name, number in then.items()]


def _recorded(info: Mapping[str, Any], where: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Kind and origin of each component. Messages name distributions to install, so what is no name of one is refused."""
    try:
        parts = [
            (kind, one) for kind, part in info["components"].items() for one in (part if isinstance(part, list) else [part])
        ]
        names = [info["ebmcore"], *(one[key] for _, one in parts for key in ("distribution", "version"))]
        are_names = all(name is None or _NAME.fullmatch(name) for name in names)
        are_ids = all(isinstance(one["id"], str | None) for _, one in parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise _not_a_checkpoint(where) from error
    if not are_names or not are_ids:
        raise _not_a_checkpoint(where)
    return parts


def _not_a_checkpoint(where: Path) -> CheckpointError:
    return CheckpointError(f"{where} does not say which components wrote it: it is not a checkpoint of ebmcore")

"""Origins of the components of a run: written into its checkpoints, and compared when one is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from importlib_metadata import version

from ebmcore import host
from ebmcore.errors import CheckpointError


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
    """Raise `CheckpointError` with the install command if a distribution that a checkpoint was written with is missing.

    Args:
        info: Result of `origins` at that time.
        where: The checkpoint, for messages.
    """
    missing = [f"{distribution}=={then}" for distribution, then, now in _versions(info, where) if now is None]
    if missing:
        raise CheckpointError(f"{where} needs plugins that are not installed: pip install {' '.join(missing)}")


def warn_of_other_versions(info: Mapping[str, Any], where: Path) -> None:
    """Warn of each distribution that has another version than when a checkpoint was written."""
    for distribution, then, now in _versions(info, where):
        if now != then:
            warnings.warn(
                f"{where} was written with {distribution} {then}, but {now} is installed: results may differ",
                UserWarning,
                stacklevel=2,
            )


def check_same(info: Mapping[str, Any], components: Mapping[str, object], where: Path) -> None:
    """Raise `CheckpointError` if a run is resumed with another component than it was started with."""
    for kind, part in components.items():
        then = info["components"].get(kind) or {"id": None}
        now = host.provenance(part) if part is not None else {"id": None}
        if then["id"] and now["id"] and then["id"] != now["id"]:
            raise CheckpointError(
                f"{where} was written with the {kind} {then['id']}, not with {now['id']}: resume with that one"
            )


def _versions(info: Mapping[str, Any], where: Path) -> list[tuple[str, str, str | None]]:
    """Distribution, version in the checkpoint, and installed version."""
    try:
        recorded = [one for part in info["components"].values() for one in (part if isinstance(part, list) else [part])]
        then = {one["distribution"]: one["version"] for one in recorded if one["distribution"] not in (None, host.SESSION)}
        then = {"ebmcore": info["ebmcore"], **then}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where} does not say which components wrote it: it is not a checkpoint of ebmcore"
        ) from error
    now = {report.distribution: report.version for report in host.plugins()} | {"ebmcore": version("ebmcore")}
    return [(name, number, now.get(name)) for name, number in then.items()]

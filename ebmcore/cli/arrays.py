"""Arrays in files that ``ebmcore sample`` writes and ``ebmcore score`` reads; none of the formats can run code."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from ebmcore.errors import UsageError
from ebmcore.training.directory import writing

EXAMPLES, CONDITION, UNITS = "x", "condition", "units"  # names in files of several arrays
# What numpy, zipfile and safetensors raise of files that are cut, changed or hold Python objects.
_DAMAGE = (
    EOFError, ValueError, SyntaxError, RuntimeError, TypeError, KeyError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
    SafetensorError,
)  # fmt: skip


def _npy(arrays: dict[str, Tensor], _: str | None) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, arrays[EXAMPLES].numpy())
    return buffer.getvalue()


def _npz(arrays: dict[str, Tensor], units: str | None) -> bytes:
    buffer = io.BytesIO()
    named: dict[str, Any] = {name: t.numpy() for name, t in arrays.items()}
    named |= {} if units is None else {UNITS: np.array(units)}
    np.savez(buffer, **named)
    return buffer.getvalue()


def _safetensors(arrays: dict[str, Tensor], units: str | None) -> bytes:
    return save(arrays, None if units is None else {UNITS: units})


WRITERS: dict[str, Callable[[dict[str, Tensor], str | None], bytes]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
}


def write_arrays(out: Path, x: Tensor, labels: Tensor | None, units: str | None) -> None:
    """Write samples ``(N, *shape)`` and, where the format has room for them, the labels that they took in turn, and the units."""
    arrays = {EXAMPLES: x.contiguous()}
    if labels is not None:
        arrays[CONDITION] = labels[torch.arange(len(x)) % len(labels)]
    content = WRITERS[out.suffix](arrays, units)
    with writing(out) as file:
        file.write(content)


def units_in(path: Path) -> str | None:
    """The units that a file of `write_arrays` says; `None` of another file."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).get(UNITS)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return str(file[UNITS]) if {EXAMPLES, UNITS} <= set(file.files) else None
    except (OSError, *_DAMAGE):
        return None  # raises when it is read
    return None


def read_arrays(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read examples ``(N, *shape)`` and their labels, if there are any.

    Raises:
        UsageError: If the file is missing, damaged, or holds no array of numbers (called ``x`` beside others).
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}: give one that ends in {', '.join(WRITERS)}")
    try:
        arrays = load(path.read_bytes()) if path.suffix == ".safetensors" else _read_numpy(path)
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path} cannot be read ({reason}): write it again, as an array of numbers") from error
    if EXAMPLES not in arrays and len(arrays) != 1:
        raise UsageError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}: call the examples {EXAMPLES!r}")
    return arrays.get(EXAMPLES, next(iter(arrays.values()))), arrays.get(CONDITION)


def _read_numpy(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        names = [] if isinstance(loaded, np.ndarray) else [name for name in loaded.files if name != UNITS]
        named = {EXAMPLES: loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in names}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in named.items()}

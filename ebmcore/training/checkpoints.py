"""Checkpoints: tensors in safetensors files, everything else in JSON, written under a hidden name and then renamed.

A checkpoint is ``step-00000720/`` with a file of tensors for each rank that wrote it, and ``checkpoint.json`` with the step, the
options of the run, a digest of its data, where each component came from, and the digests of the other files. One that has its
final name is complete. Reading one runs no code of it: neither format can hold any.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ebmcore.distributed import rank, world_size
from ebmcore.errors import CheckpointError
from ebmcore.training.directory import check_directory, open_to_read, read_text, remove, temporary_name
from ebmcore.training.documents import MAX_JSON, load_json
from ebmcore.training.launch import on_first_rank
from ebmcore.training.numbers import Bounds

KEPT = 2
_FORMAT = 2  # the first was a pickle
_INFO = "checkpoint.json"
_CHECKPOINT = re.compile(r"step-[0-9]{8,}")


class CheckpointWriter:
    """Writes the checkpoints of a run one after another and removes earlier ones. Collective: every rank uses it alike.

    Args:
        directory: Where the run keeps its checkpoints.
        background: Whether training continues while a checkpoint is written. The tensors are copied first, so the checkpoint
            holds the state at that step in either case.
        keep: Number of checkpoints that stay: the last ones, and beside them the one of the largest ``best`` value, if
            ``best: {metric, value}`` is among their further content.
    """

    def __init__(self, directory: Path, *, background: bool = False, keep: int = KEPT) -> None:
        self.directory = directory
        self.keep = keep
        self._thread = ThreadPoolExecutor(1) if background else None
        self._group: Any = None
        self._pending: Future[Path] | None = None

    def write(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint; `take` returns its path as soon as it is complete.

        Args:
            step: Number of training steps done.
            tensors: Flat mapping of names to tensors; DTensors are written shard by shard.
            info: Further content, as JSON.

        Raises:
            CheckpointError: If it, or the one before it, cannot be written, as on a full disk; those before stay.
        """
        self.take(wait=True)
        if self._thread is not None and self._group is None and world_size() > 1:
            self._group = dist.new_group(backend="gloo")  # its messages must not meet those of training
        arguments = (self.directory, step, {name: _copy(t) for name, t in tensors.items()}, info, self.keep, self._group)
        if self._thread is not None:
            self._pending = self._thread.submit(_write, *arguments)
        else:
            self._pending = Future()
            self._pending.set_result(_write(*arguments))

    def take(self, *, wait: bool = False) -> Path | None:
        """Returns the checkpoint that was completed since the last call; `None` if there is none, or none yet.

        Args:
            wait: Whether to wait for one that is being written.
        """
        pending = self._pending
        if pending is None or not (wait or pending.done()):
            return None
        self._pending = None
        return pending.result()

    def close(self) -> None:
        """Waits for a checkpoint that is being written; does not raise if it fails."""
        if self._thread is not None:
            self._thread.shutdown()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None


def _write(directory: Path, step: int, tensors: dict[str, Tensor], info: Mapping[str, Any], keep: int, group: Any) -> Path:
    final = directory / f"step-{step:08d}"
    try:
        temporary = on_first_rank(lambda: _begin(final), group)
    except OSError as error:
        raise _write_error(final, None, str(error)) from error
    try:
        with _silence_no_dist_warning():
            writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
            save(tensors, storage_writer=writer, process_group=group, no_dist=world_size() == 1)
    except CheckpointException as error:  # the same on every rank
        for one, _ in error.failures.values():
            if not isinstance(one, Exception):
                raise one from None  # an interrupt is not an error of the disk
        raise _write_error(final, temporary, _reason(error)) from error
    try:
        on_first_rank(lambda: _complete(temporary, final, {"step": step, **info}, keep), group)
    except OSError as error:
        raise _write_error(final, temporary, str(error)) from error
    return final


def _begin(final: Path) -> Path:
    directory = final.parent
    check_directory(directory)
    directory.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(final)
    temporary.mkdir()
    return temporary


def _copy(tensor: Any) -> Tensor:
    """Returns a copy on the CPU: of its own, as two names of one tensor are not one in a file, and contiguous."""
    if not hasattr(tensor, "to_local"):
        copy: Tensor = tensor.detach().to("cpu", copy=True).contiguous()
        return copy
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    mesh = DeviceMesh.from_group(dist.group.WORLD, "cpu")  # type: ignore[arg-type]
    local = tensor.to_local().detach().to("cpu", copy=True).contiguous()
    return DTensor.from_local(local, mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride())


def _complete(temporary: Path, final: Path, record: dict[str, Any], keep: int) -> None:
    names = _names(temporary)
    record = {"format": _FORMAT, **record, "bytes": {name: _size(temporary / name) for name in names}}
    record["sha256"] = {name: _digest(temporary / name) for name in names}
    record["sha256_of_this"] = _own_digest(record)
    (temporary / _INFO).write_text(json.dumps(record, indent=2), encoding="utf-8")
    _flush_to_disk(temporary)
    if os.path.lexists(final):  # only in a run that was since resumed from an earlier one
        _discard(final)
    os.replace(temporary, final)
    _sync(final.parent)  # the new name is on the disk before those are removed that it makes superfluous
    found = _checkpoints(final.parent)
    best = _best(found, record["best"]["metric"]) if "best" in record else None
    for old in found[:-keep]:
        if old != best:
            _discard(old)


def _best(found: list[Path], metric: str) -> Path | None:
    """The checkpoint with the largest value of the metric, the first of equal ones."""
    values = {}
    for path in found:
        try:
            record = read_info(path).get("best")
            if record is not None and record["metric"] == metric and math.isfinite(record["value"]):
                values[path] = record["value"]
        except (CheckpointError, TypeError, KeyError):  # a damaged one is none to keep
            continue
    return max(values, key=values.__getitem__, default=None)


def _discard(checkpoint: Path) -> None:
    """Removes a checkpoint, which first loses its name: a process that is killed meanwhile leaves no half of one."""
    remove(checkpoint.rename(temporary_name(checkpoint)))


def _write_error(final: Path, temporary: Path | None, reason: str) -> CheckpointError:
    if temporary is not None and rank() == 0 and temporary.exists():
        remove(temporary)
    kept = _checkpoints(final.parent)
    last = f"the last good one is {kept[-1]}" if kept else "there is none before it"
    return CheckpointError(f"the checkpoint {final} cannot be written ({reason}); {last}")


def latest_checkpoint(directory: Path) -> Path | None:
    """Return the newest complete checkpoint of a run; `None` if there is none.

    Raises:
        CheckpointError: If a directory beside them has a name like a checkpoint's: it may be the newest, renamed.
    """
    found = _checkpoints(directory)
    # By their names, as the run that owns the directory may have written one since.
    others = sorted(path for path in directory.glob("step-*") if path.is_dir() and not _CHECKPOINT.fullmatch(path.name))
    if others:
        raise CheckpointError(f"{others[0]} has no checkpoint's name (step-00000720): rename it, or move it out of the run")
    return found[-1] if found else None


def find_checkpoint(directory: Path, step: int | None = None) -> Path | None:
    """Return the checkpoint of a run after ``step`` steps; without a step the newest, `None` if there is none.

    Raises:
        CheckpointError: If there is none of that step; the message names those that there are.
        UsageError: If ``step`` is no whole number.
    """
    if step is None:
        return latest_checkpoint(directory)
    Bounds(0).check("checkpoint", step)
    found = {int(path.name.removeprefix("step-")): path for path in _checkpoints(directory)}
    if step not in found:
        there = f"it has those of step {', '.join(map(str, found))}" if found else "there is none"
        raise CheckpointError(f"{directory.parent} has no checkpoint of step {step}: {there}")
    return found[step]


def read_info(path: Path) -> dict[str, Any]:
    """Read what a checkpoint holds besides tensors: its step, its run, and where its components came from.

    Raises:
        CheckpointError: If it is missing or damaged; the message says how to resume.
    """
    with _wrap_read_errors(path):
        check_directory(path)
        if (path / ".metadata").exists() and not (path / _INFO).is_symlink():
            raise CheckpointError("it was written by version 0.1, in a format that can run code, and is not read")
        info = load_json(read_text(path / _INFO, MAX_JSON), path / _INFO)
        if not isinstance(info, dict) or info.pop("sha256_of_this", None) != _own_digest(info):
            raise CheckpointError(f"{_INFO} changed since it was written")
        if info.get("format") != _FORMAT:
            raise CheckpointError(f"it has the format {info.get('format')!r}, not {_FORMAT}: another version wrote it")
        step = info.get("step")
        if type(step) is not int or step < 0:
            raise CheckpointError(f"its step {step!r} is not a whole number of at least 0")
        if path.name != f"step-{step:08d}":
            raise CheckpointError(f"it is of step {step}: give it its name step-{step:08d} again")
        return info


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a checkpoint, on the CPU, and its further content. Collective: every rank calls it.

    A checkpoint is data: reading its files runs no code of theirs.
    Every rank gets all chains, for any number of ranks that wrote them; ``load_state_dict()`` keeps its share.

    Raises:
        CheckpointError: If it is missing or damaged; the message says how to resume.
    """
    info = read_info(path)
    with _wrap_read_errors(path):
        _check_digests(path, info.get("bytes"), info.get("sha256"))
        reader = HuggingFaceStorageReader(str(path))
        entries = reader.read_metadata().state_dict_metadata
        tensors = {name: _template(name, entry) for name, entry in entries.items()}
        with _silence_no_dist_warning():
            load(tensors, storage_reader=reader, no_dist=world_size() == 1)
    return tensors, info


def _check_digests(path: Path, sizes: Any, digests: Any) -> None:
    if not isinstance(sizes, dict) or not isinstance(digests, dict) or sizes.keys() != digests.keys():
        raise CheckpointError(f"{_INFO} has no size and digest of each file")
    strange = sorted(set(_names(path)) ^ {*digests, _INFO})
    if strange:
        raise CheckpointError(f"{strange[0]} was added or removed since it was written")
    for name, digest in digests.items():
        # The size first: a file that somebody has grown to a terabyte takes an hour to digest.
        if _size(path / name) != sizes[name] or _digest(path / name) != digest:
            raise CheckpointError(f"{name} changed since it was written")


@contextmanager
def _wrap_read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (Exception, CheckpointException) as error:
        others = [other.name for other in _checkpoints(path.parent) if other != path]
        advice = f"remove it to resume from {others[-1]}" if others else "start the run again with another --out"
        raise CheckpointError(f"the checkpoint {path} is damaged ({_reason(error)}): {advice}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # what went wrong on each rank; no Exception, and a page long
        error = next(iter(error.failures.values()))[0]
    return str(error)


def _template(name: str, entry: Any) -> Tensor:
    """Returns an empty tensor of what the files hold under that name; a claim to more than they hold is refused."""
    assert isinstance(entry, TensorStorageMetadata)  # noqa: S101 - the format holds nothing else
    if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
        raise CheckpointError(f"its parts of {name} do not make up a tensor of shape {tuple(entry.size)}")
    return torch.zeros(entry.size, dtype=entry.properties.dtype)


def _checkpoints(directory: Path) -> list[Path]:
    check_directory(directory)
    found = (path for path in directory.glob("step-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _size(path: Path) -> int:
    with open_to_read(path) as file:
        return os.fstat(file.fileno()).st_size


def _digest(path: Path) -> str:
    with open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _flush_to_disk(directory: Path) -> None:
    for path in (*directory.iterdir(), directory):
        _sync(path)


def _sync(path: Path) -> None:
    """Brings a file or the names in a directory to the disk. Windows knows no directories to open, and syncs what may write."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _silence_no_dist_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield

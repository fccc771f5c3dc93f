"""Checkpoints: directories written by ``torch.distributed.checkpoint`` under a temporary name, then renamed.

A checkpoint is ``step-00000720/`` with the tensors, sharded over the ranks that wrote them, and ``checkpoint.json`` with the
step and where each component came from. One that has its final name is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ebmcore.distributed import barrier, rank, world_size
from ebmcore.errors import CheckpointError

KEPT = 2
_INFO = "checkpoint.json"


def write_checkpoint(directory: Path, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> Path:
    """Write one checkpoint and remove all but the last two. Collective: every rank calls it.

    Args:
        directory: Where the run keeps its checkpoints.
        step: Number of training steps done.
        tensors: Flat mapping of names to tensors; DTensors are written shard by shard.
        info: Further content, as JSON.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk; those before it stay.
    """
    final = directory / f"step-{step:08d}"
    temporary = directory / f".writing-{step:08d}"
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
    barrier()
    try:
        with _silence_no_dist_warning():
            save(dict(tensors), checkpoint_id=temporary, no_dist=world_size() == 1)
    except CheckpointException as error:  # the same on every rank
        for one, _ in error.failures.values():
            if not isinstance(one, Exception):
                raise one from None  # an interrupt is not an error of the disk
        raise _write_error(final, temporary, _reason(error)) from error
    failure: list[OSError | None] = [None]
    if rank() == 0:
        try:
            _complete(temporary, final, {"step": step, **info})
        except OSError as error:
            failure = [error]
    if world_size() > 1:
        dist.broadcast_object_list(failure)  # the others wait for it, and stop with it
    if failure[0] is not None:
        raise _write_error(final, temporary, str(failure[0])) from failure[0]
    return final


def _complete(temporary: Path, final: Path, record: dict[str, Any]) -> None:
    record = {**record, "sha256": _digests(temporary)}
    record["sha256_of_this"] = _own_digest(record)
    (temporary / _INFO).write_text(json.dumps(record, indent=2))
    _flush_to_disk(temporary)
    shutil.rmtree(final, ignore_errors=True)  # only from a run that was since resumed from an earlier one
    os.replace(temporary, final)
    for old in _checkpoints(final.parent)[:-KEPT]:
        shutil.rmtree(old)


def _write_error(final: Path, temporary: Path, reason: str) -> CheckpointError:
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    kept = _checkpoints(final.parent)
    last = f"the last good one is {kept[-1]}" if kept else "there is none before it"
    return CheckpointError(f"the checkpoint {final} cannot be written ({reason}); {last}")


def latest_checkpoint(directory: Path) -> Path | None:
    """Return the newest complete checkpoint of a run; `None` if there is none."""
    found = _checkpoints(directory)
    return found[-1] if found else None


def read_info(path: Path) -> dict[str, Any]:
    """Read what a checkpoint holds besides tensors: its step, and where its components came from.

    Raises:
        CheckpointError: If it is missing or damaged; the message says how to resume.
    """
    with _wrap_read_errors(path):
        info: dict[str, Any] = json.loads((path / _INFO).read_text())
        if info.pop("sha256_of_this") != _own_digest(info):
            raise CheckpointError(f"{_INFO} changed since it was written")
        return info


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a checkpoint, on the CPU, and its further content. Collective: every rank calls it.

    A checkpoint is data: reading its files runs no code of theirs.
    Chains come back as this rank's shards of all chains, for any number of ranks that wrote them.

    Raises:
        CheckpointError: If it is missing or damaged; the message says how to resume.
    """
    info = read_info(path)
    with _wrap_read_errors(path):
        damaged = [name for name, digest in info["sha256"].items() if _digest(path / name) != digest]
        if damaged:
            raise CheckpointError(f"{', '.join(damaged)} changed since it was written")
        reader = _DataOnlyReader(path)
        tensors = {
            name: _template(name, entry)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with _silence_no_dist_warning():
            load(tensors, storage_reader=reader, no_dist=world_size() == 1)
    return tensors, info


class _DataOnlyReader(FileSystemReader):
    """Reads tensors with ``weights_only``, as its base does, and their index under the same restriction.

    The index is a pickle, which could call any function; only the classes that an index is made of are let through.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _IndexUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    """Unpickles the few classes that an index is made of, and nothing else."""

    CLASSES: ClassVar = {
        "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
        "torch": {"Size"},
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch.distributed.checkpoint.metadata": {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        },
        "torch.serialization": {"_get_layout"},
    }

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in self.CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"its index holds {module}.{name}, which is not data")
        return super().find_class(module, name)


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
        if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run the code after all
            return "its files hold something other than tensors"
    return str(error)


def _template(name: str, entry: TensorStorageMetadata) -> Tensor:
    if world_size() > 1 and ".chains." in name:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, zeros

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        shard: Tensor = zeros(entry.size, dtype=entry.properties.dtype, device_mesh=mesh, placements=[Shard(0)])
        return shard
    return torch.zeros(entry.size, dtype=entry.properties.dtype)


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step-*") if path.is_dir())


def _digests(directory: Path) -> dict[str, str]:
    return {path.name: _digest(path) for path in sorted(directory.iterdir()) if path.is_file()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _flush_to_disk(directory: Path) -> None:
    for path in (*directory.iterdir(), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _silence_no_dist_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield

"""MNIST, from files that the user has."""

from __future__ import annotations

import gzip
import io
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebmcore.errors import UsageError

SIDE = 28
PARTS = {"train": ("train-images-idx3-ubyte", ("x_train", "tr")), "test": ("t10k-images-idx3-ubyte", ("x_test", "te"))}
_IDX3_BYTES = 0x00000803  # unsigned bytes in three dimensions
# What numpy, zipfile and zlib raise of files that are cut, changed, encrypted or hold Python objects.
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)


class Mnist:
    """MNIST: 70,000 handwritten digits of 28x28 pixels, read from a directory; nothing is downloaded.

    The directory holds either the four usual files, of which the two with images are read (``train-images-idx3-ubyte`` and
    ``t10k-images-idx3-ubyte``, also with a dot in place of the second-last hyphen, also gzipped), or one ``.npz`` file with grey
    levels ``x_train`` and ``x_test`` ``(N, 28, 28)``, or with pixels ``tr`` and ``te`` packed into bits, ``(N, 98)``.

    Args:
        directory: Where the files are.
        binary: `True` gives pixels in {0, 1}, 1 where the grey level is above one half; `False` gives grey levels scaled to
            [-1, 1].

    Attributes:
        train: ``(60000, 1, 28, 28)`` float32.
        test: ``(10000, 1, 28, 28)`` float32.

    Raises:
        UsageError: If the files are not there, or are not MNIST.

    Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner (1998), "Gradient-based learning applied to document recognition".

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     grey = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
        ...     np.savez(f"{directory}/mnist.npz", x_train=grey, x_test=grey[:2])
        ...     data = Mnist(directory)
        >>> data.shape, data.state_space, sorted(set(data.train.flatten().tolist()))
        ((1, 28, 28), 'binary', [0.0, 1.0])
    """

    shape = (1, SIDE, SIDE)

    def __init__(self, directory: Path, *, binary: bool = True) -> None:
        self.state_space = "binary" if binary else "continuous"
        levels = _read(Path(directory))
        if not binary and any(images.max(initial=0) <= 1 for images in levels.values()):
            raise UsageError(f"the images in {directory} have no grey levels: leave binary on, or get the usual files")
        self.train, self.test = (self._scaled(levels[part]) for part in ("train", "test"))

    def _scaled(self, levels: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(levels).view(-1, *self.shape)
        if self.state_space == "continuous":
            return x.float() / 127.5 - 1
        threshold = 127 if x.max() > 1 else 0  # above one half of 255, or bits
        return (x > threshold).float()


def _read(directory: Path) -> dict[str, np.ndarray]:
    """Grey levels, or bits, of both parts, ``(N, 28, 28)`` uint8."""
    files = {part: _find(directory, name) for part, (name, _) in PARTS.items()}
    if all(files.values()):
        return {part: _read_idx(path) for part, path in files.items() if path is not None}
    archives = sorted(directory.glob("*.npz")) if directory.is_dir() else []
    for path in archives:
        with _open_archive(path) as archive:
            names = {part: next((n for n in keys if n in archive), None) for part, (_, keys) in PARTS.items()}
            if all(names.values()):
                return {
                    part: _images(_member(archive, name, path), path) for part, name in names.items() if name is not None
                }
    raise UsageError(
        f"{directory} holds no MNIST: put {' and '.join(name + '.gz' for name, _ in PARTS.values())} there, e.g. from "
        "https://ossci-datasets.s3.amazonaws.com/mnist/, or an .npz file with x_train and x_test of shape (N, 28, 28)"
    )


def _find(directory: Path, name: str) -> Path | None:
    names = [stem + suffix for stem in (name, name.replace("-idx3", ".idx3")) for suffix in ("", ".gz")]
    return next((directory / n for n in names if (directory / n).is_file()), None)


def _read_idx(path: Path) -> np.ndarray:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}): get it again") from error
    magic, n, height, width = struct.unpack(">4I", content[:16]) if len(content) >= 16 else (0, 0, 0, 0)
    if (magic, height, width) != (_IDX3_BYTES, SIDE, SIDE) or len(content) != 16 + n * SIDE * SIDE:
        raise UsageError(f"{path} is not a whole idx file of 28x28 images: get it again")
    if n == 0:
        raise UsageError(f"{path} is an idx file of no images: get it again")
    return np.frombuffer(content, np.uint8, offset=16).reshape(n, SIDE, SIDE).copy()


def _open_archive(path: Path) -> Any:
    try:
        archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)  # from a path it leaves damaged files open
    except _DAMAGE as error:
        raise UsageError(f"{path} cannot be read ({error}): get it again, or move it away") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UsageError(f"{path} is a single array, not an archive of several: write it with numpy.savez, or move it away")
    return archive


def _member(archive: Any, name: str, path: Path) -> np.ndarray:
    try:
        array: np.ndarray = archive[name]
    except _DAMAGE as error:
        raise UsageError(
            f"{name} in {path} cannot be read ({error}): get the file again, or write it with numpy.savez from arrays of bytes"
        ) from error
    return array


def _images(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype == np.uint8 and array.shape[1:] == (SIDE * SIDE // 8,):
        array = np.unpackbits(array, axis=1).reshape(-1, SIDE, SIDE)
    if array.dtype != np.uint8 or array.shape[1:] != (SIDE, SIDE) or len(array) == 0:
        raise UsageError(f"{path} holds {array.dtype} {array.shape}, not images of shape (N, 28, 28) in bytes: get it again")
    return array

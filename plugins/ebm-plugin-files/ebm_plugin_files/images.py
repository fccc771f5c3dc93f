"""Folders of images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ebm_plugin_files.examples import (
    SCALES,
    Beside,
    FileData,
    Scale,
    are_bits,
    bits,
    check_choice,
    class_names,
    learn_scale,
    split,
)
from ebm_plugin_files.reading import read_beside, reading
from ebmcore.errors import UsageError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
MODES = {"grey": "L", "rgb": "RGB"}  # and their names in Pillow
_GREY = {"1", "L", "LA", "La"}
_EIGHT_BITS = {*_GREY, "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"}
_ADVICE = "save it again, or move it away"


class Images(FileData):
    """Images of a folder, ``(channels, height, width)``; its subfolders, if it has some, are the classes.

    Files that are no images and names that begin with a dot are passed over. Transparency is dropped, and of an animation the
    first picture is taken. Without ``size``, all images must have one size.

    Args:
        path: The folder. Its images are read, or those of its subfolders.
        size: Height and width to which images are resized (bilinear, with antialiasing), or one number for both.
        mode: ``"grey"`` for one channel, ``"rgb"`` for three; by default grey if all files hold grey levels.
        test_share: Share of the examples that are for testing, drawn at random; 0 trains on all, and metrics that need test
            examples then refuse.
        seed: Seed of that draw.
        scale: ``"none"`` for levels from 0 to 255, ``"unit"`` for [0, 1], ``"symmetric"`` for [-1, 1], or ``"standard"`` for mean
            0 and standard deviation 1 of each channel of the training examples.
        threshold: If given, values become bits: 1 where the scaled value is above it; 0 is the middle of ``"symmetric"``.
        labels: Path of a file with one label for each image, in the sorted order of folders and files, in place of the
            subfolders. Formats are those of `ebm_plugin_files.array.Array`, for one column or array.
        weights: Path of a file with one weight for each image, at least 0: likewise.

    Attributes:
        train: Training examples ``(N, channels, height, width)`` float32.
        test: Test examples ``(M, channels, height, width)`` float32.
        train_labels, test_labels: Class numbers ``(N,)`` and ``(M,)`` int64, where there are subfolders or ``labels``.
        n_classes: Number of classes, likewise.
        classes: Names of the subfolders, or the labels, in sorted order; the class number counts them from 0.
        train_weights, test_weights: ``(N,)`` and ``(M,)`` float32, with ``weights``.
        shift, spread: A level from 0 to 255 is ``shift + spread * value``, before bits are made.

    Raises:
        UsageError: If there are no images, or if one has another size or more than 8 bits in a channel, or cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     for name, level in (("dark", 0), ("light", 255)):
        ...         Path(directory, name).mkdir()
        ...         for i in range(5):
        ...             Image.new("L", (8, 6), level).save(Path(directory, name, f"{i}.png"))
        ...     data = Images(directory)
        >>> data.shape, data.classes, len(data.train), data.train.unique().tolist()
        ((1, 6, 8), ('dark', 'light'), 8, [-1.0, 1.0])
    """

    def __init__(
        self,
        path: Path,
        *,
        size: int | tuple[int, int] | None = None,
        mode: Literal["grey", "rgb"] | None = None,
        test_share: float = 0.2,
        seed: int = 0,
        scale: Scale = "symmetric",
        threshold: float | None = None,
        labels: Path | None = None,
        weights: Path | None = None,
    ) -> None:
        path = Path(path)
        check_choice("scale", scale, SCALES)
        if mode is not None:
            check_choice("mode", mode, tuple(MODES))
        files = _find(path)
        height, width = _size(size)
        found = [_look_at(file) for file in files]
        if size is None:
            width, height = found[0][0]
            _check_sizes(files, found, (width, height), f"{files[0]} has")
        if mode is None:
            mode = "grey" if all(stored in _GREY for _, stored in found) else "rgb"
        rows = split(len(files), test_share, seed, path)
        self._mode, self._resizes, self._threshold = MODES[mode], size is not None, threshold
        x: np.ndarray = _read(files, self._mode, (width, height), path)
        self._keep_scale(*learn_scale(x, rows[0], scale, (0, 2, 3), path=path, limits=(0, 255)))
        x = self._scaled(x)
        if threshold is not None:
            x = bits(x, threshold, path)
        self.state_space = "binary" if are_bits(x) else "continuous"
        self._hold(x, rows)
        if labels is not None:
            self._hold_labels(read_beside(Path(labels), "labels", len(files)), rows)
        elif files[0].parent != path:
            self._hold_labels(_folders(files, path), rows, missing=())
        if weights is not None:
            self._hold_weights(read_beside(Path(weights), "weights", len(files)), rows)
        self._say(path, guessed=threshold is None)

    def examples_of(self, path: Path) -> Tensor:
        """The images of another folder, in sorted order, or one image, as they would be in this data set.

        They get the mode, the scale and the threshold of this one and, with ``size``, that size.

        Args:
            path: The folder, with subfolders or without, or an image.

        Returns:
            The examples ``(N, channels, height, width)`` float32.

        Raises:
            UsageError: If there are no images, or, without ``size``, if one has another size than the training examples.
        """
        path = Path(path)
        files = [path] if path.is_file() else _find(path)
        found = [_look_at(file) for file in files]
        height, width = self.shape[1:]
        if not self._resizes:
            _check_sizes(files, found, (width, height), "the training examples have")
        x = self._in_model(_read(files, self._mode, (width, height), path))
        return torch.from_numpy(np.ascontiguousarray(x))

    def labels_of(self, path: Path) -> list[str | int] | None:
        """The labels of the images of another folder, in sorted order: the names of its subfolders; `None` if it has none."""
        path = Path(path)
        files = [] if path.is_file() else _find(path)
        return class_names(_folders(files, path), missing=()) if files and files[0].parent != path else None

    def as_record(self) -> dict[str, Any]:
        """What `from_record` needs, as JSON: how other images are read, without any example."""
        return super().as_record() | {"mode": self._mode, "resizes": self._resizes}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The data set of an `as_record`, without its examples: it has `examples_of`, `scaled` and `unscaled`.

        Raises:
            ValueError, TypeError, LookupError: If it is no such record.
        """
        data = super().from_record(record)
        data._mode, data._resizes = record["mode"], bool(record["resizes"])
        check_choice("mode", data._mode, tuple(MODES.values()))
        return data

    @staticmethod
    def reads(path: Path) -> bool:
        """Whether this class reads that path: whether it is a folder."""
        return path.is_dir()


def _find(path: Path) -> list[Path]:
    """The images of a folder, or else of its subfolders, in sorted order."""
    if not path.is_dir():
        raise UsageError(f"{path} is no folder: give the path of a folder of images")

    def images(folder: Path) -> list[Path]:
        return [file for file in _visible(folder) if file.suffix.lower() in SUFFIXES and file.is_file()]

    here = images(path)
    below = [file for folder in _visible(path) if folder.is_dir() for file in images(folder)]
    if here and below:
        raise UsageError(
            f"{path} holds images ({here[0].name}) and subfolders of images ({below[0].parent.name}): separate them"
        )
    if not here and not below:
        raise UsageError(
            f"{path} and its subfolders hold no images: put files there that end in {', '.join(sorted(SUFFIXES))}"
        )
    return here or below


def _folders(files: Sequence[Path], path: Path) -> Beside:
    return Beside(np.array([file.parent.name for file in files]), str(path))


def _visible(folder: Path) -> list[Path]:
    with reading(folder, "give a folder that you may read"):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _size(size: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width; 0 where none is given."""
    if size is None:
        return 0, 0
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise UsageError(f"size must be at least 1, got {size!r}: give one number, or height and width")
    return height, width


def _check_sizes(
    files: Sequence[Path], found: Sequence[tuple[tuple[int, int], str]], size: tuple[int, int], others: str
) -> None:
    for file, (other, _) in zip(files, found, strict=True):
        if other != size:
            raise UsageError(
                f"{file} has {other[1]}x{other[0]} pixels, but {others} {size[1]}x{size[0]}: set size to resize them"
            )


def _open(file: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(file)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UsageError(f"{file} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller") from error


def _look_at(file: Path) -> tuple[tuple[int, int], str]:
    """Width, height and the kind of pixels, from the beginning of a file."""
    with reading(file, _ADVICE), _open(file) as image:
        if image.mode not in _EIGHT_BITS:
            raise UsageError(
                f"{file} has more than 8 bits in a channel ({image.mode}): convert it to 8 bits, or use an array"
            )
        return image.size, image.mode


def _read(files: Sequence[Path], mode: str, size: tuple[int, int], path: Path) -> np.ndarray:
    """Levels ``(N, channels, height, width)`` in bytes."""
    width, height = size
    with reading(path, "set a smaller size"):
        x = np.empty((len(files), height, width, len(mode) if mode == "RGB" else 1), np.uint8)
    for i, file in enumerate(files):
        with reading(file, _ADVICE), _open(file) as image:
            picture = image.convert(mode)
            if picture.size != size:
                picture = picture.resize(size, Image.Resampling.BILINEAR)
            x[i] = np.asarray(picture).reshape(height, width, -1)
    return x.transpose(0, 3, 1, 2)

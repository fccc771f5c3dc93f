"""Arrays and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ebm_plugin_files.examples import (
    SCALES,
    FileData,
    Scale,
    bits,
    check_choice,
    check_exact,
    check_numbers,
    learn_scale,
    reshaped,
    space_of,
    split,
)
from ebm_plugin_files.reading import FORMATS, Content, as_table, read
from ebmcore.errors import UsageError


class Array(FileData):
    """Examples from a file of one array, of several, or of a table.

    ====================  =============================================================================================
    ``.npy``              one array ``(N, *shape)``
    ``.npz``              several, of which ``key`` names the examples
    ``.pt``               a tensor, or a mapping of names to tensors; nothing else, for pickles run code
    ``.safetensors``      tensors by name
    ``.csv``              numbers or texts, separated by commas, tabs, or semicolons, with which decimals may have commas; a
                          first line of names is recognized
    ``.parquet``          a table; needs ``pip install 'ebm-plugin-files[parquet]'``
    ====================  =============================================================================================

    The index column that pandas adds to tables is left out. Every value must be a finite number. A line on standard error says
    what was made of the file.

    Args:
        path: The file.
        key: Name of the array that holds the examples, where there are several.
        columns: Columns to take, by name or number; all but those of ``labels`` and ``weights`` by default.
        labels: Labels of the examples: name or number of a column, name of an array, or path of a file with one label per
            example. Whole numbers or texts, which become class numbers from 0 in sorted order; ``01`` of a ``.csv`` is a text.
        weights: Weights of the examples, at least 0: likewise.
        test_share: Share of the examples that are for testing, drawn at random.
        seed: Seed of that draw.
        scale: ``"none"``, ``"standard"`` (mean 0 and standard deviation 1), ``"unit"`` ([0, 1]) or ``"symmetric"`` ([-1, 1]), by
            what the training examples say: for each column of a table, and for all values of examples with more axes together.
            Test examples may lie outside such a range. Constant columns are shifted and divided by 1, with a warning. With
            ``"none"``, bytes above 1 and whole numbers that float32 does not hold are refused, unless they become bits.
        threshold: If given, values become bits: 1 where the scaled value is above it.
        shape: Shape of one example, if it is not that of the file.
        state_space: ``"continuous"``, ``"binary"`` or ``"categorical"``; by default ``"categorical"`` if the last of several axes
            is one-hot, otherwise ``"binary"`` if all values are 0 or 1, otherwise ``"continuous"``.
        header: Whether the first line of a ``.csv`` file holds names. By default it does if it has a text where the second line
            has a number, or counts the columns.

    Attributes:
        train: Training examples ``(N, *shape)`` float32.
        test: Test examples ``(M, *shape)`` float32.
        train_labels, test_labels: Class numbers ``(N,)`` and ``(M,)`` int64, with ``labels``.
        n_classes: Number of classes, with ``labels``.
        classes: What each class number stands for in the file, with ``labels``.
        train_weights, test_weights: ``(N,)`` and ``(M,)`` float32, with ``weights``.
        shift, spread: A value of the file is ``shift + spread * value``, before bits are made.

    Raises:
        UsageError: If the file, or what is chosen of it, cannot be used; the message names row and column.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     file = Path(directory, "flowers.csv")
        ...     _ = file.write_text("length,width,kind\\n5.1,3.5,rose\\n4.9,3.0,lily\\n6.0,2.5,rose\\n5.5,3.2,lily\\n")
        ...     flowers = Array(file, labels="kind", scale="standard", test_share=0.25)
        ...     _ = file.write_text("length,width\\n5.1,3.5\\n")
        ...     new = flowers.examples_of(file)
        >>> flowers.shape, flowers.state_space, flowers.classes, len(flowers.train), new.shape
        ((2,), 'continuous', ('lily', 'rose'), 3, torch.Size([1, 2]))
    """

    def __init__(
        self,
        path: Path,
        *,
        key: str | None = None,
        columns: Sequence[str | int] | None = None,
        labels: str | int | None = None,
        weights: str | int | None = None,
        test_share: float = 0.2,
        seed: int = 0,
        scale: Scale = "none",
        threshold: float | None = None,
        shape: Sequence[int] | None = None,
        state_space: str | None = None,
        header: bool | None = None,
    ) -> None:
        path = Path(path)
        check_choice("scale", scale, SCALES)
        content = read(path, header=header)
        given = {"labels": labels, "weights": weights}
        x, names, beside = _taken(content, key, columns, given, header)
        # Of another file they are no columns to pass over, and that file may be at another place by the time of a resumed run.
        self._beside = tuple(name if what in beside and beside[what][1] == path else None for what, name in given.items())
        self._key, self._names, self._header = key, names, header
        self._reshape, self._threshold = shape, threshold
        check_numbers(x, path, names)
        rows = split(len(x), test_share, seed, path)
        x, stored = reshaped(x, shape, path), x.dtype
        axes = (0,) if x.ndim == 2 else tuple(range(x.ndim))
        self._keep_scale(*learn_scale(x, rows[0], scale, axes, path=path, names=names))
        if scale == "none" and threshold is None:
            check_exact(x, path, text=content.is_text)
        x = self._scaled(x)
        if threshold is not None:
            x = bits(x, threshold, path)
        self.state_space = space_of(x, state_space, path)
        self._hold(x, rows)
        if "labels" in beside:
            self._hold_labels(*beside["labels"], rows)
        if "weights" in beside:
            self._hold_weights(*beside["weights"], rows)
        self._say(path, guessed=state_space is None, stored=None if content.is_text else stored)

    def examples_of(self, path: Path) -> Tensor:
        """The examples of another file, in its order, as they would be in this data set.

        They have the columns, the shape, the scale and the threshold of this one; labels and weights are passed over. Columns
        are found by their names. Where these are numbers and some are missing, a file of as many columns as were taken here
        gives all of them.

        Args:
            path: The file, of any format.

        Returns:
            The examples ``(N, *shape)`` float32.

        Raises:
            UsageError: If they have no such columns or another shape, or values that cannot be used.
        """
        path = Path(path)
        x, names = self._chosen(read(path, header=self._header))
        check_numbers(x, path, names)
        x = reshaped(x, self._reshape, path)
        self._check_shape(x, path)
        return torch.from_numpy(self._in_model(x))

    def as_record(self) -> dict[str, Any]:
        """What `from_record` needs, as JSON: how other files are read, without any example."""
        taken = {"key": self._key, "columns": self._names, "beside": list(self._beside), "header": self._header}
        return super().as_record() | taken | {"reshape": None if self._reshape is None else list(self._reshape)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The data set of an `as_record`, without its examples: it has `examples_of`, `scaled` and `unscaled`.

        Raises:
            ValueError, TypeError, LookupError: If it is no such record.
        """
        data = super().from_record(record)
        data._key, data._header, names, reshape = (record[name] for name in ("key", "header", "columns", "reshape"))
        data._names = None if names is None else list(map(str, names))
        data._reshape = None if reshape is None else tuple(map(int, reshape))
        labels, weights = record["beside"]
        data._beside = labels, weights
        return data

    def _chosen(self, content: Content) -> tuple[np.ndarray, list[str] | None]:
        """Values of the columns of this data set in another file, and their names; or of the array, where it has no columns."""
        table = content
        if not content.table:
            key = self._key if len(content.names) > 1 else None
            x = content.only(key, but=self._beside)
            table = as_table(x, content.path)
            if not table.names:
                return x, None
        wanted = table.names if self._names is None else self._names
        unnamed = not content.table or all(name.isdecimal() for name in wanted)
        if unnamed and len(wanted) == len(table.names) and None in map(table.find, wanted):
            wanted = table.names  # an array has no names; without the columns of the labels and weights, numbers are others
        names = table.columns(wanted)
        return table.stacked(names), names

    @staticmethod
    def reads(path: Path) -> bool:
        """Whether this class reads that path, by its suffix."""
        return path.suffix.lower() in FORMATS and not path.is_dir()


def _taken(
    content: Content,
    key: str | None,
    columns: Sequence[str | int] | None,
    wanted: Mapping[str, str | int | None],
    header: bool | None,
) -> tuple[np.ndarray, list[str] | None, dict[str, tuple[np.ndarray, Path]]]:
    """Examples, names of their columns where they have some, and what is wanted beside them, each with the file it is from."""
    path, table = content.path, content
    if not content.table:
        x = content.only(key, but=tuple(wanted.values()))
        table = as_table(x, path)
    elif key is not None:
        raise UsageError(f"{path} is a table: choose columns instead of key {key!r}")
    beside: dict[str, tuple[np.ndarray, Path]] = {}
    used = set()
    for what, name in wanted.items():
        if name is None:
            continue
        column = table.find(name)
        if not content.table and str(name) in content.names:
            beside[what] = content.get(str(name)), path
        elif column is not None:
            beside[what] = table.labels(column) if what == "labels" else table.get(column), path
            used.add(column)
        elif Path(str(name)).is_file():
            own = read(Path(str(name)), header=header)
            beside[what] = own.labels(own.only_name(None)) if what == "labels" else own.only(None), own.path
        else:
            raise UsageError(f"{what} {name!r} is no column or key of {path}, which has {table.known()}, and no file")
    if table.names:
        names = [name for name in table.names if name not in used] if columns is None else table.columns(columns)
        return table.stacked(names), names, beside
    if columns is not None:
        raise UsageError(f"columns are those of a table, but examples of {path} have shape {x.shape[1:]}: leave columns out")
    return x, None, beside

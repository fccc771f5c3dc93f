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
    Beside,
    FileData,
    Scale,
    bits,
    check_choice,
    check_exact,
    check_numbers,
    class_names,
    learn_scale,
    reshaped,
    space_of,
    split,
)
from ebm_plugin_files.reading import FORMATS, Content, as_table, read, read_beside
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
            None may be missing: texts such as ``NA`` and ``none`` are no classes, as they are no numbers in other columns.
        weights: Weights of the examples, at least 0: likewise.
        test_share: Share of the examples that are for testing, drawn at random; 0 trains on all, and metrics that need test
            examples then refuse.
        seed: Seed of that draw.
        scale: ``"none"``, ``"standard"`` (mean 0 and standard deviation 1), ``"unit"`` ([0, 1]) or ``"symmetric"`` ([-1, 1]), by
            what the training examples say: for each column of a table, and for all values of examples with more axes together.
            Test examples may lie outside such a range. Constant columns are shifted and divided by 1, with a warning. With
            ``"none"``, bytes above 1 and whole numbers that float32 does not hold are refused, unless they become bits.
        threshold: If given, values become bits: 1 where the scaled value is above it.
        shape: Shape of one example, if it is not that of the file.
        state_space: ``"continuous"``, ``"binary"`` or ``"categorical"``; by default ``"categorical"`` if the last of several axes
            is one-hot, otherwise ``"binary"`` if all values are 0 or 1, otherwise ``"continuous"``.
        header: Whether the first line of ``.csv`` files holds names. By default it does if it has a text where the second line
            has a number, true or false, or counts the columns; in a file of labels alone also if there is one line more than
            examples, and the first is no label of the others.

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
        x, names, beside = _taken(content, key, columns, {"labels": labels, "weights": weights}, header)
        self._key, self._names, self._header = key, names, header
        self._beside = tuple(beside[what].column if what in beside else None for what in ("labels", "weights"))
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
            self._hold_labels(beside["labels"], rows)
        if "weights" in beside:
            self._hold_weights(beside["weights"], rows)
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

    def labels_of(self, path: Path) -> list[str | int] | None:
        """The labels of the examples of another file, in its order, as they are in ``classes``.

        Args:
            path: The file, of any format.

        Returns:
            The label of each example, in the column or array of ``labels``; `None` if the file has none, or if they were in a
            file of their own.

        Raises:
            UsageError: If some are missing.
        """
        name, content = self._beside[0], read(Path(path), header=self._header)
        table = self._table(content)
        if name is None or str(name) not in (*content.names, *table.names) or self._has_examples_alone(content, table):
            return None
        return class_names(_beside(content, table, "labels", str(name)))

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
        table = self._table(content)
        if not table.names:
            return self._array(content), None
        wanted = table.names if self._names is None else self._names
        if self._has_examples_alone(content, table):
            wanted = table.names
        names = table.columns(wanted)
        return table.stacked(names), names

    def _has_examples_alone(self, content: Content, table: Content) -> bool:
        """Whether the columns have no names, and other numbers than here, as those of labels and weights are missing."""
        names = table.names if self._names is None else self._names
        unnamed = not content.table or all(name.isdecimal() for name in names)
        return unnamed and len(names) == len(table.names) and None in map(table.find, names)

    def _array(self, content: Content) -> np.ndarray:
        return content.only(self._key if len(content.names) > 1 else None, but=self._beside)

    def _table(self, content: Content) -> Content:
        return content if content.table else as_table(self._array(content), content.path)

    @staticmethod
    def reads(path: Path) -> bool:
        """Whether this class reads that path, by its suffix."""
        return path.suffix.lower() in FORMATS and not path.is_dir()


def _beside(content: Content, table: Content, what: str, name: str | int) -> Beside | None:
    """Labels or weights in an array or a column of a file; `None` if it has none of that name."""
    column = table.find(name)
    if not content.table and str(name) in content.names:
        return Beside(content.get(str(name)), f"{str(name)!r} of {content.path}", column=str(name))
    if column is None:
        return None
    values = table.labels(column) if what == "labels" else table.get(column)
    return Beside(values, f"column {column!r} of {content.path}", column=column)


def _taken(
    content: Content,
    key: str | None,
    columns: Sequence[str | int] | None,
    wanted: Mapping[str, str | int | None],
    header: bool | None,
) -> tuple[np.ndarray, list[str] | None, dict[str, Beside]]:
    """Examples, names of their columns where they have some, and what is wanted beside them."""
    path, table = content.path, content
    if not content.table:
        x = content.only(key, but=tuple(wanted.values()))
        table = as_table(x, path)
    elif key is not None:
        raise UsageError(f"{path} is a table: choose columns instead of key {key!r}")
    beside: dict[str, Beside] = {}
    used = set()
    for what, name in wanted.items():
        if name is None:
            continue
        found = _beside(content, table, what, name)
        if found is not None:
            beside[what] = found
            used.add(found.column)
        elif Path(str(name)).is_file():
            n = len(x) if not content.table else len(table.get(table.names[0]))
            advice = "give one for each; header=true says that the first line of .csv files is a name"
            beside[what] = read_beside(Path(str(name)), what, n, header=header, advice=advice)
        else:
            raise UsageError(f"{what} {name!r} is no column or key of {path}, which has {table.known()}, and no file")
    if table.names:
        names = [name for name in table.names if name not in used] if columns is None else table.columns(columns)
        return table.stacked(names), names, beside
    if columns is not None:
        raise UsageError(f"columns are those of a table, but examples of {path} have shape {x.shape[1:]}: leave columns out")
    return x, None, beside

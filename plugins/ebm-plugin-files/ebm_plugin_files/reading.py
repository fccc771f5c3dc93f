"""Reading arrays and tables: every format becomes named numpy arrays, and no format runs code."""

from __future__ import annotations

import contextlib
import csv
import difflib
import math
import pickle
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ebm_plugin_files.examples import MISSING, Beside, listed
from ebmcore.errors import UsageError

# What numpy, zipfile, torch, pyarrow, Pillow and the csv module raise of files that are cut, changed, encrypted or hold objects.
_DAMAGE = (
    OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, SyntaxError, csv.Error, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, SafetensorError,
)  # fmt: skip
_WITH_COMMA = re.compile(r"\s*[+-]?\d*,\d+(e[+-]?\d+)?\s*", re.IGNORECASE)
_WITH_POINT = re.compile(r"\s*[+-]?\d*\.\d+(e[+-]?\d+)?\s*", re.IGNORECASE)
_PADDED = re.compile(r"[+-]?0\d")  # a number that is a text: 01 is not 1
_TRUTHS = {"true": 1.0, "false": 0.0}  # cells of a column that holds nothing else, in lower case


@contextlib.contextmanager
def reading(path: Path, advice: str) -> Iterator[None]:
    """Turns what a library raises of a file into one line."""
    try:
        yield
    except UsageError:
        raise
    except MemoryError as error:
        raise UsageError(f"{path} does not fit into memory: choose a part of it") from error
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        # The libraries advise to load it without protection.
        if not isinstance(error, OSError) and (isinstance(error, pickle.UnpicklingError) or "pickle" in reason):
            reason = "it holds something other than plain arrays"
        raise UsageError(f"{path} cannot be read ({reason}): {advice}") from error


class Content:
    """The named arrays of one file.

    Args:
        path: The file.
        names: Their names, in order.
        get: Returns the array of a name.
        table: Whether they are columns of one table, of equal length.
        texts: Returns the cells of a column as the file has them, where it is a text.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        get: Callable[[str], np.ndarray],
        *,
        table: bool,
        texts: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        self.path, self.names, self.get, self.table, self._texts = path, list(names), get, table, texts
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise UsageError(f"{path} has two columns {twice!r}: give each a name of its own")

    def find(self, name: str | int) -> str | None:
        """The name of a column by its name or number; `None` if there is none."""
        if name in self.names:
            return str(name)
        try:
            return self.names[int(name)]
        except (ValueError, IndexError):
            return None

    @property
    def is_text(self) -> bool:
        """Whether the file is a text, whose numbers have no type."""
        return self._texts is not None

    def labels(self, name: str) -> np.ndarray:
        """The labels in a column: ``01`` is a text, and another label than ``1``."""
        return self.get(name) if self._texts is None else _as_labels(self._texts(name))

    def only(self, name: str | None, but: Sequence[str | int | None] = ()) -> np.ndarray:
        """The array of that name or, without a name, the only one there is beside those of ``but``."""
        return self.get(self.only_name(name, but))

    def only_name(self, name: str | None, but: Sequence[str | int | None] = ()) -> str:
        """The name of `only`."""
        if name is not None and name not in self.names:
            what = "is one array: leave key out" if self.names == [""] else f"has no key {name!r}; it has {self.known()}"
            raise UsageError(f"{self.path} {what}")
        rest = [other for other in self.names if other not in map(str, but)]
        if name is None and len(rest) != 1:
            raise UsageError(f"{self.path} holds {self.known()}: choose one with key, or give a file of one array")
        return rest[0] if name is None else name

    def columns(self, chosen: Sequence[str | int]) -> list[str]:
        """Names of the chosen columns."""
        names = []
        for name in chosen:
            found = self.find(name)
            if found is None:
                close = difflib.get_close_matches(str(name), self.names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {self.known()}"
                raise UsageError(f"{self.path} has no column {name!r}; {hint}")
            names.append(found)
        return names

    def stacked(self, names: Sequence[str]) -> np.ndarray:
        """The array ``(N, columns)`` of some columns, which must hold numbers."""
        if not names:
            raise UsageError(f"{self.path} has no columns for the examples: choose columns")
        return np.stack([self._numbers(name) for name in names], axis=1)

    def _numbers(self, name: str) -> np.ndarray:
        values = self.get(name)
        if values.dtype.kind in "fiub":
            return values
        cells = ["" if value is None else str(value) for value in values.tolist()]
        numbers = _as_numbers(cells)
        if values.dtype.kind in "OU" and numbers.dtype.kind == "f":
            return numbers
        for row, cell in enumerate(cells):
            if values.dtype.kind not in "OU" or not _is_number(cell):
                advice = "choose columns without it, or name it in labels"
                if _WITH_COMMA.fullmatch(cell):
                    advice = "write decimals with a point, or separate the cells by semicolons and use commas alone"
                raise UsageError(
                    f"{self.path} holds {cell!r} in column {name!r}, row {row} (counted from 0), which is no number: {advice}"
                )
        return numbers

    def known(self) -> str:
        """Its names, for messages."""
        return listed(self.names)


def as_table(array: np.ndarray, path: Path) -> Content:
    """The columns of an array ``(N, columns)``, named by their numbers; an array of another shape has none."""
    names = [str(i) for i in range(array.shape[1])] if array.ndim == 2 else []
    return Content(path, names, lambda name: array[:, int(name)], table=True)


def read(path: Path, *, header: bool | None = None) -> Content:
    """Reads a file by its suffix.

    Raises:
        UsageError: If it is missing, of another format, damaged, or holds objects that are no arrays.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist: give the path of a file")
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path} is of no known format: give a file that ends in {', '.join(FORMATS)}")
    if not path.is_file():
        raise UsageError(f"{path} is not a regular file: give a file that ends in {path.suffix}")
    if path.stat().st_size == 0:
        raise UsageError(f"{path} is empty: write it again")
    return FORMATS[path.suffix.lower()](path, header)


def read_beside(path: Path, what: str, n: int, *, header: bool | None = None, advice: str = "give one for each") -> Beside:
    """Labels or weights of ``n`` examples, from a file of their own.

    Texts below a text show no header: the first line is a name if it is one too many and no label of the others.
    """
    own = read(path, header=header)
    values = own.labels(own.only_name(None)) if what == "labels" else own.only(None)
    if own.is_text and header is None and len(values) == n + 1 and values.dtype.kind == "U" and values[0] not in values[1:]:
        return read_beside(path, what, n, header=True, advice=advice)
    return Beside(values, str(path), advice)


def _read_numpy(path: Path, _: bool | None) -> Content:
    def load(name: str | None) -> Any:
        with reading(path, "write it with numpy.save or numpy.savez, from arrays of numbers"), path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                return loaded.files if name is None else loaded[name]

    first = load(None)
    if isinstance(first, np.ndarray):
        return Content(path, [""], lambda _: first, table=False)
    return Content(path, first, load, table=False)


def _read_torch(path: Path, _: bool | None) -> Content:
    with reading(path, "save a tensor, or a mapping of names to tensors, with torch.save"):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, torch.Tensor):
        loaded = {"": loaded}
    if not isinstance(loaded, Mapping) or not all(isinstance(part, torch.Tensor) for part in loaded.values()):
        held = type(loaded).__name__
        raise UsageError(f"{path} holds a {held}: save a tensor, or a mapping of names to tensors, with torch.save")
    return _of_tensors(path, {str(name): tensor for name, tensor in loaded.items()})


def _read_safetensors(path: Path, _: bool | None) -> Content:
    with reading(path, "write it with safetensors.torch.save_file"):
        return _of_tensors(path, load_file(path))


def _of_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> Content:
    def get(name: str) -> np.ndarray:
        tensor = tensors[name].detach()
        with reading(path, "save dense tensors of numbers"):
            tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
            # numpy has no bfloat16, and none of the smaller ones
            return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()

    return Content(path, list(tensors), get, table=False)


def _read_parquet(path: Path, _: bool | None) -> Content:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"{path} needs pyarrow: pip install 'ebm-plugin-files[parquet]'") from error
    with reading(path, "write it again, for instance with pandas.DataFrame.to_parquet"), path.open("rb") as file:
        table = parquet.ParquetFile(file).read()
    names = [name for name in table.column_names if not name.startswith("__index_level_")]  # what pandas adds
    return Content(path, names, lambda name: table[name].to_numpy(), table=True)


def _read_csv(path: Path, header: bool | None) -> Content:
    advice = "write it as UTF-8 text with commas, semicolons or tabs"
    with reading(path, advice), path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = _delimiter(file)
        commas = delimiter == ";"  # where commas may be decimal
        start = [row for _, row in zip(range(2), _rows(file, delimiter), strict=False)]
        if not start:
            raise UsageError(f"{path} is empty: write it again")
        second = start[-1] if start[1:] else ["0"] * len(start[0])
        header = _is_header(start[0], second, commas) if header is None else header
        names = [name.strip() for name in start[0]] if header else [str(i) for i in range(len(start[0]))]
        if len(start) <= header:
            raise UsageError(f"{path} has a header and no rows: write it again")
        columns = _columns(file, path, delimiter, len(names), header)
    table, places = dict(zip(names, columns, strict=True)), {name: place for place, name in enumerate(names)}
    if names[0] == "":  # the index that pandas writes
        del table[names.pop(0)]

    def texts(name: str) -> list[str]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [row[places[name]] for row in _rows(file, delimiter)][header:]

    return Content(path, names, table.__getitem__, table=True, texts=texts)


def _delimiter(file: Any) -> str:
    """What separates the cells, by the first line with some; semicolons also between decimal commas."""
    record = ""
    for line in file:
        record += line if record or line.strip() else ""
        if record.count('"') % 2 == 0 and record:  # a quoted cell may have several lines
            break
    bare = re.sub('"[^"]*"', "", record)
    if ";" in bare and all(_is_number(cell, True) for cell in bare.split(";")):
        return ";"
    return max(",;\t", key=bare.count)


def _rows(file: Any, delimiter: str) -> Iterator[list[str]]:
    file.seek(0)
    return (row for row in csv.reader(file, delimiter=delimiter) if row)


def _is_header(first: Sequence[str], second: Sequence[str], commas: bool) -> bool:
    """Whether some column begins with a text and continues with numbers, or the cells count the columns as pandas does."""
    numbered = [cell.strip() for cell in first if cell.strip()] == [str(i) for i in range(len(first) - (first[0] == ""))]
    begins = any(not _is_value(a, commas) and _is_value(b, commas) for a, b in zip(first, second, strict=False))
    return (len(first) > 2 and numbered) or begins


def _is_number(cell: str, commas: bool = False) -> bool:
    try:
        _number(cell, commas)
    except ValueError:
        return False
    return True


def _is_value(cell: str, commas: bool) -> bool:
    return _is_number(cell, commas) or cell.strip().lower() in _TRUTHS


def _number(cell: str, commas: bool) -> float:
    if cell.strip().lower() in MISSING:
        return math.nan
    return float(cell.replace(",", ".")) if commas and _WITH_COMMA.fullmatch(cell) else float(cell)


def _columns(file: Any, path: Path, delimiter: str, width: int, header: bool) -> Sequence[np.ndarray]:
    """The columns: numbers in float64, otherwise texts."""
    file.seek(0)
    lines = csv.reader(file, delimiter=delimiter)
    if header:
        next(row for row in lines if row)
    position = lines.line_num
    with contextlib.suppress(ValueError):  # the fast way fails for a text, a missing value, or a row of another length
        columns = np.loadtxt(file, delimiter=delimiter, comments=None, ndmin=2).T
        if len(columns) == width:
            return list(columns)
    file.seek(0)
    lines = csv.reader(file, delimiter=delimiter)
    rows: list[list[str]] = []
    for row in lines:
        if row and len(row) != width:
            raise UsageError(
                f"{path} has {width} cells in its first line and {len(row)} in line {lines.line_num}: make the lines equal"
            )
        if row and lines.line_num > position:
            rows.append(row)
    commas = delimiter == ";"
    if commas:
        cells = [cell for row in rows for cell in row]
        comma = next(filter(_WITH_COMMA.fullmatch, cells), None)
        point = next(filter(_WITH_POINT.fullmatch, cells), None)
        if comma and point:
            raise UsageError(
                f"{path} has decimals with a comma ({comma}) and with a point ({point}): write all with a point"
            )
    return [_as_numbers(column, commas) for column in zip(*rows, strict=True)]


def _as_numbers(cells: Sequence[str], commas: bool = False) -> np.ndarray:
    try:
        return np.array([_number(cell, commas) for cell in cells])
    except ValueError:
        words = [cell.strip().lower() for cell in cells]
        if all(word in _TRUTHS or word in MISSING for word in words):
            return np.array([_TRUTHS.get(word, math.nan) for word in words])
        texts = [cell.replace(",", ".") if commas and _WITH_COMMA.fullmatch(cell) else cell for cell in cells]
        return np.array([text.strip() for text in texts])


def _as_labels(cells: Sequence[str]) -> np.ndarray:
    """Whole numbers where the cells are no more than that; otherwise the texts."""
    texts = [cell.strip() for cell in cells]
    if not all(map(_is_number, texts)):
        return np.array(texts)
    numbers = _as_numbers(texts)
    if any(_PADDED.match(text) for text in texts) or (np.abs(numbers) >= 2**53).any():  # from which on numbers merge
        return np.array(["" if math.isnan(number) else text for text, number in zip(texts, numbers.tolist(), strict=True)])
    return numbers


FORMATS: dict[str, Callable[[Path, bool | None], Content]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_torch,
    ".safetensors": _read_safetensors,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""The readers, by suffix."""

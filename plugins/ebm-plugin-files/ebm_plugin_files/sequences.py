"""Alignments of biological sequences."""

from __future__ import annotations

import math
import string
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ebm_plugin_files.examples import FileData, split
from ebm_plugin_files.reading import read_beside, reading
from ebmcore.errors import UsageError

ALPHABETS = {"protein": "-ACDEFGHIKLMNPQRSTVWY", "dna": "-ACGT", "rna": "-ACGU"}
_INSERTING = {".a2m", ".a3m"}  # formats in which lower-case letters and dots are insertions
SUFFIXES = {*_INSERTING, ".afa", ".fa", ".faa", ".fas", ".fasta", ".fna"}
_CHUNK_ELEMENTS = 2**24  # of float32: 64 MB


class Sequences(FileData):
    r"""Aligned sequences of a FASTA file, one-hot, with weights that correct for related sequences.

    Where all sequences of a file have one length, each character is a position: a dot is a gap, and lower-case letters, such as
    those of masked regions, are read as upper-case ones. Where lengths differ, and in ``.a2m`` and ``.a3m`` files, lower-case
    letters and dots are insertions and are dropped, with a warning that counts the letters. Letters that are not in the alphabet
    become gaps, with a warning.

    The weight of a sequence is :math:`1 / m`, where :math:`m` is the number of sequences of the same share (training or test),
    itself included, that have the same letter in at least ``reweight`` of the positions. The sum of the training weights is the
    effective number of sequences.

    Args:
        path: The file.
        alphabet: ``"protein"`` (20 amino acids), ``"dna"``, ``"rna"``, or the letters themselves, the gap first.
        reweight: Share of identical positions from which sequences count as related; `None` for no weights. The time grows with
            the square of the number of sequences. Not used with ``weights``.
        test_share: Share of the sequences that are for testing, drawn at random; 0 trains on all, and metrics that need test
            examples then refuse.
        seed: Seed of that draw.
        labels: Path of a file with one label for each sequence, such as its family, in the order of the file. Formats are those
            of `ebm_plugin_files.array.Array`, for one column or array.
        weights: Path of a file with one weight for each sequence, at least 0: likewise.

    Attributes:
        train: Training examples ``(N, length, letters)`` float32.
        test: Test examples ``(M, length, letters)`` float32.
        train_weights, test_weights: ``(N,)`` and ``(M,)`` float32 in (0, 1], with ``reweight``; those of the file, with
            ``weights``.
        train_labels, test_labels: Class numbers ``(N,)`` and ``(M,)`` int64, with ``labels``.
        n_classes: Number of classes, with ``labels``.
        classes: What each class number stands for in the file, with ``labels``.
        letters: The alphabet: ``letters[i]`` is what 1 at ``i`` in the last axis stands for.

    Raises:
        UsageError: If the file is no FASTA, or if the sequences are not aligned.

    Source: F. Morcos et al. (2011), "Direct-coupling analysis of residue coevolution captures native contacts across many protein
    families".

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     file = Path(directory, "family.fasta")
        ...     _ = file.write_text(">a\nACDE-\n>b\nACDEF\n>c\nGHIKL\n>d\nACDEF\n")
        ...     family = Sequences(file, test_share=0.25)
        >>> family.shape, family.state_space, family.train_weights.tolist()
        ((5, 21), 'categorical', [0.5, 1.0, 0.5])
    """

    state_space = "categorical"

    def __init__(
        self,
        path: Path,
        *,
        alphabet: str = "protein",
        reweight: float | None = 0.8,
        test_share: float = 0.2,
        seed: int = 0,
        labels: Path | None = None,
        weights: Path | None = None,
    ) -> None:
        path = Path(path)
        self.letters = _letters(alphabet)
        if reweight is not None and not 0 < reweight <= 1:
            raise UsageError(f"reweight must be above 0 and at most 1, or None for no weights, got {reweight!r}")
        numbers = _numbers(_aligned(path, self.letters), self.letters, path)
        rows = split(len(numbers), test_share, seed, path)
        self._keep_scale(np.zeros(1), np.ones(1))
        self._hold(_one_hot(numbers, self.letters, path), rows)
        if labels is not None:
            self._hold_labels(read_beside(Path(labels), "labels", len(numbers)), rows)
        if weights is not None:
            self._hold_weights(read_beside(Path(weights), "weights", len(numbers)), rows)
        elif reweight is not None:
            self.train_weights, self.test_weights = (neighbour_weights(part, reweight) for part in (self.train, self.test))
        self._say(path, guessed=False)

    def examples_of(self, path: Path) -> Tensor:
        """The sequences of another file, in its order, in the alphabet of this data set.

        Args:
            path: The file: FASTA, of sequences aligned to those of this data set.

        Returns:
            The examples ``(N, length, letters)`` float32.

        Raises:
            UsageError: If the file is no FASTA, or if its sequences have another length.
        """
        path = Path(path)
        x = _one_hot(_numbers(_aligned(path, self.letters), self.letters, path), self.letters, path)
        self._check_shape(x, path)
        return torch.from_numpy(x)

    def as_record(self) -> dict[str, Any]:
        """What `from_record` needs, as JSON: how other files are read, without any sequence."""
        return super().as_record() | {"letters": self.letters}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The data set of an `as_record`, without its sequences: it has `examples_of`.

        Raises:
            ValueError, TypeError, LookupError: If it is no such record.
        """
        data = super().from_record(record)
        data.letters = _letters(record["letters"])
        return data

    @staticmethod
    def reads(path: Path) -> bool:
        """Whether this class reads that path, by its suffix."""
        return path.suffix.lower() in SUFFIXES and not path.is_dir()


def neighbour_weights(x: Tensor, identity: float) -> Tensor:
    """One over the number of sequences, itself included, that have the same letter in that share of the positions or more.

    Args:
        x: One-hot sequences ``(N, length, letters)``.
        identity: The share.

    Example:
        >>> neighbour_weights(torch.eye(2)[torch.tensor([[0, 1], [0, 1], [1, 0]])], 0.8)
        tensor([0.5000, 0.5000, 1.0000])
    """
    needed = math.ceil(identity * x.shape[1] - 1e-9)  # 0.8 of 15 positions are 12, not 12.000000000000002
    flat = x.flatten(1)
    chunks = flat.split(max(_CHUNK_ELEMENTS // max(len(flat), 1), 1))
    return torch.cat([1 / (chunk @ flat.T >= needed).sum(1) for chunk in chunks])


def _letters(alphabet: str) -> str:
    """The letters of an alphabet, by its name or as they are."""
    letters = ALPHABETS.get(alphabet, alphabet)
    if len(letters) < 2 or len(set(letters)) != len(letters) or not letters.isascii():
        raise UsageError(f"alphabet must be {', '.join(ALPHABETS)} or two or more different letters, got {alphabet!r}")
    return letters


def _numbers(texts: list[str], alphabet: str, path: Path) -> np.ndarray:
    """Numbers of the letters ``(N, length)``."""
    letters = np.frombuffer("".join(texts).encode("ascii", "replace"), np.uint8).reshape(len(texts), -1)
    table = np.full(256, 255, np.uint8)
    table[np.frombuffer(alphabet.encode(), np.uint8)] = np.arange(len(alphabet))
    numbers = table[letters]
    strange = numbers == 255
    if strange.any():
        counts = Counter(map(chr, letters[strange].tolist()))
        warnings.warn(
            f"{path}: {int(strange.sum())} of {letters.size} letters are not in the alphabet {alphabet} and become gaps: "
            f"{', '.join(f'{letter} {n} times' for letter, n in counts.most_common(5))}",
            UserWarning,
            stacklevel=3,
        )
        numbers[strange] = 0
    if alphabet == ALPHABETS["protein"] and set(np.unique(letters).tolist()) <= set(b"-ACGTUN"):
        warnings.warn(f"{path} holds letters of dna or rna alone: set alphabet", UserWarning, stacklevel=3)
    return numbers


def _one_hot(numbers: np.ndarray, alphabet: str, path: Path) -> np.ndarray:
    with reading(path, "take fewer sequences"):
        return np.eye(len(alphabet), dtype=np.float32)[numbers]


def _aligned(path: Path, alphabet: str) -> list[str]:
    """The sequences of a file without insertions, all of one length, in the case of the alphabet."""
    if not path.is_file():
        raise UsageError(f"{path} {'is no file' if path.exists() else 'does not exist'}: give the path of a FASTA file")
    with reading(path, "write it as FASTA"):
        lines = path.read_text("utf-8-sig").splitlines()
    names: list[str] = []
    parts: list[list[str]] = []
    for number, line in enumerate(lines, 1):
        if line.startswith(">"):
            names.append(line[1:].strip())
            parts.append([])
        elif line.strip() and not parts:
            raise UsageError(
                f"{path} begins with {line[:20]!r} in line {number}, not with '>' and a name: write it as FASTA"
            )
        elif parts:
            parts[-1].append("".join(line.split()))
    if not names:
        raise UsageError(f"{path} holds no sequences: write it as FASTA")
    texts = ["".join(part) for part in parts]
    is_upper = alphabet == alphabet.upper()
    inserting = path.suffix.lower() in _INSERTING or len(set(map(len, texts))) > 1
    if is_upper and (not inserting or all(text == text.lower() for text in texts)):
        texts = [text.upper() for text in texts]
    if inserting and is_upper:
        texts = _without_insertions(texts, path)
    elif "." not in alphabet:
        texts = [text.replace(".", alphabet[0]) for text in texts]
    for name, text in zip(names, texts, strict=True):
        if not text:
            raise UsageError(f"the sequence {name!r} of {path} is empty: remove it")
        if len(text) != len(texts[0]):
            raise UsageError(
                f"the sequence {name!r} of {path} has {len(text)} positions, but the first has {len(texts[0])}: align them"
            )
    return texts


def _without_insertions(texts: list[str], path: Path) -> list[str]:
    n_dropped = sum(letter.islower() for text in texts for letter in text)
    if n_dropped:
        warnings.warn(
            f"{path}: {n_dropped} lower-case letters are insertions and are dropped, as in .a2m and .a3m files; write positions "
            "of the alignment in upper case",
            UserWarning,
            stacklevel=4,
        )
    insertions = str.maketrans("", "", string.ascii_lowercase + ".")
    return [text.translate(insertions) for text in texts]

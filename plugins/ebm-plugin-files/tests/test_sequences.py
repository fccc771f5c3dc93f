"""Alignments of biological sequences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ebm_plugin_files.sequences import Sequences, neighbour_weights
from ebmcore.errors import UsageError


def write(*sequences, name="a.fasta"):
    Path(name).write_text("".join(f">{i} of a family\n{text}\n" for i, text in enumerate(sequences)))
    return Path(name)


def texts(data):
    """All sequences as texts, in sorted order."""
    letters = torch.cat([data.train, data.test]).argmax(-1)
    return sorted("".join(data.letters[i] for i in row) for row in letters.tolist())


def test_sequences_are_one_hot():
    data = Sequences(write("ACD-", "WYVT", "ACDF"), test_share=0.4)
    assert (data.shape, data.state_space, data.train.dtype) == ((4, 21), "categorical", torch.float32)
    assert (data.train.sum(-1) == 1).all()
    assert data.train.unique().tolist() == [0, 1]
    assert texts(data) == ["ACD-", "ACDF", "WYVT"]


def test_lines_are_joined():
    Path("a.fasta").write_text("\ufeff\n>a\nAC\nD F\n\n>b\r\nWYVT\r\n>c\nWYVT")
    assert texts(Sequences(Path("a.fasta"))) == ["ACDF", "WYVT", "WYVT"]


@pytest.mark.parametrize(
    ("sequences", "name"),
    [(("A..CD", "AkkC-", ".ACE"), "a.fasta"), (("A..CD", "AkkC-"), "a.a2m"), (("A..CD", "AkkC-"), "a.a3m")],
)
def test_insertions_are_dropped(sequences, name):
    """Lower-case letters and dots are no positions, where lengths differ or the format says so; the letters are counted."""
    with pytest.warns(UserWarning, match=rf"{name}: 2 lower-case letters are insertions and are dropped"):
        data = Sequences(write(*sequences, name=name))
    assert texts(data) == ["AC-", "ACD", "ACE"][: len(sequences)]


def test_dots_are_gaps():
    """In sequences of one length, where a dropped dot would shift the columns."""
    assert texts(Sequences(write("AC.EFG", "A.DEFG", "ACD.FG"))) == ["A-DEFG", "AC-EFG", "ACD-FG"]


@pytest.mark.parametrize(("alphabet", "read"), [("dna", ["ACGTACGT", "TTGTACGA"]), ("-ACGTacgt", ["ACgtACGT", "TTGTacga"])])
def test_masked_letters_are_positions(alphabet, read):
    """Lower-case letters of sequences of one length count as upper-case ones, unless the alphabet has both."""
    assert texts(Sequences(write("ACgtACGT", "TTGTacga"), alphabet=alphabet)) == read


def test_file_in_lower_case_is_read():
    assert texts(Sequences(write("ac-t", "ggtt"), alphabet="dna")) == ["AC-T", "GGTT"]


@pytest.mark.parametrize(("alphabet", "letters"), [("dna", "-ACGT"), ("rna", "-ACGU"), (".XY", ".XY")])
def test_alphabets(alphabet, letters):
    text = letters[1:] if alphabet != ".XY" else "XYX"
    data = Sequences(write(text, text), alphabet=alphabet)
    assert (data.letters, data.shape) == (letters, (len(text), len(letters)))
    assert texts(data) == [text, text]


def test_unknown_letters_become_gaps_with_a_warning():
    with pytest.warns(
        UserWarning, match=r"a\.fasta: 3 of 12 letters are not in the alphabet -ACD.* gaps: X 2 times, \* 1 times"
    ):
        data = Sequences(write("ACXX", "WYV*", "ACDF"))
    assert texts(data) == ["AC--", "ACDF", "WYV-"]


def test_letters_outside_ascii_become_gaps():
    with pytest.warns(UserWarning, match="become gaps"):
        assert texts(Sequences(write("ACÄ", "WYV"))) == ["AC-", "WYV"]


def test_dna_as_protein_warns():
    with pytest.warns(UserWarning, match=r"a\.fasta holds letters of dna or rna alone: set alphabet"):
        Sequences(write("ACGT", "AC-T"))


def test_weights_count_neighbours():
    """Sequences that share at least 4 of 5 positions are neighbours; each share of the file counts its own."""
    data = Sequences(write("AAAAA", "AAAAC", "AAACC", "WWWWW", "AAAAA", "AACCC", "YYYYY"), test_share=0.1)
    kept = ["".join(data.letters[i] for i in row) for row in data.train.argmax(-1).tolist()]
    neighbours = [sum(sum(x == y for x, y in zip(a, b, strict=True)) >= 4 for b in kept) for a in kept]
    assert len(set(neighbours)) > 2
    assert data.train_weights.tolist() == pytest.approx([1 / n for n in neighbours])
    assert data.test_weights.tolist() == [1.0]


def test_weights_of_a_known_family():
    x = torch.eye(3)[torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [2, 2, 2, 2, 2]])]
    assert neighbour_weights(x, 0.8).tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 2, 1])
    assert neighbour_weights(x, 1.0).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("identity", "length", "same"), [(0.8, 5, 4), (0.8, 15, 12), (0.55, 100, 55), (0.07, 100, 7)])
def test_share_of_positions_is_inclusive(identity, length, same):
    """Exactly that share is enough, though 0.55 * 100 is more than 55 in floating point."""
    x = torch.zeros(2, length, dtype=torch.long)
    x[1, same:] = 1
    assert neighbour_weights(torch.eye(2)[x], identity).tolist() == [0.5, 0.5]
    x[1, same - 1] = 1
    assert neighbour_weights(torch.eye(2)[x], identity).tolist() == [1, 1]


def test_weights_do_not_depend_on_chunks(monkeypatch):
    x = torch.eye(4)[torch.randint(4, (50, 6), generator=torch.Generator().manual_seed(0))]
    whole = neighbour_weights(x, 0.5)
    monkeypatch.setattr("ebm_plugin_files.sequences._CHUNK_ELEMENTS", 150)
    assert torch.equal(neighbour_weights(x, 0.5), whole)


def test_labels_and_weights_come_from_files():
    """One line for each sequence, in the order of the file; weights replace those of neighbours."""
    Path("families.csv").write_text("family\nb\na\nb\n")
    Path("weights.csv").write_text("w\n1\n2\n0.5\n")
    data = Sequences(write("ACDF", "WYVT", "ACDE"), test_share=0, labels="families.csv", weights="weights.csv")
    assert (data.train_labels.tolist(), data.classes) == ([1, 0, 1], ("a", "b"))
    assert data.train_weights.tolist() == [1, 2, 0.5]
    assert len(data.test) == len(data.test_labels) == len(data.test_weights) == 0
    Path("weights.csv").write_text("1\n2\n")
    with pytest.raises(UsageError, match=r"weights of weights\.csv have shape \(2,\), but there are 3 examples"):
        Sequences(Path("a.fasta"), weights="weights.csv")


def test_all_sequences_train():
    data = Sequences(write("ACDF"), test_share=0)
    assert (data.train_weights.tolist(), data.test.shape, data.test_weights.shape) == ([1], (0, 4, 21), (0,))


def test_no_weights_without_reweight():
    assert not hasattr(Sequences(write("ACDF", "WYVT"), reweight=None), "train_weights")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, r"a\.fasta does not exist: give the path of a FASTA file"),
        ("", {}, r"a\.fasta holds no sequences"),
        ("ACDF\n>a\nACDF\n", {}, r"a\.fasta begins with 'ACDF' in line 1, not with '>' and a name"),
        (">a\nACDF\n>b\nACD\n", {}, r"the sequence 'b' of a\.fasta has 3 positions, but the first has 4: align them"),
        (">a\nACDF\n>b\n>c\nACDF\n", {}, r"the sequence 'b' of a\.fasta is empty: remove it"),
        (">a\nACDF\n", {}, r"a\.fasta holds 1 example: give at least 2"),
        (
            ">a\nACDF\n>b\nACDF\n",
            {"alphabet": "-"},
            r"alphabet must be protein, dna, rna or two or more different letters, got '-'",
        ),
        (">a\nACDF\n>b\nACDF\n", {"alphabet": "-AA"}, "alphabet must be"),
        (">a\nACDF\n>b\nACDF\n", {"alphabet": "-Ä"}, "alphabet must be"),
        (
            ">a\nACDF\n>b\nACDF\n",
            {"reweight": 0.0},
            "reweight must be above 0 and at most 1, or None for no weights, got 0.0",
        ),
        (">a\nACDF\n>b\nACDF\n", {"reweight": 80.0}, "reweight must be above 0"),
        (">a\nACDF\n>b\nACDF\n", {"test_share": 1}, "test_share must be at least 0 and below 1"),
    ],
)
def test_bad_alignments_raise_with_advice(content, options, message):
    if content is not None:
        Path("a.fasta").write_text(content)
    with pytest.raises(UsageError, match=message):
        Sequences(Path("a.fasta"), **options)


def test_bytes_are_no_alignment():
    Path("a.fasta").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"a\.fasta cannot be read \('utf-8' codec"):
        Sequences(Path("a.fasta"))


def test_folder_is_no_alignment(tmp_path):
    with pytest.raises(UsageError, match="is no file: give the path of a FASTA file"):
        Sequences(tmp_path)


def test_other_file_is_in_the_alphabet():
    data = Sequences(write("ACGT", "AC-T"), alphabet="dna")
    x = data.examples_of(write("GGGG", name="b.fasta"))
    assert (x.dtype, x.argmax(-1).tolist()) == (torch.float32, [[3, 3, 3, 3]])


def test_other_file_has_the_length():
    data = Sequences(write("ACDF", "WYVT"))
    with pytest.raises(UsageError, match=r"b\.fasta have shape \(5, 21\), but the training examples have \(4, 21\)"):
        data.examples_of(write("ACDFW", name="b.fasta"))


def test_reads_knows_its_suffixes():
    reads = Sequences.reads
    assert all(reads(Path(name)) for name in ("a.fasta", "a.FA", "a.a3m"))
    assert not any(reads(Path(name)) for name in ("a.csv", "fasta"))


def test_record_reads_an_alignment():
    data = Sequences(write("ACGT", "AC-T"), alphabet="dna")
    reader = Sequences.from_record(json.loads(json.dumps(data.as_record())))
    assert torch.equal(reader.examples_of(Path("a.fasta")), data.examples_of(Path("a.fasta")))
    assert torch.equal(reader.unscaled(data.train), data.train.double())

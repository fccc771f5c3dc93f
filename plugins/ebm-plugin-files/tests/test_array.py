"""Arrays and tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ebm_plugin_files.array import Array
from ebmcore.errors import UsageError

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

X = np.arange(40.0).reshape(10, 4)
KINDS = np.arange(10) % 2


def in_order(data, part=""):
    """All examples, or labels or weights, in the order of the file."""
    n = len(data.train) + len(data.test)
    test = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: len(data.test)].sort().values
    rows = torch.ones(n, dtype=torch.bool)
    rows[test] = False
    train, held = getattr(data, f"train{part}"), getattr(data, f"test{part}")
    all_ = torch.empty(n, *train.shape[1:], dtype=train.dtype)
    all_[rows], all_[~rows] = train, held
    return all_


def write(name, x=X, kinds=KINDS):
    """A file of the examples and of one label for each."""
    named = {"x": torch.from_numpy(x), "kinds": torch.from_numpy(kinds)}
    columns = {f"c{i}": x[:, i] for i in range(x.shape[1])} | {"kinds": kinds}
    match Path(name).suffix:
        case ".npy":
            np.save(name, x)
        case ".npz":
            np.savez(name, x=x, kinds=kinds)
        case ".pt":
            torch.save(named, name)
        case ".safetensors":
            save_file(named, name)
        case ".parquet":
            parquet.write_table(pyarrow.table(columns), name)
        case ".csv":
            rows = np.column_stack(list(columns.values()))
            np.savetxt(name, rows, delimiter=",", header=",".join(columns), comments="")
    return name


FORMATS = ("a.npz", "a.pt", "a.safetensors", "a.csv", "a.parquet")


@pytest.mark.parametrize("name", FORMATS)
def test_formats_give_same_examples_and_labels(name):
    """Every format that holds labels gives the same examples, types and class numbers."""
    data = Array(Path(write(name)), labels="kinds")
    assert (data.train.dtype, data.train_labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(in_order(data), torch.from_numpy(X).float())
    assert in_order(data, "_labels").tolist() == KINDS.tolist()
    assert (data.n_classes, data.classes, data.shape, data.state_space) == (2, (0, 1), (4,), "continuous")


@pytest.mark.parametrize("name", ["a.npy", "a.pt"])
def test_file_of_one_array_needs_no_key(name):
    np.save("a.npy", X)
    torch.save(torch.from_numpy(X), "a.pt")
    assert torch.equal(in_order(Array(name)), torch.from_numpy(X).float())


@pytest.mark.parametrize("dtype", ["bool", "int16", "int64", "float16", "float64"])
def test_numbers_become_float32(dtype):
    np.save("a.npy", X.astype(dtype))
    data = Array("a.npy")
    assert data.train.dtype == torch.float32
    assert torch.equal(in_order(data), torch.from_numpy(X.astype(dtype)).float())


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("a.npy", X.astype("uint8"), r"are bytes \(0 to 39\), .* set scale to unit"),
        ("a.npy", X.astype(">i8") + 2**25, "hold 33554471, which torch.float32 cannot hold exactly: set scale"),
        ("a.csv", X + 2**25, "hold 33554471, which torch.float32 cannot hold exactly: set scale"),
    ],
)
def test_numbers_that_do_not_train_are_refused(name, x, message):
    """As `fit` refuses them, unless they are scaled or become bits."""
    write(name, x)
    labels = "kinds" if name == "a.csv" else None
    with pytest.raises(UsageError, match=message):
        Array(name, labels=labels)
    assert Array(name, labels=labels, scale="unit").train.amax() == 1
    assert Array(name, labels=labels, threshold=float(x.mean())).train.unique().tolist() == [0, 1]


def test_bfloat16_is_read():
    save_file({"x": torch.ones(4, 2, dtype=torch.bfloat16)}, "a.safetensors")
    assert Array("a.safetensors").train.tolist() == [[1.0, 1.0]] * 3


def test_parameter_is_read():
    torch.save(torch.nn.Parameter(torch.eye(4)), "a.pt")
    assert torch.equal(in_order(Array("a.pt")), torch.eye(4))


def test_sparse_tensor_is_read():
    torch.save(torch.eye(4).to_sparse(), "a.pt")
    assert torch.equal(in_order(Array("a.pt")), torch.eye(4))


def test_split_is_a_partition():
    """Each example is in one share, in the order of the file, and the share has the size that was asked for."""
    np.save("a.npy", np.arange(100.0))
    data = Array("a.npy", test_share=0.3)
    assert (len(data.train), len(data.test), data.shape) == (70, 30, (1,))
    assert sorted([*data.train[:, 0].tolist(), *data.test[:, 0].tolist()]) == list(range(100))
    assert data.train[:, 0].tolist() == sorted(data.train[:, 0].tolist())


def test_seed_changes_the_split():
    np.save("a.npy", np.arange(100.0))
    assert not torch.equal(Array("a.npy").test, Array("a.npy", seed=1).test)
    assert torch.equal(Array("a.npy", seed=1).test, Array("a.npy", seed=1).test)


def test_smallest_shares_hold_one_example():
    np.save("a.npy", X)
    assert len(Array("a.npy", test_share=0.001).test) == 1
    assert len(Array("a.npy", test_share=0.999).train) == 1


def test_columns_by_name_and_number():
    data = Array(write("a.csv"), columns=["c2", 0, "-2"])
    assert torch.equal(in_order(data), torch.from_numpy(X[:, [2, 0, 3]]).float())


@pytest.mark.parametrize("column", [3, "3", -1])
def test_column_of_an_array_gives_labels(column):
    """A column that holds labels is no part of the examples."""
    np.save("a.npy", np.column_stack([X[:, :3], KINDS]))
    data = Array("a.npy", labels=column)
    assert torch.equal(in_order(data), torch.from_numpy(X[:, :3]).float())
    assert in_order(data, "_labels").tolist() == KINDS.tolist()


def test_text_labels_become_class_numbers():
    """Texts count in sorted order, and their names are kept."""
    Path("a.csv").write_text("length,kind\n1,rose\n2,lily\n3,rose\n4,iris\n")
    data = Array("a.csv", labels="kind")
    assert data.classes == ("iris", "lily", "rose")
    assert in_order(data, "_labels").tolist() == [2, 1, 2, 0]
    assert in_order(data).tolist() == [[1], [2], [3], [4]]


def test_number_labels_become_class_numbers(capsys):
    """Numbers that do not count from 0 do so afterwards; what each stands for is kept and printed."""
    np.savez("a.npz", x=X[:5], y=np.array([7, 3, 7, 5, 3], dtype=np.float32))
    data = Array("a.npz", labels="y")
    assert data.classes == (3, 5, 7)
    assert in_order(data, "_labels").tolist() == [2, 0, 2, 1, 0]
    assert "classes 3, 5, 7" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["labels.npy", "labels.csv", "labels.pt"])
def test_labels_and_weights_of_another_file(name):
    np.save("a.npy", X)
    np.save("labels.npy", KINDS)
    torch.save(torch.from_numpy(KINDS), "labels.pt")
    Path("labels.csv").write_text("kind\n" + "\n".join(map(str, KINDS)))
    np.save("weights.npy", KINDS[:, None] + 1)
    data = Array("a.npy", labels=name, weights="weights.npy")
    assert in_order(data, "_labels").tolist() == KINDS.tolist()
    assert in_order(data, "_weights").tolist() == (KINDS + 1).tolist()
    assert data.train_weights.dtype == torch.float32
    assert data.as_record()["beside"] == [None, None]  # no columns, and no places


@pytest.mark.parametrize("header", [None, True])
def test_header_of_a_file_of_labels(header):
    """Texts below a text show no header, so it is said, or one line too many says it."""
    np.save("a.npy", X[:2])
    Path("labels.csv").write_text("kind\nrose\nlily\n")
    assert Array("a.npy", labels="labels.csv", header=header).classes == ("lily", "rose")


@pytest.mark.parametrize("text", ["rose\nlily\nrose\n", "kind\nrose\nlily\nrose\n"])
def test_wrong_number_of_labels_names_the_header(text):
    np.save("a.npy", X[:2])
    Path("labels.csv").write_text(text)
    with pytest.raises(UsageError, match="give one for each; header=true says that the first line"):
        Array("a.npy", labels="labels.csv")


def test_weights_of_a_column():
    data = Array(write("a.csv"), weights="c3", columns=["c0"])
    assert in_order(data, "_weights").tolist() == X[:, 3].tolist()


def test_there_are_no_labels_without_asking():
    data = Array(write("a.csv"))
    assert not any(hasattr(data, name) for name in ("train_labels", "n_classes", "train_weights"))


def test_standard_scaling_learns_from_training_rows():
    """Training columns have mean 0 and standard deviation 1; test examples are scaled by the same numbers."""
    np.save("a.npy", np.random.default_rng(0).normal(3, [1, 10, 100], (50, 3)) + 1e6)
    plain, data = Array("a.npy"), Array("a.npy", scale="standard")
    torch.testing.assert_close(data.train.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.std(0, correction=0), torch.ones(3))
    assert data.test.mean(0).abs().max() > 1e-3
    torch.testing.assert_close(data.shift + data.spread * data.test, plain.test)


@pytest.mark.parametrize(("scale", "low", "high"), [("unit", 0, 1), ("symmetric", -1, 1)])
def test_ranges_are_those_of_training_columns(scale, low, high):
    plain, data = Array(write("a.csv"), columns=[0, 1]), Array("a.csv", columns=[0, 1], scale=scale)
    assert data.train.amin(0).tolist() == [low] * 2
    assert data.train.amax(0).tolist() == [high] * 2
    torch.testing.assert_close(data.shift + data.spread * data.test, plain.test)


def test_examples_with_axes_are_scaled_together():
    np.save("a.npy", X)
    data = Array("a.npy", shape=[2, 2], scale="unit")
    plain = Array("a.npy", shape=(2, 2))
    span = plain.train.max() - plain.train.min()
    torch.testing.assert_close(data.train, (plain.train - plain.train.min()) / span)


@pytest.mark.parametrize("scale", ["standard", "unit", "symmetric"])
def test_constant_column_becomes_zero_with_a_warning(scale):
    """Nothing is divided by 0, and the column is named."""
    x = X[:, :2].copy()
    x[:, 1] = 0.1
    with pytest.warns(UserWarning, match=r"a\.csv: constant in the training share is column 'c1': scale="):
        data = Array(write("a.csv", x), scale=scale, columns=["c0", "c1"])
    assert data.train[:, 1].tolist() == [0.0] * 8


def test_threshold_makes_bits():
    """A bit is 1 where the scaled value is above the threshold."""
    np.save("a.npy", X)
    data = Array("a.npy", threshold=20)
    assert data.state_space == "binary"
    assert torch.equal(in_order(data), torch.from_numpy(X > 20).float())
    scaled = Array("a.npy", scale="standard", threshold=0)
    assert torch.equal(scaled.train, (Array("a.npy", scale="standard").train > 0).float())


@pytest.mark.parametrize(
    ("x", "space"),
    [
        (np.eye(3)[[0, 1, 2, 0]], "binary"),
        (np.eye(3)[[[0, 1], [2, 0], [1, 1]]], "categorical"),
        (np.array([[[0, 0], [0, 1]], [[0, 1], [1, 0]]]), "binary"),
        (np.ones((4, 3, 1)), "binary"),
        (np.array([[0.0, 0.5], [1.0, 1.0]]), "continuous"),
        (np.array([[0, 2], [1, 1]]), "continuous"),
        (np.array([[0, -1], [1, 1]]), "continuous"),
    ],
)
def test_state_space_is_guessed_and_printed(x, space, capsys):
    np.save("a.npy", x)
    assert Array("a.npy").state_space == space
    assert capsys.readouterr().err.endswith(f", {space} (guessed)\n")


@pytest.mark.parametrize(("name", "said"), [("a.npy", "float64 converted to float32, continuous"), ("a.csv", "continuous")])
def test_line_says_what_was_made(name, said, capsys):
    """The numbers of a text have no type that was converted."""
    np.save("a.npy", X)
    np.savetxt("a.csv", X, delimiter=",")
    Array(name, state_space="continuous")
    assert capsys.readouterr().err == f"ebmcore: {name}: 8 training and 2 test examples of shape (4,), {said}\n"


def test_one_process_prints(capsys, monkeypatch):
    np.save("a.npy", X)
    monkeypatch.setattr("ebm_plugin_files.examples.rank", lambda: 1)
    Array("a.npy")
    assert capsys.readouterr().err == ""


def test_probabilities_are_binary_if_said():
    np.save("a.npy", X / 40)
    assert Array("a.npy", state_space="binary").state_space == "binary"


def test_probabilities_are_categorical_if_said():
    np.save("a.npy", np.full((4, 3, 2), 0.5))
    assert Array("a.npy", state_space="categorical").state_space == "categorical"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1,2,3\n4,5,6\n7,8,9\n", ["0", "1", "2"]),
        ("5.1,rose\n4.9,lily\n", ["0", "1"]),
        ("a,2019\n1,2\n3,4\n", ["a", "2019"]),
        ("a;b\n1;2\n3;4\n", ["a", "b"]),
        ("a\tb\n1\t2\n3\t4\n", ["a", "b"]),
        ('"a, b","c"\n"1","2"\n"3",4\n', ["a, b", "c"]),
        ("\n a , b\n\n1,2\n\n3,4\n", ["a", "b"]),
        ("\ufeffa,b\n1,2\n3,4\n", ["a", "b"]),
        ("a,b\r\n1,2\r\n3,4", ["a", "b"]),
        ("a,b\n,2\n3,4\n", ["a", "b"]),
        ("0,1\n1,0\n1,1\n", ["0", "1"]),
        (",a,b\n0,1,2\n1,3,4\n", ["a", "b"]),
        ("0,1,2\n5,6,7\n8,9,9\n", ["0", "1", "2"]),
        (",0,1\n0,5,6\n1,8,9\n", ["0", "1"]),
        ("value\n1\n2\n", ["value"]),
    ],
)
def test_header_and_separator_are_recognized(text, names):
    from ebm_plugin_files.reading import read

    Path("a.csv").write_bytes(text.encode())
    content = read(Path("a.csv"))
    assert content.names == names
    rows = [line for line in text.splitlines() if line.strip()]
    header = names[0] != "0" or rows[0].strip() in ("0,1,2", ",0,1")
    assert {len(content.get(name)) for name in names} == {len(rows) - header}


def test_labels_of_another_file():
    """As the classes have them, from the column or array of the training file, also by a record; otherwise there are none."""
    Path("a.csv").write_text("k,a\nx,1\ny,2\nx,3\n")
    data = Array("a.csv", labels=0)
    reader = Array.from_record(json.loads(json.dumps(data.as_record())))
    Path("b.csv").write_text("a,k\n5,y\n6,z\n")
    Path("c.csv").write_text("a\n5\n6\n")
    for one in (data, reader):
        assert one.labels_of("b.csv") == ["y", "z"]
        assert one.labels_of("c.csv") is None
    np.savez("d.npz", x=X, kinds=KINDS)
    assert Array("d.npz", key="x", labels="kinds").labels_of("d.npz") == KINDS.tolist()
    np.save("e.npy", X)
    np.save("f.npy", X[:, [0, 2, 3]])
    data = Array("e.npy", labels=1)
    assert data.labels_of("e.npy") == X[:, 1].tolist()
    assert data.labels_of("f.npy") is None
    np.save("labels.npy", KINDS)
    assert Array("e.npy", labels="labels.npy").labels_of("e.npy") is None
    assert Array("a.csv", columns=["a"]).labels_of("a.csv") is None


@pytest.mark.parametrize("scale", ["none", "standard"])
def test_all_rows_train(scale):
    data = Array(write("a.csv"), test_share=0, weights="c3", labels="c0", scale=scale)
    assert (len(data.train), data.test.shape) == (len(X), (0, *data.shape))
    assert (len(data.test_labels), len(data.test_weights)) == (0, 0)


def test_truth_values_are_numbers():
    """In columns of nothing else, below a header that they show; as labels they are texts."""
    Path("a.csv").write_text("a,b\nTrue,false\nFALSE,true\nTrue,true\n")
    data = Array("a.csv")
    assert (in_order(data).tolist(), data.state_space) == ([[1, 0], [0, 1], [1, 1]], "binary")
    assert Array("a.csv", labels="b").classes == ("false", "true")
    Path("a.csv").write_text("a\nTrue\n1\n2\n")
    with pytest.raises(UsageError, match="which is no number"):
        Array("a.csv")


@pytest.mark.parametrize("cell", ["NA", "", " nan ", "None", "n/a"])
def test_missing_labels_are_refused(cell):
    """The cells that are missing numbers are no class among texts."""
    Path("a.csv").write_text(f"a,k\n1,x\n2,{cell}\n3,y\n")
    with pytest.raises(UsageError, match=r"column 'k' of a\.csv has 1 rows without a label, the first is row 1"):
        Array("a.csv", labels="k")


def test_header_as_said():
    Path("a.csv").write_text("2019,2020\n1,2\n3,4\n5,6\n")
    assert len(in_order(Array("a.csv"))) == 4
    assert in_order(Array("a.csv", header=True, columns=["2020"])).tolist() == [[2], [4], [6]]


def test_quoted_and_plain_numbers_agree():
    """The road for texts reads the same numbers as the fast one."""
    Path("a.csv").write_text("a,b\n1e-3,-2\n3.25,4\n")
    Path("b.csv").write_text("a,b,c\n1e-3,-2,x\n3.25,4,y\n")
    assert torch.equal(in_order(Array("a.csv")), in_order(Array("b.csv", columns=["a", "b"])))


def test_index_of_pandas_is_left_out():
    parquet.write_table(pyarrow.table({"a": [1.0, 2.0], "__index_level_0__": [5, 6]}), "a.parquet")
    assert Array("a.parquet").shape == (1,)


def test_parquet_labels_are_texts():
    parquet.write_table(pyarrow.table({"a": [1, 2, 3], "kind": ["x", "y", "x"]}), "a.parquet")
    assert Array("a.parquet", labels="kind").classes == ("x", "y")


def test_missing_label_of_parquet_raises():
    parquet.write_table(pyarrow.table({"a": [1, 2, 3], "kind": ["x", None, "x"]}), "a.parquet")
    with pytest.raises(UsageError, match=r"a\.parquet has 1 rows without a label, the first is row 1"):
        Array("a.parquet", labels="kind")


def test_missing_number_of_parquet_raises():
    parquet.write_table(pyarrow.table({"a": pyarrow.array([True, None, False]), "b": [1, 2, None]}), "a.parquet")
    with pytest.raises(UsageError, match=r"1 value NaN, .* the first in row 1 \(counted from 0\), column 'a'"):
        Array("a.parquet", columns=["a"])
    with pytest.raises(UsageError, match=r"1 value NaN, .* the first in row 2 \(counted from 0\), column 'b'"):
        Array("a.parquet", columns=["b"])


def test_times_are_no_numbers():
    parquet.write_table(pyarrow.table({"a": np.array([1, 2, 3], "datetime64[ns]")}), "a.parquet")
    with pytest.raises(
        UsageError, match=r"a\.parquet holds '.*' in column 'a', row 0 \(counted from 0\), which is no number"
    ):
        Array("a.parquet")


def test_missing_pyarrow_is_one_line(monkeypatch):
    write("a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"a\.parquet needs pyarrow: pip install 'ebm-plugin-files\[parquet\]'"):
        Array("a.parquet")


NAN = np.where(np.arange(40).reshape(10, 4) % 21 == 6, np.nan, X)  # in rows 1 and 6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_bad_numbers_are_counted_and_placed(bad):
    """The message says how many values there are, in how many rows, and where the first is."""
    x = X.copy()
    x[3, 2] = x[3, 3] = x[7, 0] = bad
    np.save("a.npy", x)
    message = (
        r"a\.npy holds 3 values NaN, .* in 2 of 10 rows, the first in row 3 \(counted from 0\), column '2': fill them in"
    )
    with pytest.raises(UsageError, match=message):
        Array("a.npy")


class Code:
    """What unpickling would run."""

    def __reduce__(self):
        return Path.write_text, (Path("ran"), "code")


def test_no_format_runs_code():
    """Pickles within .npy, .npz and .pt are refused and not run."""
    np.save("a.npy", np.array([Code(), 1], dtype=object))
    np.savez("a.npz", x=np.array([Code(), 1], dtype=object))
    torch.save(Code(), "a.pt")
    Path("ran").unlink(missing_ok=True)
    for name in ("a.npy", "a.npz", "a.pt"):
        with pytest.raises(UsageError, match=r"\(it holds something other than plain arrays\)"):
            Array(name)
    assert not Path("ran").exists()


NPY_HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999, 3), }".ljust(117)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("no.npy", None, {}, r"no\.npy does not exist: give the path"),
        ("a.xyz", b"1", {}, r"a\.xyz is of no known format: give a file that ends in \.npy"),
        ("a.npy", b"", {}, r"a\.npy is empty"),
        ("a.csv", b"\n\n", {}, r"a\.csv is empty"),
        ("a.csv", b"a,b\n", {}, r"a\.csv has a header and no rows"),
        ("a.csv", b"1,2\n3,4\n5\n", {}, r"a\.csv has 2 cells in its first line and 1 in line 3: make the lines equal"),
        ("a.csv", b"a\n1,2\n3,4\n", {}, r"a\.csv has 1 cells in its first line and 2 in line 2"),
        ("a.csv", b"a,b\n1,x\n3,y\n", {}, r"a\.csv holds 'x' in column 'b', row 0 \(counted from 0\), which is no number"),
        ("a.csv", b"a,b\n1,2\n3,x\n", {}, r"a\.csv holds 'x' in column 'b', row 1 \(counted from 0\), which is no number"),
        (
            "a.csv",
            b"a,b\n1,2\n3,\n",
            {},
            r"1 value NaN, .* in 1 of 2 rows, the first in row 1 \(counted from 0\), column 'b'",
        ),
        ("a.csv", b"a,a\n1,2\n3,4\n", {}, r"a\.csv has two columns 'a'"),
        ("a.csv", b"\xff\xfe1", {}, r"a\.csv cannot be read \('utf-8' codec"),
        ("a.csv", b"a,b\n1,2\n3,4\n", {"columns": ["aa"]}, r"a\.csv has no column 'aa'; did you mean 'a'\?"),
        ("a.csv", b"a,b\n1,2\n3,4\n", {"columns": [2]}, r"a\.csv has no column 2; it has 'a', 'b'"),
        ("a.csv", b"a,b\n1,2\n3,4\n", {"columns": []}, r"a\.csv has no columns for the examples"),
        ("a.csv", b"a,b\n1,2\n3,4\n", {"key": "a"}, r"a\.csv is a table: choose columns instead of key 'a'"),
        (
            "a.csv",
            b"a,b\n1,2\n3,4\n",
            {"labels": "c"},
            r"labels 'c' is no column or key of a\.csv, which has 'a', 'b', and no file",
        ),
        (
            "a.csv",
            b"a,b\n1,0.5\n3,1\n",
            {"labels": "b"},
            r"labels of column 'b' of a\.csv must be whole numbers or texts, got 0\.5",
        ),
        ("a.csv", b"a,b\n1,x\n3,\n", {"labels": "b"}, r"a\.csv has 1 rows without a label, the first is row 1"),
        ("a.csv", b"a,b\n1,2\n3,\n", {"labels": "b"}, r"a\.csv has 1 rows without a label, the first is row 1"),
        (
            "a.csv",
            b"a,b\n1,2\n3,-4\n",
            {"weights": "b"},
            r"weights of column 'b' of a\.csv must be at least 0, got -4\.0 in row 1",
        ),
        ("a.csv", b"a,b\n1,0\n3,0\n", {"weights": "b"}, r"weights of column 'b' of a\.csv are 0 for every training example"),
        ("a.csv", b"a,b\n1,2\n3,nan\n", {"weights": "b"}, r"a\.csv holds 1 value NaN"),
        ("a.csv", b"a,b\n1,2\n", {}, r"a\.csv holds 1 example: give at least 2"),
        ("a.npy", b"nothing", {}, r"a\.npy cannot be read \(it holds something other"),
        (
            "a.npy",
            b"\x93NUMPY\x01\x00v\x00" + NPY_HEADER.encode() + b"\n",
            {},
            r"a\.npy does not fit into memory|cannot be read",
        ),
        ("a.npz", b"PK\x03\x04nothing", {}, r"a\.npz cannot be read \(File is not a zip file\)"),
        ("a.pt", b"nothing", {}, r"a\.pt cannot be read"),
        ("a.safetensors", b"nothing", {}, r"a\.safetensors cannot be read"),
        ("a.parquet", b"nothing nothing", {}, r"a\.parquet cannot be read"),
    ],
)
def test_bad_files_raise_with_advice(name, content, options, message):
    """What is wrong with a file is one line, which says where and what to do."""
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        Array(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_share": -0.1}, "test_share must be at least 0 and below 1, got -0.1"),
        ({"test_share": 1.0}, "test_share must be at least 0 and below 1, got 1.0"),
        ({"test_share": float("nan")}, "test_share must be at least 0 and below 1"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"scale": "log"}, "scale must be one of none, standard, unit, symmetric, got 'log'"),
        ({"state_space": "spins"}, "state_space must be one of continuous, binary, categorical, got 'spins'"),
        ({"state_space": "binary"}, r"a\.npy lie in 0 to 39, not in 0 to 1 as state_space=binary says"),
        ({"state_space": "categorical"}, r"a\.npy, of shape \(4,\), are not categorical"),
        ({"threshold": 39}, r"threshold 39 makes each bit of a\.npy 0: the scaled values lie in 0 to 39"),
        ({"threshold": -1}, "makes each bit of a.npy 1"),
        ({"shape": [3]}, r"shape \(3,\) does not hold the 4 values of an example of a\.npy"),
        ({"shape": [-2, -2]}, r"shape \(-2, -2\) does not hold"),
        ({"key": "x"}, r"a\.npy is one array: leave key out"),
        ({"labels": "few.npy"}, r"labels of few\.npy have shape \(3,\), but there are 10 examples: give one for each"),
        ({"weights": "few.npy"}, r"weights of few\.npy have shape \(3,\), but there are 10 examples"),
        ({"labels": "wide.npy"}, r"labels of wide\.npy have shape \(10, 4\)"),
    ],
)
def test_wrong_options_raise(options, message):
    np.save("a.npy", X)
    np.save("few.npy", np.ones(3))
    np.save("wide.npy", X)
    with pytest.raises(UsageError, match=message):
        Array("a.npy", **options)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((0, 3)), {}, r"holds an array of shape \(0, 3\): give examples"),
        (np.zeros((3, 0)), {}, "holds an array of shape|has no columns"),
        (np.array(1.0), {}, r"holds an array of shape \(\): give examples"),
        (np.zeros((3, 2), complex), {}, "which is no number"),
        (np.zeros((3, 2, 2), complex), {}, "holds complex128, not real numbers"),
        (np.array([["a", "b"], ["c", "d"]]), {}, "holds 'a' in column '0', row 0"),
        (np.zeros((3, 2, 2)), {"columns": [0]}, r"columns are those of a table, but examples of a\.npy have shape \(2, 2\)"),
    ],
)
def test_arrays_without_examples_raise(x, options, message):
    np.save("a.npy", x)
    with pytest.raises(UsageError, match=message):
        Array("a.npy", **options)


@pytest.mark.parametrize(
    ("name", "other"),
    [("a.npz", "b.pt"), ("a.pt", "b.safetensors"), ("a.csv", "b.parquet"), ("a.parquet", "b.csv"), ("a.npz", "b.npz")],
)
def test_other_file_is_on_the_scale(name, other):
    """The training share says the scale, not the other file; labels are passed over, and the format does not matter."""
    data = Array(write(name), labels="kinds", scale="standard")
    x = np.random.default_rng(0).normal(100, 10, (3, 4))
    shown = data.examples_of(Path(write(other, x, np.array([1, 0, 1]))))
    seen = X[data.train[:, 0].mul(data.spread[0]).add(data.shift[0]).div(4).round().long()]
    torch.testing.assert_close(shown.double(), torch.from_numpy((x - seen.mean(0)) / seen.std(0)), check_dtype=False)
    assert shown.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"scale": "unit"}, {"scale": "standard", "threshold": 0}, {"shape": (2, 2)}])
def test_own_file_gives_own_examples(options):
    """In the order of the file, to the last bit, also where values are far from 0."""
    data = Array(write("a.csv", X + 1e9 * ("scale" in options)), labels="kinds", **options)
    assert torch.equal(data.examples_of(Path("a.csv")), in_order(data))


def test_other_file_needs_no_labels():
    """Columns are found by name, in any order and beside others; a column of numbers alone counts."""
    Path("a.csv").write_text("kind,x,y\n0,1,2\n1,3,4\n0,5,6\n")
    Path("b.csv").write_text("y,note,x\n20,good,10\n40,bad,30\n")
    assert Array("a.csv", labels="kind").examples_of(Path("b.csv")).tolist() == [[10, 20], [30, 40]]
    np.save("a.npy", np.array([[0, 1, 2], [1, 3, 4], [0, 5, 6]]))
    np.savetxt("c.csv", np.array([[10, 20], [30, 40]]), delimiter=",")
    data = Array("a.npy", labels=0)
    assert data.examples_of(Path("c.csv")).tolist() == [[10, 20], [30, 40]]
    assert data.examples_of(Path("a.npy")).tolist() == [[1, 2], [3, 4], [5, 6]]


def test_other_file_of_one_array_needs_no_key():
    np.save("b.npy", X[:2])
    data = Array(write("a.npz"), key="x")
    assert torch.equal(data.examples_of(Path("b.npy")), torch.from_numpy(X[:2]).float())
    assert len(data.examples_of(Path("a.npz"))) == 10


def test_other_file_has_the_chosen_columns():
    data = Array(write("a.csv"), columns=["c3", "c1"])
    assert data.examples_of(Path(write("b.csv", X[:1], KINDS[:1]))).tolist() == [[3, 1]]


def test_order_of_numbered_columns_is_kept():
    np.save("a.npy", X[:, :2])
    assert Array("a.npy", columns=[1, 0]).examples_of(Path("a.npy"))[0].tolist() == [1, 0]


def test_other_file_of_bits_alone_is_kept():
    """A threshold that makes every bit of a file equal is refused in training, and is right here."""
    np.save("a.npy", X)
    np.save("b.npy", X[:1] * 0)
    assert Array("a.npy", threshold=19).examples_of(Path("b.npy")).tolist() == [[0, 0, 0, 0]]


def test_other_file_of_images_keeps_its_shape():
    np.save("a.npy", X.reshape(10, 1, 2, 2))
    np.save("b.npy", X.reshape(10, 1, 4))
    data = Array("a.npy", scale="symmetric")
    assert data.examples_of(Path("a.npy")).shape == (10, 1, 2, 2)
    with pytest.raises(UsageError, match=r"b\.npy have shape \(1, 4\), but the training examples have \(1, 2, 2\): give"):
        data.examples_of(Path("b.npy"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("c0,c1\n1,2\n", r"b\.csv has no column 'c2'"),
        ("c0,c1,c2,c3\n1,2,,4\n", r"b\.csv holds 1 value NaN.* in row 0 \(counted from 0\), column 'c2'"),
        ("c0,c1,c2,c3\n1,2,high,4\n", r"b\.csv holds 'high' in column 'c2', row 0"),
        ("1,2,3,4\n", r"b\.csv has no column 'c0'; did you mean '0'"),
        (None, r"b\.csv does not exist"),
    ],
)
def test_wrong_other_files_raise(content, message):
    if content is not None:
        Path("b.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        Array(write("a.csv"), labels="kinds").examples_of(Path("b.csv"))


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.safetensors"])
def test_several_arrays_need_a_key(name):
    write(name)
    with pytest.raises(UsageError, match=r"holds '(x|kinds)', '(x|kinds)': choose one with key"):
        Array(name)
    with pytest.raises(UsageError, match=r"has no key 'z'; it has '"):
        Array(name, key="z")
    assert Array(name, key="x").shape == (4,)


def test_objects_in_a_mapping_raise():
    torch.save({"x": torch.ones(3, 2), "n": 3}, "a.pt")
    with pytest.raises(UsageError, match=r"a\.pt holds a dict: save a tensor, or a mapping of names to tensors"):
        Array("a.pt")


def test_folder_is_no_file():
    Path("a.npy").mkdir()
    with pytest.raises(UsageError, match=r"a\.npy is not a regular file"):
        Array("a.npy")


def test_reads_knows_its_suffixes():
    Path("folder.npy").mkdir()
    reads = Array.reads
    assert all(reads(Path(name)) for name in (*FORMATS, "a.npy", "A.CSV"))
    assert not any(reads(Path(name)) for name in ("two-moons", "a.fasta", "a.png", "folder.npy"))


@pytest.mark.parametrize("options", [{}, {"scale": "standard"}, {"scale": "unit", "shape": (2, 2)}, {"scale": "symmetric"}])
@pytest.mark.parametrize("name", FORMATS)
def test_record_makes_the_reader(name, options):
    """Without the examples, from JSON alone, files are read as with them."""
    data = Array(write(name), labels="kinds", **options)
    other = Path(write(f"b{name}", X * 1.7 + 3))
    wanted = data.examples_of(other)
    Path(name).unlink()
    reader = Array.from_record(json.loads(json.dumps(data.as_record())))
    assert not hasattr(reader, "train")
    assert torch.equal(reader.examples_of(other), wanted)
    assert (reader.shape, reader.state_space) == (data.shape, data.state_space)


@pytest.mark.parametrize("scale", ["none", "standard", "unit", "symmetric"])
def test_unscaled_is_the_file(scale):
    """In float64, to the precision of the float32 that training has."""
    np.save("a.npy", X)
    data = Array("a.npy", scale=scale)
    back = data.unscaled(in_order(data))
    torch.testing.assert_close(back, torch.from_numpy(X), atol=1e-5, rtol=0)
    assert torch.equal(data.scaled(torch.from_numpy(X)), in_order(data))


def test_bits_have_no_units():
    np.save("a.npy", X)
    data = Array("a.npy", threshold=20)
    assert not data.invertible
    assert torch.equal(data.scaled(torch.from_numpy(X)), in_order(data))
    with pytest.raises(UsageError, match="bits that threshold 20 made have no value in the file"):
        data.unscaled(data.train)


@pytest.mark.parametrize(
    "change",
    [{"shape": None}, {"shape": [3]}, {"spread": [[0.0] * 4]}, {"shift": [[float("nan")] * 4]}, {"state_space": "grey"},
     {"columns": 3}, {"beside": []}, {"threshold": "a"}],
)  # fmt: skip
def test_forged_record_is_refused(change):
    np.save("a.npy", X)
    record = Array("a.npy", scale="standard").as_record()
    with pytest.raises((ValueError, TypeError, LookupError)):
        Array.from_record(record | change)


def test_array_stands_for_a_table():
    """An array of as many columns as were taken, which have no names."""
    data = Array(write("a.csv"), labels="kinds")
    np.save("b.npy", X[:2])
    assert data.examples_of(Path("b.npy")).tolist() == X[:2].tolist()


COMMAS = "1,5;2\n-,5;1e1\n3;4\n"
HEADED = [f"a;b\n{COMMAS}", f'"a\n;";b\n{COMMAS}', f"\ufeffa;b\n{COMMAS}".replace("\n", "\r\n")]


@pytest.mark.parametrize("text", [COMMAS, *HEADED])
def test_decimal_commas_are_read(text):
    """Between semicolons, with a header or without, though there are more commas."""
    Path("a.csv").write_text(text, newline="")
    assert in_order(Array("a.csv")).tolist() == [[1.5, 2], [-0.5, 10], [3, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a;b\n1,5;2.5\n2;3\n", r"decimals with a comma \(1,5\) and with a point \(2\.5\): write all with a point"),
        ("a;b\n1.234,5;2\n2;3\n", r"holds '1\.234,5' in column 'a', row 0 .* which is no number"),
        ("a\tb\n1,5\t2\n2\t3\n", "holds '1,5' in column 'a', row 0 .*: write decimals with a point"),
        ('a,b\n"1,5",2\n2,3\n', "holds '1,5' in column 'a', row 0 .*: write decimals with a point"),
        ("a,b\n1,\n2,3\n", "holds 1 value NaN, .* the first in row 0 .* column 'b'"),
        ("a,b\n1,?\n2,3\n", r"holds '\?' in column 'b', row 0"),
    ],
)
def test_unclear_numbers_are_refused(text, message):
    Path("a.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        Array("a.csv")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["01", "1", "01", "2"], ("01", "1", "2")),
        (["2", "10", "2", "1"], (1, 2, 10)),
        (["1.0", "0.0", "1.0", "0.0"], (0, 1)),
        (["9007199254740993", "9007199254740992", "9007199254740993", "1"], ("1", "9007199254740992", "9007199254740993")),
        (['"two\nlines"', "one", "one", "one"], ("one", "two\nlines")),
    ],
)
def test_labels_are_those_of_the_text(labels, classes):
    """Two texts are two classes, also where they would be one number."""
    Path("a.csv").write_text("x,kind\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    data = Array("a.csv", labels="kind")
    assert data.classes == classes
    names = [data.classes[number] for number in in_order(data, "_labels")]
    assert [str(name) for name in names] == [label.strip('"').removesuffix(".0") for label in labels]
    Path("kinds.csv").write_text("".join(f"{label}\n" for label in labels))
    assert Array("a.csv", columns=["x"], labels="kinds.csv").classes == classes


@pytest.mark.parametrize("missing", ["", "NA"])
def test_row_without_a_label_is_named(missing):
    Path("a.csv").write_text(f"x,kind\n1,01\n2,{missing}\n3,1\n")
    with pytest.raises(UsageError, match=r"1 rows without a label, the first is row 1"):
        Array("a.csv", labels="kind")

"""Tables from files: what comes out is what was written, and errors name the column."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import dump_svmlight_file

from largesparse import NetworkConfig, SparseMLP, Standardizer, load_dataset
from largesparse.data import columns as columned
from largesparse.data.formats import table_format
from largesparse.data.layout import FileLayout
from largesparse.data.tables import (
    Table,
    align_columns,
    read_table,
    read_table_for,
)
from largesparse.errors import DataError, ParameterError

FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)


def frame(n=5):
    rng = np.random.default_rng(0)
    data = {name: rng.normal(size=n).astype(np.float32) for name in ("width", "height", "é x")}
    return pd.DataFrame(data | {"kind": np.array(["ant", "bee", "cow"])[np.arange(n) % 3]})


def write(path, text):
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# CSV


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "CSV", "tsv", "semicolon.csv"])
@pytest.mark.parametrize("target", ["kind", 3, -1])
def test_csv_as_pandas_writes_it(tmp_path, suffix, target):
    data, path = frame(), tmp_path / f"own.{suffix}"
    separator = {"tsv": "\t", "semicolon.csv": ";"}.get(suffix, ",")
    data.to_csv(path, index=False, sep=separator)
    table = read_table(path, target)
    assert table.X.dtype == np.float32 and table.X.flags.c_contiguous and table.X.flags.writeable
    np.testing.assert_array_equal(table.X, data[["width", "height", "é x"]].to_numpy())
    np.testing.assert_array_equal(table.y, data["kind"].to_numpy(str))
    assert (table.feature_names, table.target) == (["width", "height", "é x"], "kind")


@given(
    values=st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(FLOATS, min_size=n, max_size=n), min_size=2, max_size=9)
    ),
    chunk_bytes=st.integers(1, 200),
)
def test_csv_in_chunks_of_any_size(tmp_path_factory, values, chunk_bytes):
    path = tmp_path_factory.mktemp("csv") / "own.csv"
    X = np.array(values, np.float32)
    names = [f"x{i}" for i in range(X.shape[1])]
    pd.DataFrame(X, columns=names).to_csv(path, index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columned, "CHUNK_BYTES", chunk_bytes)
        table = read_table(path)
    np.testing.assert_array_equal(table.X, X)
    assert (table.y, table.feature_names, table.target) == (None, names, None)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["1", "2"], np.array([1, 2])),
        (["1", "2.5"], np.array([1, 2.5])),
        (["1", "a"], np.array(["1", "a"])),
        (["True", "False"], np.array(["True", "False"])),
        (["-1", " 1"], np.array([-1, 1])),
        (["-1", "+1"], np.array(["-1", "+1"])),
    ],
)
def test_labels_stay_what_they_are_across_chunks(tmp_path, monkeypatch, labels, expected):
    monkeypatch.setattr(columned, "CHUNK_BYTES", 1)  # a row a chunk
    path = write(tmp_path / "own.csv", "a,y\n" + "".join(f"0,{label}\n" for label in labels))
    y = read_table(path, "y").y
    assert y.dtype.kind == expected.dtype.kind
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("target", ["0", 0, -3])
def test_csv_without_names(tmp_path, target):
    path = write(tmp_path / "own.csv", "1,2.5,3\n-4,5e2,.6\n")
    table = read_table(path, target)
    np.testing.assert_array_equal(table.X, np.array([[2.5, 3], [500, 0.6]], np.float32))
    assert (table.y.tolist(), table.feature_names, table.target) == ([1, -4], None, "0")


def test_counted_columns_are_names(tmp_path):
    pd.DataFrame(np.eye(3)).to_csv(tmp_path / "own.csv", index=False)
    assert read_table(tmp_path / "own.csv").feature_names == ["0", "1", "2"]


def test_only_the_wanted_columns_are_read(tmp_path):
    path = write(tmp_path / "own.csv", "a,note,b,y\n1,hello,2,u\n3,,4,v\n")
    table = read_table(path, columns=["b", "a"])
    np.testing.assert_array_equal(table.X, [[2, 1], [4, 3]])
    assert (table.y, table.feature_names) == (None, ["b", "a"])
    assert read_table(path, "y", columns=["a"]).y.tolist() == ["u", "v"]
    with pytest.raises(DataError, match=r"own.csv lacks 2 of the 3 columns .*: 'A', 'c'"):
        read_table(path, columns=["A", "b", "c"])


def test_one_row_can_be_predicted_but_not_trained_on(tmp_path):
    path = write(tmp_path / "own.csv", "a,b\n1,2\n")
    assert read_table(path).X.shape == (1, 2)
    with pytest.raises(DataError, match="one row only"):
        read_table(path, "b")


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", None, "own.csv is empty"),
        ("\n\n", None, "own.csv is empty"),
        ("a,b\n", None, "no rows of data"),
        ("width,b\n1,2\n1,2\n", "wdith", "no column 'wdith' .*'width', 'b'.* mean 'width'[?]"),
        ("a,b\n1,2\n1,2\n", 2, "position 2 .*2 columns, 0 to 1"),
        ("1,2\n1,2\n", "b", "no column 'b' .*no column names"),
        ("a,b\n1,2\n1,x y\n", "a", "column 'b' has 'x y', which is not a number, in row 2"),
        ("a,b\n1,\n1,2\n", "a", "column 'b' has a missing value in row 1"),
        ("a,b\n1,2\n1,NaN\n", "a", "column 'b' has a missing value in row 2"),
        ("a,b\n1,2\n1\n", "a", "column 'b' has a missing value in row 2"),
        ("a,b\n1,2\n,2\n", "a", "column 'a' has a missing value in row 2.*no label"),
        ("a,b\n1,1e39\n1,2\n", "a", "column 'b' has a value that is infinite in float32 in row 1"),
        ("1,2\n1,x\n", None, "column '1' has 'x'"),
        ("a,b,a\n1,2,3\n1,2,3\n", "b", "two columns named 'a'"),
        ("a,b\n1,2\n1,1_1\n", "a", "column 'b' has '1_1', which is not a number, in row 2"),
        ("a,b\n1,2\n1,inflated\n", "a", "column 'b' has 'inflated', which is not a number"),
        ("a,b\n1,2\n1,1e999\n", "a", "column 'b' has a value that is infinite in float32 in row 2"),
        (",a\n0,2\n1,2\n", "a", "column 1 has no name.*--drop ''"),
        ("5.1,iris\n0,2\n1,2\n", None, "first line looks like data .'5.1'"),
        ("a\n0\n1\n", "a", "no column of features"),
        ("a,b\n1,2\n1,2,3\n", "a", "Expected 2 fields in line 3, saw 3"),
        ("a,b\n1,2,3\n1,2,3\n", "a", "column 1 has no name"),
        ("a,b\n1,2,3,4\n1,2,3,4\n", "a", "more fields than the first line"),
        ('a,"b\n1,2\n', None, "cannot be read as a table"),
    ],
)
def test_unusable_csv_is_refused(tmp_path, text, target, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path / "own.csv", text), target)


def test_rows_are_counted_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(columned, "CHUNK_BYTES", 32)  # two rows a chunk
    for value in ("x", "", "inf"):
        path = write(tmp_path / "own.csv", "a,b\n" + "1,2\n" * 4 + f"1,{value}\n")
        with pytest.raises(DataError, match=r"'b' .*in row 5[.]"):
            read_table(path)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"a,b\n" + b"1,2\n" * 99)[:-9], b"a,b\n1,2\n", gzip.compress(b"a,b\n1,\xff\n")],
    ids=["cut", "not compressed", "not UTF-8"],  # gzip writes the time
)
def test_damaged_compressed_csv_is_refused(tmp_path, content):
    (tmp_path / "own.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"own.csv.gz cannot be read"):
        read_table(tmp_path / "own.csv.gz", "b")


# Parquet


@pytest.mark.parametrize("chunk_bytes", [2**25, 64])
def test_parquet_as_pandas_writes_it(tmp_path, monkeypatch, chunk_bytes):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(columned, "CHUNK_BYTES", chunk_bytes)
    data = frame().assign(kind=lambda d: d["kind"].astype("category"), n=np.arange(5), b=True)
    data.iloc[[0, 2, 4, 1, 3]].to_parquet(tmp_path / "own.parquet")  # with an index to leave out
    table = read_table(tmp_path / "own.parquet", "kind")
    data = data.iloc[[0, 2, 4, 1, 3]]
    np.testing.assert_array_equal(table.X, data.drop(columns="kind").to_numpy(np.float32))
    assert table.y.tolist() == data["kind"].tolist()
    assert table.feature_names == ["width", "height", "é x", "n", "b"]
    assert read_table(tmp_path / "own.parquet", columns=["n"]).X.ravel().tolist() == [0, 2, 4, 1, 3]


def test_parquet_keeps_strings_and_dotted_names(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "own.parquet"
    pd.DataFrame({"a": [1, 2], "a.b": [3, 4], "y": ["1", "2"], "z": [1.5, 2]}).to_parquet(path)
    table = read_table(path, "y", columns=["a"])
    assert (table.X.tolist(), table.y.tolist()) == ([[1], [2]], ["1", "2"])
    assert read_table(path, columns=["a.b", "a"]).X.tolist() == [[3, 1], [4, 2]]
    assert read_table(path, "z", columns=["a"]).y.tolist() == [1.5, 2]


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        ({}, None, "column 'kind' has 'ant', which is not a number"),
        ({}, "kin", "no column 'kin' .* Did you mean 'kind'"),
        ({"width": [1.0, None] * 3}, "kind", "column 'width' has a missing value in row 2"),
        ({"kind": [None] + ["a"] * 5}, "kind", "column 'kind' has a missing value in row 1"),
        ({"when": pd.Timestamp(0)}, "kind", "column 'when' has Timestamp"),
        ({"width": 1e300}, "kind", "column 'width' has a value that is infinite"),
    ],
)
def test_unusable_parquet_is_refused(tmp_path, change, target, message):
    pytest.importorskip("pyarrow")
    frame(6).assign(**change).to_parquet(tmp_path / "own.parquet")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "own.parquet", target)


def test_damaged_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "own.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_table(tmp_path / "own.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "own.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pip install '\.\[tables\]'"):
        read_table(tmp_path / "own.parquet")


# svmlight


@pytest.mark.parametrize("suffix", ["svm", "libsvm", "svmlight", "svm.gz"])
@pytest.mark.parametrize("zero_based", [True, False])
def test_svmlight_as_sklearn_writes_it(tmp_path, suffix, zero_based):
    X = sp.random_array(
        (20, 9), density=0.4, random_state=np.random.default_rng(0), dtype=np.float32
    )
    X = sp.csr_array(X + sp.csr_array(np.eye(20, 9, dtype=np.float32)))
    dump_svmlight_file(X, np.arange(20) % 3 - 1, str(tmp_path / "plain"), zero_based=zero_based)
    path = write(tmp_path / f"own.{suffix}", (tmp_path / "plain").read_text())
    table = read_table(path)
    assert isinstance(table.X, sp.csr_array) and table.X.dtype == np.float32
    np.testing.assert_array_equal(table.X.toarray(), X.toarray())
    assert table.y.dtype == np.int64 and table.feature_names is None
    np.testing.assert_array_equal(table.y, np.arange(20) % 3 - 1)
    with pytest.raises(DataError, match="Leave the target out"):
        read_table(path, "y")


@pytest.mark.parametrize("text", ["x 1:2\n", "1 1:\n", "1 2:1 1:1\n", "1 a:1\n", "1,x 1:1\n"])
def test_unusable_svmlight_is_refused(tmp_path, text):
    with pytest.raises(DataError, match="cannot be read as svmlight"):
        read_table(write(tmp_path / "own.svm", text))


def svmlight(path, rows, base):
    """Write dense rows, without their zeros."""
    lines = ["1" + "".join(f" {k + base}:{x:g}" for k, x in enumerate(row) if x) for row in rows]
    return write(path, "\n".join(lines))


def test_svmlight_indices_begin_where_they_began_in_training(tmp_path):
    network = SparseMLP(NetworkConfig((4, 3, 2), seed=0), progress=False)
    lacking = [[0, 2, 3, 0], [0, 0, 5, 0]]  # the first and the last feature
    for base in (0, 1):
        whole = read_table(svmlight(tmp_path / "own.svm", np.eye(4) + 1, base))
        assert whole.layout == FileLayout(zero_based=base == 0)
        network.file_layout = whole.layout
        path = svmlight(tmp_path / "own.svm", lacking, base)
        np.testing.assert_array_equal(read_table_for(network, path).X.toarray(), lacking)
    with pytest.raises(DataError, match="has the index 0, but indices are to begin at 1"):
        read_table_for(network, svmlight(tmp_path / "own.svm", np.eye(4), 0))
    with pytest.raises(DataError, match="5 columns, but the model was trained on 4"):
        read_table_for(network, svmlight(tmp_path / "own.svm", np.eye(5), 1))


def test_svmlight_indices_are_not_guessed_for_a_model_that_does_not_know(tmp_path):
    network = SparseMLP(NetworkConfig((4, 3, 2), seed=0), progress=False)
    lacking = [[0, 2, 3, 0], [0, 0, 5, 0]]
    path = svmlight(tmp_path / "own.svm", lacking, 0)
    with pytest.raises(DataError, match=r"may begin at 0.*zero_based=True.*--index-base 0"):
        read_table_for(network, path)
    np.testing.assert_array_equal(
        read_table_for(network, path, zero_based=True).X.toarray(), lacking
    )
    for base in (0, 1):  # which it is can be told
        path = svmlight(tmp_path / "own.svm", np.eye(4), base)
        np.testing.assert_array_equal(read_table_for(network, path).X.toarray(), np.eye(4))


# Archives


def test_archives(tmp_path):
    path, X = tmp_path / "own.npz", np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    np.savez(path, X=X, y=["a", "b", "a"], feature_names=list("pqrs"))
    table = read_table(path)
    np.testing.assert_array_equal(table.X, X.reshape(3, 4))
    assert table.X.dtype == np.float32
    assert (table.y.tolist(), table.feature_names) == (["a", "b", "a"], list("pqrs"))
    np.testing.assert_array_equal(
        read_table(path, columns=["s", "p"]).X, X.reshape(3, 4)[:, [3, 0]]
    )
    np.savez(path, X=X, other=[1, 2, 3])
    with pytest.raises(DataError, match="4 columns, but the model was trained on 2"):
        read_table(path, columns=["s", "p"])
    assert read_table(path).y is None
    assert read_table(path, "other").y.tolist() == [1, 2, 3]
    np.savez(path, x_train=X, y_train=[0, 1, 2], x_test=X[:2], y_test=[5, 6])
    assert read_table(path).y.tolist() == [0, 1, 2]
    assert read_table(path, "y", part="test").y.tolist() == [5, 6]
    csr = sp.csr_array(np.array([[0, 1, 0], [1, 0, 1]], np.float32))
    np.savez(path, indptr=csr.indptr, indices=csr.indices, shape=csr.shape)
    np.testing.assert_array_equal(read_table(path).X.toarray(), csr.toarray())


@pytest.mark.parametrize(
    ("arrays", "target", "message"),
    [
        ({"z": [1]}, None, "holds z; a table needs X"),
        ({"X": np.ones((2, 2))}, "y", "no array 'y' for the target"),
        ({"X": np.ones(2)}, None, r"shape \(samples, features\)"),
        ({"X": np.array([["a"]])}, None, "must be numbers"),
        ({"X": np.ones((2, 2)), "y": [1]}, None, "2 samples but y"),
        ({"X": np.ones((2, 2)), "feature_names": ["a"]}, None, "1 feature_names for 2"),
        ({"X": np.ones((2, 2)), "feature_names": ["a", "a"]}, None, "two features named 'a'"),
        ({"X": np.ones((0, 2))}, None, "no rows"),
        ({"indptr": [0, 1], "indices": [0, 1], "shape": [2, 3]}, None, "valid CSR"),
    ],
)
def test_unusable_archives_are_refused(tmp_path, arrays, target, message):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "own.npz", target)


@pytest.mark.parametrize("kind", ["csr", "csc", "bsr", "coo", "dia"])
@pytest.mark.parametrize("make", [sp.random_array, sp.random])
def test_archives_of_save_npz(tmp_path, kind, make):
    X = make(
        *([(6, 6)] if make is sp.random_array else [6, 6]), density=0.4, format="csr", rng=0
    ).asformat(kind)
    sp.save_npz(tmp_path / "own.npz", X)
    table = read_table(tmp_path / "own.npz")
    assert isinstance(table.X, sp.csr_array)
    np.testing.assert_array_equal(table.X.toarray(), X.toarray().astype(np.float32))
    with np.load(tmp_path / "own.npz") as archive:
        np.savez(tmp_path / "labelled.npz", **archive, y=np.arange(6) % 2)
    data = load_dataset(tmp_path / "labelled.npz")
    both = np.vstack([data.X_train.toarray(), data.X_test.toarray()])
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(X.toarray(), axis=0))


@pytest.mark.parametrize(
    "change",
    [
        {"format": b"lil"},
        {"indices": [0, 9]},
        {"format": b"coo"},
        {"format": b"dia"},
        {"shape": [2**40, 2]},
    ],
)
def test_damaged_archives_of_save_npz_are_refused(tmp_path, change):
    arrays = {"indptr": [0, 1, 2], "indices": [0, 1], "data": [1.0, 2.0], "shape": [2, 2]}
    np.savez(tmp_path / "own.npz", **({"format": b"csc"} | arrays | change))
    with pytest.raises(DataError, match=r"does not hold a valid [A-Z]{3} array"):
        read_table(tmp_path / "own.npz")


def test_an_archive_without_the_part_asked_for(tmp_path):
    np.savez(tmp_path / "own.npz", x_train=np.ones((2, 2)), y_train=[0, 1])
    with pytest.raises(DataError, match="no array 'x_test'"):
        read_table(tmp_path / "own.npz", part="test")
    with pytest.raises(ParameterError, match="'part'"):
        read_table(tmp_path / "own.npz", part="x")


# Files and alignment


def test_files_that_are_not_there_or_unknown(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_table(tmp_path / "own.csv")
    for name in ("own.xyz", "own", "own.gz", "own.npz.gz"):
        assert table_format(tmp_path / name) is None
        with pytest.raises(DataError, match="suffix that no reader knows"):
            read_table(tmp_path / name)


def test_columns_are_picked_in_the_models_order():
    X = np.arange(6, dtype=np.float32).reshape(2, 3)
    table = Table(X, None, ["a", "b", "c"], None)
    assert align_columns(table, ["a", "b", "c"]).X is X
    picked = align_columns(table, ["c", "a"])
    np.testing.assert_array_equal(picked.X, X[:, [2, 0]])
    assert picked.feature_names == ["c", "a"]
    with pytest.raises(DataError, match=r"lacks 1 of the 2 columns .*'cc'.* may be its 'c'"):
        align_columns(table, ["a", "cc"])
    sparse = align_columns(table._replace(X=sp.csr_array(X)), ["c", "a"])
    np.testing.assert_array_equal(sparse.X.toarray(), X[:, [2, 0]])


def test_without_names_the_number_of_columns_counts():
    X = np.ones((2, 3), np.float32)
    table = Table(X, None, None, None)
    assert align_columns(table, ["a", "b", "c"]) is table
    assert align_columns(table, None, 3) is table
    for names, n_features in ((["a", "b"], None), (None, 4)):
        with pytest.raises(DataError, match="3 columns, but the model was trained on"):
            align_columns(table, names, n_features)
    wide = align_columns(table._replace(X=sp.csr_array(X)), None, 5).X
    np.testing.assert_array_equal(wide.toarray(), np.pad(X, ((0, 0), (0, 2))))
    with pytest.raises(DataError, match="3 columns"):
        align_columns(table._replace(X=sp.csr_array(X)), None, 2)


# Precision


def save_as(kind, path, X):
    """Write numbers as a file of some kind, and return its path."""
    path = path.with_suffix(f".{kind}")
    frame = pd.DataFrame(X, columns=[f"x{k}" for k in range(X.shape[1])])
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    elif kind == "npz":
        np.savez(path, X=X)
    else:
        dump_svmlight_file(X, np.zeros(len(X)), str(path))
    return path


KINDS = ["csv", "parquet", "npz", "svm"]


def dense(X):
    return X if isinstance(X, np.ndarray) else X.toarray()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_rows", [1, 30])
def test_what_float32_would_lose_stays_float64(tmp_path, monkeypatch, kind, n_rows):
    monkeypatch.setattr(columned, "CHUNK_BYTES", 100)
    rng = np.random.default_rng(0)
    X = rng.uniform(1, 2, (n_rows, 3))
    X[:, 1] = (1.7e9 + 100 * X[:, 1]).round(3)  # seconds
    table = read_table(save_as(kind, tmp_path / "own", X))
    assert table.X.dtype == np.float64
    np.testing.assert_allclose(dense(table.X), X, rtol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "column",
    [
        np.random.default_rng(0).normal(size=30),
        300 + np.random.default_rng(0).normal(size=30),
        np.full(30, 0.1),
        np.arange(30) + 2e6,
        np.linspace(20.01, 20.02, 30).round(4),
        1e-3 * np.arange(1, 31),
    ],
)
def test_what_float32_keeps_is_float32(tmp_path, kind, column):
    X = np.stack([column, np.ones(30)], axis=1)
    table = read_table(save_as(kind, tmp_path / "own", X))
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(dense(table.X), X.astype(np.float32))


def test_rows_to_predict_are_read_as_finely_as_those_of_the_training(tmp_path):
    network = SparseMLP(NetworkConfig((2, 3, 2), seed=0), progress=False)
    X = np.array([[1.0, 0.0], [2.0, 1.7e9 + 1], [3.0, 1.7e9 + 2]])  # 0 hides how close these are
    path = save_as("csv", tmp_path / "own", X)
    assert read_table_for(network, path).X.dtype == np.float32
    network.preprocessing = Standardizer(
        np.array([2, 1.7e9], np.float32), np.array([1, 0.1], np.float32)
    )
    np.testing.assert_array_equal(read_table_for(network, path).X, X)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path)

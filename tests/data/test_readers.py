"""Tables as people have them: columns that are no features, other formats, text and gaps."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
import types

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.io import savemat
from sklearn.datasets import dump_svmlight_file
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from largesparse import NetworkConfig, SparseMLP, Standardizer, load_model, save_model
from largesparse.data.layout import FileLayout
from largesparse.data.samples import read_samples
from largesparse.data.tables import read_table, read_table_for
from largesparse.errors import DataError, ParameterError


def write(path, text):
    path.write_text(text)
    return path


def model_of(table, tmp_path):
    """Return a saved and loaded network of a table's width, names and layout."""
    network = SparseMLP(NetworkConfig((table.X.shape[1], 3, 2), seed=0), progress=False)
    network.feature_names, network.file_layout = table.feature_names, table.layout
    if isinstance(table.X, np.ndarray):
        network.preprocessing = Standardizer.fit(table.X)
    save_model(network, tmp_path / "model")
    return load_model(tmp_path / "model")


# Columns that are no features

PATIENTS = "patient,400,note,y\nann,1,x,u\nbob,2,y,v\ncid,4,x,u\n"


def test_columns_are_dropped_and_name_rows(tmp_path):
    path = write(tmp_path / "own.csv", PATIENTS)
    table = read_table(path, "y", drop=["note"], id="patient")
    assert (table.feature_names, table.X.tolist()) == (["400"], [[1], [2], [4]])
    assert table.ids.tolist() == ["ann", "bob", "cid"] and table.layout.id == "patient"
    assert read_table(path, "y", drop=["note", 0]).ids is None
    network = model_of(table, tmp_path)
    assert read_table_for(network, path).ids.tolist() == ["ann", "bob", "cid"]
    assert read_table_for(network, path, id="note").ids.tolist() == ["x", "y", "x"]
    assert read_table_for(network, write(tmp_path / "new.csv", "400\n7\n")).ids is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ["nott"]}, "no column 'nott' for --drop.* mean 'note'"),
        ({"drop": ["y"]}, "'y' is the target, and to be dropped"),
        ({"drop": ["patient"], "id": "patient"}, "'patient' is --id, and to be dropped"),
        ({"id": "y"}, "are one column"),
        ({"drop": ["note", "patient", "400"]}, "no column of features"),
        ({"categorical": ["y"]}, "'y' is for --categorical, and no feature"),
        ({"drop": ["patient"]}, "column 'note' has 'x'.*--categorical.*--drop"),
    ],
)
def test_columns_that_cannot_be_left_out(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path / "own.csv", PATIENTS), "y", **options)


def test_the_numbers_of_rows_are_asked_about(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"n": range(7, 37), "a": rng.random(30), "y": [0, 1] * 15})
    for ids in (frame["n"], rng.permutation(10**6)[:30]):
        frame.assign(n=ids).to_csv(tmp_path / "own.csv", index=False)
        (note,) = read_table(tmp_path / "own.csv", "y").notes
        assert "'n' looks like a row number" in note and "--id n or --drop n" in note
        assert not read_table(tmp_path / "own.csv", "y", id="n").notes
    frame.assign(n=frame["y"]).to_csv(tmp_path / "own.csv", index=False)
    assert not read_table(tmp_path / "own.csv", "y").notes
    frame.rename(columns={"n": ""}).to_csv(tmp_path / "own.csv", index=False)
    assert read_table(tmp_path / "own.csv", "y", drop=[""]).feature_names == ["a"]


def test_names_of_rows_as_r_and_pandas_write_them(tmp_path):
    text = '"a" "y"\n"r 1" 1.5 "u v"\n"r 2" 2 "w"\n'  # write.table
    path = write(tmp_path / "own.txt", text)
    with pytest.raises(DataError, match=r"column 1 has no name.*--id ''"):
        read_table(path, "y")
    table = read_table(path, "y", id="")
    assert (table.X.tolist(), table.y.tolist()) == ([[1.5], [2]], ["u v", "w"])
    assert table.ids.tolist() == ["r 1", "r 2"]
    assert read_table(path, "y", drop=[""]).X.tolist() == [[1.5], [2]]
    pd.DataFrame({"a": [1.5, 2.5]}, index=["p", "q"]).to_csv(tmp_path / "own.csv")
    assert read_table(tmp_path / "own.csv", id="").ids.tolist() == ["p", "q"]


def test_text_of_another_encoding_says_so(tmp_path):
    (tmp_path / "own.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot be read as a table.*as UTF-8"):
        read_table(tmp_path / "own.csv")


def test_without_a_header_positions_are_names(tmp_path):
    path = write(tmp_path / "wdbc.data", "8,B,1.5,2,x\n9,M,4.5,5,y\n7,B,4,8,y\n")
    assert "taken for data" in read_table(path, 1, drop=[4]).notes[0]
    table = read_table(path, "1", id=0, drop=["4"], header=False)
    assert table.y.tolist() == ["B", "M", "B"] and table.ids.tolist() == ["8", "9", "7"]
    assert table.X.tolist() == [[1.5, 2], [4.5, 5], [4, 8]] and not table.notes
    network = model_of(table, tmp_path)
    for target in (None, "1"):
        again = read_table_for(network, path, target)
        assert again.X.tolist() == table.X.tolist() and again.ids.tolist() == ["8", "9", "7"]
    again = read_table_for(network, write(tmp_path / "new.data", "3,4\n5,6\n"))
    assert again.X.tolist() == [[3, 4], [5, 6]] and again.ids is None
    with pytest.raises(DataError, match="target 3 is one of the features"):
        read_table_for(network, path, 3)
    moved = write(tmp_path / "new.data", "8,1.5,2,3\n9,4.5,5,6\n")  # without the target
    with pytest.raises(DataError, match="4 columns, but the model was trained on 2"):
        read_table_for(network, moved)
    again = read_table_for(network, moved, id=0, drop=[3])
    assert again.X.tolist() == [[1.5, 2], [4.5, 5]] and again.ids.tolist() == ["8", "9"]
    path = write(tmp_path / "own.csv", "5.5,1\n3.5,2\n7.25,3\n")
    (note,) = read_table(path).notes
    assert "taken for data (--header yes" in note and "0 to 1" in note


# Text with other separators


@pytest.mark.parametrize(
    ("name", "separator", "delimiter"),
    [
        ("own.data", ",", None),
        ("own.txt", "  ", None),
        ("own.txt", " \t ", " "),
        ("own.tab", "\t", None),
        ("own.txt", "|", "|"),
        ("own.csv", "  ", " "),
    ],
)
def test_separators_are_found_or_told(tmp_path, name, separator, delimiter):
    rows = [["a", "b", "y"], ["1", "2.5", "u"], ["-3", "4e1", "v"]]
    text = "".join(separator.join(row) + "\n" for row in rows)
    table = read_table(write(tmp_path / name, text), "y", delimiter=delimiter)
    assert table.feature_names == ["a", "b"] and table.y.tolist() == ["u", "v"]
    assert table.X.tolist() == [[1, 2.5], [-3, 40]]
    text = text.replace("2.5", "red")
    with pytest.raises(DataError, match=r"'b' has 'red'.* in row 1"):
        read_table(write(tmp_path / name, text), "y", delimiter=delimiter)


def test_decimal_commas(tmp_path):
    path = write(tmp_path / "own.csv", "a;b;y\n1,5;2;0,5\n-0,25;3;1,5\n")
    with pytest.raises(DataError, match=r"'a' has '1,5'.*--decimal ,"):
        read_table(path, "y")
    table = read_table(path, "y", decimal=",")
    assert table.X.tolist() == [[1.5, 2], [-0.25, 3]] and table.y.tolist() == [0.5, 1.5]
    again = read_table_for(model_of(table, tmp_path), path)
    assert again.X.tolist() == table.X.tolist()
    with pytest.raises(DataError, match=r"'b' has 'x'.* in row 1"):
        read_table(write(path, "a;b;y\n1,5;x;0,5\n"), "y", decimal=",")
    table = read_table(write(path, "1,5;2\n0,5;3\n9,5;1\n"), -1, decimal=",")
    assert (table.feature_names, table.X.tolist()) == (None, [[1.5], [0.5], [9.5]])


# Missing values

GAPS = "a,b,c,y\n1,?,u,0\n,4,,1\n3,8,v,1\n5,NA,v,?\n"


def test_missing_values_become_means_or_leave(tmp_path):
    path = write(tmp_path / "own.csv", GAPS.replace(",?\n", ",0\n"))
    with pytest.raises(DataError, match=r"'b' has a missing value in row 1.*--missing mean"):
        read_table(path, "y", drop=["c"])
    table = read_table(path, "y", drop=["c"], missing="mean")
    np.testing.assert_array_equal(table.X, [[1, 6], [3, 4], [3, 8], [5, 6]])
    left = read_table(write(path, GAPS), "y", drop=["c"], missing="drop", id="a")
    assert (left.X.tolist(), left.y.tolist()) == ([[4], [8]], [1, 1])
    assert ["without label" in left.notes[0], "missing values" in left.notes[1]] == [True, True]
    network = model_of(table, tmp_path)
    again = read_table_for(network, write(tmp_path / "new.csv", "a,b\n9,\n?,7\n"))
    np.testing.assert_array_equal(again.X, [[9, 6], [3, 7]])  # the means of the training
    with pytest.raises(DataError, match="no value at all"):
        read_table(write(path, "a,b,y\n,1,0\n,2,1\n"), "y", missing="mean")


def test_gaps_of_arrays(tmp_path):
    X = np.array([[1, np.nan], [3, 4], [5, 8]], np.float32)
    np.savez(tmp_path / "own.npz", X=X, y=[0, 1, 0])
    assert read_table(tmp_path / "own.npz", missing="mean").X.tolist() == [[1, 6], [3, 4], [5, 8]]
    table = read_table(tmp_path / "own.npz", missing="drop")
    assert (table.X.tolist(), table.y.tolist()) == ([[3, 4], [5, 8]], [1, 0])


# Columns of text

COLOURS = "size,colour,n,y\n1.5,red,1,0\n2,blue,2,1\n3,red,1,0\n4,?,3,1\n"


def test_text_is_encoded_as_pandas_does(tmp_path):
    path = write(tmp_path / "own.csv", COLOURS.replace("?", "green"))
    frame = pd.read_csv(path)
    for columns in ([], ["colour"], ["n", "colour"]):
        table = read_table(path, "y", categorical=columns)
        names = columns or ["colour"]
        expected = pd.get_dummies(frame.drop(columns="y"), columns=names, prefix_sep="=")
        assert sorted(table.feature_names) == sorted(expected.columns)
        np.testing.assert_array_equal(table.X, expected[table.feature_names].to_numpy(float))
    pytest.importorskip("pyarrow")
    frame["colour"] = frame["colour"].astype("string").replace("green", pd.NA)
    frame.to_parquet(tmp_path / "own.parquet")
    again = read_table(tmp_path / "own.parquet", "y", categorical=[], missing="mean")
    assert again.feature_names == ["size", "colour=blue", "colour=red", "n"]
    assert again.X[3].tolist() == [4, 0, 0, 3]
    with pytest.raises(DataError, match=r"'colour' has a missing value in row 4"):
        read_table(tmp_path / "own.parquet", "y", categorical=[])


def test_a_model_has_the_codes_of_its_text(tmp_path):
    path = write(tmp_path / "own.csv", COLOURS)
    with pytest.raises(DataError, match="'colour' has a missing value in row 4"):
        read_table(path, "y", categorical=[])
    table = read_table(path, "y", categorical=[], missing="mean")
    assert table.notes == ("columns encoded by their categories: 'colour' (2)",)
    with pytest.raises(DataError, match=r"'size' has a value that is infinite"):
        read_table(write(tmp_path / "inf.csv", COLOURS.replace("1.5", "inf")), categorical=[])
    assert table.feature_names == ["size", "colour=blue", "colour=red", "n"]
    network = model_of(table, tmp_path)
    text = "y,n,colour,size\n0,1,blue,7\n0,1,pink,7\n0,1,,7\n0,1,mauve,7\n"
    again = read_table_for(network, write(tmp_path / "new.csv", text))
    np.testing.assert_array_equal(again.X[:, 1:3], [[1, 0], [0, 0], [0, 0], [0, 0]])
    assert again.X[:, 0].tolist() == [7] * 4 and again.feature_names == table.feature_names
    (note,) = again.notes
    assert note.startswith("warning: 2 rows have a category") and "'colour=mauve'" in note
    left = read_table(path, "y", categorical=[], missing="drop")
    assert left.X.tolist() == [[1.5, 0, 1, 1], [2, 1, 0, 2], [3, 0, 1, 1]]


def test_text_without_a_header(tmp_path):
    path = write(tmp_path / "own.data", "1,red,0\n2,blue,1\n3,red,0\n")
    table = read_table(path, 2, header=False, categorical=[])
    assert table.feature_names == ["0", "1=blue", "1=red"]
    network = model_of(table, tmp_path)
    for text in ("5,blue,1\n6,red,0\n", "5,blue\n6,red\n"):
        again = read_table_for(network, write(tmp_path / "new.data", text))
        assert again.X.tolist() == [[5, 1, 0], [6, 0, 1]]


def test_names_of_rows_are_not_encoded(tmp_path):
    text = "a,b\n" + "".join(f"{k},name{k}\n" for k in range(1001))
    with pytest.raises(DataError, match=r"'b' has 1001 different texts.*--drop.*--id"):
        read_table(write(tmp_path / "own.csv", text), categorical=[])


# Many categories, and gaps that are told


def cities(path, n=300, seed=0):
    """Write rows of three columns of text with about 100 categories each, one number and y."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({name: rng.integers(100, size=n).astype(str) for name in ("a", "b", "c")})
    frame = "t" + frame
    frame.insert(1, "size", rng.normal(5, 2, n).astype(np.float32))
    frame.assign(y=rng.integers(2, size=n)).to_csv(path, index=False)
    return frame


def test_many_categories_make_a_sparse_table(tmp_path):
    frame = cities(tmp_path / "own.csv")
    table = read_table(tmp_path / "own.csv", "y", categorical=[])
    kinds = ["a", "b", "c"]
    expected = pd.get_dummies(frame, columns=kinds, prefix_sep="=")
    assert sp.issparse(table.X) and table.X.dtype == np.float32 and table.X.has_sorted_indices
    assert sorted(table.feature_names) == sorted(expected.columns)
    assert [name[:1] for name in table.feature_names] == sorted(
        [name[:1] for name in table.feature_names], key="asbc".index
    )
    found = expected[table.feature_names].to_numpy(float)
    np.testing.assert_allclose(table.X.toarray(), found, rtol=1e-6)
    encoder = OneHotEncoder(handle_unknown="ignore").fit(frame[kinds])
    new = cities(tmp_path / "new.csv", seed=1)
    new.loc[:3, "b"] = ["x", "x", "z", "t1"]
    new.loc[2, "c"] = "z"
    new[["c", "b", "a", "size"]].to_csv(tmp_path / "new.csv", index=False)
    again = read_table_for(model_of(table, tmp_path), tmp_path / "new.csv")
    places = [k for k, name in enumerate(table.feature_names) if name != "size"]
    np.testing.assert_array_equal(
        again.X[:, places].toarray(), encoder.transform(new[kinds]).toarray()
    )
    (note,) = again.notes
    unseen = ~new[kinds].isin({k: set(frame[k]) for k in kinds})
    assert note.startswith(f"warning: {int(unseen.any(axis=1).sum())} rows have a category")


def test_encoding_takes_memory_of_the_order_of_the_data(tmp_path):
    frame = pd.DataFrame(
        {name: np.arange(8000) // 2 for name in ("a", "b")} | {"n": 1.0, "y": np.arange(8000) % 2}
    )
    path = tmp_path / "own.csv"
    frame.to_csv(path, index=False)
    read_table(path, "y", categorical=["a"])
    tracemalloc.start()
    table = read_table(path, "y", categorical=["a", "b"])
    again = read_table_for(model_of(table, tmp_path), path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.X.shape == again.X.shape == (8000, 8001)
    assert peak < 30e6  # rows x categories would be 64 MB in bytes


MANY_GAPS = "a,b,c,d,y\n1,?,u,1,0\n,4,,2,1\n3,8,v,3,1\n5,NA,v,4,0\n"


def test_indicators_are_those_of_scikit_learn(tmp_path):
    path = write(tmp_path / "own.csv", MANY_GAPS)
    table = read_table(path, "y", drop=["c"], missing="indicator")
    imputer = SimpleImputer(add_indicator=True)
    expected = imputer.fit_transform(pd.read_csv(path, na_values="?")[["a", "b", "d"]])
    np.testing.assert_array_equal(table.X, expected)
    assert table.feature_names == ["a", "b", "d", "a=?", "b=?"]
    network = model_of(table, tmp_path)
    new = write(tmp_path / "new.csv", "d,b,a\n,,7\n1,NA,\n2,2,2\n")
    again = read_table_for(network, new)
    numbers = pd.read_csv(new)[["a", "b", "d"]]
    np.testing.assert_array_equal(again.X, imputer.transform(numbers))
    np.testing.assert_array_equal(again.X, read_table_for(network, new, missing="mean").X)
    left = read_table_for(network, new, missing="drop")
    assert left.X.tolist() == [[2, 2, 2, 0, 0]]


@pytest.mark.parametrize("missing", ["mean", "indicator"])
def test_gaps_beside_categories(tmp_path, missing):
    table = read_table(write(tmp_path / "own.csv", MANY_GAPS), "y", categorical=[], missing=missing)
    own = {"mean": ["c=u", "c=v"], "indicator": ["c=?", "c=u", "c=v"]}[missing]
    told = ["a=?", "b=?"] if missing == "indicator" else []
    assert table.feature_names == ["a", "b", *own, "d", *told]
    text = {"mean": [[1, 0], [0, 0], [0, 1]], "indicator": [[0, 1, 0], [1, 0, 0], [0, 0, 1]]}
    gaps = [[0, 1], [1, 0], [0, 0]] if told else [[], [], []]
    parts = [[1, 6], [3, 4], [3, 8]], text[missing], [[1], [2], [3]], gaps
    assert table.X[:3].tolist() == [a + b + c + d for a, b, c, d in zip(*parts, strict=True)]
    again = read_table_for(model_of(table, tmp_path), tmp_path / "own.csv")
    np.testing.assert_array_equal(again.X, table.X)
    assert not again.notes


def test_gaps_are_told_where_columns_have_no_names(tmp_path):
    path = write(tmp_path / "own.data", "0,1,,5\n1,2,3,6\n0,3,4,7\n")
    for columns in (None, [1]):
        table = read_table(path, 0, header=False, missing="indicator", categorical=columns)
        assert table.X[0, -3:].tolist() == [3.5, 5, 1]
        again = read_table_for(model_of(table, tmp_path), path)
        np.testing.assert_array_equal(again.X, table.X)
        alone = write(tmp_path / "new.data", "1,,5\n2,3,6\n")
        np.testing.assert_array_equal(
            read_table_for(model_of(table, tmp_path), alone).X, table.X[:2]
        )
    X = np.array([[1, np.nan], [3, 4], [5, 8]], np.float32)
    np.savez(tmp_path / "own.npz", X=X, y=[0, 1, 0])
    table = read_table(tmp_path / "own.npz", missing="indicator")
    assert table.X.tolist() == [[1, 6, 1], [3, 4, 0], [5, 8, 0]]
    again = read_table_for(model_of(table, tmp_path), tmp_path / "own.npz")
    np.testing.assert_array_equal(again.X, table.X)


# Genes in rows

GENES = "gene,s1,s2,s3\nTP53,1,2.5,3\nKRAS,4,5,6\nstage,I,II,I\n"


@pytest.mark.parametrize("corner", ["gene,", ",", ""])
def test_genes_in_rows(tmp_path, corner):
    path = write(tmp_path / "own.csv", GENES.replace("gene,", corner))
    if corner == "gene,":
        with pytest.raises(DataError, match=r"no column 'stage', and a row .*--transpose"):
            read_table(path, "stage")
    table = read_table(path, "stage", transpose=True)
    assert table.feature_names == ["TP53", "KRAS"] and table.ids.tolist() == ["s1", "s2", "s3"]
    assert table.X.tolist() == [[1, 4], [2.5, 5], [3, 6]] and table.y.tolist() == ["I", "II", "I"]
    network = model_of(table, tmp_path)
    again = read_table_for(network, write(tmp_path / "new.csv", "g,x\nKRAS,9\nother,1\nTP53,8\n"))
    assert (again.X.tolist(), again.ids.tolist()) == ([[8, 9]], ["x"])
    with pytest.raises(DataError, match="'stage' has 'I'"):
        read_table(path, transpose=True)
    table = read_table(path, "KRAS", transpose=True, categorical=[], id="TP53")
    assert table.feature_names == ["stage=I", "stage=II"] and table.y.tolist() == [4, 5, 6]
    assert table.X.tolist() == [[1, 0], [0, 1], [1, 0]] and table.ids.tolist() == [1, 2.5, 3]
    gaps = write(tmp_path / "gaps.csv", "g,s1,s2\nA,1,NA\nB,2,4\nkind,u,v\n")
    with pytest.raises(DataError, match="'A' has a missing value in row 2"):
        read_table(gaps, "kind", transpose=True)
    assert read_table(gaps, "kind", transpose=True, missing="mean").X.tolist() == [[1, 2], [1, 4]]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("sample,kind\ns3,c\ns1,a\ns9,x\ns2,b\n", ["a", "b", "c"]),
        ("s1\ta\ns2\tb\ns3\tc\n", ["a", "b", "c"]),
        ("a\nb\nc\n", ["a", "b", "c"]),
        ("kind\n1\n2\n1\n", [1, 2, 1]),
    ],
)
def test_labels_in_a_file_of_their_own(tmp_path, labels, expected):
    path = write(tmp_path / "own.csv", GENES.rsplit("stage")[0])
    labels = write(tmp_path / "labels.txt", labels)
    assert read_table(path, transpose=True, labels=labels).y.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "target", "message"),
    [
        ("a\nb\n", None, "2 labels for 3 samples"),
        ("a\nb\na\na\n", None, "4 labels for 3 samples"),
        ("s1,a\ns2,b\n", None, "no label for 1 of 3 samples: 's3'"),
        ("s1,a\ns2,b\ns3,c\ns1,b\n", None, "two labels for 's1'"),
        ("n,a,b\ns1,a,b\ns2,a,b\ns3,a,b\n", None, "3 columns: name that of the labels"),
        ("n,a,b\ns1,a,b\ns2,a,b\ns3,a,b\n", "c", "no column 'c'"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, labels, target, message):
    path = write(tmp_path / "own.csv", GENES.rsplit("stage")[0])
    labels = write(tmp_path / "labels.txt", labels)
    with pytest.raises(DataError, match=message):
        read_table(path, target, transpose=True, labels=labels)


def test_labels_of_arrays(tmp_path):
    np.save(tmp_path / "X.npy", np.arange(6.0).reshape(3, 2))
    np.save(tmp_path / "y.npy", [1, 0, 1])
    assert read_table(tmp_path / "X.npy", labels=tmp_path / "y.npy").y.tolist() == [1, 0, 1]
    labels = write(tmp_path / "y.csv", "s1,a\ns2,b\ns3,c\n")
    with pytest.raises(DataError, match="names samples in its first column, and the table does"):
        read_table(tmp_path / "X.npy", labels=labels)


# Other formats


def test_arrays_of_numpy(tmp_path):
    X = np.arange(12.0).reshape(3, 4) + 0.5
    np.save(tmp_path / "own.npy", X)
    table = read_table(tmp_path / "own.npy", -1, drop=[0])
    assert (table.X.tolist(), table.y.tolist()) == (X[:, 1:3].tolist(), X[:, 3].tolist())
    again = read_table_for(model_of(table, tmp_path), tmp_path / "own.npy")
    assert again.X.tolist() == X[:, 1:3].tolist()


@pytest.mark.parametrize("names", [("X", "y"), ("X", "Y"), ("x", "labels"), ("data", "y")])
@pytest.mark.parametrize("labels", [[[1], [2], [1]], [1, 2, 1], np.array(["a", "bc", "a"], object)])
def test_matlab(tmp_path, names, labels):
    X = np.arange(6, dtype=np.uint8).reshape(3, 2)
    savemat(tmp_path / "own.mat", dict(zip(names, (X, labels), strict=True)))
    table = read_table(tmp_path / "own.mat")
    assert table.X.tolist() == X.tolist() and table.X.dtype == np.float32
    assert table.y.tolist() == np.ravel(labels).tolist()
    savemat(tmp_path / "own.mat", dict(zip(names, (sp.csc_matrix(X), labels), strict=True)))
    if names[0] != "data":
        np.testing.assert_array_equal(read_table(tmp_path / "own.mat").X.toarray(), X)


def test_matlab_of_version_7_3_says_how_to_save(tmp_path):
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    (tmp_path / "own.mat").write_bytes(header + b"\x89HDF" + bytes(400))
    with pytest.raises(DataError, match=r"version 7.3. Save it in MATLAB by save.*-v7"):
        read_table(tmp_path / "own.mat")


ARFF = """% a comment
@RELATION own
@ATTRIBUTE width NUMERIC
@ATTRIBUTE 'two words' INTEGER
@ATTRIBUTE flag {0,1}
@ATTRIBUTE class {ant,'big bee'}
@DATA
"""


@pytest.mark.parametrize("packed", [False, True])
def test_arff(tmp_path, packed):
    content = ARFF + "1.5,2,1,ant\n-1,?,0,'big bee'\n3,4,1,ant\n"
    path = tmp_path / ("own.arff.gz" if packed else "own.arff")
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    table = read_table(path, "class", missing="mean")
    assert table.feature_names == ["width", "two words", "flag"]
    np.testing.assert_array_equal(table.X, [[1.5, 2, 1], [-1, 3, 0], [3, 4, 1]])
    assert table.y.tolist() == ["ant", "big bee", "ant"]
    assert read_table(path, "flag", drop=["class"], missing="drop").y.tolist() == [1, 1]
    with pytest.raises(DataError, match="'two words' has a missing value in row 2"):
        read_table(path, "class")
    with pytest.raises(DataError, match="'class' has 'ant', which is not a number"):
        read_table(path, "flag")


def test_sparse_arff(tmp_path):
    path = write(tmp_path / "own.arff", ARFF + "{0 1.5, 3 'big bee'}\n{}\n{1 4,2 1}\n")
    table = read_table(path, "class")
    assert isinstance(table.X, sp.csr_array) and table.X.dtype == np.float32
    np.testing.assert_array_equal(table.X.toarray(), [[1.5, 0, 0], [0, 0, 0], [0, 4, 1]])
    assert table.y.tolist() == ["big bee", "ant", "ant"]
    assert read_table(path, "width", drop=["class"]).y.tolist() == [1.5, 0, 0]
    with pytest.raises(DataError, match="'class' has 'ant', which is not a number"):
        read_table(path, "width")
    with pytest.raises(DataError, match="cannot be read as ARFF"):
        read_table(write(tmp_path / "own.arff", ARFF + "1,2\n"), "class")


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("count", [2, -2])
def test_arff_of_several_labels(tmp_path, sparse, count):
    X, Y = np.array([[1.5, 0], [0, 2], [0, 0]]), np.array([[1, 0], [1, 1], [0, 0]])
    labels = ["@ATTRIBUTE 'a label' {0,1}", "@ATTRIBUTE other NUMERIC"]
    features = ["@ATTRIBUTE width NUMERIC", "@ATTRIBUTE height NUMERIC"]
    both = [labels, features] if count > 0 else [features, labels]
    table = np.hstack([Y, X] if count > 0 else [X, Y])
    rows = [
        "{" + ",".join(f"{k} {v:g}" for k, v in enumerate(row) if v) + "}"
        if sparse
        else ",".join(f"{v:g}" for v in row)
        for row in table
    ]
    head = f"@RELATION 'own: -C {count} -f 3'"
    path = write(tmp_path / "own.arff", "\n".join([head, *both[0], *both[1], "@DATA", *rows, ""]))
    found = read_table(path)
    assert found.feature_names == ["width", "height"]
    np.testing.assert_array_equal(found.X.toarray() if sparse else found.X, X)
    np.testing.assert_array_equal(found.y.toarray(), Y)
    assert read_table(path, "other").y.tolist() == [0, 1, 0]  # a target that is named
    content = path.read_text()
    path.write_text(content.replace(f"-C {count}", f"-C {2 * count}"))
    with pytest.raises(DataError, match="there are 4 attributes"):
        read_table(path)
    path.write_text(content.replace("1,1,0,2", "3,1,0,2").replace("0,2,1,1", "0,2,3,1"))
    if not sparse:
        path.write_text(path.read_text().replace("{0,1}", "NUMERIC"))
        with pytest.raises(DataError, match=r"'a label' is a label .* 3.0 in row 2"):
            read_table(path)


def test_svmlight_of_any_suffix(tmp_path):
    X = np.array([[1.0, 0, 2], [0, 3, 0]])
    dump_svmlight_file(X, [1, -1], str(tmp_path / "a9a"), zero_based=False)
    with pytest.raises(DataError, match=r"suffix that no reader knows.*--format"):
        read_table(tmp_path / "a9a")
    table = read_table(tmp_path / "a9a", format="svmlight")
    np.testing.assert_array_equal(table.X.toarray(), X)
    samples = {"target": None, "task": "auto", "test_fraction": 0, "seed": 0}
    found = read_samples(str(tmp_path / "a9a"), format="svmlight", **samples)
    assert found.y.tolist() == [1, -1]


def test_a_series_matrix_is_a_table(tmp_path):
    lines = [
        '!Sample_characteristics_ch1\t"kind: a"\t"kind: b"\t"kind: a"',
        "!series_matrix_table_begin",
        '"ID_REF"\t"G1"\t"G2"\t"G3"',
        '"p1"\t1\t2\t3',
        '"p2"\t4\t5\t6',
        "!series_matrix_table_end",
    ]
    path = write(tmp_path / "GSE1_series_matrix.txt", "\n".join(lines) + "\n")
    table = read_table(path, "kind")
    assert table.X.tolist() == [[1, 4], [2, 5], [3, 6]] and table.y.tolist() == ["a", "b", "a"]
    assert table.ids.tolist() == ["G1", "G2", "G3"] and table.feature_names == ["p1", "p2"]
    assert read_table_for(model_of(table, tmp_path), path).X.tolist() == table.X.tolist()
    with pytest.raises(DataError, match=r"has the fields kind\. Pass one .*--target"):
        read_samples(str(path), target=None, task="auto", test_fraction=0, seed=0)


def test_anndata(tmp_path, monkeypatch):
    path = write(tmp_path / "own.h5ad", "read by anndata")
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(DataError, match=r"needs anndata, which is not installed.*anndata"):
        read_table(path, "cell")
    names = pd.Index(["g1", "g2"])
    data = types.SimpleNamespace(
        X=sp.csr_matrix([[1.0, 0], [0, 2], [3, 0]]),
        obs=pd.DataFrame({"cell": pd.Categorical(["T", "B", "T"])}, index=["c1", "c2", "c3"]),
        var_names=names,
        obs_names=pd.Index(["c1", "c2", "c3"]),
    )
    monkeypatch.setitem(sys.modules, "anndata", types.SimpleNamespace(read_h5ad=lambda _: data))
    table = read_table(path, "cell")
    np.testing.assert_array_equal(table.X.toarray(), [[1, 0], [0, 2], [3, 0]])
    assert table.y.tolist() == ["T", "B", "T"] and table.feature_names == ["g1", "g2"]
    with pytest.raises(DataError, match="no 'kind' in its obs, which has 'cell'"):
        read_table(path, "kind")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own.xlsx", r"pandas.read_excel\('own.xlsx'\).to_csv\('own.csv'"),
        ("own.rds", r"Rscript -e .*readRDS\('own.rds'\), 'own.csv'"),
        ("own.RData", r"get\(load\('own.RData'\)\)"),
        ("own.dta", "read_stata"),
    ],
)
def test_what_is_not_read_says_how_to_convert_it(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name, "y")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own.npz", {"drop": ["a"]}, "'drop' parameter of read_table is for csv, .*is npz"),
        ("own.svm", {"decimal": ","}, "'decimal' parameter of read_table is for csv"),
        ("own.csv", {"missing": "zero"}, "'missing' parameter .* 'mean', 'indicator', 'drop'"),
        ("own.csv", {"decimal": ";"}, "'decimal' parameter"),
        ("own.csv", {"delimiter": "ab"}, "'delimiter' parameter .*one character"),
        ("own.csv", {"format": "excel"}, "'format' parameter"),
    ],
)
def test_what_does_not_fit_a_format(tmp_path, name, options, message):
    with pytest.raises(ParameterError, match=message):
        read_table(write(tmp_path / name, "a,b\n1,2\n"), **options)


# Counts


@pytest.mark.parametrize("sparse", [False, True])
def test_counts_are_hinted_at_and_logarithms_kept(tmp_path, sparse):
    X = np.random.default_rng(0).negative_binomial(0.2, 0.001, (40, 60)).astype(float)
    stored = tmp_path / "own.npz"
    if sparse:
        sp.save_npz(stored, sp.csr_array(X))
        with np.load(stored) as arrays:
            np.savez(stored, **arrays, y=np.arange(40) % 2)
    else:
        np.savez(stored, X=X, y=np.arange(40) % 2)
    samples = {"target": None, "task": "auto", "test_fraction": 0, "seed": 0}
    found = read_samples(str(stored), **samples)
    assert f"counts, up to {X.max():.0f}" in found.notes[0] and "--log" in found.notes[0]
    table = read_table(stored, log=True)
    dense = table.X.toarray() if sparse else table.X
    np.testing.assert_allclose(dense, np.log1p(X), rtol=1e-6)
    assert not read_samples(str(stored), log=True, **samples).notes
    network = model_of(table, tmp_path)
    again = read_table_for(network, stored).X
    np.testing.assert_array_equal(again.toarray() if sparse else again, dense)
    np.savez(stored, X=-X, y=np.arange(40) % 2)
    with pytest.raises(DataError, match="negative values"):
        read_table(stored, log=True)


@pytest.mark.parametrize(
    "layout", [{"id": 3}, {"n_columns": "3"}, {"columns": "ab"}, {"categories": {"a": [1]}}]
)
def test_a_layout_that_cannot_be_is_refused(layout):
    with pytest.raises(ValueError, match="is not known"):
        FileLayout.from_dict(layout)


def test_rows_that_are_left_out_have_no_part_in_the_means(tmp_path):
    lines = "\n".join(["c,x,y", *["red,1,0", "blue,2,1", "?,1000,0", "NA,1000,0", "blue,3,1"] * 10])
    table = read_table(write(tmp_path / "t.csv", lines), "y", categorical=[], missing="drop")
    assert table.X.shape == (30, 3) and table.layout.means == [2.0]


def test_texts_that_are_missing_are_of_one_kind(tmp_path):
    lines = "\n".join(["c,x,y", "red,1,0", ",2,1", "?,3,0", "NA,4,1", "blue,5,1"])
    path = write(tmp_path / "t.csv", lines)
    table = read_table(path, "y", categorical=["c"], missing="indicator")
    assert table.feature_names == ["c=?", "c=blue", "c=red", "x"]
    assert np.asarray(table.X[:, [0]]).ravel().tolist() == [0, 1, 1, 1, 0]
    with pytest.raises(DataError, match="missing value"):
        read_table(path, "y", categorical=["c"])


def test_a_row_number_beside_many_categories_is_asked_about(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"n": range(400), "y": rng.integers(2, size=400)})
    for name in "abc":
        frame[name] = [f"{name}{k}" for k in rng.integers(140, size=400)]
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = read_table(tmp_path / "t.csv", "y", categorical=[])
    assert sp.issparse(table.X)
    assert any("'n' looks like a row number" in note for note in table.notes)


def test_a_table_without_names_that_lacks_a_column_is_refused(tmp_path):
    rows = [f"{'xyz'[k % 3]},{k % 7},{'abc'[k % 3]},{k % 2}" for k in range(30)]
    path = write(tmp_path / "t.data", "\n".join(rows))
    model = model_of(read_table(path, -1, categorical=[], header=False), tmp_path)
    less = write(tmp_path / "less.data", "\n".join(row[:3] + row[-2:] for row in rows))
    with pytest.raises(DataError, match="trained on 3: '0', '1', '2'"):
        read_table_for(model, less, -1)


def test_whole_numbers_as_categories_keep_their_names_where_some_are_missing(tmp_path):
    pytest.importorskip("pyarrow")
    numbers = pd.array([0, 1, 2, 1], dtype="Int64")
    for name, gaps in (("t", []), ("gap", [3])):
        frame = pd.DataFrame({"k": numbers, "x": [1.5, 2, 3, 4], "y": [0, 1, 0, 1]})
        frame.loc[gaps, "k"] = pd.NA
        frame.to_parquet(tmp_path / f"{name}.parquet")
    table = read_table(tmp_path / "t.parquet", "y", categorical=["k"])
    assert table.feature_names == ["k=0", "k=1", "k=2", "x"]
    found = read_table_for(model_of(table, tmp_path), tmp_path / "gap.parquet", "y", missing="mean")
    np.testing.assert_array_equal(found.X[:3], table.X[:3])
    assert found.X[3].tolist() == [0, 0, 0, 4] and not found.notes


def test_features_of_one_name_are_refused(tmp_path):
    lines = "\n".join(["a,a=b,y", *["b=c,c,0", "d,e,1"] * 5])
    with pytest.raises(DataError, match="'a=b=c'"):
        read_table(write(tmp_path / "t.csv", lines), "y", categorical=[])


def test_gaps_of_sparse_tables_are_refused_without_a_circle(tmp_path):
    lines = "@relation t\n@attribute x numeric\n@attribute z numeric\n@attribute y {a,b}\n@data\n"
    path = write(tmp_path / "t.arff", lines + "{0 ?, 2 b}\n{1 2, 2 b}\n")
    with pytest.raises(DataError, match="sparse table"):
        read_table(path, "y", missing="indicator")


def arff(path, relation, order="abxyz", rows=40):
    """Write ARFF whose attributes, by their letters, have values that follow from them."""
    rng = np.random.default_rng(0)
    values = {name: rng.integers(2, size=rows) for name in "ab"}
    values |= {name: rng.standard_normal(rows).round(3) for name in "xyz"}
    lines = [f"@relation '{relation}'", *(f"@attribute {name} numeric" for name in order), "@data"]
    lines += [",".join(str(values[name][row]) for name in order) for row in range(rows)]
    return write(path, "\n".join(lines) + "\n")


def test_only_what_meka_writes_says_which_attributes_are_labels(tmp_path):
    for relation in ("iris-weka.AttributeSelection-E -- -C 1.0 -M 2", "j: J48 -C 0.25", "s -C 2"):
        table = read_table(arff(tmp_path / "w.arff", relation))
        assert table.y is None and table.X.shape == (40, 5)
    for relation in ("Some: -C 2", "-C 2", "Some: -split 10 -C 2"):
        table = read_table(arff(tmp_path / "m.arff", relation))
        assert table.y.shape == (40, 2) and table.feature_names == ["x", "y", "z"]


def test_labels_of_arff_are_found_by_name(tmp_path):
    table = read_table(arff(tmp_path / "m.arff", "Some: -C 2"))
    model = model_of(table, tmp_path)
    other = arff(tmp_path / "o.arff", "Some: -C -2", order="zyxba")
    found = read_table_for(model, other)
    np.testing.assert_array_equal(found.X, table.X)
    np.testing.assert_array_equal(found.y.toarray(), table.y.toarray())
    with pytest.raises(DataError, match=r"labels.*lacks.*'a'"):
        read_table_for(model, arff(tmp_path / "l.arff", "Some: -C 1", order="bxyz"))
    for relation in ("Some: -C 3", "Some: -C 2"):  # rows to predict
        rows = read_table_for(model, arff(tmp_path / "p.arff", relation, order="xyz"))
        np.testing.assert_array_equal(rows.X, table.X)
    for option in ({"drop": ["a"]}, {"id": "a"}):
        with pytest.raises(DataError, match="'a' is a label by -C"):
            read_table(tmp_path / "m.arff", **option)


def test_files_without_rows_or_with_impossible_headers_are_refused(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        read_table(arff(tmp_path / "m.arff", "Some", rows=0))
    for header in ("2 5 5000000000", "2 5 0", f"2 {2**63 - 1} 4"):
        path = write(tmp_path / "t.txt", f"{header}\n0 1:2\n1 2:1\n")
        with pytest.raises(DataError, match="must be 1 to"):
            read_table(path, format="extreme")


def test_sparse_arff_is_read_row_by_row(tmp_path):
    rng, n = np.random.default_rng(0), 1000
    rows = [np.sort(rng.choice(300, 30, replace=False)) for _ in range(n)]
    lines = ["@relation s", *(f"@attribute a{k} numeric" for k in range(300))]
    lines += ["@attribute c {no,yes}", "@data"]
    for number, row in enumerate(rows):
        ends = ", 300 yes}" if number % 3 == 0 else "}"
        lines.append("{" + ", ".join(f"{k} {k + 1}" for k in row) + ends)
    path = write(tmp_path / "s.arff", "\n".join(lines) + "\n")
    read_table(path, "c")
    tracemalloc.start()
    table = read_table(path, "c")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * table.X.nnz == 80 * 30 * n  # 235 as objects
    dense = np.zeros((n, 300))
    for number, row in enumerate(rows):
        dense[number, row] = row + 1
    np.testing.assert_array_equal(table.X.toarray(), dense)
    assert table.y.tolist() == ["no" if number % 3 else "yes" for number in range(n)]


def test_names_of_features_that_are_given_twice_are_not_those_of_categories():
    from largesparse.data.missing import complete
    from largesparse.data.tables import Table

    table = Table(np.array([[1.0, 2.0]]), None, ["gene", "gene"], None)
    assert complete(table, None, None, log=False).feature_names == ["gene", "gene"]

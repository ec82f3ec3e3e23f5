"""The first line of text tables, labels as they are in a file, and columns by their names."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from largesparse import (
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    compact,
    load_model,
    predict,
    predict_proba,
    save_model,
)
from largesparse.data.frames import align_frame
from largesparse.data.layout import FileLayout
from largesparse.data.tables import align_columns, read_table, read_table_for
from largesparse.data.targets import match_labels
from largesparse.errors import CheckpointError, DataError
from largesparse.training import manifest as manifests


def write(path, first, rows, end="\n"):
    path.write_text("\n".join([first, *(",".join(map(str, row)) for row in rows)]) + end)
    return path


def decimals(n_rows, n_columns, seed=0):
    return np.random.default_rng(seed).uniform(0.01, 0.99, (n_rows, n_columns)).round(3) + 0.0001


# The first line


@pytest.mark.parametrize(
    ("first", "rows"),
    [
        ("400,401,402", decimals(30, 3)),
        ("400.5,401.0,401.5", decimals(30, 3)),
        ("400,401,402", [[5, 9, 1]]),
        ("402,401,400", np.random.default_rng(0).integers(0, 5, (9, 3))),
        ("1,2,3,4", np.random.default_rng(0).integers(0, 5, (9, 4))),
        ("1001,77,2053", decimals(1, 3)),
        ("1001,77,2053,2048", np.random.default_rng(0).integers(0, 30, (9, 4))),
        ("1,2,4,7,9,12", np.random.default_rng(0).integers(0, 9, (30, 6))),
        ("400", decimals(3, 1)),
    ],
)
@pytest.mark.parametrize("target", [None, "1", -1, 0])
def test_a_first_line_of_numbers_that_may_be_names_is_not_guessed(tmp_path, first, rows, target):
    path = write(tmp_path / "own.csv", first, rows)
    with pytest.raises(DataError, match=r"may hold column names or data.*header=True.*--header"):
        read_table(path, target)
    table = read_table(path, header=True)
    np.testing.assert_allclose(table.X, np.asarray(rows), rtol=1e-6)
    assert table.feature_names == first.split(",") and table.layout.header
    table = read_table(path, header=False)
    assert (len(table.X), table.feature_names) == (1 + len(rows), None)
    positions = [str(k) for k in range(len(first.split(",")))]
    assert table.layout == FileLayout(header=False, columns=positions, n_columns=len(positions))


@pytest.mark.parametrize(
    "lines",
    [
        ["5.1,3.5,1.4,0.2", "4.9,3.0,1.4,0.2", "4.7,3.2,1.3,0.2"],
        ["5,0,0,255,7", "0,0,0,13,200"],
        ["1,2,3,4,5,6", "2,3,4,5,6,7", "3,5,1,0,0,9"],  # rows in order are usual here
        ["1,2.5,3", "-4,5e2,.6"],
        ["3,1,2", "1,5,2", "4,4,1"],
        ["7"] + ["3"] * 9,
    ],
)
def test_ordinary_numbers_are_data(tmp_path, lines):
    path = write(tmp_path / "own.csv", lines[0], [[line] for line in lines[1:]])
    table = read_table(path)
    assert (len(table.X), table.feature_names) == (len(lines), None)


@pytest.mark.parametrize("label", ["text", "0.5"])
@pytest.mark.parametrize("first", ["400.5,401.0,label", "400,401,label", "400,x,label"])
def test_names_of_numbers_and_words(tmp_path, first, label):
    rows = [[*row, label] for row in decimals(4, 2)]
    table = read_table(write(tmp_path / "own.csv", first, rows), "label")
    assert table.feature_names == first.split(",")[:2]
    assert table.y.tolist() == [label if label == "text" else 0.5] * 4
    np.testing.assert_array_equal(table.X, np.array(decimals(4, 2), np.float32))


@pytest.mark.parametrize("first", ["5.1,3.5,setosa", "5,3,setosa"])
def test_data_with_words_is_not_taken_for_names(tmp_path, first):
    path = write(tmp_path / "own.csv", first, [[4.9, 3.0, "Setosa"], [6.1, 2.8, "virginica"]])
    for target in (None, -1, "2"):
        with pytest.raises(DataError, match=r"first line looks like data.*header=False"):
            read_table(path, target)
    table = read_table(path, -1, header=False)
    assert table.y.tolist() == ["setosa", "Setosa", "virginica"] and not table.notes
    path = write(tmp_path / "own.csv", first, [[4.9, 3.0, "setosa"], [6.1, 2.8, "virginica"]])
    table = read_table(path, -1)  # a name would not stand below itself
    assert table.y.tolist() == ["setosa", "setosa", "virginica"]
    assert "taken for data" in table.notes[0]
    with pytest.raises(DataError, match="'setosa', which is not a number"):
        read_table(path, 0, header=False)


def test_a_table_of_letters_has_no_header(tmp_path):
    rows = [["e", "x", "s", "n"], ["e", "b", "s", "w"], ["p", "x", "y", "w"]]
    path = write(tmp_path / "mushrooms.data", "p,x,s,y", rows)
    table = read_table(path, 0, categorical=[])
    assert table.y.tolist() == ["p", "e", "e", "p"] and "taken for data" in table.notes[0]
    path = write(tmp_path / "named.data", "class,cap,odor,n", rows * 2)
    assert read_table(path, 0, categorical=[]).target == "class"


def test_a_missing_value_does_not_make_a_header(tmp_path):
    path = write(tmp_path / "own.csv", "NA,1.5,2.0", [[1.0, 1.5, 2.0]])
    with pytest.raises(DataError, match="missing value in row 1"):
        read_table(path)


def test_the_wanted_names_make_a_header(tmp_path):
    rows = decimals(5, 3)
    path = write(tmp_path / "own.csv", "402,400,401", rows)
    table = read_table(path, columns=["400", "401", "402"])
    np.testing.assert_allclose(table.X, rows[:, [1, 2, 0]], rtol=1e-6)
    path = write(tmp_path / "own.csv", "0.3,0.1,0.9", rows)
    with pytest.raises(DataError, match=r"none of the column names .*header=False"):
        read_table(path, columns=["400", "401", "402"])
    table = read_table(path, columns=["400", "401", "402"], header=False)
    np.testing.assert_allclose(table.X, [[0.3, 0.1, 0.9], *rows], rtol=1e-6)


def test_a_name_wins_over_a_position(tmp_path):
    rows = np.arange(1, 9).reshape(2, 4) ** 2
    path = write(tmp_path / "own.csv", "1,2,3,4", rows)
    table = read_table(path, "1", header=True)
    assert (table.target, table.y.tolist()) == ("1", [1, 25])
    with pytest.raises(DataError, match="no column '0'"):
        read_table(path, "0", header=True)
    assert read_table(path, 0, header=True).y.tolist() == [1, 25]
    with pytest.raises(DataError, match="a column named '1', which is not the one at position 1"):
        read_table(path, 1, header=True)
    assert read_table(path, -1, header=True).y.tolist() == [16, 64]
    path = write(tmp_path / "own.csv", "401,403,402", decimals(3, 3))
    assert read_table(path, "402").target == "402"  # far from a position


# Labels


@pytest.mark.parametrize(
    "labels",
    [
        ["007", "7", "01234"],
        ["1_1", "2_1"],
        ["9223372036854775808", "-1"],
        ["123456789012345678901234567890", "123456789012345678901234567891"],
        ["NA", "EU", "None", "null", "nan", "N/A"],
        ["NA", "NaN"],
        ["+1", "-1"],
        ["1e5", "2e5"],
        ["1E5", "2B7"],
        ["1.0", "1"],
        ["1.00", "2.00"],
        ["-0", "0"],
        ["True", "False"],
        ["inf", "sup"],
        ["a b", '"c,d"', "é"],
        ["1", "2", "-3"],
        ["9223372036854775807", "0"],
        ["1.0", "2.0"],
    ],
)
def test_labels_print_as_they_stand(tmp_path, labels):
    path = write(tmp_path / "own.csv", "x,y", [[k, label] for k, label in enumerate(labels)])
    y = read_table(path, "y").y
    assert [str(label) for label in y] == [label.strip('"') for label in labels]
    whole = all(label in ("1", "2", "-3", "9223372036854775807", "0") for label in labels)
    assert y.dtype.kind == ("i" if whole else "f" if labels == ["1.0", "2.0"] else "U")


def test_spaces_around_labels_do_not_count(tmp_path):
    path = write(tmp_path / "own.csv", "x,y", [[1, "a "], [2, " a"], [3, '"a "'], [4, "b"]])
    assert read_table(path, "y").y.tolist() == ["a", "a", "a", "b"]


def test_numbers_with_fractions_are_measurements(tmp_path):
    path = write(tmp_path / "own.csv", "x,y", [[1, "2.50"], [2, "3"], [3, "1e-3"], [4, "+.5"]])
    assert read_table(path, "y").y.tolist() == [2.5, 3, 0.001, 0.5]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["1.5", "NA", "2.5"], "'NA' among numbers.*missing value, in row 2.*another word"),
        (["1", "2", "none"], "'none' among numbers.*in row 3"),
        (["1.5", "inf"], "'inf', which is infinite, in row 2"),
        (["1.5", "1e400"], "'1e400', which is infinite, in row 2"),
        (["a", " ", "b"], "a missing value in row 2"),
    ],
)
def test_labels_that_may_be_missing_are_refused(tmp_path, labels, message):
    path = write(tmp_path / "own.csv", "x,y", [[k, label] for k, label in enumerate(labels)])
    with pytest.raises(DataError, match=f"column 'y' has {message}"):
        read_table(path, "y")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2**63 + 1], "uint64"),
        ([-1, 2**63 - 1], "int64"),
        ([True, False], "bool"),
        (["007", "NA"], "str"),
        ([1.0, 2.0], "float64"),
    ],
)
def test_labels_of_parquet_keep_their_type(tmp_path, monkeypatch, values, dtype):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("largesparse.data.columns.CHUNK_BYTES", 1)  # a row a chunk
    frame = pd.DataFrame({"x": [1.5, 2], "y": pd.Series(values, dtype=dtype)})
    frame.to_parquet(tmp_path / "own.parquet")
    assert read_table(tmp_path / "own.parquet", "y").y.tolist() == values


def test_labels_are_found_among_classes_of_another_type():
    words, numbers = np.array(["1", "2", "a"]), np.array([1, 2])
    assert match_labels(np.array([2, 1]), words).tolist() == ["2", "1"]
    assert match_labels(np.array(["2", "1"]), numbers).tolist() == [2, 1]
    with pytest.raises(DataError, match="'01', which is not among the 2 known classes"):
        match_labels(np.array(["01", "1"]), numbers)


# Columns of data frames


@pytest.fixture(scope="module")
def trained():
    """Return a network that was trained on a frame, and the frame."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(200, 4)), columns=list("abcd"))
    y = np.where(frame["a"] > 0, "up", "down")
    network = SparseMLP(NetworkConfig((4, 16, 2), epsilon=9, seed=0), progress=False)
    config = TrainingConfig(epochs=10, batch_size=20, learning_rate=0.1, backend="scipy", threads=1)
    shuffled = frame[list("dcba")].assign(more=1.0)
    history = Trainer(network, config).fit(frame, y, test=(shuffled, y), progress=False)
    assert history["test_accuracy"][-1] > 0.9
    assert network.feature_names == list("abcd")
    return network, frame


def test_predictions_find_the_columns_of_a_frame(trained):
    network, frame = trained
    expected = predict_proba(network, frame.to_numpy(), backend="scipy")
    shuffled = frame[list("cadb")].assign(more=0)
    for X in (frame, shuffled):
        np.testing.assert_array_equal(predict_proba(network, X, backend="scipy"), expected)
    labels = predict(network, shuffled, backend="scipy")
    assert (labels == np.where(frame["a"] > 0, "up", "down")).mean() > 0.9
    counted = pd.DataFrame(frame.to_numpy())  # pandas' own names say nothing
    np.testing.assert_array_equal(predict_proba(network, counted, backend="scipy"), expected)
    with pytest.raises(DataError, match=r"X lacks 1 of the 4 columns .*'d'"):
        predict(network, shuffled.drop(columns="d"), backend="scipy")
    with pytest.raises(DataError, match="two columns named 'a'"):
        predict(network, shuffled.rename(columns={"more": "a"}), backend="scipy")


def test_columns_with_numbers_for_names():
    frame = pd.DataFrame(np.eye(3), columns=[402, 400, 401])
    found = align_frame(frame, ["400", "401", "402"])
    np.testing.assert_array_equal(found.to_numpy(), np.eye(3)[:, [1, 2, 0]])
    with pytest.raises(DataError, match="lacks 3 of the 3"):
        align_frame(frame, ["a", "b", "c"])


def test_doubled_features_are_not_told_apart_by_name(trained):
    _, frame = trained
    with pytest.raises(DataError, match="two features named 'a'"):
        align_frame(frame, ["a", "a", "b"])
    assert align_frame(frame.to_numpy(), ["a", "a", "b"]) is not None


def test_a_model_reads_files_as_it_was_trained_on_them(tmp_path, trained):
    network, _ = trained
    other = SparseMLP(NetworkConfig((4, 4, 2), seed=0), progress=False)
    rows = decimals(3, 4)
    path = write(tmp_path / "own.csv", "1,2,3,4", rows)
    with pytest.raises(DataError, match="may hold column names or data"):
        read_table_for(other, path)
    other.file_layout = FileLayout(header=False)
    np.testing.assert_allclose(read_table_for(other, path).X, [[1, 2, 3, 4], *rows])
    assert len(read_table_for(other, path, header=True).X) == 3
    with pytest.raises(DataError, match="3 columns, but the model was trained on 4"):
        read_table_for(other, write(tmp_path / "own.csv", "7,2,3", rows[:, :3]))
    path = write(tmp_path / "own.csv", "d,b,y,a,c", [[4, 2, "x", 1, 3]] * 2)
    assert read_table_for(network, path).X.tolist() == [[1, 2, 3, 4]] * 2
    assert align_columns(read_table(path, "y"), list("abcd")).X.tolist() == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("layout", [FileLayout(header=False), FileLayout(zero_based=True), None])
def test_models_keep_how_their_file_was_read(tmp_path, layout):
    network = SparseMLP(NetworkConfig((4, 4, 2), seed=0), progress=False)
    network.file_layout = layout
    save_model(compact(network), tmp_path / "model")
    assert load_model(tmp_path / "model").file_layout == layout


@pytest.mark.parametrize(
    "change", [{}, {"file_layout": {"header": 3}}, {"file_layout": {"a": None}}]
)
def test_models_that_do_not_say_how_their_file_was_read(tmp_path, change):
    network = SparseMLP(NetworkConfig((4, 4, 2), seed=0), progress=False)
    save_model(network, tmp_path / "model")
    path = tmp_path / "model" / manifests.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["file_layout"], manifest["sha256"]  # as earlier releases wrote it
    manifest |= change
    path.write_text(json.dumps(manifest | {"sha256": manifests._checksum(manifest)}))
    if change:
        with pytest.raises(CheckpointError, match="damaged"):
            load_model(tmp_path / "model")
    else:
        assert load_model(tmp_path / "model").file_layout is None

"""`make_extreme_classification`, and readers of rows that have several labels."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import save_npz
from sklearn.datasets import dump_svmlight_file

from largesparse import make_extreme_classification
from largesparse.data import label_files
from largesparse.data.formats import table_format
from largesparse.data.tables import read_table
from largesparse.errors import DataError, ParameterError


@given(st.integers(2, 60), st.integers(2, 50), st.integers(2, 30), st.integers(0, 9))
def test_rows_have_labels_and_length_1(n, n_features, n_labels, seed):
    sizes = {"labels_per_row": min(3, n_labels), "nonzeros": min(7, n_features)}
    made = make_extreme_classification(n, n_features, n_labels, **sizes, random_state=seed)
    again = make_extreme_classification(n, n_features, n_labels, **sizes, random_state=seed)
    for X, Y, same in ((made.X_train, made.y_train, again), (made.X_test, made.y_test, None)):
        assert X.shape[1] == n_features
        assert Y.shape[1] == n_labels
        assert np.diff(Y.indptr).min() >= 1
        assert set(Y.data) == {1}
        np.testing.assert_allclose((X.toarray() ** 2).sum(axis=1), 1, rtol=1e-5)
        if same is not None:
            assert (same.X_train != X).nnz == (same.y_train != Y).nnz == 0


def test_numbers_are_about_those_asked_for():
    made = make_extreme_classification(20_000, 50_000, 2000, exponent=1.0)
    assert made.X_train.shape[0] == 16_000
    assert 60 < made.X_train.nnz / 16_000 < 76
    assert 4 < made.y_train.nnz / 16_000 < 5.01
    counts = np.sort(made.y_train.sum(axis=0))[::-1]
    slope = np.polyfit(np.log(np.arange(10, 200)), np.log(counts[9:199]), 1)[0]
    assert -1.15 < slope < -0.85  # a power law


@pytest.mark.parametrize(
    "wrong", [{"n_labels": 1}, {"labels_per_row": 0.5}, {"nonzeros": 1e9}, {"informative": 2}]
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        make_extreme_classification(**wrong)


LINES = "3 5 4\n0,2 0:1 4:0.5\n 1:2.5 3:1\n3 2:1\n"
X = [[1, 0, 0, 0, 0.5], [0, 2.5, 0, 1, 0], [0, 0, 1, 0, 0]]
Y = [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz", "train.data"])
def test_text_of_extreme_classification(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(LINES.encode()) if name.endswith("gz") else LINES.encode())
    assert table_format(path) == "extreme"
    table = read_table(path)
    assert table.X.toarray().tolist() == X
    assert table.y.toarray().tolist() == Y


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("4 5 4\n0 0:1\n", "1 lines with features, and says 4"),
        ("1 2 4\n0 0:1 3:1\n", "n_features"),
        ("1 5 4\n4 0:1\n", "label 4.*whole numbers from 0 to 3"),
        ("1 5 4\n0.5 0:1\n", "label 0.5"),
        ("1 5 4\n0 1:1 0:1\n", "sorted"),
        ("1 5 4\n0 1:x\n", "cannot be read as text of extreme"),
    ],
)
def test_damaged_text_is_refused(tmp_path, lines, message):
    path = tmp_path / "train.txt"
    path.write_text(lines)
    with pytest.raises(DataError, match=message):
        read_table(path)


@pytest.mark.parametrize("name", ["rows.svm", "rows.txt"])
@pytest.mark.parametrize("zero_based", [True, False])
def test_svmlight_of_several_labels(tmp_path, name, zero_based):
    made = make_extreme_classification(60, 30, 9, nonzeros=6, labels_per_row=2)
    path = tmp_path / name
    labels = made.y_train.tocsr()
    dump_svmlight_file(made.X_train, labels, str(path), multilabel=True, zero_based=zero_based)
    table = read_table(path, zero_based=zero_based)
    columns = table.X.shape[1]
    np.testing.assert_allclose(table.X.toarray(), made.X_train[:, :columns].toarray(), rtol=1e-6)
    assert not made.X_train[:, columns:].nnz
    assert np.array_equal(table.y.toarray(), labels[:, : table.y.shape[1]].toarray())


def test_one_label_a_line_stays_one(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("3 1:0.5 2:1\n7 2:1\n")
    table = read_table(path)
    assert table.y.tolist() == [3, 7]
    path.write_text("3 1:0.5 2:1\n1:3 2:1\n")
    with pytest.raises(DataError, match="with one label"):
        read_table(path)


def test_labels_of_save_npz(tmp_path):
    made = make_extreme_classification(50, 30, 9, nonzeros=6, labels_per_row=2)
    save_npz(tmp_path / "X.npz", made.X_train)
    save_npz(tmp_path / "Y.npz", made.y_train.tocsc())
    table = read_table(tmp_path / "X.npz", labels=tmp_path / "Y.npz")
    assert (table.y != made.y_train).nnz == 0
    assert (made.X_train != table.X).nnz == 0
    np.save(tmp_path / "Y.npy", made.y_train.toarray())
    table = read_table(tmp_path / "X.npz", labels=tmp_path / "Y.npy")
    assert np.array_equal(table.y, made.y_train.toarray())
    save_npz(tmp_path / "Y.npz", made.y_train[:5])
    with pytest.raises(DataError, match="5 labels for 40 samples"):
        read_table(tmp_path / "X.npz", labels=tmp_path / "Y.npz")


@pytest.mark.parametrize("header", [True, False])
def test_lines_are_read_in_parts(tmp_path, header, monkeypatch):
    rng = np.random.default_rng(0)
    Y = (rng.random((50, 9)) < 0.3).astype(int)
    Y[3] = 0
    X = np.where(rng.random((50, 20)) < 0.2, rng.integers(1, 9, (50, 20)), 0).astype(float)
    X[:2, 0], X[40, 19], X[:, 5] = 1, 1, 1
    path = tmp_path / "rows.svm"
    dump_svmlight_file(X, Y, str(path), multilabel=True)
    if header:
        path = tmp_path / "rows.txt"
        path.write_bytes(b"50 20 9\n" + (tmp_path / "rows.svm").read_bytes())
    monkeypatch.setattr(label_files, "PART_BYTES", 100)  # a part is some lines
    table = read_table(path)
    np.testing.assert_array_equal(table.X.toarray(), X)
    np.testing.assert_array_equal(table.y.toarray(), Y)

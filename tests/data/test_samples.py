"""Which rows are trained on and held out, and whether a target is classes or numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from largesparse import SparseMLPClassifier
from largesparse.data.samples import hold_out, read_samples
from largesparse.data.targets import check_values, choose_task, match_labels
from largesparse.errors import DataError, ParameterError

RNG = np.random.default_rng(0)
LONG_TAIL = np.repeat(np.arange(40), np.r_[np.full(39, 50), 3])  # of counts, 0 to 39
TARGETS = {  # name -> values, and the task that "auto" makes of them (None: the user is asked)
    "ten digits": (np.arange(1000) % 10, "classification"),
    "ten digits, whole floats": (np.arange(1000) % 10.0, "classification"),
    "100 classes of 100 rows": (np.arange(10_000) % 100, "classification"),
    "100 classes from 1": (1 + np.arange(10_000) % 100, "classification"),
    "100 classes of 9 rows": (np.arange(900) % 100, None),
    "numbered with a gap": (np.delete(np.arange(10_000) % 100, np.arange(50, 10_000, 100)), None),
    "20 distinct values in 30 rows": (np.arange(30) % 20, None),
    "20 distinct values in 40 rows": (np.arange(40) % 20, "classification"),
    "few years": (2015 + np.arange(300) % 6, "classification"),
    "years": (1922 + np.arange(9000) % 90, None),
    "counts": (LONG_TAIL, None),
    "663 whole prices": (
        RNG.choice(100_000, 663, replace=False).repeat([1] * 600 + [4] * 63),
        None,
    ),
    "signs in three rows": (np.array([-1, 1, 1]), "classification"),
    "booleans": (np.array([True, False, True]), "classification"),
    "fractions": (np.array([1.5, 2, 2, 2]), "regression"),
    "too large for labels": (np.array([1.0, 2.0, 1e300, 1.0, 2.0, 1.0]), "regression"),
    "several numbers": (RNG.random((6, 2)), "regression"),
    "text": (np.array(["a", "b", "c"] * 4), "classification"),
    "30 texts in 90 rows": (np.array([f"t{k % 30}" for k in range(90)]), "classification"),
    "a text a row": (np.array([f"name {k}" for k in range(90)]), None),
}


@pytest.mark.parametrize(("y", "task"), TARGETS.values(), ids=TARGETS)
def test_what_auto_makes_of_a_target(y, task):
    y = check_values(y, "the target 'y'")
    if task is None:
        with pytest.raises(ParameterError, match=r"the target 'y' has .*--task") as caught:
            choose_task(y, "auto", "the target 'y'")
        assert str(len(np.unique(y))) in str(caught.value)
        assert choose_task(y, "classification", "") == "classification"
    else:
        assert choose_task(y, "auto", "") == task


@pytest.mark.parametrize(
    ("y", "task", "message"),
    [
        (["a", "b"], "regression", "holds text such as 'a'"),
        ([1.0, 2.5], "classification", "holds fractions, 2.5 in row 2"),
        (np.eye(2), "classification", "has 2 columns.*argmax.*--task regression"),
        (np.eye(2, dtype=int), "auto", "has 2 columns.*argmax.*--task regression"),
    ],
)
def test_a_task_that_cannot_be_is_refused(y, task, message):
    with pytest.raises(DataError, match=message):
        choose_task(np.asarray(y), task, "y")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1.0, np.inf], "has inf in row 2"),
        ([[1.0, 2.0], [3.0, np.nan]], r"has \[3.0, nan\] in row 2"),
        (np.arange(3).astype("M8[D]"), "holds datetime64"),
        ([1j], "complex"),
        (np.array([object()]), "holds object"),
        (np.zeros((2, 0)), r"shape \(2, 0\)"),
        (np.zeros((2, 2, 2)), "shape"),
        ([b"\xff"], "UTF-8"),
        (["a\udc80"], r"'a\\udc80', which is not Unicode"),
    ],
)
def test_values_that_no_target_can_have(y, message):
    with pytest.raises(DataError, match=message):
        check_values(np.asarray(y), "y")


def test_text_in_bytes_is_text_and_a_column_is_flat():
    assert check_values(np.array([b"low", "hög".encode()]), "y").tolist() == ["low", "hög"]
    assert check_values(np.array([[1], [2]]), "y").tolist() == [1, 2]


def test_labels_of_another_kind_compare_as_text():
    words, numbers = np.array(["1", "2", "x"]), np.array([1, 2])
    assert match_labels(np.array([2, 1]), words).tolist() == ["2", "1"]
    assert match_labels(np.array(["2", "1"]), numbers).tolist() == [2, 1]
    with pytest.raises(DataError, match=r"the text 'x'.* 2 known classes: they are numbers"):
        match_labels(words, numbers)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.repeat(1900 + np.arange(30), 2), "y has 30 different whole numbers, 1900 to 1929"),
        (np.repeat(np.arange(30), 2), None),
        (np.repeat(1900 + np.arange(20), 2), None),
        (np.repeat([f"t{k}" for k in range(30)], 2), None),
    ],
)
def test_a_classifier_warns_of_quantities(y, message):
    X = np.arange(len(y), dtype=float)[:, None]
    classifier = SparseMLPClassifier((4,), max_epochs=1, backend="scipy", n_jobs=1)
    if message is None:
        classifier.fit(X, y)
        return
    with pytest.warns(UserWarning, match=f"{message}.*SparseMLPRegressor"):
        classifier.fit(X, y)


# Rows that are held out


@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=30),
    fraction=st.sampled_from([0.01, 0.2, 0.5, 0.9, 0.99]),
    seed=st.integers(0, 9),
)
def test_every_class_is_trained_on(counts, fraction, seed):
    indices = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    if max(counts) == 1:
        with pytest.raises(ParameterError, match="alone in their class"):
            hold_out(len(indices), indices, fraction, seed)
        return
    train, test, alone = hold_out(len(indices), indices, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.r_[train, test]), np.arange(len(indices)))
    assert set(indices[train]) == set(range(len(counts)))
    assert sorted(indices[alone]) == [k for k, count in enumerate(counts) if count == 1]
    assert 0 < len(test) <= np.ceil(fraction * len(indices))


def test_classes_are_held_out_alike_but_for_one_that_is_alone():
    indices = np.r_[np.repeat([0, 1], [80, 20]), 2]
    train, test, alone = hold_out(101, indices, 0.2, seed=3)
    assert np.bincount(indices[train]).tolist() == [63, 16, 1]  # 21 of 101 are held out
    assert np.bincount(indices[test]).tolist() == [17, 4] and alone.tolist() == [100]


@pytest.mark.parametrize("regression", [False, True])
def test_rows_are_those_of_scikit_learn(regression):
    y = np.arange(60) % 3
    expected = train_test_split(
        np.arange(60), test_size=0.2, random_state=5, stratify=None if regression else y
    )
    found = hold_out(60, None if regression else y, None, 5)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("fraction", [0.2, 0.999])
def test_too_few_rows_to_hold_any_out(fraction):
    with pytest.raises(ParameterError, match="--test-fraction 0 to train on all rows"):
        hold_out(1, None, fraction, 0)


# Files


def read(path, **options):
    given = {"target": None, "task": "auto", "test_fraction": None, "seed": 0}
    return read_samples(str(path), **given | options)


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path


X, Y = RNG.random((40, 3)).astype(np.float32), np.arange(40) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": X[:, :0], "y": Y}, r"X has 0 feature\(s\)"),
        ({"X": X, "y": np.zeros(40, int)}, "one class only"),
        ({"X": X, "y": np.where(Y, np.nan, 0.5)}, "the target has nan in row 2"),
        ({"x_test": X[:, :2], "y_test": Y}, "to test on: The table has 2 columns"),
        (
            {"x_test": np.full_like(X, np.nan), "y_test": Y},
            "to test on: X contains NaN",
        ),
        ({"x_test": X, "y_test": Y + 7}, "to test on: y holds labels .*: 7, 8"),
        (
            {"x_test": X, "y_test": np.array(["a", "b"])[Y]},
            "to test on: .*the text 'a'",
        ),
        ({"x_test": X, "y_test": np.eye(2)[Y]}, "to test on: y has the shape"),
        ({"x_test": X}, "x_test but no y_test"),
    ],
)
def test_archives_that_cannot_be_used_are_refused_before_training(tmp_path, arrays, message):
    if "x_test" in arrays:
        arrays = {"x_train": X, "y_train": Y} | arrays
    with pytest.raises(DataError, match=f"data.npz.*{message}"):
        read(archive(tmp_path / "data.npz", **arrays))


def test_the_target_of_an_archive_with_parts_has_two(tmp_path):
    parts = {"x_train": X, "y_train": Y, "x_test": X[:9], "y_test": Y[:9]}
    parts |= {"size_train": X[:, 0], "size_test": X[:9, 1]}
    path = archive(tmp_path / "data.npz", **parts)
    found = read(path, target="size")
    np.testing.assert_array_equal(found.y, X[:, 0])
    np.testing.assert_array_equal(found.y_test, X[:9, 1])
    with pytest.raises(DataError, match="no array 'siez_train'"):
        read(path, target="siez")


def test_what_a_source_would_ignore_is_refused(tmp_path, monkeypatch):
    parts = {"x_train": X, "y_train": Y, "x_test": X[:9], "y_test": Y[:9]}
    path = archive(tmp_path / "madelon.npz", **parts)
    for fraction in (0, 0.2):
        with pytest.raises(ParameterError, match="test part of its own, of 9 rows"):
            read(path, test_fraction=fraction)
    monkeypatch.setenv("LARGESPARSE_DATA", str(tmp_path))
    with pytest.raises(ParameterError, match="test part of its own, of 9 rows"):
        read("madelon", test_fraction=0.5)
    with pytest.raises(
        ParameterError, match="--target is for files, and 'madelon' is a data set with labels"
    ):
        read("madelon", target="y")
    assert read("madelon").X_test.shape == (9, 3)


def test_a_named_data_set_without_a_test_part_is_divided_as_a_file(tmp_path, monkeypatch):
    path = archive(tmp_path / "higgs.npz", X=X, y=np.array(["a", "b"])[Y])
    monkeypatch.setenv("LARGESPARSE_DATA", str(tmp_path))
    by_name, by_path = (read(source, test_fraction=0.3) for source in ("higgs", path))
    assert by_name.X_test.shape == (12, 3) and set(by_name.y) == {"a", "b"}
    np.testing.assert_array_equal(by_name.X_test, by_path.X_test)
    assert read("higgs", test_fraction=0).X_test is None

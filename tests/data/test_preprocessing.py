"""Checks of X and y, label encoding, standardisation."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.preprocessing import LabelEncoder, StandardScaler

from largesparse.data import checks
from largesparse.data import standardizer as standardizer_module
from largesparse.data.batches import load_batch
from largesparse.data.checks import check_X, check_X_y, encode_labels
from largesparse.data.standardizer import Standardizer
from largesparse.errors import DataError

REAL_DTYPES = [np.bool_, np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 bytes, so that small arrays take many of them."""
    for module in (checks, standardizer_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 64)


# check_X: what passes


@pytest.mark.parametrize("dtype", REAL_DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_dense_keeps_dtype_and_memory(dtype, order):
    X = np.ones((5, 3), dtype, order=order)
    checked = check_X(X)
    assert checked.dtype == dtype
    assert np.shares_memory(checked, X)


def test_nested_lists_and_data_frames_become_arrays():
    expected = np.array([[1.0, 2.5], [3.0, 4.0]])
    np.testing.assert_array_equal(check_X(expected.tolist()), expected)
    frame = pd.DataFrame({"a": [1, 3], "b": [2.5, 4.0]})
    np.testing.assert_array_equal(check_X(frame), expected)
    np.testing.assert_array_equal(check_X(frame.astype(object)), expected)
    np.testing.assert_array_equal(check_X(frame.astype("Float64")), expected)


def test_memory_map_is_not_copied(tmp_path):
    np.save(tmp_path / "X.npy", np.ones((1000, 1000), np.float32))
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert np.shares_memory(check_X(X), X)


def test_big_arrays_are_checked_without_a_big_temporary():
    X = np.ones((4000, 5000), np.float32)
    sparse = sp.csr_array(X[:400])
    tracemalloc.start()
    check_X(X)
    check_X(sparse)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < X.nbytes / 100


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_canonical_csr_is_not_copied(index):
    X = sp.csr_array(np.eye(4, 6, dtype=np.float32))
    X.indices, X.indptr = X.indices.astype(index), X.indptr.astype(index)
    checked = check_X(X)
    assert isinstance(checked, sp.csr_array)
    assert checked.indices.dtype == checked.indptr.dtype == index
    assert all(
        np.shares_memory(getattr(checked, name), getattr(X, name))
        for name in ("data", "indices", "indptr")
    )


@given(
    dense=hnp.arrays(
        np.int16, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(-3, 3)
    ),
    form=st.sampled_from(["csr", "csc", "coo", "bsr", "dia", "dok", "lil"]),
    maker=st.sampled_from([sp.csr_array, sp.csr_matrix]),
)
def test_every_sparse_format_becomes_canonical_csr(dense, form, maker):
    checked = check_X(maker(dense).asformat(form))
    assert isinstance(checked, sp.csr_array)
    assert checked.has_canonical_format
    assert checked.dtype == dense.dtype
    np.testing.assert_array_equal(checked.toarray(), dense)


def test_duplicates_are_summed_and_indices_sorted_in_a_copy():
    indices = np.array([2, 0, 2, 1], np.int32)
    X = sp.csr_array((np.array([1.0, 2.0, 3.0, 4.0]), indices, np.array([0, 3, 4])), shape=(2, 3))
    checked = check_X(X)
    np.testing.assert_array_equal(checked.toarray(), [[2, 0, 4], [0, 4, 0]])
    np.testing.assert_array_equal(checked.indices, [0, 2, 1])
    np.testing.assert_array_equal(X.indices, [2, 0, 2, 1])


# check_X: what does not


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (None, "2 dimensions"),
        (3.0, "2 dimensions"),
        ([1.0, 2.0], "Reshape your data"),
        (np.zeros((2, 3, 4)), "Reshape your data"),
        (sp.coo_array(np.ones(3)), "Reshape your data"),
        (np.zeros((0, 3)), r"0 sample\(s\) \(shape=\(0, 3\)\)"),
        (np.zeros((3, 0)), r"0 feature\(s\) \(shape=\(3, 0\)\)"),
        (sp.csr_array((0, 3)), r"0 sample\(s\)"),
        (sp.csr_array((3, 0)), r"0 feature\(s\)"),
        ([[1.0, 2.0], [3.0]], "cannot be made an array"),
        (np.ones((2, 2), complex), "Complex data not supported"),
        (sp.csr_array(np.ones((2, 2), complex)), "Complex data not supported"),
        (np.full((2, 2), "a"), "real numbers"),
        (np.zeros((2, 2), "datetime64[s]"), "real numbers"),
        (np.array([[1, 2], [3, "4"]], object), "row 1, column 1 is '4'"),
        (np.array([[1, None], [3, 4]], object), "row 0, column 1 is None"),
        (np.ma.masked_equal([[1, 2], [3, 4]], 3), "masked"),
    ],
)
def test_unusable_X_is_refused(X, message):
    with pytest.raises(DataError, match=message):
        check_X(X)


def test_the_number_of_features_is_checked():
    X = np.ones((2, 3))
    assert check_X(X, n_features=3) is not None
    for expected in (2, 4):
        message = rf"X has 3 features, but .* expecting {expected} features"
        with pytest.raises(DataError, match=message):
            check_X(X, n_features=expected)


@given(
    shape=hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    bad=st.sampled_from([(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]),
    sparse=st.booleans(),
    data=st.data(),
)
def test_the_first_bad_value_is_named(shape, dtype, bad, sparse, data):
    value, word = bad
    sparse = sparse and dtype != np.float16  # which SciPy does not have
    X = np.ones(shape, dtype)
    row = data.draw(st.integers(0, shape[0] - 1))
    column = data.draw(st.integers(0, shape[1] - 1))
    X[row, column:] = value
    X[row + 1 :] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "BLOCK_BYTES", 64)
        with pytest.raises(DataError, match=f"{word}.* at row {row}, column {column}[.]"):
            check_X(sp.csr_array(X) if sparse else X)


def test_rows_without_entries_are_counted_when_a_sparse_value_is_bad():
    X = np.zeros((6, 4))
    X[1, 2], X[4, 3] = 1, np.nan
    with pytest.raises(DataError, match="NaN at row 4, column 3"):
        check_X(sp.csr_array(X))


@pytest.mark.parametrize("value", [1e39, -1e39, 1e300, np.longdouble("1e300")])
def test_values_too_large_for_float32_are_refused(value):
    X = np.zeros((3, 2), np.longdouble if isinstance(value, np.longdouble) else np.float64)
    X[2, 1] = value
    with pytest.raises(DataError, match=r"too large for float32.* at row 2, column 1"):
        check_X(X)


def test_largest_accepted_values_cannot_overflow_when_centred():
    X = np.array([[checks.LARGEST], [-checks.LARGEST]])
    Z = check_X(X).astype(np.float32).T.copy()
    Standardizer(np.array([-checks.LARGEST], np.float32), np.ones(1, np.float32)).apply_(Z)
    assert np.isfinite(Z).all()


@pytest.mark.parametrize(
    ("indptr", "indices"),
    [([0, 1, 2], [0, 9]), ([0, 1, 2], [0, -1]), ([0, 2, 1], [0, 1])],
)
def test_invalid_csr_is_refused(indptr, indices):
    X = sp.csr_array(np.eye(2))
    X.indptr, X.indices = np.array(indptr, np.int32), np.array(indices, np.int32)
    with pytest.raises(DataError, match="not a valid sparse array"):
        check_X(X)


# check_X_y


def test_X_and_y_must_have_equal_lengths():
    X, y = check_X_y([[1.0], [2.0]], [[5], [6]])
    assert X.shape == (2, 1)
    np.testing.assert_array_equal(y, [5, 6])
    with pytest.raises(DataError, match="2 samples but y has 3 labels"):
        check_X_y(np.ones((2, 1)), [0, 1, 0])
    with pytest.raises(DataError, match="expecting 2 features"):
        check_X_y(np.ones((2, 1)), [0, 1], n_features=2)


# encode_labels


LABELS = st.one_of(
    st.lists(st.integers(-(2**40), 2**40), min_size=2),
    st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0")), min_size=2),
)


@given(labels=LABELS.filter(lambda labels: len(set(labels)) > 1), as_object=st.booleans())
def test_labels_are_encoded_like_sklearns(labels, as_object):
    y = np.array(labels, object if as_object else None)
    indices, classes = encode_labels(y)
    encoder = LabelEncoder().fit(np.array(labels))
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(classes, encoder.classes_)
    np.testing.assert_array_equal(indices, encoder.transform(np.array(labels)))
    np.testing.assert_array_equal(encode_labels(y[:1], classes)[0], indices[:1])


@pytest.mark.parametrize(
    "y",
    [
        [7, 3, 7, 100],
        [[7], [3], [7], [100]],
        [7.0, 3.0, 7.0, 100.0],
        np.array([7, 3, 7, 100], np.uint8),
        pd.Series([7, 3, 7, 100]),
        pd.Series([7, 3, 7, 100], dtype="Int64"),
        ["b", "a", "b", "c"],
        pd.Series(["b", "a", "b", "c"]),
        pd.Series(["b", "a", "b", "c"], dtype="category"),
        np.array([b"b", b"a", b"b", b"c"]),
    ],
)
def test_kinds_of_labels_with_gaps(y):
    indices, classes = encode_labels(y)
    np.testing.assert_array_equal(indices, [1, 0, 1, 2])
    np.testing.assert_array_equal(classes[indices], np.ravel(y))


def test_boolean_labels():
    indices, classes = encode_labels([True, False, True])
    np.testing.assert_array_equal(indices, [1, 0, 1])
    np.testing.assert_array_equal(classes, [False, True])


def test_given_classes_keep_their_positions_and_may_be_partly_absent():
    np.testing.assert_array_equal(encode_labels([9, 2, 9], classes=[5, 9, 2])[0], [1, 2, 1])
    np.testing.assert_array_equal(encode_labels(["z", "a"], classes=["a", "m", "z"])[0], [2, 0])


@pytest.mark.parametrize(
    ("y", "classes", "names"),
    [
        ([1, 4, 2, 4], [1, 2], ": 4[.]"),
        ([0, 9, 1], [1, 2], ": 0, 9[.]"),
        (range(10), [0, 1], ": 2, 3, 4, 5, 6, [.]{3}[.]"),
        (["1", "2"], [1, 2], ": '1', '2'[.]"),
        ([1, 2], ["1", "2"], ": 1, 2[.]"),
        (["a", "x"], ["a", "b"], ": 'x'[.]"),
    ],
)
def test_unknown_labels_are_listed(y, classes, names):
    with pytest.raises(DataError, match=f"not among the 2 known classes{names}"):
        encode_labels(list(y), classes)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed, but the target y is None"),
        ([], "y is empty"),
        ([3, 3, 3], "one class only, 3"),
        (["a"], "one class only, 'a'"),
        (np.eye(3), "not one-hot"),
        (np.zeros((4, 2, 2)), "one-dimensional"),
        (5, "one-dimensional"),
        (sp.csr_array(np.eye(3)), "sparse"),
        ([0.0, np.nan, 1.0], "NaN or infinite at row 1"),
        ([0.0, np.inf], "NaN or infinite at row 1"),
        (np.array([0, 1, np.nan], object), "NaN or infinite at row 2"),
        (["a", None], "has None at row 1"),
        (pd.Series(["a", None, "b"]), "has (nan|None) at row 1"),
        (pd.Series([1, None, 2], dtype="Int64"), "at row 1"),
        (np.array([1, pd.NA], object), "has <NA> at row 1"),
        (np.array([1, "a"], object), "has 'a' at row 1"),
        ([0.5, 1.5], "continuous"),
        ([1j, 2], "Unknown label type: complex128"),
        (np.zeros(3, "datetime64[s]"), "Unknown label type"),
        ([[1, 2], [3]], "cannot be made an array"),
        (np.ma.masked_equal([1, 2], 1), "masked"),
    ],
)
def test_unusable_labels_are_refused(y, message):
    with pytest.raises(DataError, match=message):
        encode_labels(y)


# Standardizer


@given(
    X=hnp.arrays(
        st.sampled_from([np.float32, np.uint8, np.int16]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.sampled_from([0, 0, 1, 5, 200]),
    ),
    sparse=st.booleans(),
    block_bytes=st.sampled_from([64, 1000]),
    data=st.data(),
)
def test_statistics_equal_sklearns_in_float64(X, sparse, block_bytes, data):
    rows = data.draw(
        st.none() | hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, len(X) - 1))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standardizer_module, "BLOCK_BYTES", block_bytes)
        patch.setattr(standardizer_module, "SPARSE", -1)
        standardizer = Standardizer.fit(sp.csr_array(X) if sparse else X, rows)
    used = X if rows is None else X[rows]
    reference = StandardScaler().fit(used.astype(np.float64))
    assert standardizer.mean.dtype == standardizer.scale.dtype == np.float64
    np.testing.assert_allclose(standardizer.mean, reference.mean_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(standardizer.scale, 1 / reference.scale_, rtol=1e-5)
    block = X.T.astype(np.float32)
    before = block
    standardizer.apply_(block)
    assert block is before
    expected = reference.transform(X.astype(np.float64)).T
    np.testing.assert_allclose(block, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("offset", [1e4, 1e8, 1e12, -1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_offsets(offset, dtype, small_blocks):
    """Exact rational arithmetic."""
    rng = np.random.default_rng(0)
    X = (offset + rng.normal(size=(100, 1))).astype(dtype)
    seen = [Fraction(float(value)) for value in X.ravel()]
    mean = sum(seen) / len(seen)
    variance = float(sum((value - mean) ** 2 for value in seen) / len(seen))
    standardizer = Standardizer.fit(X)
    np.testing.assert_allclose(standardizer.mean, float(mean), rtol=1e-15)
    expected = 1 if variance == 0 else variance**-0.5
    np.testing.assert_allclose(standardizer.scale, expected, rtol=1e-5)
    block = np.empty((1, 100), np.float32)
    load_batch(X, np.arange(100), standardizer, out=block)
    assert np.abs(block).max() < 11  # sqrt(100), and a rounding of the mean by at most a deviation


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 1e-40, 16777217.0])
@pytest.mark.parametrize("sparse", [False, True])
def test_constant_features_become_zero_and_stay_finite(value, sparse, small_blocks):
    X = np.full((777, 3), value)
    X[:, 1] = np.arange(777)
    standardizer = Standardizer.fit(sp.csr_array(X) if sparse else X)
    np.testing.assert_array_equal(standardizer.scale[[0, 2]], 1)
    block = np.array([[value, 1.0], [0, 0], [value, value + 5]], np.float32)
    standardizer.apply_(block)
    assert block[0, 0] == block[2, 0] == 0
    assert np.isfinite(block).all()


@pytest.mark.parametrize("size", [1e-20, 1e-30, 1e-38, 1e-44])
def test_tiny_variances_stay_finite(size):
    X = (size * np.random.default_rng(0).normal(size=(50, 2))).astype(np.float32)
    standardizer = Standardizer.fit(X)
    assert np.isfinite(standardizer.scale).all()
    block = X.T.copy()
    standardizer.apply_(block)
    assert np.isfinite(block).all()
    if size > 1e-40:
        np.testing.assert_allclose(block.std(axis=1), 1, rtol=1e-4)


def test_fit_takes_little_memory_and_copies_no_row_subset():
    X = np.random.default_rng(0).normal(size=(60000, 1000)).astype(np.float32)
    tracemalloc.start()
    Standardizer.fit(X, rows=np.arange(0, 60000, 2))
    Standardizer.fit(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20

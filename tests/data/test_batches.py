"""Mini-batches: rows of a data set, feature-major and standardised."""

from __future__ import annotations

from functools import partial

import helpers
import numpy as np
import pytest
from helpers import normal_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array, random_array
from tqdm import tqdm

from largesparse import Predictor
from largesparse.data import batches
from largesparse.data.batches import load_batch
from largesparse.data.standardizer import Standardizer
from largesparse.errors import DataError, ParameterError
from largesparse.training.prepared import prepare_


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    batch=st.integers(1, 35),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_sparse_rows_are_standardised_as_dense_ones(dtype, shape, batch, seed):
    rng = np.random.default_rng(seed)
    X = rng.integers(-9, 9, shape).astype(dtype) * (rng.random(shape) < 0.3)
    rows = rng.integers(0, shape[0], batch)
    standardizer = Standardizer(rng.standard_normal(shape[1]), rng.random(shape[1]))
    found = np.full((shape[1], batch), np.nan, dtype=np.float32)
    load_batch(csr_array(X.astype(dtype)), rows, standardizer, out=found)
    wide = dtype is np.int64
    mean, scale = (standardizer.mean, standardizer.scale) if wide else standardizer.narrow
    expected = (X[rows].astype(mean.dtype) - mean) * scale
    assert np.array_equal(found, expected.T.astype(np.float32))


make_trainer = partial(
    helpers.make_trainer, (6, 20, 2), epsilon=4, backend="fused", batch_size=8, micro_batch=4
)


def data_of(rows=8, features=6):
    X = normal_rows(rows, features)
    return X, (X[:, 0] > 0).astype(np.int32)


def broken_csr(**parts):
    """A CSR array whose parts say another thing than its shape, which SciPy does not look at."""
    X = csr_array(data_of()[0])
    for name, (place, value) in parts.items():
        getattr(X, name)[place] = value
    return X


X, y = data_of()
WIDE = random_array((8, 50), density=0.5, format="csr", rng=0)
WRONG = {  # what makes a mini-batch that the kernels must not see, and the beginning of the message
    "a label far beyond": ({"y": np.full(8, 50_000_000)}, "y must be class indices in the range"),
    "the next label": ({"y": np.full(8, 2)}, r"range \[0, 1\].* Got 2\."),
    "a negative label": ({"y": np.array([0, 1] * 3 + [1, -1])}, r"Got -1\."),
    "a label beyond int32": ({"y": np.full(8, 2**32 + 1)}, f"Got {2**32 + 1}"),
    "an unsigned label": ({"y": np.full(8, 2**64 - 1, np.uint64)}, "y must be class indices"),
    "labels that are floats": ({"y": y.astype(float)}, "y must be class indices, integers"),
    "NaN as label": ({"y": np.full(8, np.nan)}, "y must be class indices, integers"),
    "labels that are texts": ({"y": np.full(8, "1")}, "y must be class indices, integers"),
    "one-hot labels": ({"y": np.eye(2, dtype=int)[y]}, r"shape \(\d,\)"),
    "fewer labels": ({"y": y[:7]}, "as many samples. Got X 8, y 7"),
    "more labels": ({"y": np.tile(y, 2)}, "as many samples. Got X 8, y 16"),
    "CSR with too many columns": ({"X": WIDE}, r"shape \(n_samples, 6\).* Got \(8, 50\)"),
    "CSR with too few": ({"X": csr_array(X[:, :5])}, r"Got \(8, 5\)"),
    "too many columns": ({"X": np.ones((8, 7), np.float32)}, r"Got \(8, 7\)"),
    "one row as a vector": ({"X": X[0]}, "Got X 6, y 8"),
    "CSC": ({"X": csc_array(X)}, "not CSC. Pass X.tocsr()"),
    "CSR with an index beyond": ({"X": broken_csr(indices=(3, 10**9))}, "valid CSR array"),
    "CSR with a negative index": ({"X": broken_csr(indices=(3, -7))}, "valid CSR array"),
    "CSR with a pointer beyond": ({"X": broken_csr(indptr=(-1, 10**9))}, "valid CSR array"),
    "texts": ({"X": np.full((8, 6), "1")}, "X must hold real numbers"),
    "a row that is not there": ({"rows": np.array([0, 8])}, r"\[0, 7\] here. Got 8"),
    "a negative row": ({"rows": np.array([0, -1])}, r"Got -1"),
    "a mask": ({"rows": np.ones(8, bool)}, "numpy.flatnonzero"),
    "no rows": ({"rows": np.array([], int)}, "at least 1 row"),
    "rows in two dimensions": ({"rows": np.array([[0, 1]])}, "'rows' must have shape"),
    "fewer weights": ({"sample_weight": np.ones(7, np.float32)}, "sample_weight 7"),
    "more weights": ({"sample_weight": np.ones(9, np.float32)}, "sample_weight 9"),
    "a negative weight": ({"sample_weight": -np.ones(8, np.float32)}, "0 or more. Got -1"),
    "NaN as weight": ({"sample_weight": np.full(8, np.nan, np.float32)}, "0 or more. Got nan"),
    "weights in two dimensions": ({"sample_weight": np.ones((8, 1))}, "sample_weight must be"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("micro_batch", [4, 8])  # by micro-batches, and as one compiled call
@pytest.mark.parametrize("name", ["step", "evaluate"])
def test_a_mini_batch_that_does_not_fit_is_refused(name, micro_batch, wrong):
    trainer = make_trainer(micro_batch=micro_batch)
    before = [layer.values.copy() for layer in trainer.network.layers]
    change, message = WRONG[wrong]
    with pytest.raises(DataError, match=message):
        getattr(trainer, name)(**{"X": X, "y": y} | change)
    assert all(map(np.array_equal, before, (layer.values for layer in trainer.network.layers)))
    assert trainer.step_count == 0


@pytest.mark.parametrize("targets", [np.ones((8, 1)), np.ones(8), y, np.full((8, 2), "1")])
def test_targets_of_another_shape_or_kind_are_refused(targets):
    for micro_batch in (4, 8):
        trainer = make_trainer(loss="mean_squared_error", micro_batch=micro_batch)
        for call in (trainer.step, trainer.evaluate):
            with pytest.raises(DataError, match=r"y must be numbers of shape \(\d, 2\)"):
                call(X, targets)


def test_an_augmentation_that_loses_rows_is_refused():
    with pytest.raises(DataError, match=r"as many samples\. Got X 3, y 8"):
        make_trainer(epochs=1).fit(X, y, augment=lambda part, rows, epoch: part[:3], progress=False)


def test_prepared_data_and_replaced_inputs_are_looked_at_too():
    trainer = make_trainer()
    data = prepare_(trainer.network, trainer.config, X, y)
    bad = data._replace(y=data.y + 1)
    with pytest.raises(DataError, match="range"), tqdm(disable=True) as bar:
        trainer.run_epoch(bad, [data.train_rows], bar)
    with Predictor(trainer.network) as predictor, pytest.raises(DataError, match="inputs"):
        predictor.compute(WIDE)  # without `check_X`
    with pytest.raises(ParameterError, match=r"9 samples does not fit .* room for 4"):
        trainer.workspace.inputs(9)


@pytest.mark.parametrize("micro_batch", [4, 8])
def test_rows_and_labels_of_other_integer_types_are_the_same(micro_batch):
    rows = np.array([5, 0, 3, 1, 7, 2])
    ways = [
        (rows, y, None),
        (rows.astype(np.int32), y.astype(np.uint8), np.ones(8)),
        (np.repeat(rows, 2)[::2], y.astype(np.int64), np.ones(8, int)),  # not contiguous
        (rows.tolist(), y.astype(bool), np.ones(8, np.float32)),
    ]
    losses = [
        make_trainer(micro_batch=micro_batch).step(X, labels, chosen, sample_weight=weights)
        for chosen, labels, weights in ways
    ]
    assert losses == [losses[0]] * 4


def test_rows_of_which_none_counts_have_no_score():
    with pytest.raises(DataError, match="0 for all rows"):
        make_trainer().evaluate(X, y, sample_weight=np.zeros(8))


def test_more_rows_than_a_mini_batch_are_one_larger_mini_batch():
    X, y = data_of(40)
    one, two = make_trainer(), make_trainer(batch_size=40, micro_batch=4)
    assert one.step(X, y) == two.step(X, y)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 30),
    dtype=st.sampled_from(["u1", "i2", "i8", "f4", "f8", "?"]),
    offset=st.sampled_from([0, 1e8]),
    block=st.sampled_from([1, 400, 2**22]),
)
def test_a_table_that_is_standardised_once_gives_the_same_bits(rows, columns, dtype, offset, block):
    rng = np.random.default_rng(rows * columns)
    X = (offset * (dtype == "f8") + 50 * rng.standard_normal((rows, columns))).astype(dtype)
    scaling = Standardizer.fit(X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BLOCK_BYTES", block)
        once = batches.StandardizedRows(X, scaling)
    assert once.shape == X.shape and once.dtype == np.float32
    chosen = rng.integers(rows, size=7)
    found, expected = np.empty((2, columns, 7), dtype=np.float32)
    batches.load_batch(once, chosen, scaling, out=found)
    batches.load_batch(X, chosen, scaling, out=expected)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("way", ["C", "F", "strided", ">"])
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 30),
    dtype=st.sampled_from(["u1", "i2", "i8", "f4", "f8", "?"]),
    cached=st.sampled_from([1, 400, 2**18]),
    scaled=st.booleans(),
)
def test_layouts_and_byte_orders_give_the_same_bits(way, rows, columns, dtype, cached, scaled):
    rng = np.random.default_rng(rows * columns)
    X = (50 * rng.standard_normal((rows, columns))).astype(dtype)
    scaling = Standardizer.fit(X) if scaled else None
    table = {
        "C": X.astype(X.dtype),
        "F": np.asfortranarray(X),
        "strided": np.repeat(X, 2, axis=1)[:, ::2],
        ">": X.astype(X.dtype.newbyteorder(">")),
    }[way]
    chosen = rng.integers(rows, size=7)
    found = np.empty((columns, 7), dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "CACHED_BYTES", cached)
        batches.load_batch(table, chosen, scaling, out=found)
    expected = X[chosen].astype(np.float64 if dtype in ("i8", "f8") else np.float32)
    if scaling is not None:
        wide = dtype in ("i8", "f8")
        mean, scale = (scaling.mean, scaling.scale) if wide else scaling.narrow
        expected = (expected - mean) * scale
    np.testing.assert_array_equal(found, expected.T.astype(np.float32))

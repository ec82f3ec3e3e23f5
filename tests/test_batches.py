"""Mini-batches: rows of a data set, feature-major and standardised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from largesparse.batches import load_batch
from largesparse.preprocessing import Standardizer


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

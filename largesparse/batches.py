"""From rows of a data set to feature-major input batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

KERNEL_TYPES = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"}

if TYPE_CHECKING:
    from .preprocessing import Standardizer


def load_batch(
    X: Any,
    rows: NDArray[np.int64],
    preprocessing: Standardizer | None,
    *,
    out: NDArray[np.float32],
) -> None:
    """Write rows of a data set into a feature-major batch: out[f, b] = X[rows[b], f].

    Parameters
    ----------
    X : ndarray (n_samples, n_features) of any real dtype, or CSR
        May be a memory map; only the rows asked for are read.
    rows : int64 (batch,)
    preprocessing : Standardizer or None
    out : float32 (n_features, batch)
    """
    from .backends import kernels

    if X.dtype.str[1:] not in KERNEL_TYPES or not X.dtype.isnative:
        X = X[rows].astype(np.float32)
        rows = np.arange(len(rows))
    if issparse(X):
        _load_sparse(X, rows, preprocessing, out)
        return
    values = np.asarray(X).view()
    values.flags.writeable = False  # as memory maps are: one compiled kernel serves both
    plain = values.dtype == np.float32 and values.flags.c_contiguous
    load = kernels.load_float32 if plain else kernels.load_dense
    load(values, rows, out)
    if preprocessing is not None:
        preprocessing.apply_(out)


def _load_sparse(
    X: Any,
    rows: NDArray[np.int64],
    preprocessing: Standardizer | None,
    out: NDArray[np.float32],
) -> None:
    from .backends import kernels

    if preprocessing is None:
        kernels.load_sparse(X.indptr, X.indices, X.data, rows, out)
    else:
        mean, scale = preprocessing.mean, preprocessing.scale
        kernels.load_standardised(X.indptr, X.indices, X.data, rows, mean, scale, out)


def dense_rows(X: Any, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows of a data set as float32 (batch, n_features)."""
    part = X[rows]
    dense: NDArray[np.float32] = np.asarray(part.todense() if issparse(part) else part, np.float32)
    return dense

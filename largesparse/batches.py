"""From rows of a data set to feature-major input batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from .preprocessing import EXACT

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
        Applied in float64 where the values of X may not be those of float32.
    out : float32 (n_features, batch)
    """
    from .backends import kernels

    wide = preprocessing is not None and preprocessing.is_wide(X.dtype)
    if X.dtype.str[1:] not in KERNEL_TYPES or not X.dtype.isnative:
        X = X[rows].astype(np.float64 if wide else np.float32)
        rows = np.arange(len(rows))
    if issparse(X):
        _load_sparse(X, rows, preprocessing, out, wide)
        return
    values = np.asarray(X).view()
    values.flags.writeable = False  # as memory maps are: one compiled kernel serves both
    if preprocessing is not None and wide:
        kernels.load_centred(values, rows, preprocessing.mean, preprocessing.scale, out)
        return
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
    wide: bool,
) -> None:
    from .backends import kernels

    if preprocessing is None:
        kernels.load_sparse(X.indptr, X.indices, X.data, rows, out)
        return
    mean: NDArray[np.floating]
    scale: NDArray[np.floating]
    mean, scale = preprocessing.mean, preprocessing.scale
    if not wide and preprocessing.narrow is not None:
        mean, scale = preprocessing.narrow
    kernels.load_standardised(X.indptr, X.indices, X.data, rows, mean, scale, out)


def dense_rows(X: Any, rows: NDArray[np.int64]) -> NDArray[np.floating]:
    """Return rows of a data set as (batch, n_features), float64 where float32 may lose values."""
    part = X[rows]
    dtype = np.float32 if part.dtype.str[1:] in EXACT else np.float64
    dense: NDArray[np.floating] = np.asarray(part.todense() if issparse(part) else part, dtype)
    return dense

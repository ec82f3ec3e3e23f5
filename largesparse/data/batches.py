"""From rows of a data set to feature-major input batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ..backends.operands import SparseBatch, read_only
from ..errors import DataError
from .checks import row_blocks
from .standardizer import EXACT, are_few

BLOCK_BYTES = 2**22  # of a table that is standardised at a time
CACHED_BYTES = 2**18  # of a batch that is converted at a time
BLOCK_ENTRIES = 8  # of a sample in a block of features of a `SparseBatch`
FEWEST_BLOCKS = 8  # for the threads
NO_SCALING = np.empty(0, np.float32), np.empty(0, np.float32)
NO_FEATURES = np.empty(0, np.int64)
NO_SHIFT = np.empty(0, np.float32)
KERNEL_TYPES = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"}

if TYPE_CHECKING:
    from .standardizer import Standardizer


class StandardizedRows:
    """A dense table that is standardised already, so that no row is standardised twice.

    Parameters
    ----------
    X : (n_samples, n_features) dense
    preprocessing : Standardizer

    Attributes
    ----------
    values : float32 (n_samples, n_features)
        To the bit what `load_batch` would make of the rows.
    """

    def __init__(self, X: Any, preprocessing: Standardizer) -> None:
        self.shape = X.shape
        self.dtype = np.dtype(np.float32)
        self.values = np.empty(X.shape, dtype=np.float32)
        for block in row_blocks(X.shape[0], 4 * X.shape[1], BLOCK_BYTES):
            rows = np.arange(block.start, block.stop)
            out = np.empty((X.shape[1], len(rows)), dtype=np.float32)
            load_batch(X, rows, preprocessing, out=out)
            self.values[block] = out.T


def load_batch(
    X: Any,
    rows: NDArray[np.int64],
    preprocessing: Standardizer | None,
    *,
    out: NDArray[np.float32],
) -> None:
    """Write rows of a data set into a feature-major batch: out[f, b] = X[rows[b], f].

    X (n_samples, n_features), of any real dtype or CSR, may be a memory map: only the rows asked
    for are read. They are standardised in float64 where they may not be those of float32.
    """
    from ..backends import kernels

    if isinstance(X, StandardizedRows):
        X, preprocessing = X.values, None
    X, rows, wide = _readable(X, rows, preprocessing, *out.shape)
    if issparse(X):
        _load_sparse(X, rows, preprocessing, out, wide)
        return
    known = X.dtype.str[1:] in KERNEL_TYPES and X.dtype.isnative
    scaling = [preprocessing.mean, preprocessing.scale] if preprocessing and wide else []
    if not known or not X.flags.c_contiguous:
        _load_by_numpy(X, rows, scaling, out)
    elif scaling:
        kernels.load_centred(read_only(X), rows, *map(read_only, scaling), out)
    else:
        load = kernels.load_float32 if X.dtype == np.float32 else kernels.load_dense
        load(read_only(X), rows, out)
    if preprocessing is not None and not wide:
        preprocessing.apply_(out)


def _load_by_numpy(
    X: NDArray[Any],
    rows: NDArray[np.int64],
    scaling: Sequence[NDArray[np.float64]],
    out: NDArray[np.float32],
) -> None:
    """Do as `load_dense`, or as `load_centred` with mean and scale, for any dtype and layout.

    Every combination of these would be a kernel to compile.
    """
    for block in row_blocks(X.shape[1], 8 * max(1, len(rows)), CACHED_BYTES):
        part = X[:, block]
        by_column = part.flags.f_contiguous
        part = part.T.take(rows, axis=1) if by_column else part[rows].T
        with np.errstate(over="ignore"):  # as in kernels
            if scaling:
                mean, scale = (each[block, None] for each in scaling)
                part = part.astype(np.float64, copy=False)  # `part` is a copy already
                part -= mean
                part *= scale
            out[block] = part


def is_sparse(X: Any, preprocessing: Standardizer | None) -> bool:
    """Return whether mini-batches of a data set are, by and large, loaded by their nonzeros."""
    if not issparse(X):
        return False
    far = 0 if preprocessing is None else len(preprocessing.far)
    n_samples, n_features = X.shape
    return are_few(X.nnz + n_samples * far, n_samples * n_features)


def load_sparse_batch(
    X: Any, rows: NDArray[np.int64], preprocessing: Standardizer | None, n_features: int
) -> SparseBatch | None:
    """Return rows of a CSR array by their nonzeros, or None where they are too many for that.

    Features whose mean is subtracted have an entry in every row, or, where these would be too many
    entries, a shift, but for those that float32 would then round. For the errors see `load_batch`.
    """
    from ..backends.sparse_input_kernels import gather_rows

    X, rows, wide = _readable(X, rows, preprocessing, n_features, len(rows))
    entries = int((X.indptr[rows + 1] - X.indptr[rows]).sum())
    cells = n_features * len(rows)
    centred = NO_FEATURES if preprocessing is None else preprocessing.centred
    scaling = NO_SCALING if preprocessing is None else preprocessing.numbers(wide)
    shift = NO_SHIFT
    if preprocessing is not None and not are_few(entries + len(centred) * len(rows), cells):
        centred, shift = preprocessing.far, preprocessing.shift
    if not are_few(entries + len(centred) * len(rows), cells):
        return None
    blocks = max(FEWEST_BLOCKS, min(n_features, entries // (BLOCK_ENTRIES * len(rows))))
    part = map(read_only, (X.indptr, X.indices, X.data, rows, *scaling, centred))
    starts, features, values = gather_rows(*part, (blocks, -(-n_features // blocks)))
    return SparseBatch(starts, features, values, shift)


def _readable(
    X: Any,
    rows: NDArray[np.int64],
    preprocessing: Standardizer | None,
    n_features: int,
    batch: int,
) -> tuple[Any, NDArray[np.int64], bool]:
    """Return X and rows as the kernels read them, and whether that is to be in float64."""
    from ..backends import kernels

    sparse = issparse(X)
    if not sparse:
        X = np.asarray(X)
    if X.ndim != 2 or X.shape[1] != n_features or (sparse and X.format != "csr"):
        _refuse(X, n_features)
    if type(rows) is not np.ndarray or rows.dtype != np.int64 or rows.shape != (batch,):
        rows = _as_rows(rows, batch)
    rows = np.ascontiguousarray(rows)
    if not kernels.are_below(rows, X.shape[0]):  # they point to what is read
        wrong = rows[(rows < 0) | (rows >= X.shape[0])][0]
        raise DataError(f"'rows' must be in the range [0, {X.shape[0] - 1}] here. Got {wrong}.")
    if sparse and not kernels.has_columns(X.indptr, X.indices, rows, n_features):
        raise DataError(
            f"X is not a valid CSR array of {n_features} columns: it has indices beyond them, or "
            "pointers beyond its indices. Make it anew from its dense form or its coordinates."
        )
    wide = preprocessing is not None and preprocessing.is_wide(X.dtype)
    if X.dtype.kind not in "biuf":
        raise DataError(f"X must hold real numbers, not {X.dtype}. Encode other columns first.")
    if not sparse:
        return X, rows, wide
    is_known = X.dtype.str[1:] in KERNEL_TYPES and X.dtype.isnative
    has_duplicates = not X.has_canonical_format  # whose values are to be added up
    if has_duplicates or not is_known:
        X, rows = X[rows], np.arange(batch)
    if not is_known:
        X = X.astype(np.float64 if wide else np.float32)
    if has_duplicates:
        X.sum_duplicates()
    return X, rows, wide


def _refuse(X: Any, n_features: int) -> NoReturn:
    """Say why X is not a data set of a network with so many inputs."""
    if X.ndim == 2 and X.shape[1] == n_features:
        raise DataError(f"X must be an array or CSR, not {X.format.upper()}. Pass X.tocsr().")
    raise DataError(
        f"X must have shape (n_samples, {n_features}), as the network has {n_features} inputs. "
        f"Got {X.shape} instead. Pass the columns that the model was trained on."
    )


def _as_rows(rows: Any, batch: int) -> NDArray[np.int64]:
    """Return the numbers of rows as int64 (batch,)."""
    rows = np.asarray(rows)
    if rows.dtype.kind not in "iu":
        raise DataError(
            f"'rows' must hold the numbers of rows, integers, not {rows.dtype}. "
            "Of a mask pass numpy.flatnonzero(mask)."
        )
    if rows.shape != (batch,):
        raise DataError(f"'rows' must have shape ({batch},), one a sample. Got {rows.shape}.")
    return rows.astype(np.int64)


def _load_sparse(
    X: Any,
    rows: NDArray[np.int64],
    preprocessing: Standardizer | None,
    out: NDArray[np.float32],
    wide: bool,
) -> None:
    from ..backends import kernels

    if preprocessing is None:
        kernels.load_sparse(X.indptr, X.indices, X.data, rows, out)
        return
    scaling = map(read_only, preprocessing.numbers(wide))
    kernels.load_standardised(X.indptr, X.indices, X.data, rows, *scaling, out)


def dense_rows(X: Any, rows: NDArray[np.int64]) -> NDArray[np.floating]:
    """Return rows of a data set as (batch, n_features), float64 where float32 may lose values."""
    part = X[rows]
    dtype = np.float32 if part.dtype.str[1:] in EXACT else np.float64
    dense: NDArray[np.floating] = np.asarray(part.todense() if issparse(part) else part, dtype)
    return dense

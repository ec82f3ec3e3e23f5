"""Whether float32 is enough for the values of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .checks import row_blocks

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from .standardizer import Standardizer

# A rounding may move a value by this share of its column's standard deviation: 1 / 1024.
TOLERANCE = 2.0**-10
FLOAT32_HALF_STEP = 2.0**-24  # the largest relative error of rounding to float32
BLOCK_BYTES = 2**22


class Rounding:
    """What rounding to float32 does to columns that come in blocks of rows."""

    def __init__(self, n_columns: int) -> None:
        self.count = 0
        self.origin: NDArray[np.float64] | None = None  # the first row, so that squares stay exact
        self.sums = np.zeros(n_columns)
        self.squares = np.zeros(n_columns)
        self.error = np.zeros(n_columns)

    def add(self, block: NDArray[np.float64], rounded: NDArray[np.float32]) -> None:
        """Count a block (rows, n_columns), and the same in float32."""
        if not len(block):
            return
        if (absent := np.isnan(block)).any():  # missing values, which will be filled with means
            present = np.where(absent, 0, block)
            means = present.sum(axis=0) / np.maximum(1, (~absent).sum(axis=0))
            block = np.where(absent, means, block)
            rounded = np.where(absent, block, rounded)
        if self.origin is None:
            self.origin = block[0].copy()
        np.maximum(self.error, np.abs(block - rounded).max(axis=0), out=self.error)
        shifted = block - self.origin
        self.count += len(block)
        self.sums += shifted.sum(axis=0)
        self.squares += np.einsum("ij,ij->j", shifted, shifted)

    def suspects(self) -> NDArray[np.int64]:
        """Return the columns that lose more than `TOLERANCE` of their standard deviation.

        Values that are the same in all rows, in a file of one row for instance, say nothing of how
        finely a column is divided: such columns are suspects unless they are exact.
        """
        count = max(1, self.count)
        variance = np.maximum(self.squares / count - (self.sums / count) ** 2, 0)
        return _suspects(self.error, variance)


def _suspects(error: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.flatnonzero(error > TOLERANCE * np.sqrt(variance))


def float32_prints_the_same(values: NDArray[np.float64]) -> bool:
    """Return whether values are decimals that float32 holds: it keeps them apart as text does."""
    distinct = np.unique(values[~np.isnan(values)])
    printed = distinct.astype(np.float32).astype(np.str_)
    return bool((printed.astype(np.float64) == distinct).all())


def narrowest(X: Any) -> Any:
    """Return X, an array or CSR array of numbers, in float32 if that is enough, else in float64."""
    if np.can_cast(X.dtype, np.float32):
        return X.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        loses = _dense_loses(X) if isinstance(X, np.ndarray) else _sparse_loses(X)
        return X.astype(np.float64 if loses else np.float32, copy=False)


def needs_float64(preprocessing: Standardizer | None) -> bool:
    """Return whether a network has a feature whose values are far from 0 compared with its scale.

    The rows to predict may be others, and too few to tell.
    """
    if preprocessing is None:
        return False
    distance = np.abs(preprocessing.mean.astype(np.float64) * preprocessing.scale)
    return bool((distance * FLOAT32_HALF_STEP > TOLERANCE).any())


def _dense_loses(X: NDArray) -> bool:
    rounding = Rounding(X.shape[1])
    for rows in row_blocks(len(X), 8 * max(1, X.shape[1]), BLOCK_BYTES):
        block = X[rows].astype(np.float64)
        rounding.add(block, block.astype(np.float32))
    return not all(float32_prints_the_same(X[:, k].astype(float)) for k in rounding.suspects())


def _sparse_loses(X: csr_array) -> bool:
    from sklearn.utils.sparsefuncs import mean_variance_axis

    exact = X.data.astype(np.float64)
    error = np.zeros(X.shape[1])
    np.maximum.at(error, X.indices, np.abs(exact - X.data.astype(np.float32)))
    if not error.any():
        return False
    wide = type(X)((exact, X.indices, X.indptr), shape=X.shape)
    suspect = np.zeros(X.shape[1], bool)
    suspect[_suspects(error, mean_variance_axis(wide, axis=0)[1])] = True
    return not float32_prints_the_same(exact[suspect[X.indices]])

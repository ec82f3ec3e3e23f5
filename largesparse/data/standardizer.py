"""Shift and scale of features, and the statistics behind them, in blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .checks import BLOCK_BYTES, LARGEST, STEPS, row_blocks

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ROUNDING = 1e-13  # deviations below this share of the mean are what sums in float64 leave behind
SPARSE = 0.05  # share of nonzeros up to which they alone are computed: docs/measured.md
MOSTLY = 0.5  # share of a feature's values that are stored, above which its mean is subtracted
EXACT = {"b1", "u1", "u2", "i1", "i2", "f2", "f4"}  # dtypes whose values float32 has all of


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Shift and scale of every feature: the standardised value is (x - mean) * scale.

    mean (n_features,), scale (n_features,), both float64. Values that float32 does not hold are
    standardised in float64, and rounded then.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name in ("mean", "scale"):  # float32 in models of earlier releases
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))

    @classmethod
    def fit(
        cls,
        X: NDArray | csr_array,
        rows: NDArray[np.integer] | None = None,
        weights: NDArray[np.floating] | None = None,
        *,
        centered: bool = False,
    ) -> Standardizer:
        """Take mean and 1 / standard deviation (divisor n) of the features of X.

        A constant feature gets scale 1. Of an X that is computed as sparse (`are_few`), unless all
        are to be `centered`, only features stored in more than half of the rows are shifted. The
        others keep their zeros: mean 0, and a scale with which the mean square of a feature is as
        the root of the share of rows that store it, and 1 on average. With 1 for each, rare
        features would outweigh all.

        Parameters
        ----------
        X : array or CSR array of shape (n_samples, n_features)
        rows : integer array, optional
            The rows that count, by default all.
        weights : (n_samples,), optional
            What each row counts, 0 or more and of a finite sum; by default 1.
        centered : bool
            Whether every feature is shifted, also of a sparse X.
        """
        mean, deviation = moments(X, rows, weights)
        cells = X.shape[0] * X.shape[1]
        if not (centered or isinstance(X, np.ndarray)) and are_few(X.nnz, cells):
            part = X if rows is None else X[rows]
            stored = np.bincount(part.indices, minlength=X.shape[1])
            kept = stored <= MOSTLY * part.shape[0]
            roots = np.sqrt(stored[kept] / part.shape[0])
            roots /= roots[roots > 0].mean() if roots.any() else 1
            with np.errstate(invalid="ignore", divide="ignore"):  # of features without entries
                scaled = np.hypot(deviation[kept], mean[kept]) / np.sqrt(roots)
            deviation[kept] = np.nan_to_num(scaled)
            mean[kept] = 0
        deviation[deviation < np.finfo(np.float64).tiny] = 1
        return cls(mean, 1 / deviation)

    @cached_property
    def narrow(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Mean and scale in float32, where it has a number for every scale."""
        if self.scale.max(initial=0) > LARGEST:
            return None
        return self.mean.astype(np.float32), self.scale.astype(np.float32)

    @cached_property
    def centred(self) -> NDArray[np.int64]:
        """The features whose mean is subtracted, ascending."""
        return np.flatnonzero(self.mean)

    @cached_property
    def far(self) -> NDArray[np.int64]:
        """Those whose mean is more than a deviation from 0, ascending: few of a row's are zeros.

        Differences of a value and such a mean are not left to float32.
        """
        return np.flatnonzero(np.abs(self.mean * self.scale) > 1)

    @cached_property
    def shift(self) -> NDArray[np.float32]:
        """What is subtracted from the scaled values of the others: mean · scale (n_features,)."""
        shift = (self.mean * self.scale).astype(np.float32)
        shift[self.far] = 0
        return shift

    def numbers(self, wide: bool) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return mean and scale, as the kernels take them."""
        return (self.mean, self.scale) if wide or self.narrow is None else self.narrow

    def is_wide(self, dtype: np.dtype[Any]) -> bool:
        """Return whether values of a dtype are to be standardised in float64."""
        return dtype.str[1:] not in EXACT or self.narrow is None

    def apply_(self, block: NDArray[np.float32]) -> None:
        """Standardise `block`, feature-major float32 of shape (n_features, batch), in place."""
        mean, scale = self.numbers(wide=False)
        np.subtract(block, mean[:, None], out=block, casting="same_kind")
        np.multiply(block, scale[:, None], out=block, casting="same_kind")


def are_few(entries: int, cells: int) -> bool:
    """Return whether so few nonzeros are computed as such, and not as dense inputs."""
    return entries <= SPARSE * cells


def moments(
    X: NDArray | csr_array,
    rows: NDArray[np.integer] | None = None,
    weights: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation (divisor n) of the columns of X, float64 (n_columns,).

    They are accumulated in float64 over blocks of rows (Chan, Golub and LeVeque 1983), less the
    first row, so that a constant column has the deviation 0 exactly. X is as `check_X` returns it;
    `rows` are those that count, by default all, each as much as its weight, 0 or more.
    """
    n_columns = X.shape[1]
    chosen = np.arange(X.shape[0]) if rows is None else np.sort(rows)  # sorted reads faster
    first: Any = X[chosen[:1]]
    shift = (first if isinstance(X, np.ndarray) else first.toarray())[0].astype(np.float64)
    row_bytes = 8 * n_columns if isinstance(X, np.ndarray) else 8 * X.nnz // X.shape[0] + 8
    count, mean, squares = 0.0, np.zeros(n_columns), np.zeros(n_columns)
    # Merging a block costs O(n_columns), so a block of a very wide X holds at least as much.
    for block in row_blocks(len(chosen), row_bytes, max(BLOCK_BYTES, 64 * n_columns)):
        part = X[block] if rows is None else X[chosen[block]]
        part_weights = np.ones(part.shape[0]) if weights is None else weights[chosen[block]]
        part_weights = part_weights.astype(np.float64)
        added = float(part_weights.sum())
        if added == 0:
            continue
        part_mean, part_squares = _block_moments(part, shift, part_weights, added)
        part_mean -= mean
        count += added
        mean += part_mean * (added / count)
        squares += part_squares
        squares += part_mean**2 * (added * (count - added) / count)
    mean += shift
    deviation = np.sqrt(squares / max(count, 1e-300))
    deviation[deviation <= ROUNDING * np.abs(mean)] = 0
    return mean, deviation


def refuse_rounding(X: NDArray | csr_array, rows: NDArray[np.integer]) -> None:
    """Refuse an X whose rows float32 cannot tell apart, where it is not standardised first."""
    if X.dtype.str[1:] in EXACT:
        return
    mean, deviation = moments(X, rows)
    steps = np.finfo(np.float32).eps * np.abs(mean)
    for column in np.flatnonzero((deviation > 0) & (deviation < STEPS / 4 * steps)):
        values = X[:, [column]]
        if abs(values - values.astype(np.float32)).max() > 0:
            raise DataError(
                f"X has values in column {column} that differ by too little "
                f"({deviation[column]:.3g}), compared with their size ({abs(mean[column]):.3g}), "
                "to be told apart in float32, which training is in. Set standardize=True, or "
                "subtract their mean first."
            )


def _block_moments(
    X: NDArray | csr_array,
    shift: NDArray[np.float64],
    weights: NDArray[np.float64],
    total: float,
) -> tuple[NDArray, NDArray]:
    """Return mean and sum of squared deviations of every column of X - shift, rows weighted."""
    if isinstance(X, np.ndarray):
        centred = X - shift
        mean = np.einsum("i,ij->j", weights, centred) / total
        centred -= mean
        np.square(centred, out=centred)
        return mean, np.einsum("i,ij->j", weights, centred)
    n_columns = len(shift)
    each = np.repeat(weights, np.diff(X.indptr))  # of the stored values
    values = X.data - shift[X.indices]
    stored = np.bincount(X.indices, weights=each, minlength=n_columns)
    full = np.bincount(X.indices, minlength=n_columns) == X.shape[0]
    zeros = np.where(full, 0, np.maximum(total - stored, 0))
    sums = np.bincount(X.indices, weights=each * values, minlength=n_columns)
    mean = (sums - zeros * shift) / total
    values -= mean[X.indices]
    squares = np.bincount(X.indices, weights=each * values**2, minlength=n_columns)
    return mean, squares + zeros * (shift + mean) ** 2

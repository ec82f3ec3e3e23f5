"""What becomes of the values of a table: missing ones, logarithms, and numbers of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError
from .frames import some_of

FEW_ROWS = 20  # of which chance can make a column look like a row number


def keep_present(X: NDArray, *rows: Any) -> tuple[Any, ...]:
    """Return the rows without a missing value, of X and of what goes with it (or is None)."""
    present = ~np.isnan(X).any(axis=1)
    return tuple(part if part is None else part[present] for part in (X, *rows))


def fill_with_means(X: NDArray, means: ArrayLike | None, names: list[str] | None) -> NDArray:
    """Return X with its columns' means, or those given, where values are missing."""
    absent = np.isnan(X)
    if not absent.any():
        return X
    if means is None:
        counts = (~absent).sum(axis=0)
        if (empty := np.flatnonzero(counts == 0)).size:
            columns = [k if names is None else names[k] for k in empty.tolist()]
            raise DataError(
                f"The columns {some_of(columns)} have no value at all. Leave them out by drop=… "
                "(--drop)."
            )
        means = np.where(absent, 0, X).sum(axis=0, dtype=np.float64) / counts
    return np.where(absent, np.asarray(means).astype(X.dtype), X)


def logarithms(X: Any) -> Any:
    """Return log(1 + x) of an array, or of what a CSR array stores."""
    values = X if isinstance(X, np.ndarray) else X.data
    if (values < 0).any():
        raise DataError("The table has negative values, which have no logarithm. Leave --log out.")
    return np.log1p(X) if isinstance(X, np.ndarray) else X.log1p()


def row_numbers(X: NDArray, names: list[str] | None) -> list[str]:
    """Return a warning where a column counts the rows, or the first one seems to name them."""
    if len(X) < FEW_ROWS or X.shape[1] < 2:
        return []
    suspects = []
    for k in np.flatnonzero((X[1:3] - X[:2] == 1).all(axis=0)).tolist():
        if (np.diff(X[:, k]) == 1).all():
            suspects.append(k)
    first = X[:, 0]
    differ = _whole(first) and len(np.unique(first)) == len(X)
    if differ and 0 not in suspects and not _whole(X[:, 1:9]):
        suspects.insert(0, 0)
    called = [k if names is None else names[k] for k in suspects]
    return [
        f"warning: the column {name!r} looks like a row number or a name of rows, which says "
        f"nothing of other rows: is it a feature? If not, say --id {name} or --drop {name}"
        for name in called
    ]


def _whole(values: NDArray) -> bool:
    return bool((values == np.trunc(values)).all())

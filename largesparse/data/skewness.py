"""A slope for All-ReLU from the skewness of the data (section 5.2 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ..errors import DataError
from .checks import row_blocks

LEAST, MOST = 0.05, 0.75  # the smallest and the largest slope of the paper's Table 7
BLOCK = 1 << 20  # values looked at together


def alpha_from_skewness(X: Any) -> float:
    """Return the slope α of All-ReLU that suits the skewness of the data.

    The paper proposes to choose α by "the observed skewness of the input data distribution":
    where the input is skewed to the left side, "the chosen slope should reflect the level of
    distortion". It gives no formula. Here α is the skewness of all values of X taken together,
    E(x - m)³ / σ³, and at least 0.05 and at most 0.75, the bounds of the slopes in Table 7. The
    skewness is above 0 where most values lie on the left, among the small ones. On Madelon,
    FashionMNIST and HIGGS α comes close to what the paper's grid search found: 0.52 for 0.5,
    0.70 for 0.6, and 0.05 for 0.05.

    Parameters
    ----------
    X : (n_samples, n_features) dense, or sparse (whose zeros count)
        The data before they are standardised.

    Returns
    -------
    alpha : float in [0.05, 0.75]
        0.05 where all values are equal.

    Raises
    ------
    DataError
        Where X is empty, or has a value that is not finite.

    Examples
    --------
    >>> alpha_from_skewness(np.array([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.5]]))
    0.75
    """
    count = math.prod(X.shape)
    stored = X.data if issparse(X) else X
    if count == 0:
        raise DataError(f"The data have no values: their shape is {X.shape}.")
    mean = sum(float(block.sum()) for block in _blocks(stored)) / count
    if not math.isfinite(mean):
        raise DataError("The data have a value that is not finite. Remove or replace it.")
    zeros = count - X.nnz if issparse(X) else 0
    squares, cubes = zeros * mean**2, -zeros * mean**3
    for block in _blocks(stored):
        block -= mean
        squares += float(block @ block)
        cubes += float(block**2 @ block)
    deviation = math.sqrt(squares / count)
    if deviation <= 1e-9 * abs(mean):  # of equal values only rounding is left
        return LEAST
    return min(MOST, max(LEAST, cubes / count / deviation**3))


def _blocks(values: Any) -> Iterator[NDArray[np.float64]]:
    """Yield copies of a few rows at a time, flat."""
    for block in row_blocks(len(values), max(1, math.prod(values.shape[1:])), BLOCK):
        yield np.asarray(values[block]).astype(np.float64).ravel()

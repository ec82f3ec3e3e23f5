"""A task with many labels and many features, most of which a row does not have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError, check_range, check_share
from .datasets import Dataset
from .label_sets import LabelSets

OWNER = "make_extreme_classification"
SIGNATURE = 16  # features that a label shows itself by
COMMON = 0.75  # exponent of the frequencies of features that say nothing


def make_extreme_classification(
    n_samples: int = 10_000,
    n_features: int = 10_000,
    n_labels: int = 5_000,
    *,
    labels_per_row: float = 5.0,
    nonzeros: float = 75.0,
    exponent: float = 1.0,
    informative: float = 0.5,
    test_fraction: float = 0.2,
    random_state: int = 0,
) -> Dataset:
    """Make a task like those of extreme multi-label classification, in O(its nonzeros).

    The label of rank r has a frequency in proportion to r^-exponent. Every label has 16 features of
    its own choice. Of the features of a row, the share `informative` are drawn from those of its
    labels, and the others are drawn by a power law. Values are positive, those of features of
    labels twice as large on average, and rows have the length 1.

    Parameters
    ----------
    n_samples, n_features, n_labels : int
        Rows of the training and the test part together, columns of X, and of y.
    labels_per_row, nonzeros : float
        Labels and features of a row, at least 1; their numbers follow a Poisson distribution, and
        what is drawn twice counts once.
    exponent : float
        0: all labels are as frequent.
    informative : float
        In [0, 1].
    test_fraction : float
        In (0, 1): the share of the test part, the last rows.
    random_state : int

    Returns
    -------
    Dataset
        X_train and X_test are csr_array float32, y_train and y_test csr_array int64.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Examples
    --------
    >>> data = make_extreme_classification(1000, 500, 200)
    >>> data.X_train.shape, data.y_test.shape
    ((800, 500), (200, 200))
    """
    for name, count in {"n_features": n_features, "n_labels": n_labels}.items():
        check_range(name, count, OWNER, low=2, high=2**31 - 2, integer=True)
    check_range("n_samples", n_samples, OWNER, low=2, high=2**31 - 2, integer=True)
    check_range("labels_per_row", labels_per_row, OWNER, low=1, high=n_labels)
    check_range("nonzeros", nonzeros, OWNER, low=1, high=n_features)
    check_range("exponent", exponent, OWNER, low=0, high=100)
    check_range("informative", informative, OWNER, low=0, high=1)
    check_range("random_state", random_state, OWNER, low=0, high=2**64 - 1, integer=True)
    check_share("test_fraction", test_fraction, OWNER)
    n_test = int(np.ceil(test_fraction * n_samples))
    if n_test >= n_samples:
        raise ParameterError(
            f"The 'test_fraction' parameter of {OWNER} leaves none of {n_samples} rows to train "
            "on. Lower it."
        )
    rng = np.random.default_rng(random_state)
    signatures = rng.integers(n_features, size=(n_labels, SIGNATURE), dtype=np.int32)
    labels = _pattern(_draw_rows(rng, n_samples, labels_per_row, n_labels, exponent), n_labels)
    X = _features(rng, labels, signatures, n_features, nonzeros, informative)
    y = labels.to_csr()  # scikit-learn 1.9 confuses more than 127 labels in int8
    stop = n_samples - n_test
    name = f"extreme-{n_samples}x{n_features}-{n_labels}"
    return Dataset(X[:stop], y[:stop], X[stop:], y[stop:], name)


def _draw_rows(
    rng: np.random.Generator, n_rows: int, mean: float, n: int, exponent: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw 1 or more of n things for every row, by a power law over a random order of them.

    Return rows and things, int64, not in order.
    """
    counts = 1 + rng.poisson(mean - 1, n_rows)
    chances = np.cumsum(np.arange(1, n + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(chances, rng.random(counts.sum()) * chances[-1], side="right")
    return np.repeat(np.arange(n_rows), counts), rng.permutation(n)[np.minimum(ranks, n - 1)]


def _pattern(cells: tuple[NDArray[np.int64], NDArray[np.int64]], n_columns: int) -> LabelSets:
    """Return rows and columns as a pattern, what is there twice once; every row has one."""
    rows, columns = np.divmod(np.unique(cells[0] * n_columns + cells[1]), n_columns)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows))])
    return LabelSets(indptr, columns.astype(np.int32), n_columns)


def _features(
    rng: np.random.Generator,
    labels: LabelSets,
    signatures: NDArray[np.int32],
    n_features: int,
    nonzeros: float,
    informative: float,
) -> Any:
    """Return the features of rows with these labels, csr_array float32 of rows of length 1."""
    from scipy.sparse import csr_array

    n_rows = len(labels)
    rows, columns = _draw_rows(rng, n_rows, nonzeros, n_features, COMMON)
    telling = np.flatnonzero(rng.random(len(rows)) < informative)
    owner = rows[telling]
    own = np.diff(labels.indptr)[owner]
    which = labels.indices[labels.indptr[owner] + (rng.random(len(owner)) * own).astype(np.int64)]
    columns[telling] = signatures[which, rng.integers(SIGNATURE, size=len(owner))]
    values = rng.standard_exponential(len(rows), dtype=np.float32) + np.float32(0.1)
    values[telling] *= 2
    cells = rows.astype(np.int32), columns.astype(np.int32)
    X = csr_array((values, cells), shape=(n_rows, n_features))
    X.sum_duplicates()
    lengths = np.sqrt(np.add.reduceat(X.data.astype(np.float64) ** 2, X.indptr[:-1]))
    X.data = (X.data / np.repeat(lengths, np.diff(X.indptr))).astype(np.float32)
    return X

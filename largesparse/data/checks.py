"""Checks of input data and targets, and class indices for labels.

Nothing here makes a second copy of X: checks go through it in blocks of rows, so that X may be a
memory map larger than the memory.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BLOCK_BYTES = 2**20  # of X per block: its float64 temporaries stay in the cache
LARGEST = float(np.finfo(np.float32).max) / 2  # so that x - mean cannot overflow float32
LARGEST_TARGET = float(np.finfo(np.float64).max) / 4  # so that y - mean cannot overflow float64
STEPS = 2**10  # of float32 that the values of a target must span


def check_X(X: Any, n_features: int | None = None) -> NDArray | csr_array:
    """Return X as a 2-D array or CSR array of finite real numbers, or raise a DataError.

    Nested lists, data frames and memory maps are welcome; `n_features` is what a fitted model
    expects. Dense input keeps its dtype and memory. Sparse input becomes CSR with sorted indices
    and no duplicates (a copy only if it was not so already) and keeps its index dtype. Magnitudes
    are at most half the largest float32, which training is in.
    """
    from scipy.sparse import issparse

    sparse = issparse(X)
    if not sparse:
        X = _as_array(X, "X")
    if X.ndim != 2:
        hint = "X.reshape(-1, 1) or X.reshape(1, -1)" if X.ndim < 2 else "X.reshape(len(X), -1)"
        raise DataError(
            f"X must have 2 dimensions, (samples, features), but has {X.ndim}. "
            f"Reshape your data, for instance with {hint}."
        )
    for count, what in zip(X.shape, ("sample", "feature"), strict=True):
        if count == 0:
            raise DataError(
                f"X has 0 {what}(s) (shape={X.shape}) while a minimum of 1 is required."
            )
    if n_features is not None and X.shape[1] != n_features:
        raise DataError(
            f"X has {X.shape[1]} features, but SparseMLP is expecting {n_features} features as "
            "input. Pass the columns that the model was trained on."
        )
    if X.dtype.kind == "O" and not sparse:
        X = _numbers_from_objects(X)
    elif X.dtype.kind == "c":
        raise DataError("Complex data not supported: pass X.real and X.imag as separate features.")
    elif X.dtype.kind not in "biuf":
        raise DataError(
            f"X must hold real numbers, not {X.dtype}. Encode other columns as numbers first, "
            "for instance with sklearn.preprocessing.OneHotEncoder."
        )
    if sparse:
        X = _canonical_csr(X)
    _check_finite(X)
    return X


def check_X_y(X: Any, y: Any, n_features: int | None = None) -> tuple[NDArray | csr_array, NDArray]:
    """Return `check_X(X, n_features)` and the labels y as an array of shape (n_samples,)."""
    X, labels = check_X(X, n_features), _label_vector(y)
    check_lengths(X, labels)
    return X, labels


def check_lengths(X: NDArray | csr_array, y: NDArray) -> None:
    """Raise a DataError unless X and y have as many samples."""
    if X.shape[0] != len(y):
        raise DataError(
            f"X has {X.shape[0]} samples but y has {len(y)} labels. Pass one label a sample."
        )


def check_targets(y: Any, n_targets: int) -> NDArray[np.float64]:
    """Return the finite targets of a regression as float64 (n_samples, n_targets), or raise."""
    if y is None:
        raise DataError("A regressor requires y to be passed, but the target y is None.")
    targets = _as_array(y, "y")
    if targets.ndim == 1:
        targets = targets[:, None]
    if targets.ndim != 2 or targets.shape[1] != n_targets or not len(targets):
        raise DataError(
            f"y must have shape (n_samples, {n_targets}), but has shape {np.shape(y)}. "
            "Pass one row of numbers a sample."
        )
    try:
        exact = targets.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"y must hold numbers: {error}. Encode them first.") from error
    if (place := first_true(~(np.abs(exact) <= LARGEST_TARGET))) is not None:
        raise DataError(
            f"y contains {exact[place]} at row {place[0]}: NaN, infinity or too large for "
            "float64. Remove or rescale it first."
        )
    return exact


def narrow_targets(targets: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return targets as float32, or raise where that cannot hold them or tell them apart."""
    remedy = (
        "Shift and scale the targets to about mean 0 and deviation 1, as SparseMLPRegressor does, "
        "and set the network's target_mean and target_scale to what was taken out."
    )
    if (place := first_true(np.abs(targets) > LARGEST)) is not None:
        raise DataError(
            f"y contains {targets[place]:.6g} at row {place[0]}, too large for float32, which "
            f"training is in. {remedy}"
        )
    narrow = targets.astype(np.float32)
    spans = np.ptp(targets, axis=0)
    steps = np.finfo(np.float32).eps * np.abs(targets).max(axis=0)
    if np.any((spans > 0) & (spans < STEPS * steps) & (narrow != targets).any(axis=0)):
        raise DataError(
            "y has a column whose values differ by too little, compared with their size, to be "
            f"told apart in float32, which training is in. {remedy}"
        )
    return narrow


def check_labels(y: Any) -> NDArray[Any]:
    """Return class labels (n_samples,) as booleans, integers, whole floats or strings, or raise."""
    labels = _label_vector(y)
    if labels.dtype.kind == "O":
        kind = str if isinstance(labels[0], str) else (numbers.Real, np.bool_)
        for row, label in enumerate(labels):
            if not isinstance(label, kind):
                raise DataError(
                    f"Unknown label type: y has {label!r:.50} at row {row}. "
                    "Pass labels that are all integers or all strings, with none missing."
                )
        labels = np.array(labels.tolist())
    if labels.dtype.kind == "f":
        if (place := first_true(~np.isfinite(labels))) is not None:
            raise DataError(f"y has a label that is NaN or infinite at row {place[0]}. Remove it.")
        if (place := first_true(np.abs(labels) > 2.0**53)) is not None:
            raise DataError(
                f"y has {labels[place]} at row {place[0]}, beyond the whole numbers that a float "
                "tells apart. Pass such labels as strings, or as integers."
            )
        if (place := first_true(labels != np.trunc(labels))) is not None:
            raise DataError(
                f"Unknown label type: y is continuous (row {place[0]} is {labels[place]}). "
                "Pass class labels, integers or strings; this is a classifier."
            )
    if labels.dtype.kind not in "biufUS":
        raise DataError(
            f"Unknown label type: {labels.dtype}. Pass integers or strings as class labels."
        )
    return labels


def encode_labels(
    y: Any, classes: ArrayLike | None = None
) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Return class indices (n_samples,) and classes (n_classes,): y is `classes[indices]`.

    `classes` are the distinct labels of a fitted model, among which those of y must be; by default
    the labels in y, sorted, of which there must be two.
    """
    labels = check_labels(y)
    if classes is None:
        known, indices = np.unique(labels, return_inverse=True)
        if len(known) == 1:
            raise DataError(
                f"y has one class only, {known.tolist()[0]!r}; a classifier needs at least two. "
                "Check how the samples were selected."
            )
        return indices.astype(np.int32), known
    known = np.asarray(classes)
    order = np.argsort(known)
    position = np.minimum(np.searchsorted(known, labels, sorter=order), len(known) - 1)
    indices = order[position]
    unknown = labels[known[indices] != labels]
    if len(unknown):
        names = np.unique(unknown).tolist()
        raise DataError(
            f"y holds labels that are not among the {len(known)} known classes: "
            f"{', '.join(map(repr, names[:5]))}{', ...' if len(names) > 5 else ''}. "
            "Remove these samples, or train with labels like theirs."
        )
    return indices.astype(np.int32), known


def refuse_masked(**arrays: Any) -> None:
    """Raise a DataError if one of the arrays has masked values, which NumPy would take as they are.

    Rows of a list may be masked arrays, too.
    """
    for name, values in arrays.items():
        if values is None or type(values) is np.ndarray:  # every mini-batch comes here
            continue
        parts = values if isinstance(values, (list, tuple)) else (values,)
        if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
            raise DataError(f"{name} has masked values. Fill or remove them first.")


def _as_array(values: Any, name: str) -> NDArray:
    refuse_masked(**{name: values})
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} cannot be made an array: {error}") from error


def _numbers_from_objects(X: NDArray) -> NDArray[np.float64]:
    """Turn an array of Python objects, as data frames of mixed columns give, into numbers."""
    for row, values in enumerate(X):
        for column, value in enumerate(values):
            if not isinstance(value, (numbers.Real, np.bool_)):
                raise DataError(
                    f"X must hold real numbers, but row {row}, column {column} is {value!r:.50}. "
                    "Encode or impute such columns first."
                )
    return X.astype(np.float64)


def _canonical_csr(X: Any) -> csr_array:
    from scipy.sparse import csr_array

    csr = csr_array(X)
    try:
        csr.check_format(full_check=True)  # kernels trust indices, so a wrong one must stop here
    except ValueError as error:
        raise DataError(f"X is not a valid sparse array: {error}") from error
    if not csr.has_canonical_format:
        csr = csr.copy()  # the caller's arrays stay as they are
        csr.sum_duplicates()
    return csr


def _check_finite(X: NDArray | csr_array) -> None:
    values = X if isinstance(X, np.ndarray) else X.data
    if values.dtype.kind != "f":
        return
    row_bytes = values.itemsize * max(1, values[:1].size)
    for block in row_blocks(len(values), row_bytes, BLOCK_BYTES):
        part = values[block]
        with np.errstate(invalid="ignore", over="ignore"):  # NaN, and long doubles beyond float64
            if float(part.min()) >= -LARGEST and float(part.max()) <= LARGEST:
                continue
            bad = ~(np.abs(part.astype(np.float64)) <= LARGEST)
        first = np.unravel_index(bad.argmax(), bad.shape)
        value = part[first]
        if isinstance(X, np.ndarray):
            row, column = block.start + int(first[0]), int(first[1])
        else:
            position = block.start + int(first[0])
            row = int(np.searchsorted(X.indptr, position, side="right")) - 1
            column = int(X.indices[position])
        if np.isnan(value):
            what = "NaN"
        elif np.isinf(value):
            what = "infinity (inf)"
        else:
            what = f"{value:.3g}, too large for float32 (the limit is {LARGEST:.2g}),"
        raise DataError(
            f"X contains {what} at row {row}, column {column}. Remove, impute or rescale it first."
        )


def _label_vector(y: Any) -> NDArray:
    """Return y as a 1-D array that is not empty."""
    if y is None:
        raise DataError(
            "A classifier requires y to be passed, but the target y is None. Pass class labels."
        )
    if hasattr(y, "toarray"):
        raise DataError("y is a sparse array. Pass a 1-D array of class labels.")
    labels = _as_array(y, "y")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.ravel()
    if labels.ndim != 1:
        raise DataError(
            f"y must be one-dimensional, but has shape {labels.shape}. "
            "Pass class labels, not one-hot rows: y.argmax(axis=1)."
        )
    if not len(labels):
        raise DataError("y is empty. Pass one label a sample.")
    return labels


def first_true(found: NDArray[np.bool_]) -> tuple[int, ...] | None:
    """Return the place of the first True of an array, or None."""
    return tuple(map(int, np.unravel_index(found.argmax(), found.shape))) if found.any() else None


def row_blocks(n_rows: int, row_bytes: int, block_bytes: int) -> Iterator[slice]:
    """Yield slices of rows that take about so many bytes."""
    step = max(1, block_bytes // row_bytes)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))

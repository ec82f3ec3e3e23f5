"""A matrix as the connections of a layer: what it may be, and its distinct cells."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import count_dtype
from ..errors import DataError, ParameterError
from .topology import Topology, checked_topology

OWNER = "GivenTopology"
KINDS = (
    "a SciPy sparse matrix or an array (n_in, n_out), a Topology, or a callable of n_in, n_out and "
    "a generator that returns one"
)


def check_kind(matrix: Any, name: str, called: bool = False) -> None:
    """Raise where something is no matrix, nor a callable that may return one."""
    from scipy.sparse import issparse

    if callable(matrix) and not called:
        return
    if isinstance(matrix, Topology):
        try:
            counts = np.dtype(count_dtype(len(matrix.indices)))
            if (matrix.indptr.dtype, matrix.indices.dtype) != (counts, np.int32):
                raise ValueError(f"indptr is not {counts}, or indices are not int32")
            checked_topology(matrix.n_in, matrix.n_out, matrix.indptr, matrix.indices, "Topology")
        except ValueError as error:
            raise ParameterError(
                f"The {name!r} parameter of {OWNER} is damaged: {error}."
            ) from None
        return
    if issparse(matrix) or isinstance(matrix, np.ndarray):
        if matrix.ndim == 2 and matrix.dtype.kind in "biuf":
            return
        got = f"{matrix.dtype} of shape {matrix.shape}"
    else:
        got = type(matrix).__name__
        if isinstance(matrix, str | Path):
            got = f"{str(matrix)!r}, which {OWNER}.read reads if it is a file,"
    owner = "of a network, where it is called, must return" if called else f"of {OWNER} must be"
    raise ParameterError(
        f"The {name!r} parameter {owner} {KINDS}, of numbers or booleans. Got {got} instead."
    )


def is_frame(matrix: Any) -> bool:
    """Return whether something is a data frame with names of rows and columns."""
    return all(hasattr(matrix, name) for name in ("index", "columns", "axes", "to_numpy"))


def plain_matrix(matrix: Any) -> Any:
    """Return a data frame, also one of sparse columns, or a NumPy matrix as an array of its own."""
    if isinstance(matrix, np.matrix):
        return np.asarray(matrix)
    if not is_frame(matrix):
        return matrix
    with suppress(AttributeError, TypeError, ValueError):  # not all are sparse, around zero
        return matrix.sparse.to_coo()
    found = matrix.to_numpy()
    with suppress(TypeError, ValueError):  # of columns that may have missing values
        return found.astype(float) if found.dtype == object else found
    return found


def cells_of(
    matrix: Any, weights: bool, inputs: Sequence[str] | None, outputs: Sequence[str] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
    """Return rows, columns and weights of the distinct cells of a matrix, row-major."""
    from scipy.sparse import coo_array, issparse

    if isinstance(matrix, Topology):
        rows, columns = matrix.rows().astype(np.int64), matrix.indices.astype(np.int64)
        _check_count(len(rows))
        if weights:
            raise ParameterError(f"A Topology has no weights for {OWNER}. Pass weights=False.")
        return rows, columns, None
    if issparse(matrix):
        found = coo_array(matrix)
        if matrix.format == "bsr":  # its blocks are filled with zeros
            found.eliminate_zeros()
        rows, columns, values = found.row, found.col, found.data
    else:
        rows, columns = np.nonzero(matrix)
        values = matrix[rows, columns]
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32) if weights else values
    if not np.isfinite(numbers).all():
        kind = " in float32" if weights else ""
        raise DataError(f"The matrix of a topology has values that are not finite{kind}.")
    rows, columns = rows.astype(np.int64), columns.astype(np.int64)
    if not weights:
        rows, columns = rows[values != 0], columns[values != 0]
    cells, first, counts = np.unique(
        rows * matrix.shape[1] + columns, return_index=True, return_counts=True
    )
    if weights and (counts > 1).any():
        i, j = divmod(int(cells[counts > 1][0]), matrix.shape[1])
        pair = (i if inputs is None else inputs[i]), (j if outputs is None else outputs[j])
        raise DataError(
            f"{np.count_nonzero(counts > 1)} connections of a topology with weights are there "
            f"twice, such as that from {pair[0]!r} to {pair[1]!r}. Leave one of each."
        )
    _check_count(len(cells))
    return rows[first], columns[first], numbers[first] if weights else None


def _check_count(count: int) -> None:
    if not count:
        raise ParameterError("A topology has at least 1 connection. Got 0 instead.")

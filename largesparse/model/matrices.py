"""A matrix as the connections of a layer: what it may be, and its distinct cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError
from .topology import MAX_CONNECTIONS, Topology

OWNER = "GivenTopology"
KINDS = (
    "a SciPy sparse matrix or an array (n_in, n_out), a Topology, or a callable of n_in, n_out and "
    "a generator that returns one"
)


def check_kind(matrix: Any, name: str, called: bool = False) -> None:
    """Raise where something is no matrix, nor a callable that may return one."""
    from scipy.sparse import issparse

    if isinstance(matrix, Topology) or (callable(matrix) and not called):
        return
    if issparse(matrix) or isinstance(matrix, np.ndarray):
        if matrix.ndim == 2 and matrix.dtype.kind in "biuf":
            return
        got = f"{matrix.dtype} of shape {matrix.shape}"
    else:
        got = type(matrix).__name__
    owner = "of a network, where it is called, must return" if called else f"of {OWNER} must be"
    raise ParameterError(
        f"The {name!r} parameter {owner} {KINDS}, of numbers or booleans. Got {got} instead."
    )


def cells_of(
    matrix: Any, weights: bool, inputs: Sequence[str] | None, outputs: Sequence[str] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
    """Return rows, columns and weights of the distinct cells of a matrix, row-major."""
    from scipy.sparse import coo_array, issparse

    if isinstance(matrix, Topology):
        rows, columns = matrix.rows().astype(np.int64), matrix.indices.astype(np.int64)
        if weights:
            raise ParameterError(f"A Topology has no weights for {OWNER}. Pass weights=False.")
        return rows, columns, None
    if issparse(matrix):
        found = coo_array(matrix)
        rows, columns, values = found.row, found.col, found.data
    else:
        rows, columns = np.nonzero(matrix)
        values = matrix[rows, columns]
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise DataError("The matrix of a topology has values that are not finite in float32.")
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
    if not 0 < len(cells) <= MAX_CONNECTIONS:
        raise ParameterError(
            f"A topology has 1 to {MAX_CONNECTIONS} connections. Got {len(cells)} instead."
        )
    return rows[first], columns[first], numbers[first] if weights else None

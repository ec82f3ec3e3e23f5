"""Free cells of a layer, in which connections may grow: drawing them, and their gradients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import Counts, Float32, Int32, SparseBatch, count_dtype
from ..errors import ParameterError
from .topology import Topology

Int64 = NDArray[np.int64]

SORTED = 1 << 22  # cells up to which NumPy sorts them faster than several threads do by buckets


class Living(NamedTuple):
    """The cells of a layer between neurons that are alive, as a smaller matrix.

    The map from its cells to those of the layer ascends, so what is sorted stays so.
    """

    inputs: Int64  # numbers of the living inputs, ascending
    outputs: Int64

    def positions(self, cells: Int64, n_out: int) -> Int64:
        """Return the row-major cells in the layer of row-major cells of the smaller matrix."""
        i, j = np.divmod(cells, len(self.outputs))
        return self.inputs[i] * n_out + self.outputs[j]


def count_cells(topology: Topology, living: Living | None) -> int:
    """Return the number of cells, between living neurons where some are dead."""
    if living is None:
        return topology.n_in * topology.n_out
    return len(living.inputs) * len(living.outputs)


def draw_free_cells(
    topology: Topology,
    keep: NDArray[np.bool_],
    count: int,
    rng: np.random.Generator,
    living: Living | None = None,
) -> Int64:
    """Draw `count` distinct cells, uniformly from those with no connection that is kept.

    `keep` is bool (nnz,); `living` restricts the draw to cells between living neurons. The cells
    are row-major, i·n_out + j, and ascend: int64 (count,).
    """
    from ..backends.pattern_kernels import find_occupied, sort_cells

    cells = count_cells(topology, living)

    def place(drawn: Int64) -> Int64:
        return drawn if living is None else living.positions(drawn, topology.n_out)

    def is_occupied(found: Int64) -> NDArray[np.bool_]:
        taken = np.empty(len(found), dtype=bool)
        positions = place(found)
        find_occupied(topology.indptr, topology.indices, keep, topology.n_out, positions, taken)
        return taken

    many = count > topology.nnz and count > cells // 4
    if topology.nnz > cells // 2 or many:  # enumerating the cells is O(nnz + count)
        free = np.flatnonzero(~is_occupied(np.arange(cells)))
        return place(np.sort(rng.choice(free, size=count, replace=False)))

    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        missing = count - len(found)
        drawn = rng.integers(cells, size=missing + missing // 16 + 16)
        drawn = np.concatenate([found, drawn]) if len(found) else drawn
        found = np.sort(drawn) if len(drawn) <= SORTED else sort_cells(drawn, cells)
        taken = is_occupied(found)
        taken[1:] |= found[1:] == found[:-1]
        found = found[~taken]
    surplus = len(found) - count
    chosen = rng.choice(len(found), size=surplus, replace=False, shuffle=False)
    return place(np.delete(found, chosen))


def are_free(
    topology: Topology, keep: NDArray[np.bool_], cells: Int64, living: Living | None = None
) -> NDArray[np.bool_]:
    """Return whether cells have no connection that is kept, and lie between living neurons."""
    from ..backends.pattern_kernels import find_occupied

    within = (cells >= 0) & (cells < topology.n_in * topology.n_out)
    cells = np.where(within, cells, 0)
    free = np.empty(len(cells), dtype=bool)
    find_occupied(topology.indptr, topology.indices, keep, topology.n_out, cells, free)
    np.logical_not(free, out=free)
    free &= within
    if living is not None:
        for alive, neurons in zip(living, np.divmod(cells, topology.n_out), strict=True):
            free &= are_in(neurons, alive)
    return free


def are_in(numbers: Int64, others: Int64) -> NDArray[np.bool_]:
    """Return which of some numbers are among others, which ascend."""
    if not len(others):
        return np.zeros(len(numbers), dtype=bool)
    places = np.minimum(np.searchsorted(others, numbers), len(others) - 1)
    found: NDArray[np.bool_] = others[places] == numbers
    return found


def score_cells(positions: Int64, n_in: int, X: Float32 | SparseBatch, delta: Float32) -> Float32:
    """Return dL/dw = Σ_b X[i, b] · delta[j, b] that a connection in each cell would have.

    Cells are row-major, i·n_out + j, and ascend; X is (n_in, batch), delta (n_out, batch).
    ParameterError where they do not ascend, or are outside of the layer.
    """
    limits = positions[:1].tolist() + positions[-1:].tolist()
    if np.any(np.diff(positions) < 0) or not all(0 <= c < n_in * len(delta) for c in limits):
        raise ParameterError(
            f"The cells of a score must ascend, from 0 to {n_in * len(delta) - 1}. Sort them."
        )
    rows, columns = np.divmod(positions, len(delta))
    indptr = np.zeros(n_in + 1, dtype=count_dtype(len(rows)))
    np.cumsum(np.bincount(rows, minlength=n_in), out=indptr[1:])
    return sampled_gradient(indptr, columns.astype(np.int32), X, delta)


def sampled_gradient(
    indptr: Counts, indices: Int32, X: Float32 | SparseBatch, delta: Float32
) -> Float32:
    """Return dL/dw of the connections of a pattern in input order: float32 (nnz,)."""
    from ..backends.kernels import sddmm
    from ..backends.sparse_inputs import add_sddmm

    gradient = np.zeros(len(indices), dtype=np.float32)
    if isinstance(X, SparseBatch):
        add_sddmm(indptr, indices, X, delta, gradient)
    else:
        sddmm(indptr, indices, X, delta, gradient, False)
    return gradient

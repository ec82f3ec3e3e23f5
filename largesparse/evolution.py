"""SET evolution (Algorithm 2): prune the weakest connections, regrow as many elsewhere."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .errors import check_range
from .layer import SparseLayer
from .topology import Topology

Int64 = NDArray[np.int64]


def evolve(layer: SparseLayer, zeta: float, rng: np.random.Generator) -> NDArray[np.int32]:
    """Replace the fraction ζ of the connections of each sign that are closest to zero.

    Of the positive weights the ⌊ζ·count⌋ smallest are removed, of the negative ones the
    ⌊ζ·count⌋ closest to zero; zeros count among the positive ones, ties fall by position. As
    many are added at cells drawn uniformly from those that are free after the removal, with zero
    velocity. Survivors keep weight and velocity; the number of connections is conserved.

    Parameters
    ----------
    layer : SparseLayer
        Changed in place.
    zeta : float in [0, 1)
    rng : Generator

    Returns
    -------
    slot_map : int32 (nnz,)
        Old connection -> its place in the new input order; -1 where it is gone.
    """
    check_range("zeta", zeta, "evolution", low=0, high=1, high_open=True)
    keep = survivors(layer.values, zeta)
    count = layer.nnz - int(np.count_nonzero(keep))
    if count == 0:
        return np.arange(layer.nnz, dtype=np.int32)
    positions = draw_free_cells(layer.topology, keep, count, rng)
    return _rebuild(layer, keep, positions, rng)


def survivors(values: NDArray[np.float32], zeta: float) -> NDArray[np.bool_]:
    """Return which connections an evolution step keeps: bool of shape (nnz,)."""
    keep = np.ones(len(values), dtype=bool)
    negative = values < 0
    for sign in (~negative, negative):
        members = np.flatnonzero(sign)
        count = math.floor(zeta * len(members))
        if count:
            keep[members[_smallest(np.abs(values[members]), count)]] = False
    return keep


def _smallest(magnitudes: NDArray[np.float32], count: int) -> Int64:
    """Return the places of the `count` smallest; of equal ones, the first."""
    threshold = np.partition(magnitudes, count - 1)[count - 1]
    below = np.flatnonzero(magnitudes < threshold)
    ties = np.flatnonzero(magnitudes == threshold)
    return np.concatenate([below, ties[: count - len(below)]])


def draw_free_cells(
    topology: Topology, keep: NDArray[np.bool_], count: int, rng: np.random.Generator
) -> Int64:
    """Draw `count` distinct cells, uniformly from those with no connection that is kept.

    Returns
    -------
    positions : int64 (count,)
        Row-major cells i·n_out + j, ascending.
    """
    cells = topology.n_in * topology.n_out
    if topology.nnz > cells // 2:  # dense: enumerating the cells is O(nnz)
        occupied = np.zeros(cells, dtype=bool)
        kept = topology.rows()[keep].astype(np.int64) * topology.n_out + topology.indices[keep]
        occupied[kept] = True
        return np.sort(rng.choice(np.flatnonzero(~occupied), size=count, replace=False))

    from .backends.pattern_kernels import find_occupied

    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        missing = count - len(found)
        drawn = rng.integers(cells, size=missing + missing // 16 + 16)
        found = np.concatenate([found, drawn])
        found.sort()
        taken = np.empty(len(found), dtype=bool)
        find_occupied(topology.indptr, topology.indices, keep, topology.n_out, found, taken)
        taken[1:] |= found[1:] == found[:-1]
        found = found[~taken]
    surplus = len(found) - count
    return np.delete(found, rng.choice(len(found), size=surplus, replace=False, shuffle=False))


def _rebuild(
    layer: SparseLayer, keep: NDArray[np.bool_], positions: Int64, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Give the layer the topology of the kept and the new connections; return the slot map."""
    from .backends.pattern_kernels import merge_pattern

    old = layer.topology
    indptr, indices, slot_map, new_slots = merge_pattern(
        old.indptr, old.indices, keep, old.n_out, positions
    )
    values = np.zeros(len(indices), dtype=np.float32)
    velocity = np.zeros(len(indices), dtype=np.float32)
    kept_slots = slot_map[keep]
    values[kept_slots] = layer.values[keep]
    velocity[kept_slots] = layer.velocity[keep]
    if layer.regrowth is not None:
        values[new_slots] = layer.regrowth(rng, len(new_slots))
    topology = Topology.from_input_order(old.n_in, old.n_out, indptr, indices)
    layer.replace(topology, values, velocity)
    return slot_map

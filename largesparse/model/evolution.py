"""SET evolution (Algorithm 2): prune the weakest connections, regrow as many elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import Connections
from ..errors import check_range
from .layer import MOMENTS, LayerArrays, Moment, SparseLayer
from .topology import Topology

Int64 = NDArray[np.int64]

FEW = 1 << 18  # connections up to which selecting them is faster than counting magnitudes
SORTED = 1 << 22  # cells up to which NumPy sorts them faster than several threads do by buckets


def evolve(
    layer: SparseLayer,
    zeta: float,
    rng: np.random.Generator,
    *,
    dead_inputs: NDArray[np.bool_] | None = None,
    grow: Grow | None = None,
) -> NDArray[np.int32]:
    """Replace the fraction ζ of the connections of each sign that are closest to zero.

    Of the positive weights the ⌊ζ·count⌋ smallest are removed, of the negative ones the
    ⌊ζ·count⌋ closest to zero; zeros count among the positive ones, ties fall by position. As
    many are added at cells drawn uniformly from those that are free after the removal, with zero
    velocity. Survivors keep weight and velocity; the number of connections is conserved. Nothing
    grows at dead neurons.

    Parameters
    ----------
    layer : SparseLayer
        Changed in place.
    zeta : float in [0, 1)
    rng : Generator
    dead_inputs : bool (n_in,), optional
        The dead neurons of the layer below.
    grow : callable, optional
        Chooses the cells in place of `draw_free_cells`; its parameters are the same.

    Returns
    -------
    slot_map : int32 (nnz,)
        Old connection -> its place in the new input order; -1 where it is gone.
    """
    check_range("zeta", zeta, "evolution", low=0, high=1, high_open=True)
    keep = survivors(layer.values, zeta)
    keep_strongest_(layer, keep)
    count = layer.nnz - int(np.count_nonzero(keep))
    if count == 0:
        return np.arange(layer.nnz, dtype=np.int32)
    living = None
    if layer.dead is not None or dead_inputs is not None:
        inputs = np.arange(layer.n_in) if dead_inputs is None else np.flatnonzero(~dead_inputs)
        living = Living(inputs, layer.living())
    positions = (grow or draw_free_cells)(layer.topology, keep, count, rng, living)
    return _rebuild(layer, keep, positions, rng)


def remove_connections(
    layer: SparseLayer,
    keep: NDArray[np.bool_],
    positions: Int64 | None = None,
    rng: np.random.Generator | None = None,
) -> NDArray[np.int32]:
    """Remove the connections not in `keep`, bool (nnz,), in place; return the slot map.

    At `positions`, cells as `draw_free_cells` returns them, connections grow in exchange.
    """
    positions = np.empty(0, dtype=np.int64) if positions is None else positions
    if keep.all() and not len(positions):
        return np.arange(layer.nnz, dtype=np.int32)
    return _rebuild(layer, keep, positions, rng)


def keep_strongest_(layer: SparseLayer, keep: NDArray[np.bool_]) -> None:
    """Keep the strongest connections of outputs that would have fewer than the layer's minimum.

    `keep`, bool (nnz,), is changed in place.
    """
    minimum, outputs = layer.config.minimum, layer.topology.indices
    if minimum == 0 or keep.all():
        return
    missing = minimum - np.bincount(outputs[keep], minlength=layer.n_out)
    going = np.flatnonzero(~keep & (missing > 0)[outputs])
    going = going[np.lexsort((-np.abs(layer.values[going]), outputs[going]))]
    of_output = outputs[going]
    ranks = np.arange(len(going)) - np.searchsorted(of_output, of_output)  # within an output
    keep[going[ranks < missing[of_output]]] = True


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


Grow = Callable[[Topology, NDArray[np.bool_], int, np.random.Generator, Living | None], Int64]


def count_cells(topology: Topology, living: Living | None) -> int:
    """Return the number of cells, between living neurons where some are dead."""
    if living is None:
        return topology.n_in * topology.n_out
    return len(living.inputs) * len(living.outputs)


def survivors(values: NDArray[np.float32], zeta: float) -> NDArray[np.bool_]:
    """Return which connections an evolution step keeps, bool (nnz,), in O(nnz).

    Magnitudes are not sorted but counted, by the upper and then the lower 16 bits.
    """
    from ..backends.pattern_kernels import count_magnitudes, keep_large

    if len(values) <= FEW:
        return _survivors_of_few(values, zeta)
    keep = np.empty(len(values), dtype=bool)
    upper_counts = count_magnitudes(values, 16, np.zeros(2, dtype=np.int64))
    members = upper_counts.sum(axis=(0, 2))
    going = [math.floor(zeta * int(count)) for count in members]
    prefixes, rest = _find_counts(upper_counts, going)
    lower_counts = count_magnitudes(values, 0, prefixes)
    lower, rest = _find_counts(lower_counts, rest)

    ties = np.empty((len(lower_counts), 2), dtype=np.int64)
    for sign in (0, 1):
        here = lower_counts[:, sign, lower[sign]]
        before = np.cumsum(here) - here
        ties[:, sign] = np.clip(rest[sign] - before, 0, here)
    thresholds = prefixes << 16 | lower
    thresholds[[count == 0 for count in going]] = -1
    keep_large(values, thresholds, ties, keep)
    return keep


def _survivors_of_few(values: NDArray[np.float32], zeta: float) -> NDArray[np.bool_]:
    """`survivors`, where the counters would take longer than the values."""
    keep = np.ones(len(values), dtype=bool)
    negative = values < 0
    for sign in (~negative, negative):
        members = np.flatnonzero(sign)
        marked = mark_smallest(np.abs(values[members]), math.floor(zeta * len(members)))
        keep[members[marked]] = False
    return keep


def mark_smallest(values: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Return a mask of the `count` smallest values, ties by position: bool, O(n)."""
    if count == 0:
        return np.zeros(len(values), dtype=bool)
    threshold = np.partition(values, count - 1)[count - 1]
    marked = values < threshold
    ties = np.flatnonzero(values == threshold)[: count - np.count_nonzero(marked)]
    marked[ties] = True
    return marked


def _find_counts(counts: NDArray[np.int32], wanted: Sequence[int]) -> tuple[Int64, list[int]]:
    """Return the bins in which the wanted-th magnitudes are, and what is wanted of those bins.

    `counts` is int32 (blocks, 2, bins); `wanted` has how many of the smallest of each sign.
    """
    bins = np.zeros(2, dtype=np.int64)
    rest = [0, 0]
    for sign in (0, 1):
        if wanted[sign]:
            below = np.cumsum(counts[:, sign].sum(axis=0, dtype=np.int64))
            bins[sign] = np.searchsorted(below, wanted[sign])
            rest[sign] = wanted[sign] - (int(below[bins[sign] - 1]) if bins[sign] else 0)
    return bins, rest


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


def _rebuild(
    layer: SparseLayer, keep: NDArray[np.bool_], positions: Int64, rng: np.random.Generator | None
) -> NDArray[np.int32]:
    """Give the layer the kept and the new connections, with values drawn; return the slot map."""
    from ..backends.pattern_kernels import merge_pattern, merge_rows

    old = layer.topology
    grown = np.empty(0, np.float32)
    if layer.config.regrowth is not None and rng is not None:
        grown = layer.config.regrowth(rng, len(positions))
    indptr = merge_rows(old.indptr, keep, old.n_out, positions)
    nnz = int(indptr[-1])
    indices, slot_map = np.empty(nnz, np.int32), np.empty(old.nnz, np.int32)
    values, velocity = np.empty(nnz, np.float32), np.empty(nnz, np.float32)
    merge_pattern(
        Connections(old.indptr, old.indices, layer.values),
        layer.velocity,
        keep,
        old.n_out,
        positions,
        grown,
        Connections(indptr, indices, values),
        velocity,
        slot_map,
    )
    topology = Topology.from_input_order(old.n_in, old.n_out, indptr, indices)
    moments: LayerArrays = {"velocity": velocity}
    for kind in layer.kinds:
        if kind != "velocity":
            moments[kind] = _carried(getattr(layer, kind), slot_map, values, MOMENTS[kind])
    layer.replace(topology, values, moments)
    return slot_map


def _carried(
    old: NDArray[Any], slot_map: NDArray[np.int32], values: NDArray[np.float32], moment: Moment
) -> NDArray[Any]:
    """Return a moment of the new connections, `values`: where `slot_map` leads, the old one's."""
    from ..backends.pattern_kernels import carry

    new = values.copy() if moment.of_values else np.zeros(len(values), moment.dtype)
    carry(old, slot_map, new)
    return new

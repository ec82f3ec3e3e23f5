"""Evolution of the topology (Algorithm 2): connections go, as many grow elsewhere.

Which go and where others grow is what `rules` says, by default SET's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends.operands import Connections, Counts, Float32, SparseBatch, count_dtype
from ..errors import check_range
from .cells import Int64
from .exploration import add_cells
from .layer import MOMENTS, LayerArrays, Moment, SparseLayer
from .ranking import without_smallest
from .rule_state import RuleState
from .rules import SET, Rules
from .topology import Topology


class Change(NamedTuple):
    """How many connections of a layer go in an evolution, and how many there are after it."""

    going: int
    target: int


def evolve(
    layer: SparseLayer,
    zeta: float,
    rng: np.random.Generator,
    *,
    rules: Rules = SET,
    state: RuleState | None = None,
    change: Change | None = None,
) -> Counts:
    """Replace the fraction ζ of the connections, by default as SET does.

    Of the positive weights the ⌊ζ·count⌋ smallest are removed, of the negative ones the
    ⌊ζ·count⌋ closest to zero; zeros count among the positive ones, ties fall by position. As
    many are added at cells drawn uniformly from those that are free after the removal, with zero
    velocity. Survivors keep weight and velocity; the number of connections is conserved. Nothing
    grows at dead neurons, nor outside the candidates of a layer that has some; a frozen layer stays
    as it is.

    Parameters
    ----------
    layer : SparseLayer
        Changed in place.
    zeta : float in [0, 1)
    rng : Generator
    rules : Rules, optional
        Choose what goes, at most ⌊ζ·nnz⌋, and where as many grow. Outputs keep the layer's minimum
        of connections, whatever the rule, and with `keep_active` neurons their last connection.
    state : RuleState, optional
        What the rules look at beside the layer.
    change : Change, optional
        How many connections go and how many there are then; by default ⌊ζ·nnz⌋ and as many as
        before. Where the rule lets too many stay, the weakest of them go.

    Returns
    -------
    slot_map : int32 (nnz,)
        Old connection -> its place in the new input order; -1 where it is gone. int64 where int32
        does not count the connections.
    """
    check_range("zeta", zeta, "evolution", low=0, high=1, high_open=True)
    state = RuleState(layer, zeta) if state is None else state
    share = math.floor(zeta * layer.nnz)
    going, target = (share, layer.nnz) if change is None else change
    if going != share:
        state.zeta = going / layer.nnz
    if layer.config.frozen or (going == 0 and target == layer.nnz):
        return np.arange(layer.nnz, dtype=count_dtype(layer.nnz))
    keep = np.ones(layer.nnz, dtype=bool)
    if going:
        keep = rules.kept(layer, state, going, rng)
        drop_weakest_(layer, keep, int(np.count_nonzero(keep)) - target)
        keep_strongest_(layer, keep)
        if rules.keep_active:
            keep_last_(layer, keep, inputs=bool(state.inputs_are_neurons))
    state.keep = keep
    count = max(0, target - int(np.count_nonzero(keep)))
    grown = rules.grown(layer, state, count, rng) if count else None
    return remove_connections(layer, keep, grown, rng)


def remove_connections(
    layer: SparseLayer,
    keep: NDArray[np.bool_],
    positions: Int64 | None = None,
    rng: np.random.Generator | None = None,
) -> Counts:
    """Remove the connections not in `keep`, bool (nnz,), in place; return the slot map.

    At `positions`, cells as `RuleState.draw` returns them, connections grow in exchange.
    """
    positions = np.empty(0, dtype=np.int64) if positions is None else positions
    if keep.all() and not len(positions):
        return np.arange(layer.nnz, dtype=count_dtype(layer.nnz))
    return _rebuild(layer, keep, positions, rng)


def drop_weakest_(layer: SparseLayer, keep: NDArray[np.bool_], count: int) -> None:
    """Let `count` more connections go, if that is above 0: those of `keep` closest to zero.

    `keep`, bool (nnz,), is changed in place.
    """
    if count > 0:
        kept = np.flatnonzero(keep)
        keep[kept] = without_smallest(np.abs(layer.values[kept]), [count, 0])


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


def keep_last_(layer: SparseLayer, keep: NDArray[np.bool_], *, inputs: bool) -> None:
    """Keep the strongest connection of neurons that would lose all to or from one side. O(nnz).

    So no neuron that is on a path from an input to an output becomes idle. Without `inputs` those
    of the layer, as features are, may lose all. Of equal connections the first one stays. Fewer
    connections are replaced then. `keep`, bool (nnz,), is changed in place.
    """
    topology = layer.topology
    strength = np.abs(layer.values)
    _keep_one_(topology.indices, layer.n_out, strength, keep)
    if inputs:
        _keep_one_(topology.rows(), layer.n_in, strength, keep)


def _keep_one_(
    owners: NDArray[np.integer], n: int, strength: Float32, keep: NDArray[np.bool_]
) -> None:
    """Keep the strongest connection of each of `n` owners that would lose all of its own."""
    lonely = np.bincount(owners[keep], minlength=n) == 0
    going = np.flatnonzero(~keep & lonely[owners])
    own = owners[going]
    best = np.full(n, -1, dtype=np.float32)
    np.maximum.at(best, own, strength[going])
    chosen = going[strength[going] == best[own]][::-1]
    first = np.full(n, -1, dtype=np.int64)
    first[owners[chosen]] = chosen  # of several the last one written, which is the first
    keep[first[first >= 0]] = True


def evolve_layers(
    layers: Sequence[SparseLayer],
    zeta: float,
    rng_of: Callable[[SparseLayer], np.random.Generator],
    rules: Rules = SET,
    gradient: Callable[..., object] | None = None,
    *,
    changes: Sequence[Change] | None = None,
    keep_maps: bool = True,
    first_dead: NDArray[np.bool_] | None = None,
    **known: Any,
) -> list[Counts]:
    """Evolve hidden layers, the first one first, in place; return slot maps, or empty ones.

    Where a rule asks for gradients, gradient(visit=visit) computes them: see `SparseMLP.backward`.
    Layers then evolve from the last to the first: each when dL/dz has been passed through it to the
    layer below, by its old connections. `changes` are those of the layers; `first_dead` are inputs
    of the first one that are dead neurons; `known` are further fields of the rules' states. Kept
    maps take 4 bytes a connection, or 8 where int32 does not count them.
    """
    maps: list[Counts] = [np.empty(0, dtype=np.int32)] * len(layers)

    def evolve_one(k: int, **batch: Any) -> None:
        dead_inputs = layers[k - 1].dead if k else first_dead
        state = RuleState(layers[k], zeta, dead_inputs=dead_inputs, **known, **batch)
        change = None if changes is None else changes[k]
        given: Any = {"rules": rules, "state": state, "change": change}
        found = evolve(layers[k], zeta, rng_of(layers[k]), **given)
        if keep_maps:
            maps[k] = found

    def visit(k: int, X: Float32 | SparseBatch, delta: Float32) -> None:
        if k < len(layers):
            evolve_one(k, X=X, delta=delta)

    if gradient is not None:
        gradient(visit=visit)
    else:
        for k in range(len(layers)):
            evolve_one(k)
    return maps


def _rebuild(
    layer: SparseLayer, keep: NDArray[np.bool_], positions: Int64, rng: np.random.Generator | None
) -> Counts:
    """Give the layer the kept and the new connections, with values drawn; return the slot map."""
    from ..backends.pattern_kernels import merge_pattern, merge_rows

    old = layer.topology
    grown = np.empty(0, np.float32)
    if layer.config.regrowth is not None and rng is not None:
        grown = layer.config.regrowth(rng, len(positions))
    nnz = int(np.count_nonzero(keep)) + len(positions)
    indptr = np.empty(old.n_in + 1, count_dtype(nnz))
    merge_rows(old.indptr, keep, old.n_out, positions, indptr)
    indices, slot_map = np.empty(nnz, np.int32), np.empty(old.nnz, count_dtype(max(nnz, old.nnz)))
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
    if layer.explored is not None:
        add_cells(layer.explored, positions)
    topology = Topology.from_input_order(old.n_in, old.n_out, indptr, indices)
    moments: LayerArrays = {"velocity": velocity}
    for kind in layer.kinds:
        if kind != "velocity":
            moments[kind] = _carried(getattr(layer, kind), slot_map, values, MOMENTS[kind])
    layer.replace(topology, values, moments)
    return slot_map


def _carried(
    old: NDArray[Any], slot_map: Counts, values: NDArray[np.float32], moment: Moment
) -> NDArray[Any]:
    """Return a moment of the new connections, `values`: where `slot_map` leads, the old one's."""
    from ..backends.pattern_kernels import carry

    new = values.copy() if moment.of_values else np.zeros(len(values), moment.dtype)
    carry(old, slot_map, new)
    return new

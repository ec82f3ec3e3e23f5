"""The average of replicas that were trained apart (eq. 2, Algorithm 1), layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import ParameterError
from ...model.layer import PARAMETERS, Float32, Int32, LayerArrays
from ...model.topology import Topology

CONNECTIONS = {"indptr": np.int32, "indices": np.int32, "values": np.float32}
BLOCK_CONNECTIONS = 1 << 18  # of all replicas, that a thread takes at a time


def mean_nnz(counts: Sequence[int]) -> int:
    """Return the mean of the replicas' numbers of connections, rounded; a half goes up."""
    return (2 * sum(counts) + len(counts)) // (2 * len(counts))


def average_layers(
    n_out: int, replicas: Sequence[LayerArrays], *, whole_union: bool = False
) -> LayerArrays:
    """Return the mean of the replicas of a layer, pruned to their mean number of connections.

    The mean is taken over the union of the topologies: a connection that a replica does not have
    counts 0 there (eq. 2). Then the connections closest to zero go until `mean_nnz` are left; ties
    fall by position, the first ones first; with `whole_union` all stay. A weight of exactly zero is
    a connection too. Biases and the activation's parameters are plain means. A neuron is dead only
    if it is in all replicas.

    Replicas, at least one, and their mean are as `SparseLayer.arrays`. Time is
    O(n_replicas · union + n_in + n_out). Beside the result, the memory is 8 bytes for a connection
    of the union and for an input. The result does not depend on the number of threads; that of one
    replica is a copy.
    """
    _check(n_out, replicas)
    if len(replicas) == 1:
        mean: LayerArrays = {name: replicas[0][name].copy() for name in CONNECTIONS}
    else:
        found = _average_connections(replicas, whole_union)
        mean = dict(zip(CONNECTIONS, found, strict=True))
    for name in PARAMETERS:
        if name in replicas[0] and name not in CONNECTIONS:
            mean[name] = _mean([replica[name] for replica in replicas])
    if all("dead" in replica for replica in replicas):
        mean["dead"] = np.logical_and.reduce([replica["dead"] for replica in replicas])
    return mean


def average_frozen(
    topology: Topology, replicas: Sequence[LayerArrays], dead_inputs: NDArray[np.bool_] | None
) -> LayerArrays:
    """Return the mean of the replicas of a frozen layer, as `average_layers` does.

    It has all connections of `topology`, that from before, but those of neurons that are dead in
    all replicas: `dead_inputs` are those of the layer below. Two replicas in which different ends
    of a connection are dead have none of its weights: then it is 0.
    """
    mean = average_layers(topology.n_out, replicas, whole_union=True)
    found = Topology(topology.n_in, topology.n_out, mean["indptr"], mean["indices"]).cells()
    keep = np.ones(topology.nnz, dtype=bool)
    if dead_inputs is not None:
        keep &= ~dead_inputs[topology.rows()]
    if "dead" in mean:
        keep &= ~mean["dead"][topology.indices]
    cells = topology.cells()[keep]
    values = np.zeros(len(cells), dtype=np.float32)
    values[np.searchsorted(cells, found)] = mean["values"]
    whole = Topology.from_cells(topology.n_in, topology.n_out, cells)
    return mean | {"indptr": whole.indptr, "indices": whole.indices, "values": values}


def _check(n_out: int, replicas: Sequence[LayerArrays]) -> None:
    """Raise `ParameterError` where arrays have not the shapes of a layer, or differ in them."""
    if not replicas:
        raise ParameterError("The 'replicas' parameter of average_layers must not be empty.")
    first = replicas[0]
    for r, replica in enumerate(replicas):
        nnz = len(replica["indices"])
        shapes = {"indptr": first["indptr"].shape, "indices": (nnz,)}
        shapes |= {name: p.shape(nnz, n_out) for name, p in PARAMETERS.items() if name in first}
        if "dead" in replica:
            shapes["dead"] = (n_out,)
        for name in shapes | replica:
            found = replica[name].shape if name in replica else ()
            expected = shapes.get(name, ())
            if found != expected:
                raise ParameterError(
                    f"The {name!r} array of replica {r} in average_layers must have the shape "
                    f"{expected}. Got {found} instead: all replicas must be of the same layer."
                )


def _mean(arrays: Sequence[Float32]) -> Float32:
    """Return the mean of the arrays, summed in float64 in their order."""
    total = arrays[0].astype(np.float64)
    for array in arrays[1:]:
        total += array
    total /= len(arrays)
    return total.astype(np.float32)


def _average_connections(
    replicas: Sequence[LayerArrays], whole_union: bool
) -> tuple[Int32, Int32, Float32]:
    """Return the pruned mean of the replicas' connections: indptr, indices and values."""
    from ...backends.averaging_kernels import REPLICA, average_union, count_union, keep_largest

    table = np.zeros(len(replicas), dtype=REPLICA)
    held = []
    for record, replica in zip(table, replicas, strict=True):
        for name, dtype in CONNECTIONS.items():
            array = np.require(replica[name], dtype, ["C", "ALIGNED"])
            record[name] = array.ctypes.data
            held.append(array)
    counts = [len(replica["indices"]) for replica in replicas]
    n_in = len(replicas[0]["indptr"]) - 1
    block_rows = max(1, n_in * BLOCK_CONNECTIONS // (sum(counts) + n_in))

    indptr = count_union(table, n_in, block_rows)  # int64: a union may be larger than a layer
    indices = np.empty(indptr[-1], dtype=np.int32)
    values = np.empty(indptr[-1], dtype=np.float32)
    average_union(table, indptr, block_rows, indices, values)
    if whole_union:
        return indptr.astype(np.int32), indices, values
    threshold, ties = _threshold(values, len(values) - mean_nnz(counts))
    kept: tuple[Int32, Int32, Float32]
    kept = keep_largest(indptr, indices, values, block_rows, threshold, ties)
    return kept


def _threshold(values: Float32, count: int) -> tuple[int, int]:
    """Return the bits of the magnitude up to which `count` values go, and how many of it go.

    Found by counting by the upper and then the lower 16 bits: O(nnz), without a copy.
    """
    from ...backends.averaging_kernels import count_by_bits

    threshold, rest = 0, count
    for shift in (16, 0):
        below = np.cumsum(count_by_bits(values, shift, threshold))
        bits = int(np.searchsorted(below, rest))
        rest -= int(below[bits - 1]) if bits else 0
        threshold = threshold << 16 | bits
    return threshold, rest

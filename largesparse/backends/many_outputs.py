"""The backward pass of a layer with many outputs and few inputs, such as one of labels.

Row by row of the inputs, a row of delta (n_out, batch) is gathered for every connection, and none
is in the cache. Here it goes through blocks of outputs whose delta is. The gradient of the inputs
is a sum over these: threads compute parts of it, whose number depends on the layer's shape alone,
and so does the result.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .kernels import differentiate
from .lanes import I64, load_lanes, store_lanes
from .operands import Connections, Derivative, Float32
from .pattern_kernels import first_at_least
from .rows import BACKWARD_WIDTHS
from .tiles import emitted, for_each_tile, put_sums, sampled_products

BLOCK_BYTES = 2**20  # of delta, which stay in the second-level cache
FEWEST_CONNECTIONS = 8  # of an input to a block, on average: its own rows are read for each block


@emitted()
def backward_piece(builder, pieces, i, X, D, sums, part, gradient, accumulate):
    """Compute the gradients of some connections of input i, and add what they give to its sums.

    `pieces` are `Connections` whose first array has the first connection of every input, and the
    one after its last. For the gradients see `rows.backward_row`; sums[part, i] belongs to i.
    """

    def emit(tile):
        # the tiles of a row add up
        adds = builder.or_(accumulate, builder.icmp_signed(">", tile.start, I64(0)))

        def put(k, products):
            put_sums(builder, products, gradient, k, adds)

        x, place = X.load(i, tile), sums.at(part, i, tile.start)
        row = builder.shl(i, I64(1))
        found = sampled_products(builder, pieces, row, x, D, tile, put, weighted=True)
        found = builder.fadd(load_lanes(builder, place, tile.width, tile.mask), found)
        store_lanes(builder, found, place, tile.width, tile.mask)

    for_each_tile(builder, I64(0), X.shape[1], BACKWARD_WIDTHS, emit)


@inline
def backward_part(part, connections, X, D, sums, gradient, accumulate):
    """Compute the gradients that come from a part of the outputs."""
    indptr, indices, values = connections
    n_out, batch = D.shape
    start, stop = part * n_out // len(sums), (part + 1) * n_out // len(sums)
    share = FEWEST_CONNECTIONS * len(X) * n_out // max(1, len(indices))
    step = max(1, share, BLOCK_BYTES // (4 * batch))
    sums[part] = 0
    ends = np.empty(2 * len(X), dtype=indptr.dtype)
    for i in range(len(X)):
        ends[2 * i + 1] = first_at_least(indices, indptr[i], indptr[i + 1], start)
    for first in range(start, stop, step):
        last = min(stop, first + step)
        for i in range(len(X)):
            ends[2 * i] = k = ends[2 * i + 1]
            while k < indptr[i + 1] and indices[k] < last:
                k += 1
            ends[2 * i + 1] = k
            if k > ends[2 * i]:
                pieces = ends, indices, values
                backward_piece(pieces, i, X, D, sums, part, gradient, accumulate)


@kernel()
def backward_parts(connections, X, D, sums, gradient, accumulate):
    """Compute the gradient of all connections, and that of the inputs in parts.

    Connections are in input order, X is (n_in, batch), D (n_out, batch), and sums, the parts, are
    (parts, n_in, batch).
    """
    for part in prange(len(sums)):
        backward_part(np.int64(part), connections, X, D, sums, gradient, accumulate)


@kernel()
def add_parts(parts, out):
    """Write the sum of arrays (parts, n, batch) to `out`, (n, batch)."""
    count, n, batch = parts.shape
    for i in prange(n):
        for b in range(batch):
            out[i, b] = parts[0, i, b]
        for part in range(1, count):
            for b in range(batch):
                out[i, b] += parts[part, i, b]


def backward_by_blocks(
    connections: Connections,
    X: Float32,
    delta: Float32,
    below: Derivative,
    parts: Float32,
    *,
    out_gradient: Float32,
    out_delta: Float32,
    out_bias_gradient: Float32,
    accumulate: bool,
) -> None:
    """Do what `Backend.backward` does, for all backends.

    `parts`, float32 (`operands.count_parts`, n_in, batch), is overwritten.
    """
    backward_parts(connections, X, delta, parts, out_gradient, accumulate)
    add_parts(parts, out_delta)
    differentiate(out_delta, below, out_bias_gradient, accumulate)

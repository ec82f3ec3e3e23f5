"""What kernels do to one row: an output's sum, an input's gradients, activation and derivative.

These functions take whole arrays and a row's number: a view of a row would cost a reference
count, which is as much as ten connections. A state array is described in `kernels`.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiling import inline
from .lanes import (
    CACHE_LINE,
    F32,
    I32,
    I64,
    LANES,
    at_most_one,
    gathered,
    lane_sum,
    load_lanes,
    multiply_add,
    prefetch_line,
    splat,
    store_lanes,
)
from .loops import ROWS
from .operands import PREFETCH_AHEAD, PREFETCH_BYTES
from .tiles import (
    activated,
    differentiated,
    factors_of,
    for_each_tile,
    put_sums,
    row_range,
    sampled_products,
    sum_of_tiles,
    taken_apart,
    weighted_sum,
)

FORWARD_WIDTHS = (128, 64, 32, 8)
BACKWARD_WIDTHS = (64, 32, 8)
WORD = 32  # activations whose state bits share a word
SMALLEST_NORMAL = 2.0**-126  # of float32

i64, f32 = types.int64, types.float32


@intrinsic
def forward_row(typing, connections, j, X, bias, activation, keep, out, state):
    """Compute a row of activations, out[j], from the gathered rows of X.

    Parameters
    ----------
    connections : Connections
    j : int
    X : float32 or bfloat16 (n, batch)
    bias : float32
        Of the row.
    activation : (float32, float32)
        Left slope, and share of the neurons that dropout keeps.
    keep : uint32 (ROWS, words)
        The dropout decisions of row j in row j % ROWS: see `philox.draw_keep_words`.
    out : float32 or bfloat16 (rows, batch)
    state : uint32 (rows, 2, words)
        Without words, nothing is dropped and nothing stored. The last word is written up to the
        byte of the batch's last column.
    """

    def generate(context, builder, signature, arguments):
        parts = taken_apart(context, builder, signature.args, arguments)
        connections, j, X, bias, activation, keep, out, state = parts
        factors = factors_of(builder, *activation)
        bits = keep.at(builder.and_(j, I64(ROWS - 1)))

        def emit(tile):
            z = weighted_sum(builder, connections, j, X, tile, bias)
            out.store(j, tile, activated(builder, z, tile, factors, bits, state, j))

        for_each_tile(builder, I64(0), X.shape[1], FORWARD_WIDTHS, emit)
        return context.get_dummy_value()

    return types.void(connections, i64, X, f32, activation, keep, out, state), generate


@intrinsic
def activate_row(typing, Z, j, bias, activation, keep, state):
    """Add the bias to a row of sums, and apply activation and dropout, in place.

    Z is float32 (rows, batch); see `forward_row`.
    """

    def generate(context, builder, signature, arguments):
        parts = taken_apart(context, builder, signature.args, arguments)
        Z, j, bias, activation, keep, state = parts
        factors = factors_of(builder, *activation)
        bits = keep.at(builder.and_(j, I64(ROWS - 1)))

        def emit(tile):
            z = builder.fadd(Z.load(j, tile), splat(builder, bias, tile.width))
            Z.store(j, tile, activated(builder, z, tile, factors, bits, state, j))

        for_each_tile(builder, I64(0), Z.shape[1], (WORD,), emit)
        return context.get_dummy_value()

    return types.void(Z, i64, f32, activation, keep, state), generate


@intrinsic
def backward_row(typing, connections, i, X, D, derivative, gradient, out, accumulate):
    """Compute the weight gradient of an input's connections, and dL/dz of the input.

    gradient[k] = sum over b of X[i, b] D[indices[k], b], added to what is there if `accumulate`;
    out[i, b] = f'(z) · sum over k of values[k] D[indices[k], b]. The result is the sum of out[i].

    Parameters
    ----------
    connections : Connections
    i : int
    X, out : float32 or bfloat16 (rows, batch)
    D : float32 or bfloat16 (n, batch)
    derivative : Derivative
    gradient : float32 (nnz,)
    accumulate : bool
    """

    def generate(context, builder, signature, arguments):
        parts = taken_apart(context, builder, signature.args, arguments)
        connections, i, X, D, derivative, gradient, out, accumulate = parts
        slope, keep_share, state = derivative
        factors = factors_of(builder, slope, keep_share)
        adds = cgutils.alloca_once_value(builder, accumulate)
        total = cgutils.alloca_once_value(builder, F32(0))

        def emit(tile):
            def put(k, sums):
                put_sums(builder, sums, gradient, k, builder.load(adds))

            x = X.load(i, tile)
            d = sampled_products(builder, connections, i, x, D, tile, put, weighted=True)
            d = differentiated(builder, d, tile, factors, state, i)
            out.store(i, tile, d)
            part = builder.extract_element(lane_sum(builder, d), I32(0))
            builder.store(builder.fadd(builder.load(total), part), total)
            builder.store(accumulate.type(1), adds)  # the tiles of a row add up

        for_each_tile(builder, I64(0), X.shape[1], BACKWARD_WIDTHS, emit)
        return builder.load(total)

    given = connections, i64, X, D, derivative, gradient, out, types.boolean
    return f32(*given), generate


@intrinsic
def gradient_row(typing, connections, i, X, D, accumulate):
    """Compute the weight gradient alone, into the connections' values: see `backward_row`."""

    def generate(context, builder, signature, arguments):
        parts = taken_apart(context, builder, signature.args, arguments)
        connections, i, X, D, accumulate = parts
        adds = cgutils.alloca_once_value(builder, accumulate)

        def emit(tile):
            def put(k, sums):
                put_sums(builder, sums, connections[2], k, builder.load(adds))

            x = X.load(i, tile)
            sampled_products(builder, connections, i, x, D, tile, put, weighted=False)
            builder.store(accumulate.type(1), adds)

        for_each_tile(builder, I64(0), X.shape[1], BACKWARD_WIDTHS, emit)
        return context.get_dummy_value()

    return types.void(connections, i64, X, D, types.boolean), generate


@intrinsic
def differentiate_row(typing, D, i, derivative):
    """Multiply a row of dL/da by the activation's derivative, in place; return its sum.

    D is float32 (rows, batch), and becomes dL/dz.
    """

    def generate(context, builder, signature, arguments):
        parts = taken_apart(context, builder, signature.args, arguments)
        D, i, (slope, keep_share, state) = parts
        factors = factors_of(builder, slope, keep_share)
        total = cgutils.alloca_once_value(builder, F32(0))

        def emit(tile):
            d = differentiated(builder, D.load(i, tile), tile, factors, state, i)
            D.store(i, tile, d)
            part = builder.extract_element(lane_sum(builder, d), I32(0))
            builder.store(builder.fadd(builder.load(total), part), total)

        for_each_tile(builder, I64(0), D.shape[1], (WORD,), emit)
        return builder.load(total)

    return f32(D, i64, derivative), generate


@intrinsic
def row_sum(typing, X, i):
    """Return the sum of X[i], of float32 or bfloat16 (rows, batch)."""

    def generate(context, builder, signature, arguments):
        X, i = taken_apart(context, builder, signature.args, arguments)

        def add(tile, total):
            return builder.fadd(total, X.load(i, tile))

        return sum_of_tiles(builder, X.shape[1], add)

    return f32(X, i64), generate


@intrinsic
def weighted_row_sum(typing, X, i, weights):
    """Return the sum of X[i] times the weights, float32 (batch,), of which 1 is the most."""

    def generate(context, builder, signature, arguments):
        X, i, weights = taken_apart(context, builder, signature.args, arguments)

        def add(tile, total):
            weight = at_most_one(builder, weights.load(None, tile))
            return multiply_add(builder, weight, X.load(i, tile), total)

        return sum_of_tiles(builder, X.shape[1], add)

    return f32(X, i64, weights), generate


@intrinsic
def weight_sum(typing, weights):
    """Return the sum of weights, float32 (n,), each of which counts 1 at most."""

    def generate(context, builder, signature, arguments):
        (weights,) = taken_apart(context, builder, signature.args, arguments)

        def add(tile, total):
            return builder.fadd(total, at_most_one(builder, weights.load(None, tile)))

        return sum_of_tiles(builder, weights.shape[0], add)

    return f32(weights), generate


@intrinsic
def update_range(typing, values, velocity, gradient, start, stop, sgd):
    """Momentum SGD (eq. 1) on start <= k < stop: v = momentum·v - rate·g; w = w + v - decay·w.

    A velocity below the smallest normal float32 is set to zero: that of an idle connection would
    become subnormal within 900 steps, and subnormal arithmetic is up to 8 times slower. The
    arrays are float32 (nnz,); the numbers come as `SGD`.
    """

    def generate(context, builder, signature, arguments):
        parts = taken_apart(context, builder, signature.args, arguments)
        *arrays, start, stop, sgd = parts
        rate, momentum, decay = sgd
        rates = builder.fneg(rate), momentum, builder.fneg(decay)
        descent, momentum, decayed = (splat(builder, number, LANES) for number in rates)

        def emit(tile):
            places = [array.at(tile.start) for array in arrays]
            w, v, g = (load_lanes(builder, place, LANES, tile.mask) for place in places)
            v = multiply_add(builder, momentum, v, builder.fmul(descent, g))
            zero, tiny = ir.Constant(v.type, None), ir.Constant(v.type, [SMALLEST_NORMAL] * LANES)
            kind, name = ir.FunctionType(v.type, [v.type]), f"llvm.fabs.v{LANES}f32"
            fabs = cgutils.get_or_insert_function(builder.module, kind, name)
            subnormal = builder.fcmp_ordered("<", builder.call(fabs, [v]), tiny)
            v = builder.select(subnormal, zero, v)
            w = multiply_add(builder, decayed, w, builder.fadd(w, v))
            store_lanes(builder, v, places[1], LANES, tile.mask)
            store_lanes(builder, w, places[0], LANES, tile.mask)

        for_each_tile(builder, start, stop, (LANES,), emit)
        return context.get_dummy_value()

    return types.void(values, velocity, gradient, i64, i64, sgd), generate


@inline
def reorder_range(values, start, stop, places, out):
    """out[places[k]] = values[k] for start <= k < stop."""
    new = values[start:stop]
    to = places[start:stop]
    for k in range(len(new)):
        out[np.uint32(to[k])] = new[k]


@inline
def prefetch_distance(X):
    """Return how many connections ahead rows are prefetched: none where the cache holds them.

    Where it does not, every connection is a cache and TLB miss.
    """
    return PREFETCH_AHEAD if X.nbytes > PREFETCH_BYTES else 0


@intrinsic
def prefetch_row(typing, indptr, indices, j, X, ahead):
    """Ask for the rows of X that a row's connections gather, but `ahead` connections later."""

    def generate(context, builder, signature, arguments):
        parts = taken_apart(context, builder, signature.args, arguments)
        indptr, indices, j, X, ahead = parts
        nnz, size = indices.shape[0], X.row_bytes()
        ends = [builder.add(end, ahead) for end in row_range(builder, indptr, j)]
        ends = [builder.select(builder.icmp_signed("<", end, nnz), end, nnz) for end in ends]
        with cgutils.for_range_slice(builder, *ends, I64(1)) as (k, _):
            row = gathered(builder, indices.address, k, X.address, size)
            with cgutils.for_range_slice(builder, I64(0), size, I64(CACHE_LINE)) as (offset, _):
                prefetch_line(builder, builder.add(row, offset))
        return context.get_dummy_value()

    return types.void(indptr, indices, i64, X, i64), generate

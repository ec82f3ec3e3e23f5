"""Compiled kernels of the `fused` backend: a layer's pass in one walk over its connections.

Arrays are as in `kernels`. Where the gathered rows do not fit the cache, every connection is a
cache and TLB miss: rows are prefetched `ahead` connections before they are read.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .kernels import ROWS, new_keep_bytes
from .philox import ROWS_PER_BLOCK, draw_keep_bytes
from .rows import (
    activate_plainly,
    activate_row,
    backward_row,
    differentiate_row,
    gather_row,
    prefetch_rows,
)


@inline
def forward_rows(
    first,
    stop,
    indptr,
    indices,
    values,
    bias,
    X,
    slope,
    ahead,
    keep_share,
    keep_below,
    seed,
    step,
    layer,
    first_row,
    out,
    state,
):
    """Compute the activations of the outputs first <= j < stop, at most ROWS of them."""
    words = state.shape[2]
    keep_bytes = new_keep_bytes(words)
    if words > 0 and keep_share < 1:
        block = first_row // ROWS_PER_BLOCK
        draw_keep_bytes(keep_below, seed, step, layer, first, block, keep_bytes)
    for j in range(first, stop):
        start = np.int64(indptr[j])
        end = np.int64(indptr[j + 1])
        if ahead > 0:
            prefetch_rows(X, indices, start + ahead, end + ahead)
        gather_row(indices, values, start, end, X, bias[j], out[j])
        if words > 0:
            shift = first_row % ROWS_PER_BLOCK
            activate_row(out[j], slope, keep_share, keep_bytes, j - first, shift, state[j])
        else:
            activate_plainly(out[j], slope)


@kernel()
def forward(
    indptr,
    indices,
    values,
    bias,
    X,
    slope,
    ahead,
    keep_share,
    keep_below,
    seed,
    step,
    layer,
    first_row,
    out,
    state,
):
    """Product, bias, activation and dropout in one pass over the output.

    Parameters are those of `kernels.activate`, and the connections in output order.
    """
    n = out.shape[0]
    for chunk in prange((n + ROWS - 1) // ROWS):
        first = chunk * ROWS
        forward_rows(
            first,
            min(n, first + ROWS),
            indptr,
            indices,
            values,
            bias,
            X,
            slope,
            ahead,
            keep_share,
            keep_below,
            seed,
            step,
            layer,
            first_row,
            out,
            state,
        )


@kernel()
def gather_parts(starts, stops, indices, values, X, out):
    """out[p] = the sum over the connections starts[p] <= k < stops[p] of values[k] X[indices[k]].

    The rows of X of a part nearly follow each other, so the CPU foresees them.
    """
    for p in prange(len(starts)):
        start = np.int64(starts[p])
        gather_row(indices, values, start, np.int64(stops[p]), X, np.float32(0), out[p])


@inline
def backward_rows(
    first,
    stop,
    indptr,
    indices,
    values,
    X,
    D,
    slope,
    keep_share,
    state,
    ahead,
    accumulate,
    out_gradient,
    out_delta,
    out_bias_gradient,
):
    """Compute the gradients of the inputs first <= i < stop."""
    for i in range(first, stop):
        start = np.int64(indptr[i])
        end = np.int64(indptr[i + 1])
        if ahead > 0:
            prefetch_rows(D, indices, start + ahead, end + ahead)
        delta = out_delta[i]
        backward_row(indices, values, start, end, D, X[i], out_gradient, accumulate, delta)
        total = differentiate_row(delta, slope, keep_share, state[i])
        out_bias_gradient[i] = out_bias_gradient[i] + total if accumulate else total


@kernel()
def backward(
    indptr,
    indices,
    values,
    X,
    D,
    slope,
    keep_share,
    state,
    ahead,
    accumulate,
    out_gradient,
    out_delta,
    out_bias_gradient,
):
    """Weight gradient, dL/dz of the layer below and its row sums, from one gather of D.

    The connections are in input order: a row of D is read once for both products, and rows of
    `out_delta` belong to one thread each.
    """
    n = out_delta.shape[0]
    for chunk in prange((n + ROWS - 1) // ROWS):
        first = chunk * ROWS
        backward_rows(
            first,
            min(n, first + ROWS),
            indptr,
            indices,
            values,
            X,
            D,
            slope,
            keep_share,
            state,
            ahead,
            accumulate,
            out_gradient,
            out_delta,
            out_bias_gradient,
        )

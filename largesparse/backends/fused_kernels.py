"""Compiled kernels of the `fused` backend: a layer's pass in one walk over its connections.

Arrays are as in `kernels`. Where the gathered rows do not fit the cache, every connection is a
cache and TLB miss: rows are prefetched `ahead` connections before they are read.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .kernels import ROWS, activate, new_keep_bytes
from .philox import ROWS_PER_BLOCK, draw_keep_bytes
from .rows import (
    activate_plainly,
    activate_row,
    backward_row,
    differentiate_row,
    gather_row,
    prefetch_rows,
)

PART = 512  # connections: rows of more than two parts, on average, are computed in parts


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
    shift = first_row % ROWS_PER_BLOCK
    batch = X.shape[1]
    size = 4 * batch
    places = indices.ctypes.data
    weights = values.ctypes.data
    gathered = X.ctypes.data
    for j in range(first, stop):
        start = np.int64(indptr[j])
        end = np.int64(indptr[j + 1])
        row = out.ctypes.data + size * j
        if ahead > 0:
            prefetch_rows(gathered, size, indices, start + ahead, end + ahead)
        gather_row(places, weights, start, end, gathered, batch, bias[j], row)
        if words > 0:
            lane = j - first
            activate_row(row, batch, slope, keep_share, keep_bytes, lane, shift, state, j)
        else:
            activate_plainly(row, batch, slope)


@kernel()
def forward_by_rows(
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
    """`forward`, where a row is the work of one thread."""
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
def forward_by_parts(
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
    """`forward`, where rows are so long that threads share them.

    The rows of X of a part nearly follow each other, so the CPU foresees them.
    """
    n, batch = out.shape
    first = np.zeros(n + 1, dtype=np.int64)  # part of every row
    for j in range(n):
        first[j + 1] = first[j] + (indptr[j + 1] - indptr[j] + PART - 1) // PART
    row = np.repeat(np.arange(n), np.diff(first))
    parts = np.empty((len(row), batch), dtype=np.float32)
    for p in prange(len(row)):
        j = row[p]
        start = indptr[j] + (p - first[j]) * PART
        stop = min(start + PART, np.int64(indptr[j + 1]))
        gather_row(
            indices.ctypes.data,
            values.ctypes.data,
            start,
            stop,
            X.ctypes.data,
            batch,
            np.float32(0),
            parts.ctypes.data + 4 * batch * p,
        )
    for j in prange(n):
        total = out[j]
        total[:] = 0
        for p in range(first[j], first[j + 1]):
            part = parts[p]
            for b in range(batch):
                total[b] += part[b]
    activate(out, bias, slope, keep_share, keep_below, seed, step, layer, first_row, state)


@kernel(parallel=False)
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
    if len(indices) > 2 * PART * out.shape[0]:
        forward_by_parts(
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
    else:
        forward_by_rows(
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
    batch = X.shape[1]
    size = 4 * batch
    places = indices.ctypes.data
    weights = values.ctypes.data
    gathered = D.ctypes.data
    to = out_gradient.ctypes.data
    for i in range(first, stop):
        start = np.int64(indptr[i])
        end = np.int64(indptr[i + 1])
        x = X.ctypes.data + size * i
        row = out_delta.ctypes.data + size * i
        if ahead > 0:
            prefetch_rows(gathered, size, indices, start + ahead, end + ahead)
        backward_row(places, weights, start, end, gathered, batch, x, to, accumulate, row)
        total = differentiate_row(row, batch, slope, keep_share, state, i)
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

"""Compiled kernels of the `fused` backend: a layer's pass in one walk over its connections.

Arrays are as in `kernels`. Where the gathered rows do not fit the cache, every connection is a
cache and TLB miss: rows are prefetched `ahead` connections before they are read.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .kernels import ROWS, activate
from .loops import divide_evenly, divide_loop
from .philox import draw_keep_words
from .rows import backward_row, forward_row, prefetch_rows
from .vectors import WORD, itemsize

PART = 512  # connections: rows of more than two parts, on average, are computed in parts


@inline
def forward_rows(
    first, stop, indptr, indices, values, bias, X, slope, ahead, keep_share, keep, out, state
):
    """Compute the activations of the outputs first <= j < stop.

    `keep`, uint32 (ROWS, words), has the dropout decisions of these outputs.
    """
    batch = X.shape[1]
    words = state.shape[2]
    kind, out_kind = X.dtype, out.dtype
    size = itemsize(kind) * batch
    right = np.float32(1) / keep_share
    left = slope * right
    places = indices.ctypes.data
    weights = values.ctypes.data
    gathered = X.ctypes.data
    for j in range(first, stop):
        start = np.int64(indptr[j])
        end = np.int64(indptr[j + 1])
        if ahead > 0:
            prefetch_rows(gathered, size, indices, start + ahead, end + ahead)
        if batch % WORD != 0 and words > 0:
            state[j, 0, words - 1] = 0
            state[j, 1, words - 1] = 0
        low = state.ctypes.data + 8 * words * j
        forward_row(
            places,
            weights,
            start,
            end,
            gathered,
            batch,
            bias[j],
            out.ctypes.data + itemsize(out_kind) * batch * j,
            left,
            right,
            words > 0,
            keep.ctypes.data + 4 * words * (j - first),
            low,
            low + 4 * words,
            kind,
            out_kind,
        )


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
    n, batch = out.shape
    chunks = (n + ROWS - 1) // ROWS
    divide_loop(chunks)
    for chunk in prange(chunks):
        first = chunk * ROWS
        keep = np.empty((ROWS, state.shape[2]), dtype=np.uint32)
        draw_keep_words(keep_below, seed, step, layer, first, first_row, batch, keep)
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
            keep,
            out,
            state,
        )
    divide_evenly()


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
    one = np.float32(1)
    for p in prange(len(row)):
        j = row[p]
        start = indptr[j] + (p - first[j]) * PART
        stop = min(start + PART, np.int64(indptr[j + 1]))
        to = parts.ctypes.data + 4 * batch * p
        forward_row(
            indices.ctypes.data,
            values.ctypes.data,
            start,
            stop,
            X.ctypes.data,
            batch,
            np.float32(0),
            to,
            one,
            one,
            False,
            to,
            to,
            to,
            X.dtype,
            parts.dtype,
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
    words = state.shape[2]
    kind, x_kind = D.dtype, X.dtype
    size = itemsize(kind) * batch
    x_size = itemsize(x_kind) * batch
    right = np.float32(1) / keep_share
    left = slope * right
    places = indices.ctypes.data
    weights = values.ctypes.data
    gathered = D.ctypes.data
    to = out_gradient.ctypes.data
    for i in range(first, stop):
        start = np.int64(indptr[i])
        end = np.int64(indptr[i + 1])
        if ahead > 0:
            prefetch_rows(gathered, size, indices, start + ahead, end + ahead)
        low = state.ctypes.data + 8 * words * i
        total = backward_row(
            places,
            weights,
            start,
            end,
            gathered,
            batch,
            X.ctypes.data + x_size * i,
            to,
            accumulate,
            out_delta.ctypes.data + x_size * i,
            left,
            right,
            low,
            low + 4 * words,
            kind,
            x_kind,
        )
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
    chunks = (n + ROWS - 1) // ROWS
    divide_loop(chunks)
    for chunk in prange(chunks):
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
    divide_evenly()

"""Compiled kernels of the `fused` backend: a layer's pass in one walk over its connections.

Arrays are as in `kernels`. Chunks are numbered by int64, which the index of a parallel loop is
while its types are inferred, but not when it runs: functions of a chunk are compiled once then.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .kernels import activate
from .loops import ROWS, divide_evenly, divide_loop
from .operands import Connections
from .philox import draw_keep_words, share_kept
from .rows import WORD, backward_row, forward_row, prefetch_distance, prefetch_row

PART = 512  # connections: rows of more than two parts, on average, are computed in parts


@inline
def forward_rows(chunk, connections, bias, X, slope, dropout, out, state):
    """Compute the activations of a chunk of outputs."""
    n, batch = out.shape
    words = state.shape[2]
    first = chunk * ROWS
    keep = np.empty((ROWS, words), dtype=np.uint32)
    draw_keep_words(dropout, first, batch, keep)
    indptr, indices, _ = connections
    activation = slope, share_kept(dropout)
    ahead = prefetch_distance(X)
    for j in range(first, min(n, first + ROWS)):
        if ahead > 0:
            prefetch_row(indptr, indices, j, X, ahead)
        if batch % WORD != 0 and words > 0:
            state[j, 0, words - 1] = 0
            state[j, 1, words - 1] = 0
        forward_row(connections, j, X, bias[j], activation, keep, out, state)


@kernel()
def forward_by_rows(connections, bias, X, slope, dropout, out, state):
    """`forward`, where a row is the work of one thread."""
    chunks = (len(out) + ROWS - 1) // ROWS
    divide_loop(chunks)
    for chunk in prange(chunks):
        forward_rows(np.int64(chunk), connections, bias, X, slope, dropout, out, state)
    divide_evenly()


@kernel()
def forward_by_parts(connections, bias, X, slope, dropout, out, state):
    """`forward`, where rows are so long that threads share them.

    The rows of X of a part nearly follow each other, so the CPU prefetches them by itself.
    """
    n, batch = out.shape
    indptr, indices, values = connections
    first = np.zeros(n + 1, dtype=np.int64)  # part of every row
    for j in range(n):
        first[j + 1] = first[j] + (indptr[j + 1] - indptr[j] + PART - 1) // PART
    starts = np.empty(first[n] + 1, dtype=indptr.dtype)
    for j in range(n):
        for p in range(first[j], first[j + 1]):
            starts[p] = indptr[j] + (p - first[j]) * PART
    starts[first[n]] = indptr[n]
    rows = Connections(starts, indices, values)
    parts = np.empty((first[n], batch), dtype=np.float32)
    one, zero = np.float32(1), np.float32(0)
    all_kept, no_state = np.empty((ROWS, 0), dtype=np.uint32), np.empty((0, 2, 0), dtype=np.uint32)
    for p in prange(len(parts)):
        forward_row(rows, p, X, zero, (one, one), all_kept, parts, no_state)
    for j in prange(n):
        total = out[j]
        for b in range(batch):
            total[b] = 0
        for p in range(first[j], first[j + 1]):
            part = parts[p]
            for b in range(batch):
                total[b] += part[b]
    activate(out, bias, slope, dropout, state)


@kernel(parallel=False)
def forward(connections, bias, X, slope, dropout, out, state):
    """`kernels.activate` of a product, in one pass over `out`; connections are in output order."""
    if len(connections.indices) > 2 * PART * out.shape[0]:
        forward_by_parts(connections, bias, X, slope, dropout, out, state)
    else:
        forward_by_rows(connections, bias, X, slope, dropout, out, state)


@inline
def backward_rows(chunk, connections, X, D, below, outputs, accumulate):
    """Compute the gradients of a chunk of inputs."""
    out_gradient, out_delta, out_bias_gradient = outputs
    indptr, indices, _ = connections
    ahead = prefetch_distance(D)
    for i in range(chunk * ROWS, min(len(X), (chunk + 1) * ROWS)):
        if ahead > 0:
            prefetch_row(indptr, indices, i, D, ahead)
        total = backward_row(connections, i, X, D, below, out_gradient, out_delta, accumulate)
        out_bias_gradient[i] = out_bias_gradient[i] + total if accumulate else total


@kernel()
def backward(connections, X, D, below, out_gradient, out_delta, out_bias_gradient, accumulate):
    """Weight gradient, dL/dz of the layer below and its row sums, from one gather of D.

    The connections are in input order: a row of D is read once for both products, and rows of
    `out_delta` belong to one thread each.
    """
    chunks = (len(X) + ROWS - 1) // ROWS
    divide_loop(chunks)
    outputs = out_gradient, out_delta, out_bias_gradient
    for chunk in prange(chunks):
        backward_rows(np.int64(chunk), connections, X, D, below, outputs, accumulate)
    divide_evenly()

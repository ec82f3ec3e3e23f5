"""Compiled kernels that the backends share: what is not a sparse-dense product.

Arrays of activations are feature-major, float32 (neurons, batch), C-contiguous. A *state* array,
uint32 (neurons, 2, words) with words = ceil(batch / 32), has two bits for every activation:
plane 0 where it was kept by dropout and z <= 0, plane 1 where it was kept and z > 0; both are
zero where it was dropped. That is all that the backward pass needs to know of z.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .philox import ROWS_PER_BLOCK, draw_keep_bytes
from .rows import (
    activate_plainly,
    activate_row,
    differentiate_row,
    gradient_row,
    prefetch_rows,
)

TINY = np.float32(np.finfo(np.float32).tiny)
ROWS = 32  # rows whose dropout decisions are drawn together
BLOCK = 4096  # elements of a flat array that one thread takes at a time


@kernel()
def load_dense(X, rows, out):
    """out[f, b] = X[rows[b], f]: a mini-batch, transposed to feature-major float32."""
    n_features, batch = out.shape
    tile = 16  # features of a row that are read together: a cache line
    for t in prange((n_features + tile - 1) // tile):
        for f in range(t * tile, min(n_features, (t + 1) * tile)):
            for b in range(batch):
                out[f, b] = X[rows[b], f]


@kernel(parallel=False)
def load_sparse(indptr, indices, values, rows, out):
    """out[f, b] = X[rows[b], f] for X in CSR; `out` is zero everywhere else."""
    out[:] = 0
    for b in range(len(rows)):
        for k in range(indptr[rows[b]], indptr[rows[b] + 1]):
            out[indices[k], b] = values[k]


@kernel()
def add_bias(Z, bias):
    """Z[j, b] += bias[j]."""
    n, batch = Z.shape
    for j in prange(n):
        for b in range(batch):
            Z[j, b] += bias[j]


@inline
def new_keep_bytes(words):
    """Return room for the dropout decisions of a chunk of rows; at first all are kept."""
    return np.full((4 * words + 1, ROWS), 0xFF, dtype=np.uint8)


@kernel()
def activate(Z, bias, slope, keep_share, keep_below, seed, step, layer, first_row, state):
    """Turn products into activations, in place: bias, activation, inverted dropout.

    Parameters
    ----------
    Z : float32 (n, batch)
        W·X on entry, the activations on return.
    bias : float32 (n,)
    slope : float32
        Left slope of the activation.
    keep_share : float32
        Share of the neurons that dropout keeps; 1 is no dropout.
    keep_below, seed, step, layer
        See `philox.draw_keep_bytes`.
    first_row : int
        Row of the mini-batch that the micro-batch begins with.
    state : uint32 (n, 2, words)
        Written; see the module's docstring. With no words, nothing is written.
    """
    n, batch = Z.shape
    words = state.shape[2]
    shift = first_row % ROWS_PER_BLOCK
    block = first_row // ROWS_PER_BLOCK
    for chunk in prange((n + ROWS - 1) // ROWS):
        first = chunk * ROWS
        keep_bytes = new_keep_bytes(words)
        if words > 0 and keep_share < 1:
            draw_keep_bytes(keep_below, seed, step, layer, first, block, keep_bytes)
        for j in range(first, min(n, first + ROWS)):
            for b in range(batch):
                Z[j, b] += bias[j]
            if words == 0:
                activate_plainly(Z[j], slope)
            else:
                activate_row(Z[j], slope, keep_share, keep_bytes, j - first, shift, state[j])


@kernel()
def differentiate(D, slope, keep_share, state, bias_gradient, accumulate):
    """Multiply D by the derivative of the activation, in place, and sum its rows.

    Parameters
    ----------
    D : float32 (n, batch)
        dL/da on entry, dL/dz on return.
    slope, keep_share : float32
        As in `activate`.
    state : uint32 (n, 2, words)
        As `activate` wrote it.
    bias_gradient : float32 (n,)
        Receives the sum of every row.
    accumulate : bool
        Whether the sums are added to what `bias_gradient` holds.
    """
    for j in prange(len(D)):
        total = differentiate_row(D[j], slope, keep_share, state[j])
        bias_gradient[j] = bias_gradient[j] + total if accumulate else total


@kernel()
def sddmm(indptr, indices, X, D, ahead, out, accumulate):
    """Sampled dense-dense product, the weight gradient: out[k] = sum_b X[i, b] D[indices[k], b].

    Parameters
    ----------
    indptr, indices : int32
        The pattern in input order; i is the row of connection k.
    X : float32 (n_in, batch)
    D : float32 (n_out, batch)
    ahead : int
        Connections whose rows of D are prefetched ahead.
    out : float32 (nnz,)
    accumulate : bool
        Whether the products are added to what `out` holds.
    """
    for i in prange(len(indptr) - 1):
        start = np.int64(indptr[i])
        stop = np.int64(indptr[i + 1])
        if ahead > 0:
            prefetch_rows(D, indices, start + ahead, stop + ahead)
        gradient_row(indices, out, start, stop, D, X[i], out, accumulate, X[i])


@inline
def momentum_step(k, values, velocity, gradient, rate, momentum, decay):
    """Momentum SGD (eq. 1) on one element: v = momentum·v - rate·g; w = w + v - decay·w.

    A velocity below the smallest normal float32 is set to zero: that of an idle connection would
    become subnormal within 900 steps, and subnormal arithmetic is up to 8 times slower.
    """
    v = momentum * velocity[k] - rate * gradient[k]
    if abs(v) < TINY:
        v = np.float32(0)
    velocity[k] = v
    values[k] += v - decay * values[k]


# The updates go in blocks of a fixed size: what falls behind the last full vector of a loop is
# rounded otherwise, and must not depend on the number of threads.


@kernel()
def momentum_update(values, velocity, gradient, rate, momentum, decay):
    """`momentum_step` on all elements, in place."""
    n = len(values)
    for block in prange((n + BLOCK - 1) // BLOCK):
        for k in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            momentum_step(k, values, velocity, gradient, rate, momentum, decay)


@kernel()
def momentum_update_reorder(values, velocity, gradient, rate, momentum, decay, places, out):
    """`momentum_step` on all elements, in place; then out[places[k]] = values[k]."""
    n = len(values)
    for block in prange((n + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        stop = min(n, start + BLOCK)
        for k in range(start, stop):
            momentum_step(k, values, velocity, gradient, rate, momentum, decay)
        for k in range(start, stop):
            out[places[k]] = values[k]

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
from .philox import ROWS_PER_BLOCK, draw_keep_bytes, keep_word

TINY = np.float32(np.finfo(np.float32).tiny)
ROWS = 64  # rows that share a scratch buffer
BLOCK = 4096  # elements of a flat array that one thread takes at a time


@kernel(parallel=False)
def transpose_pattern(n_out, indptr, indices):
    """Return the output order of a pattern given in input order, by counting.

    Returns
    -------
    indptr_by_output : int32 (n_out + 1,)
    indices_by_output : int32 (nnz,)
    to_output_order : int32 (nnz,)
    """
    nnz = len(indices)
    indptr_by_output = np.zeros(n_out + 1, dtype=np.int32)
    for k in range(nnz):
        indptr_by_output[indices[k] + 1] += 1
    for j in range(n_out):
        indptr_by_output[j + 1] += indptr_by_output[j]
    free = indptr_by_output[:-1].copy()
    indices_by_output = np.empty(nnz, dtype=np.int32)
    to_output_order = np.empty(nnz, dtype=np.int32)
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            place = free[indices[k]]
            free[indices[k]] = place + 1
            indices_by_output[place] = i
            to_output_order[k] = place
    return indptr_by_output, indices_by_output, to_output_order


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
    scale = np.float32(1) / keep_share
    left = slope * scale
    shift = first_row % ROWS_PER_BLOCK
    for chunk in prange((n + ROWS - 1) // ROWS):
        keep_bytes = np.full(4 * words + 1, 0xFF, dtype=np.uint8)
        for j in range(chunk * ROWS, min(n, (chunk + 1) * ROWS)):
            if words == 0:
                for b in range(batch):
                    z = Z[j, b] + bias[j]
                    Z[j, b] = z if z > 0 else slope * z
            elif keep_share < 1:
                block = first_row // ROWS_PER_BLOCK
                draw_keep_bytes(keep_below, seed, step, layer, j, block, keep_bytes)
            for word in range(words):
                start = word * 32
                count = min(32, batch - start)
                keep = keep_word(keep_bytes, word, shift)
                keep &= np.uint32(0xFFFFFFFF) >> np.uint32(32 - count)
                positive = np.uint32(0)
                for b in range(count):
                    bit = np.uint32(1) << np.uint32(b)
                    z = Z[j, start + b] + bias[j]
                    positive |= bit if z > 0 else np.uint32(0)
                    a = z * (scale if z > 0 else left)
                    Z[j, start + b] = a if keep & bit else np.float32(0)
                state[j, 0, word] = keep & ~positive
                state[j, 1, word] = keep & positive


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
    n, batch = D.shape
    right = np.float32(1) / keep_share
    left = slope * right
    for j in prange(n):
        total = np.float32(0)
        for word in range(state.shape[2]):
            start = word * 32
            low = state[j, 0, word]
            high = state[j, 1, word]
            for b in range(min(32, batch - start)):
                bit = np.uint32(1) << np.uint32(b)
                d = D[j, start + b]
                d = d * right if high & bit else (d * left if low & bit else np.float32(0))
                D[j, start + b] = d
                total += d
        bias_gradient[j] = bias_gradient[j] + total if accumulate else total


@kernel()
def sddmm(indptr, indices, X, D, out, accumulate):
    """Sampled dense-dense product, the weight gradient: out[k] = sum_b X[i, b] D[indices[k], b].

    Parameters
    ----------
    indptr, indices : int32
        The pattern in input order; i is the row of connection k.
    X : float32 (n_in, batch)
    D : float32 (n_out, batch)
    out : float32 (nnz,)
    accumulate : bool
        Whether the products are added to what `out` holds.
    """
    batch = X.shape[1]
    for i in prange(len(indptr) - 1):
        k = indptr[i]
        end = indptr[i + 1]
        while k + 4 <= end:  # four connections share every load of X
            j0 = indices[k]
            j1 = indices[k + 1]
            j2 = indices[k + 2]
            j3 = indices[k + 3]
            t0 = np.float32(0)
            t1 = np.float32(0)
            t2 = np.float32(0)
            t3 = np.float32(0)
            for b in range(batch):
                x = X[i, b]
                t0 += x * D[j0, b]
                t1 += x * D[j1, b]
                t2 += x * D[j2, b]
                t3 += x * D[j3, b]
            if not accumulate:
                out[k : k + 4] = 0
            out[k] += t0
            out[k + 1] += t1
            out[k + 2] += t2
            out[k + 3] += t3
            k += 4
        while k < end:
            j = indices[k]
            total = np.float32(0)
            for b in range(batch):
                total += X[i, b] * D[j, b]
            out[k] = out[k] + total if accumulate else total
            k += 1


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


@kernel()
def find_occupied(indptr, indices, keep, n_out, positions, occupied):
    """occupied[p] = whether cell positions[p] (row-major) is a connection that is kept."""
    for p in prange(len(positions)):
        i = positions[p] // n_out
        j = positions[p] - i * n_out
        low = indptr[i]
        high = indptr[i + 1]
        while low < high:
            middle = (low + high) // 2
            if indices[middle] < j:
                low = middle + 1
            else:
                high = middle
        occupied[p] = low < indptr[i + 1] and indices[low] == j and keep[low]


@kernel(parallel=False)
def merge_pattern(indptr, indices, keep, n_out, positions):
    """Merge the connections that are kept with new ones, in input order.

    Parameters
    ----------
    indptr, indices : int32
        The old pattern in input order.
    keep : bool (nnz,)
    n_out : int
    positions : int64 (n_new,)
        Row-major cells of the new connections: ascending, distinct, free.

    Returns
    -------
    new_indptr : int32 (n_in + 1,)
    new_indices : int32 (kept + n_new,)
    slot_map : int32 (nnz,)
        Old connection -> its place in the new pattern; -1 where it is gone.
    new_slots : int32 (n_new,)
        The places of the new connections.
    """
    n_in = len(indptr) - 1
    n_new = len(positions)
    total = n_new
    for k in range(len(keep)):
        total += keep[k]
    new_indptr = np.empty(n_in + 1, dtype=np.int32)
    new_indices = np.empty(total, dtype=np.int32)
    slot_map = np.empty(len(indices), dtype=np.int32)
    new_slots = np.empty(n_new, dtype=np.int32)
    new_indptr[0] = 0
    place = 0
    p = 0
    for i in range(n_in):
        k = indptr[i]
        end = indptr[i + 1]
        row_start = np.int64(i) * n_out
        while True:
            while k < end and not keep[k]:
                slot_map[k] = -1
                k += 1
            new_column = positions[p] - row_start if p < n_new else np.int64(n_out)
            if k < end and indices[k] < new_column:
                slot_map[k] = place
                new_indices[place] = indices[k]
                k += 1
            elif new_column < n_out:
                new_slots[p] = place
                new_indices[place] = new_column
                p += 1
            else:
                break
            place += 1
        new_indptr[i + 1] = place
    return new_indptr, new_indices, slot_map, new_slots

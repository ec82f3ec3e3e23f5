"""Compiled kernels of a first layer whose inputs are sparse: its cost is that of the nonzeros.

A mini-batch comes as `SparseBatch`. Every sum has one thread and a fixed order, so results do not
depend on the number of threads: an output belongs to the thread of its sample, a connection to
that of its input, which goes through the samples in turn.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .lanes import LANES
from .rows import unsigned

INPUTS = 4096  # of which one thread brings the weights up to date at a time
SHIFT_BLOCKS = 8  # of inputs whose part in the bias is summed up by one thread
TINY = np.float32(2.0**-126)  # the smallest normal float32


@kernel(parallel=False)
def gather_rows(indptr, indices, values, rows, mean, scale, centred, blocks):
    """Return rows of a canonical CSR matrix, standardised, as the arrays of a `SparseBatch`.

    (x - mean[f]) * scale[f] is computed in the dtype of mean and scale, which may be empty: then
    the values are taken as they are. `centred` has the features with a mean other than 0, int64
    and ascending: every row has an entry for each of them. `blocks` are their number and width.
    """
    batch = len(rows)
    most = np.int64(batch * len(centred))
    for b in range(batch):
        most += np.int64(indptr[rows[b] + 1]) - np.int64(indptr[rows[b]])
    starts = np.empty((batch, blocks[0] + 1), dtype=np.int64)
    features, numbers = np.empty(most, dtype=np.int32), np.empty(most, dtype=np.float32)
    n = 0
    for b in range(batch):
        first, c = n, 0
        for k in range(indptr[rows[b]], indptr[rows[b] + 1]):
            f = np.int64(indices[k])
            while c < len(centred) and centred[c] < f:
                features[n], numbers[n] = centred[c], -mean[centred[c]] * scale[centred[c]]
                n += 1
                c += 1
            features[n] = f
            if c < len(centred) and centred[c] == f:
                numbers[n] = (mean.dtype.type(values[k]) - mean[f]) * scale[f]
                c += 1
            elif len(scale) > 0:
                numbers[n] = mean.dtype.type(values[k]) * scale[f]
            else:
                numbers[n] = values[k]
            n += 1
        for f in centred[c:]:
            features[n], numbers[n] = f, -mean[f] * scale[f]
            n += 1
        block, end = 0, np.int64(0)  # feature at which the block begins
        for k in range(first, n):
            while features[k] >= end and block < blocks[0]:
                starts[b, block] = k
                block += 1
                end += blocks[1]
        starts[b, block:] = n
    return starts, features[:n], numbers[:n]


@inline
def multiply_tile(tile, batch, connections, out):
    """Compute `multiply` for a tile of samples."""
    starts, features, numbers, _ = batch
    indptr, indices, values = connections
    n_out, n_samples = out.shape
    first = tile * LANES
    stop = min(n_samples, first + LANES)
    sums = np.zeros((stop - first, n_out), dtype=np.float32)  # a sample's stay in the cache
    for q in range(starts.shape[1] - 1):  # as do the connections of a block
        for b in range(first, stop):
            total = sums[b - first]
            for e in range(starts[b, q], starts[b, q + 1]):
                i, x = np.uint32(features[e]), numbers[e]
                for k in range(unsigned(indptr[i]), unsigned(indptr[i + 1])):
                    total[np.uint32(indices[k])] += values[k] * x
    for j in range(n_out):
        for b in range(first, stop):
            out[j, b] = sums[b - first, j]


@kernel()
def multiply(batch, connections, out):
    """out = Wᵀ·X, float32 (n_out, batch), of a `SparseBatch` and connections in input order.

    Its shift is left out: see `shift_bias`.
    """
    for tile in prange((out.shape[1] + LANES - 1) // LANES):
        multiply_tile(np.int64(tile), batch, connections, out)


@kernel()
def transpose(D):
    """Return the transposed of D, float32."""
    n, batch = D.shape
    out = np.empty((batch, n), dtype=np.float32)
    for tile in prange((n + LANES - 1) // LANES):
        for b in range(batch):
            for j in range(tile * LANES, min(n, (tile + 1) * LANES)):
                out[b, j] = D[j, b]
    return out


@inline
def add_sddmm_block(q, batch, indptr, indices, D, out):
    """Compute `add_sddmm` for a block of inputs."""
    starts, features, numbers, _ = batch
    for b in range(len(D)):
        d = D[b]
        for e in range(starts[b, q], starts[b, q + 1]):
            i, x = np.uint32(features[e]), numbers[e]
            for k in range(unsigned(indptr[i]), unsigned(indptr[i + 1])):
                out[k] += x * d[np.uint32(indices[k])]


@kernel()
def add_sddmm(batch, indptr, indices, D, out):
    """Add `kernels.sddmm` of a `SparseBatch` to `out`; D is transposed, (batch, n_out).

    Its shift is left out: see `subtract_shift`.
    """
    for q in prange(batch.starts.shape[1] - 1):
        add_sddmm_block(np.int64(q), batch, indptr, indices, D, out)


@kernel(parallel=False)
def sum_inputs(batch, weights, out, accumulate):
    """`kernels.sum_inputs` of a `SparseBatch`."""
    starts, features, numbers, shift = batch
    n = len(out) - 1
    if not accumulate:
        out[:] = 0
    before = out[n]
    for b in range(len(starts)):
        weight = np.float32(1)
        if len(weights) > 0 and weights[b] < 1:
            weight = weights[b]
        out[n] += weight
        for e in range(starts[b, 0], starts[b, -1]):
            out[np.uint32(features[e])] += weight * numbers[e]
    for i in range(len(shift)):
        out[i] -= (out[n] - before) * shift[i]


@inline
def sum_shift_block(block, shift, connections, sums):
    """Add up W[i]·shift[i] over a part of the inputs."""
    indptr, indices, values = connections
    width = (len(shift) + SHIFT_BLOCKS - 1) // SHIFT_BLOCKS
    total = sums[block]
    for i in range(block * width, min(len(shift), (block + 1) * width)):
        for k in range(unsigned(indptr[i]), unsigned(indptr[i + 1])):
            total[np.uint32(indices[k])] += np.float64(shift[i]) * values[k]


@kernel()
def shift_bias(shift, connections, bias):
    """Return bias - Wᵀ·shift, float32 (n_out,), of connections in input order."""
    sums = np.zeros((SHIFT_BLOCKS, len(bias)), dtype=np.float64)
    for block in prange(SHIFT_BLOCKS):
        sum_shift_block(np.int64(block), shift, connections, sums)
    out = np.empty(len(bias), dtype=np.float32)
    for j in range(len(bias)):
        total = np.float64(bias[j])
        for block in range(SHIFT_BLOCKS):
            total -= sums[block, j]
        out[j] = total
    return out


@inline
def subtract_shift_block(block, shift, indptr, indices, sums, out):
    """Compute `subtract_shift` for a block of inputs."""
    for i in range(block * INPUTS, min(len(shift), (block + 1) * INPUTS)):
        for k in range(unsigned(indptr[i]), unsigned(indptr[i + 1])):
            out[k] -= shift[i] * sums[np.uint32(indices[k])]


@kernel()
def subtract_shift(shift, indptr, indices, sums, out):
    """Subtract shift·sumsᵀ, which is of rank one, at the connections; `sums` are those of D."""
    for block in prange((len(shift) + INPUTS - 1) // INPUTS):
        subtract_shift_block(np.int64(block), shift, indptr, indices, sums, out)


@inline
def follow(connections, velocity, i, lag):
    """Bring the weights of an input up to date."""
    indptr, _, values = connections
    kept, moved, decayed = lag
    for k in range(unsigned(indptr[i]), unsigned(indptr[i + 1])):
        w, v = values[k], velocity[k]
        values[k] = w + (moved * v - decayed * w)
        v *= kept
        velocity[k] = v if abs(v) >= TINY else np.float32(0)


@inline
def catch_up_in_block(q, places, lags, seen, connections, velocity, gradient):
    """Compute `catch_up` for a block of inputs."""
    starts, features = places
    indptr, now = connections.indptr, len(lags) - 1
    for b in range(len(starts)):
        for e in range(starts[b, q], starts[b, q + 1]):
            i = np.uint32(features[e])
            s = seen[i]
            if s < now:
                follow(connections, velocity, i, (lags[s, 0], lags[s, 1], lags[s, 2]))
                seen[i] = now
            for k in range(unsigned(indptr[i]), unsigned(indptr[i + 1])):
                gradient[k] = 0


@kernel()
def catch_up(places, lags, seen, connections, velocity, gradient):
    """Bring the weights of the inputs that have entries up to date, and zero their gradients.

    `places` are starts and features of a `SparseBatch`. Input i has seen the first seen[i] of
    the updates that `lags`, float32 (updates + 1, 3), knows of: row s leads from s updates to all
    of them, see `LazyUpdates`. The last row changes nothing.
    """
    for q in prange(places[0].shape[1] - 1):
        catch_up_in_block(np.int64(q), places, lags, seen, connections, velocity, gradient)


@inline
def catch_up_block(block, lags, seen, connections, velocity):
    """Compute `catch_up_all` for a block of inputs."""
    for i in range(block * INPUTS, min(len(seen), (block + 1) * INPUTS)):
        s = seen[i]
        if s < len(lags) - 1:
            lag = lags[s, 0], lags[s, 1], lags[s, 2]
            follow(connections, velocity, np.uint32(i), lag)


@kernel()
def catch_up_all(lags, seen, connections, velocity):
    """Bring the weights of all inputs up to date: see `catch_up`; `seen` is left as it is."""
    for block in prange((len(seen) + INPUTS - 1) // INPUTS):
        catch_up_block(np.int64(block), lags, seen, connections, velocity)


@inline
def update_block(q, places, now, seen, connections, velocity, gradient, sgd):
    """Compute `update_present` for a block of inputs."""
    starts, features = places
    indptr, _, values = connections
    rate, momentum, decay, nesterov = sgd
    for b in range(len(starts)):
        for e in range(starts[b, q], starts[b, q + 1]):
            i = np.uint32(features[e])
            if seen[i] > now:
                continue
            seen[i] = now + 1
            for k in range(unsigned(indptr[i]), unsigned(indptr[i + 1])):
                v = momentum * velocity[k] - rate * gradient[k]
                v = v if abs(v) >= TINY else np.float32(0)
                velocity[k] = v
                if nesterov:
                    v = momentum * v - rate * gradient[k]
                values[k] += v - decay * values[k]


@kernel()
def update_present(places, now, seen, connections, velocity, gradient, sgd):
    """`kernels.momentum_update` of the inputs that have entries: they see update `now`."""
    for q in prange(places[0].shape[1] - 1):
        update_block(np.int64(q), places, now, seen, connections, velocity, gradient, sgd)

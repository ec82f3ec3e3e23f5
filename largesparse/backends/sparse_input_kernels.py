"""Compiled kernels of a first layer whose inputs are sparse: its cost is that of the nonzeros.

A mini-batch comes as `SparseBatch`. No backend replaces these kernels, as none of their libraries
has a product of two sparse matrices that leads to a dense one in the layout of activations.

Every sum has one thread and a fixed order, so results do not depend on the number of threads: an
output belongs to the thread of its sample, a connection to that of its input.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .lanes import LANES
from .loops import divide_evenly, divide_loop

INPUTS = 64  # that are one iteration of a parallel loop
TINY = np.float32(2.0**-126)  # the smallest normal float32


@kernel(parallel=False)
def gather_rows(indptr, indices, values, rows, mean, scale, centred):
    """Return rows of a CSR matrix, standardised, as CSR: indptr int64, indices int32, float32.

    (x - mean[f]) * scale[f] is computed in the dtype of mean and scale, which may be empty: then
    the values are taken as they are. `centred` has the features with a mean other than 0, int64
    and ascending. Every row has an entry for each of them: they come first.
    """
    batch, offset = len(rows), len(centred)
    starts = np.empty(batch + 1, dtype=np.int64)
    starts[0] = 0
    count = 0
    for b in range(batch):
        count += np.int64(indptr[rows[b] + 1]) - np.int64(indptr[rows[b]]) + offset
        starts[b + 1] = count
    features, numbers = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.float32)
    n = 0
    for b in range(batch):
        first = n
        for c in range(offset):
            f = centred[c]
            features[n] = f
            numbers[n] = -mean[f] * scale[f]
            n += 1
        for k in range(indptr[rows[b]], indptr[rows[b] + 1]):
            f = indices[k]
            if len(scale) == 0:
                features[n], numbers[n] = f, values[k]
                n += 1
                continue
            x = (mean.dtype.type(values[k]) - mean[f]) * scale[f]
            if mean[f] != 0:
                numbers[first + np.searchsorted(centred, np.int64(f))] = x
                continue
            features[n], numbers[n] = f, x
            n += 1
        starts[b + 1] = n
    return starts, features[:n], numbers[:n]


@kernel(parallel=False)
def group_by_feature(indptr, features, values, counters):
    """Return the features that rows in CSR form have, and the entries of each of them.

    That is `touched` and the rest of a `SparseBatch`. Features come in the order in which they are
    met, samples ascend. `counters`, int32 (n_features,), is zero before and afterwards.
    """
    n = len(features)
    touched = np.empty(n, dtype=np.int32)
    count = 0
    for k in range(n):
        f = features[k]
        if counters[f] == 0:
            touched[count] = f
            count += 1
        counters[f] += 1
    starts = np.empty(count + 1, dtype=np.int32)
    starts[0] = 0
    for t in range(count):
        starts[t + 1] = starts[t] + counters[touched[t]]
        counters[touched[t]] = starts[t]
    samples, by_feature = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.float32)
    for b in range(len(indptr) - 1):
        for k in range(indptr[b], indptr[b + 1]):
            place = counters[features[k]]
            samples[place], by_feature[place] = b, values[k]
            counters[features[k]] = place + 1
    for t in range(count):
        counters[touched[t]] = 0
    return touched[:count].copy(), starts, samples, by_feature


@kernel()
def multiply(batch, connections, out):
    """out = Wᵀ·X, float32 (n_out, batch), of a `SparseBatch` and connections in input order."""
    indptr, features, values = batch.indptr, batch.features, batch.values
    n_out, n_samples = out.shape
    tiles = (n_samples + LANES - 1) // LANES
    divide_loop(tiles)
    for tile in prange(tiles):
        first = tile * LANES
        stop = min(n_samples, first + LANES)
        sums = np.zeros((stop - first, n_out), dtype=np.float32)  # a sample's stay in the cache
        for b in range(first, stop):
            total = sums[b - first]
            for e in range(indptr[b], indptr[b + 1]):
                i, x = np.uint32(features[e]), values[e]
                for k in range(connections.indptr[i], connections.indptr[i + 1]):
                    k = np.uint32(k)
                    total[np.uint32(connections.indices[k])] += connections.values[k] * x
        for j in range(n_out):
            for b in range(first, stop):
                out[j, b] = sums[b - first, j]
    divide_evenly()


@inline
def sampled(batch, t, j, D):
    """Return the gradient of the weight from the t-th touched input to output j."""
    total = np.float32(0)
    row = D[j]
    for e in range(batch.starts[t], batch.starts[t + 1]):
        total += batch.by_feature[e] * row[np.uint32(batch.samples[e])]
    return total


@kernel()
def sddmm(batch, indptr, indices, D, out, accumulate):
    """`kernels.sddmm` with X a `SparseBatch`; only the connections of touched inputs are written.

    The others have a gradient of zero.
    """
    n = len(batch.touched)
    chunks = (n + INPUTS - 1) // INPUTS
    divide_loop(chunks)
    for chunk in prange(chunks):
        for t in range(chunk * INPUTS, min(n, (chunk + 1) * INPUTS)):
            i = np.uint32(batch.touched[t])
            for k in range(indptr[i], indptr[i + 1]):
                k = np.uint32(k)
                total = sampled(batch, t, np.uint32(indices[k]), D)
                out[k] = out[k] + total if accumulate else total
    divide_evenly()


@kernel(parallel=False)
def sum_inputs(batch, weights, out, accumulate):
    """`kernels.sum_inputs` of a `SparseBatch`."""
    n = len(out) - 1
    if not accumulate:
        out[:] = 0
    for b in range(len(batch.indptr) - 1):
        weight = np.float32(1)
        if len(weights) > 0 and weights[b] < 1:
            weight = weights[b]
        out[n] += weight
        for e in range(batch.indptr[b], batch.indptr[b + 1]):
            out[np.uint32(batch.features[e])] += weight * batch.values[e]


@inline
def follow(k, values, velocity, lag):
    """Apply the updates by a gradient of zero that a weight has not seen: see `lag_table`."""
    momentum, moved, decayed = lag
    w, v = values[k], velocity[k]
    values[k] = w + (moved * v - decayed * w)
    v *= momentum
    velocity[k] = v if abs(v) >= TINY else np.float32(0)


@kernel()
def catch_up(touched, table, seen, indptr, values, velocity):
    """Bring the weights of some inputs up to date.

    Input i has seen the first seen[i] updates of all that `table`, float32 (updates + 1, 3), knows
    of: row s has the numbers that lead from there to now, momentum, moved and decayed, with
    w + moved·v - decayed·w the weight and momentum·v the velocity. The last row leads nowhere.
    """
    now = len(table) - 1
    n = len(touched)
    chunks = (n + INPUTS - 1) // INPUTS
    divide_loop(chunks)
    for chunk in prange(chunks):
        for t in range(chunk * INPUTS, min(n, (chunk + 1) * INPUTS)):
            i = np.uint32(touched[t])
            if seen[i] == now:
                continue
            lag = table[seen[i], 0], table[seen[i], 1], table[seen[i], 2]
            for k in range(indptr[i], indptr[i + 1]):
                follow(np.uint32(k), values, velocity, lag)
            seen[i] = now
    divide_evenly()


@kernel()
def update_touched(touched, seen, connections, velocity, gradient, sgd):
    """`kernels.momentum_update` of the connections of some inputs, which see one update more."""
    n = len(touched)
    rate, momentum, decay = sgd
    chunks = (n + INPUTS - 1) // INPUTS
    divide_loop(chunks)
    for chunk in prange(chunks):
        for t in range(chunk * INPUTS, min(n, (chunk + 1) * INPUTS)):
            i = np.uint32(touched[t])
            for k in range(connections.indptr[i], connections.indptr[i + 1]):
                k = np.uint32(k)
                v = momentum * velocity[k] - rate * gradient[k]
                v = v if abs(v) >= TINY else np.float32(0)
                velocity[k] = v
                w = connections.values[k]
                connections.values[k] = w + (v - decay * w)
            seen[i] += 1
    divide_evenly()

"""Compiled kernels that the backends share: what is not a sparse-dense product.

Arrays of activations are feature-major, float32 (neurons, batch), C-contiguous. A *state* array,
uint32 (neurons, 2, words) with words = ceil(batch / 32), has two bits for every activation:
plane 0 where it was kept by dropout and z <= 0, plane 1 where it was kept and z > 0; both are
zero where it was dropped. That is all that the backward pass needs to know of z.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .lanes import LANES
from .loops import ROWS, divide_evenly, divide_loop
from .operands import Connections
from .philox import draw_keep_words, share_kept
from .rows import (
    activate_row,
    adam_range,
    differentiate_row,
    fused_add,
    gradient_row,
    prefetch_distance,
    prefetch_row,
    reorder_range,
    row_sum,
    transpose_16,
    update_range,
    weighted_row_sum,
)

BLOCK = 4096  # elements of a flat array that one thread takes at a time, in the cache
NEGLIGIBLE = np.float32(1e-30)  # probability


@kernel()
def load_dense(X, rows, out):
    """out[f, b] = X[rows[b], f]: a mini-batch, transposed to feature-major float32."""
    n_features, batch = out.shape
    tile = 16  # features of a row that are read together: a cache line
    for t in prange((n_features + tile - 1) // tile):
        part = slice(t * tile, min(n_features, (t + 1) * tile))
        to = out[part]
        for b in range(batch):
            row = X[np.uint64(rows[b]), part]
            for f in range(len(row)):
                to[f, b] = row[f]


@kernel()
def load_float32(X, rows, out):
    """`load_dense` of a C-contiguous float32 X, int64 rows."""
    n_features, batch = out.shape
    for t in prange((n_features + LANES - 1) // LANES):
        first = t * LANES
        part = slice(first, min(n_features, first + LANES))
        to = out[part]
        whole = batch - batch % LANES if len(to) == LANES else 0
        for b in range(0, whole, LANES):
            transpose_16(X, rows, first, out, b)
        for b in range(whole, batch):
            row = X[np.uint64(rows[b]), part]
            for f in range(len(row)):
                to[f, b] = row[f]


@kernel()
def load_centred(X, rows, mean, scale, out):
    """out[f, b] = (X[rows[b], f] - mean[f]) * scale[f], computed in float64: see `load_dense`.

    What distinguishes the rows of X may be lost where it is rounded to float32 first.
    """
    n_features, batch = out.shape
    tile = 16  # features of a row that are read together: two cache lines
    for t in prange((n_features + tile - 1) // tile):
        part = slice(t * tile, min(n_features, (t + 1) * tile))
        to, centre, factor = out[part], mean[part], scale[part]
        for b in range(batch):
            row = X[np.uint64(rows[b]), part]
            for f in range(len(row)):
                to[f, b] = (np.float64(row[f]) - centre[f]) * factor[f]


@kernel(parallel=False)
def load_sparse(indptr, indices, values, rows, out):
    """out[f, b] = X[rows[b], f] for X in CSR; `out` is zero everywhere else."""
    out[:] = 0
    for b in range(len(rows)):
        for k in range(indptr[rows[b]], indptr[rows[b] + 1]):
            out[indices[k], b] = values[k]


@kernel(parallel=False)
def load_standardised(indptr, indices, values, rows, mean, scale, out):
    """out[f, b] = (X[rows[b], f] - mean[f]) * scale[f] for X in CSR, in the dtype of mean."""
    for f in range(len(mean)):
        out[f, :] = -mean[f] * scale[f]
    for b in range(len(rows)):
        for k in range(indptr[rows[b]], indptr[rows[b] + 1]):
            f = indices[k]
            out[f, b] = (mean.dtype.type(values[k]) - mean[f]) * scale[f]


@kernel()
def activate(Z, bias, slope, dropout, state):
    """Turn Z, (n, batch), from W·X into activations, in place: bias, activation, inverted dropout.

    `slope`, a float32, is the activation's left one. The state is written, if it has words.
    """
    n, batch = Z.shape
    chunks = (n + ROWS - 1) // ROWS
    activation = slope, share_kept(dropout)
    divide_loop(chunks)
    for chunk in prange(chunks):
        first = chunk * ROWS
        keep = np.empty((ROWS, state.shape[2]), dtype=np.uint32)
        draw_keep_words(dropout, first, batch, keep)
        for j in range(first, min(n, first + ROWS)):
            activate_row(Z, j, bias[j], activation, keep, state)
    divide_evenly()


@kernel()
def differentiate(D, derivative, bias_gradient, accumulate):
    """Turn D, (n, batch), from dL/da into dL/dz, in place, and sum its rows to `bias_gradient`.

    If `accumulate`, the sums are added to what that holds.
    """
    for j in prange(len(D)):
        total = differentiate_row(D, j, derivative)
        bias_gradient[j] = bias_gradient[j] + total if accumulate else total


@inline
def gradient_rows(chunk, connections, X, D, accumulate):
    """Compute the weight gradient of a chunk of inputs, into the connections' values."""
    indptr, indices, _ = connections
    ahead = prefetch_distance(D)
    for i in range(chunk * ROWS, min(len(X), (chunk + 1) * ROWS)):
        if ahead > 0:
            prefetch_row(indptr, indices, i, D, ahead)
        gradient_row(connections, i, X, D, accumulate)


@kernel()
def sddmm(indptr, indices, X, D, out, accumulate):
    """Sampled dense-dense product, the weight gradient: out[k] = sum_b X[i, b] D[indices[k], b].

    The pattern is in input order; i is the row of connection k. If `accumulate`, the products are
    added to what `out` holds.
    """
    connections = Connections(indptr, indices, out)
    chunks = (len(X) + ROWS - 1) // ROWS
    divide_loop(chunks)
    for chunk in prange(chunks):
        gradient_rows(np.int64(chunk), connections, X, D, accumulate)
    divide_evenly()


@kernel()
def sum_rows(X, out, accumulate):
    """out[i] = sum_b X[i, b], added to what `out` holds if `accumulate`."""
    for i in prange(len(X)):
        total = row_sum(X, i)
        out[i] = out[i] + total if accumulate else total


@kernel()
def sum_inputs(X, weights, out, accumulate):
    """`sum_rows` with weights of the samples, and the sum of these weights behind the sums.

    Weights above 1 count 1: the mean would be that of a few samples. Without any, all count 1.
    """
    n, batch = X.shape
    weighted = len(weights) > 0
    capped = np.empty((1, len(weights)), dtype=np.float32)
    for b in range(len(weights)):
        capped[0, b] = np.float32(1) if weights[b] > 1 else weights[b]
    for i in prange(n):
        total = weighted_row_sum(X, i, capped) if weighted else row_sum(X, i)
        out[i] = out[i] + total if accumulate else total
    count = row_sum(capped, 0) if weighted else np.float32(batch)
    out[n] = out[n] + count if accumulate else count


@kernel()
def center_gradient(indptr, indices, input_sums, rate_scale, bias_gradient, out):
    """Precondition a layer's gradients as if its inputs had a mean of zero, in place.

    With the mean m over the mini-batch, z = Wᵀ(x - m) + c has c = b + Wᵀm in place of the
    bias. Its gradients are G - m gᵀ and g, where G and g are those of W and b; a step along
    them changes b by c's step less that of Wᵀm.

    The connections are in input order, `out` has the gradient of the weights, `input_sums` what
    `sum_inputs` gives; the rate of the weights is `rate_scale` times that of the bias.
    """
    n = len(indptr) - 1
    n_out = len(bias_gradient)
    count = input_sums[n]  # samples, or their weights
    share = np.float32(1 / count if count > 0 else 0)
    blocks = (n + BLOCK - 1) // BLOCK
    shifts = np.zeros((blocks, n_out), dtype=np.float64)
    for block in prange(blocks):
        for i in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            mean = input_sums[i] * share
            for k in range(indptr[i], indptr[i + 1]):
                j = indices[k]
                out[k] = fused_add(-mean, bias_gradient[j], out[k])
                shifts[block, j] += mean * out[k]
    for j in range(n_out):
        total = 0.0
        for block in range(blocks):
            total += shifts[block, j]
        bias_gradient[j] -= np.float32(rate_scale * total)


@kernel(parallel=False)
def softmax_cross_entropy(logits, labels, weights, total, smoothing, delta):
    """Return the summed softmax cross-entropy; `delta` receives the gradient of sum / total.

    Logits and delta are (n_classes, batch). Samples without weights count 1. Probabilities under
    1e-30 are 0 in the gradient: what the layers below make of them would be subnormal, which is
    slow. `smoothing`, a float32, is the share of each label that all classes get in equal parts.
    """
    n_classes, batch = logits.shape
    loss = 0.0
    share = np.float32(1 / total)
    for b in range(batch):
        largest = logits[0, b]
        for c in range(1, n_classes):
            largest = max(largest, logits[c, b])
        for c in range(n_classes):
            exponential = np.float32(math.exp(logits[c, b] - largest))
            if exponential < NEGLIGIBLE:  # false for NaN
                exponential = np.float32(0)
            delta[c, b] = exponential
        exponentials = np.float32(0)
        for c in range(n_classes % 4):
            exponentials += delta[c, b]
        for c in range(n_classes % 4, n_classes, 4):  # in pairs: trainings go on as they began
            pair = delta[c + 1, b] + delta[c + 2, b]
            exponentials = exponentials + delta[c, b] + pair + delta[c + 3, b]
        label = labels[b]
        weight = weights[b] if len(weights) else np.float32(1)
        loss += weight * (math.log(exponentials) + largest - logits[label, b])
        scale = weight * share
        inverse = np.float32(1) / exponentials
        for c in range(n_classes):
            delta[c, b] = scale * delta[c, b] * inverse
        if smoothing > 0:
            part = scale * smoothing / np.float32(n_classes)
            beside = 0.0
            for c in range(n_classes):
                beside += logits[label, b] - logits[c, b]
                delta[c, b] -= part
            loss += weight * smoothing / n_classes * beside
            scale -= scale * smoothing
        delta[label, b] -= scale
    return loss


@kernel(parallel=False)
def mean_squared_error(outputs, targets, weights, total, delta):
    """Return the sum over samples of the mean over targets of (output - target)².

    Outputs are (n_targets, batch), targets (batch, n_targets); else as `softmax_cross_entropy`.
    """
    n_targets, batch = outputs.shape
    loss = 0.0
    share = np.float32(1 / (total * n_targets))
    of_target = 1 / n_targets
    for b in range(batch):
        weight = weights[b] if len(weights) else np.float32(1)
        squares = 0.0
        for t in range(n_targets):
            error = outputs[t, b] - targets[b, t]
            squares += error * error
            delta[t, b] = np.float32(2) * weight * share * error
        loss = fused_add(weight * of_target, squares, loss)
    return loss


@kernel()
def momentum_update(values, velocity, gradient, sgd):
    """`rows.update_range` on all elements, in place."""
    n = len(values)
    for block in prange((n + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        update_range(values, velocity, gradient, start, min(n, start + BLOCK), sgd)


@kernel()
def momentum_update_reorder(values, velocity, gradient, sgd, places, out):
    """`rows.update_range` on all elements, in place; then out[places[k]] = values[k]."""
    n = len(values)
    for block in prange((n + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        stop = min(n, start + BLOCK)
        update_range(values, velocity, gradient, start, stop, sgd)
        reorder_range(values, start, stop, places, out)


@kernel()
def adam_update(values, mean, square, updates, gradient, adam, corrections):
    """`rows.adam_range` on all elements, in place."""
    n = len(values)
    for block in prange((n + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        stop = min(n, start + BLOCK)
        moments = mean, square, updates
        adam_range(values, moments, gradient, start, stop, adam, corrections)


@kernel()
def adam_update_reorder(values, mean, square, updates, gradient, adam, corrections, places, out):
    """`rows.adam_range` on all elements, in place; then out[places[k]] = values[k]."""
    n = len(values)
    for block in prange((n + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        stop = min(n, start + BLOCK)
        moments = mean, square, updates
        adam_range(values, moments, gradient, start, stop, adam, corrections)
        reorder_range(values, start, stop, places, out)


@kernel(reorder=True)
def sum_of_squares(values):
    """Return the sum of the squares in float64; threads do not change it."""
    n = len(values)
    sums = np.zeros((n + BLOCK - 1) // BLOCK)
    for block in prange(len(sums)):
        total = 0.0
        for k in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            number = np.float64(values[k])
            total += number * number
        sums[block] = total
    total = 0.0
    for block in range(len(sums)):
        total += sums[block]
    return total


@kernel(parallel=False)
def are_below(values, limit):
    """Return whether all values are in the range 0 <= value < limit."""
    inside = True
    for value in values:
        inside &= 0 <= value < limit
    return inside


@kernel(parallel=False)
def has_columns(indptr, indices, rows, n_columns):
    """Return whether these rows of a CSR pattern lie within it, and within so many columns."""
    inside = True
    for b in range(len(rows)):
        start, stop = np.int64(indptr[rows[b]]), np.int64(indptr[rows[b] + 1])
        if start < 0 or stop > len(indices):
            return False
        for k in range(start, stop):
            inside &= 0 <= indices[k] < n_columns
    return inside

"""Losses over many outputs, in one array: the gradient is written over the outputs.

Outputs are float32 (n_labels, batch). Blocks of labels are computed by threads; sums are added up
in the order of the blocks, so that they do not depend on threads.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .kernels import NEGLIGIBLE

SMALLEST = np.float32(np.finfo(np.float32).tiny)
ROWS = 256  # labels of a block: with 128 samples it is in the second-level cache
COLUMNS = 16  # samples that one thread ranks: a cache line


@inline
def probability(z, small):
    """Return 1 / (1 + exp(-z)) of z and exp(-|z|); 0 under 1e-30."""
    above = np.float32(1) / (np.float32(1) + small)
    p = above if z >= 0 else small * above
    return np.float32(0) if p < NEGLIGIBLE else p  # false for NaN


@inline
def add_block_(logits, first, stop, label_weights, scales, sums, products):
    """Add the loss of labels first to stop, but for those that rows have; write the gradient."""
    batch = logits.shape[1]
    for c in range(first, stop):
        if len(label_weights):
            of_label = label_weights[c]
            for b in range(batch):
                z = logits[c, b]
                small = np.float32(math.exp(-abs(z)))
                sums[b] += of_label * (math.log1p(small) + max(z, np.float32(0)))
                logits[c, b] = of_label * scales[b] * probability(z, small)
        else:
            for b in range(batch):
                z = logits[c, b]
                small = np.float32(math.exp(-abs(z)))
                sums[b] += max(z, np.float32(0))
                products[b] *= 1.0 + small
                logits[c, b] = scales[b] * probability(z, small)


@kernel()
def sigmoid_cross_entropy_(logits, indptr, labels, label_weights, weights, total):
    """Return the summed binary cross-entropy; the gradient of sum / total replaces the logits.

    Row b has the labels labels[indptr[b]:indptr[b + 1]]. Labels and samples without weights count
    1. The loss of a logit z is log(1 + exp(-|z|)) + max(z, 0), less z where the row has the label.
    The logarithm is taken of products: those of a block's labels are below 2^256. Probabilities
    under 1e-30 are 0 in the gradient: see `kernels.softmax_cross_entropy`.
    """
    n_labels, batch = logits.shape
    loss = 0.0
    share = np.float32(1 / total)
    each = np.empty(batch, dtype=np.float32)
    scales = np.empty(batch, dtype=np.float32)
    for b in range(batch):
        each[b] = weights[b] if len(weights) else np.float32(1)
        scales[b] = each[b] * share
        for k in range(indptr[b], indptr[b + 1]):
            of_label = label_weights[labels[k]] if len(label_weights) else np.float32(1)
            loss -= np.float64(each[b] * of_label) * logits[labels[k], b]
    blocks = (n_labels + ROWS - 1) // ROWS
    sums = np.zeros((blocks, batch), dtype=np.float64)
    products = np.ones((blocks, batch), dtype=np.float64)
    for block in prange(blocks):
        first, stop = block * ROWS, min(n_labels, (block + 1) * ROWS)
        add_block_(logits, first, stop, label_weights, scales, sums[block], products[block])
    for block in range(blocks):
        for b in range(batch):
            loss += each[b] * (sums[block, b] + math.log(products[block, b]))
    for b in range(batch):
        for k in range(indptr[b], indptr[b + 1]):
            of_label = label_weights[labels[k]] if len(label_weights) else np.float32(1)
            logits[labels[k], b] -= scales[b] * of_label
    return loss


@kernel()
def sigmoid_(logits):
    """Replace logits by 1 / (1 + exp(-z)), or the smallest normal number where that is larger."""
    n_labels, batch = logits.shape
    for block in prange((n_labels + ROWS - 1) // ROWS):
        for c in range(block * ROWS, min(n_labels, (block + 1) * ROWS)):
            for b in range(batch):
                z = logits[c, b]
                small = np.float32(math.exp(-abs(z)))
                above = np.float32(1) / (np.float32(1) + small)
                p = above if z >= 0 else small * above
                logits[c, b] = SMALLEST if p < SMALLEST else p  # false for NaN


@kernel()
def exponentials_(logits):
    """Replace logits by exp(z - largest of the sample); return the largest, and the sums (batch,).

    Sums are float64, and added up block by block.
    """
    n_classes, batch = logits.shape
    blocks = (n_classes + ROWS - 1) // ROWS
    found = np.empty((blocks, batch), dtype=np.float32)
    sums = np.zeros((blocks, batch), dtype=np.float64)
    for block in prange(blocks):
        first = block * ROWS
        for b in range(batch):
            found[block, b] = logits[first, b]
        for c in range(first + 1, min(n_classes, first + ROWS)):
            for b in range(batch):
                found[block, b] = max(found[block, b], logits[c, b])
    largest = found[0].copy()
    for block in range(1, blocks):
        for b in range(batch):
            largest[b] = max(largest[b], found[block, b])
    for block in prange(blocks):
        for c in range(block * ROWS, min(n_classes, (block + 1) * ROWS)):
            for b in range(batch):
                exponential = np.float32(math.exp(logits[c, b] - largest[b]))
                if exponential < NEGLIGIBLE:  # false for NaN
                    exponential = np.float32(0)
                logits[c, b] = exponential
                sums[block, b] += exponential
    total = np.zeros(batch, dtype=np.float64)
    for block in range(blocks):
        for b in range(batch):
            total[b] += sums[block, b]
    return largest, total


@kernel()
def scale_columns_(values, factors):
    """Multiply every column by its factor, float32 (batch,)."""
    n, batch = values.shape
    for block in prange((n + ROWS - 1) // ROWS):
        for c in range(block * ROWS, min(n, (block + 1) * ROWS)):
            for b in range(batch):
                values[c, b] *= factors[b]


@kernel()
def rank_columns(values, out_places, out_values):
    """Find the k largest values of every column: out_places int32, out_values float32 (batch, k).

    They descend; of equal ones the first come first. Return whether all values are finite; where
    they are not, what was found means nothing.
    """
    n, batch = values.shape
    k = out_places.shape[1]
    blocks = (batch + COLUMNS - 1) // COLUMNS
    finite = np.ones(blocks, dtype=np.bool_)
    for block in prange(blocks):
        first, stop = block * COLUMNS, min(batch, (block + 1) * COLUMNS)
        for b in range(first, stop):
            for place in range(k):
                out_values[b, place] = -np.inf
                out_places[b, place] = -1
        zero = np.float32(0)
        for c in range(n):
            for b in range(first, stop):
                value = values[c, b]
                zero += value * np.float32(0)  # NaN from the first value that is not finite
                if value > out_values[b, k - 1]:
                    place = k - 1
                    while place > 0 and value > out_values[b, place - 1]:
                        out_values[b, place] = out_values[b, place - 1]
                        out_places[b, place] = out_places[b, place - 1]
                        place -= 1
                    out_values[b, place] = value
                    out_places[b, place] = c
        finite[block] = zero == 0
    return finite.all()

"""Losses over many outputs, in one array: the gradient is written over the outputs.

Outputs are float32 (n_labels, batch). Blocks of labels are computed by threads; sums are added up
in the order of the blocks, so that they do not depend on threads.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import prange

from .compiling import inline, kernel
from .kernels import NEGLIGIBLE
from .lanes import F32, I32, I64, LANES, as_pointer, call, load_lanes, multiply_add, vector_type
from .tiles import emitted, for_each_tile

SMALLEST = np.float32(np.finfo(np.float32).tiny)
ROWS = 256  # labels of a block: with 128 samples it is in the second-level cache
FEW = 4  # samples of a mini-batch, below which one at a time is faster than a vector of 16
EXPONENTIAL = (  # coefficients of r^7 to r^2
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
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
        elif batch >= FEW:
            add_row_(logits, c, scales, sums, products)
        else:
            for b in range(batch):
                z = logits[c, b]
                small = np.float32(math.exp(-abs(z)))
                sums[b] += max(z, np.float32(0))
                products[b] *= 1.0 + small
                logits[c, b] = scales[b] * probability(z, small)


@emitted()
def add_row_(builder, logits, c, scales, sums, products):
    """Do for logits[c] what `add_block_` does, 16 at a time.

    sums receives max(z, 0), and products are multiplied by 1 + exp(-|z|); both are float64.
    """
    kind, doubles = vector_type(LANES), ir.VectorType(ir.DoubleType(), LANES)
    zero, one = ir.Constant(kind, None), ir.Constant(kind, [1.0] * LANES)

    def emit(tile):
        z = logits.load(c, tile)
        size = call(builder, f"llvm.fabs.v{LANES}f32", kind, z)
        small = exponential(builder, builder.fneg(size))
        above = builder.fdiv(one, builder.fadd(one, small))
        is_below = builder.fcmp_ordered("<", z, zero)
        p = builder.select(is_below, builder.fmul(small, above), above)
        tiny = ir.Constant(kind, [float(NEGLIGIBLE)] * LANES)
        p = builder.select(builder.fcmp_ordered("<", p, tiny), zero, p)  # false for NaN
        scale = load_lanes(builder, scales.at(tile.start), LANES, tile.mask)
        logits.store(c, tile, builder.fmul(scale, p))
        positive = builder.fpext(builder.select(is_below, zero, z), doubles)
        factor = builder.fadd(builder.fpext(small, doubles), ir.Constant(doubles, [1.0] * LANES))
        for array, operate, value in (
            (sums, builder.fadd, positive),
            (products, builder.fmul, factor),
        ):
            place = as_pointer(builder, array.at(tile.start), doubles)
            builder.store(operate(builder.load(place, align=8), value), place, align=8)

    for_each_tile(builder, I64(0), logits.shape[1], (LANES,), emit)


def exponential(builder, x):
    """Return exp(x) of float32 lanes from -86 to 0; of smaller ones exp(-86); NaN of NaN.

    That is 2^n·exp(r), where r is at most ln(2) / 2, and exp(r) a polynomial (Cephes, `expf`).
    """

    def lanes(number, kind=F32):
        return ir.Constant(ir.VectorType(kind, LANES), [number] * LANES)

    x = builder.select(builder.fcmp_ordered("<", x, lanes(-86.0)), lanes(-86.0), x)
    shift = lanes(1.5 * 2**23)  # float32 of this size are whole numbers
    shifted = multiply_add(builder, x, lanes(1 / math.log(2)), shift)
    n = builder.fsub(shifted, shift)
    r = multiply_add(builder, n, lanes(-0.693359375), x)
    r = multiply_add(builder, n, lanes(2.12194440e-4), r)
    total = lanes(EXPONENTIAL[0])
    for coefficient in EXPONENTIAL[1:]:
        total = multiply_add(builder, total, r, lanes(coefficient))
    total = multiply_add(builder, total, builder.fmul(r, r), builder.fadd(r, lanes(1.0)))
    integers = ir.VectorType(I32, LANES)
    power = builder.shl(builder.bitcast(shifted, integers), lanes(23, I32))
    return builder.bitcast(builder.add(builder.bitcast(total, integers), power), total.type)


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
    padded = (batch + LANES - 1) // LANES * LANES  # `add_row_` writes whole vectors
    sums = np.zeros((blocks, padded), dtype=np.float64)
    products = np.ones((blocks, padded), dtype=np.float64)
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

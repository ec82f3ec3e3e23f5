"""Compiled kernels of batch normalisation: see `model.normalization`.

Of n neurons and a micro-batch, `found` is float64 (4, n): the mean of Wᵀx, its unbiased variance,
1, and what deviations are multiplied by. `running`, float32 (3, n), has sums of the first three.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import kernel
from .loops import ROWS, divide_evenly, divide_loop
from .philox import draw_keep_words, share_kept
from .rows import activate_row

EPSILON = 1e-5  # added to variances


@kernel(reorder=True)
def normalise(Z, batch, running, scale, bias, slope, dropout, found, state, out):
    """Turn Z = Wᵀx, (n, batch), into ẑ in place; write what `activate` makes of scale·ẑ + bias.

    `batch` are shares of the samples, float64 (batch,), whose sum is 1, and a factor for unbiased
    variances. Where that is 0 the running mean and variance take the place of the micro-batch's.
    """
    n, samples = Z.shape
    shares, unbias = batch
    chunks = (n + ROWS - 1) // ROWS
    activation = slope, share_kept(dropout)
    divide_loop(chunks)
    for chunk in prange(chunks):
        first = chunk * ROWS
        keep = np.empty((ROWS, state.shape[2]), dtype=np.uint32)
        draw_keep_words(dropout, first, samples, keep)
        for j in range(first, min(n, first + ROWS)):
            mean, variance = 0.0, 0.0
            if unbias > 0:
                for b in range(samples):
                    mean += shares[b] * Z[j, b]
                for b in range(samples):
                    variance += shares[b] * (Z[j, b] - mean) ** 2
                found[0, j], found[1, j], found[2, j] = mean, variance * unbias, 1
            else:
                for row in range(3):
                    found[row, j] = running[row, j]
                seen = found[2, j]
                mean = found[0, j] / seen if seen > 0 else 0.0
                variance = found[1, j] / seen if seen > 0 else 1.0
            inverse = 1 / np.sqrt(variance + EPSILON)
            found[3, j] = inverse
            for b in range(samples):
                z = np.float32((Z[j, b] - mean) * inverse)
                Z[j, b] = z
                out[j, b] = scale[j] * z
            activate_row(out, j, bias[j], activation, keep, state)
    divide_evenly()


@kernel(reorder=True)
def differentiate_normalised(D, Z, batch, part, scale, found, of_scale, of_running, accumulate):
    """Turn D, (n, batch), from the gradient of scale·ẑ + bias into that of Wᵀx, in place.

    Z is ẑ, and `part` the micro-batch's share of the mini-batch. `of_scale` receives the gradient
    of the scale, and `of_running` the mean of the mini-batch's statistics; they are added to if
    `accumulate`.
    """
    n, samples = D.shape
    shares, unbias = batch
    for j in prange(n):
        total, along = 0.0, 0.0
        for b in range(samples):
            total += D[j, b]
            along += D[j, b] * np.float64(Z[j, b])
        factor = scale[j] * found[3, j]
        if unbias > 0:
            for b in range(samples):
                mean = shares[b] * (total + along * Z[j, b])
                D[j, b] = np.float32(factor * (D[j, b] - mean))
        else:
            for b in range(samples):
                D[j, b] = np.float32(factor * D[j, b])
        if not accumulate:
            of_scale[j] = 0
            for row in range(3):
                of_running[row, j] = 0
        of_scale[j] += np.float32(along)
        for row in range(3):
            of_running[row, j] += np.float32(part * found[row, j])


@kernel()
def move_towards(array, target, share):
    """array += share · (target - array) on all elements of flat arrays, in place."""
    for k in prange(len(array)):
        array[k] += share * (target[k] - array[k])

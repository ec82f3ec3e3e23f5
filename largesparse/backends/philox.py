"""Dropout bits from a counter-based generator: Philox4x32 with 7 rounds.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (2011); 7 rounds pass
all of BigCrush. A bit is a function of (seed, step, layer, neuron, row within the mini-batch)
alone, so it does not depend on threads, on micro-batches, or on what else was drawn.
"""

from __future__ import annotations

import numpy as np

from .compiling import inline

ROUNDS = 7
RESOLUTION = 1 << 16  # a decision takes 16 random bits


@inline
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Return four random uint32 words for a counter of four words and a key of two."""
    low = np.uint64(0xFFFFFFFF)
    for _ in range(ROUNDS):
        p0 = np.uint64(c0) * np.uint64(0xD2511F53)
        p1 = np.uint64(c2) * np.uint64(0xCD9E8D57)
        # numba computes integers in 64 bits: the casts bring them back to words
        c0 = np.uint32(np.uint32(p1 >> np.uint64(32)) ^ c1 ^ k0)
        c1 = np.uint32(p1 & low)
        c2 = np.uint32(np.uint32(p0 >> np.uint64(32)) ^ c3 ^ k1)
        c3 = np.uint32(p0 & low)
        k0 = np.uint32(k0 + np.uint32(0x9E3779B9))
        k1 = np.uint32(k1 + np.uint32(0xBB67AE85))
    return c0, c1, c2, c3


@inline
def aligned_keep_bits(keep_below, seed, step, layer, neuron, first_row):
    """Return what `keep_bits` does, for a `first_row` that is a multiple of 32."""
    k0 = np.uint32(seed & np.uint64(0xFFFFFFFF))
    k1 = np.uint32(seed >> np.uint64(32))
    half = np.uint32(0xFFFF)
    bits = np.uint32(0)
    for block in range(4):
        words = philox4x32(
            np.uint32(neuron),
            np.uint32(first_row // 8 + block),
            np.uint32(layer),
            np.uint32(step),
            k0,
            k1,
        )
        for w in range(4):
            place = np.uint32(block * 8 + 2 * w)
            if (words[w] & half) < keep_below:
                bits = np.uint32(bits | (np.uint32(1) << place))
            if (words[w] >> np.uint32(16)) < keep_below:
                bits = np.uint32(bits | (np.uint32(2) << place))
    return bits


@inline
def keep_bits(keep_below, seed, step, layer, neuron, first_row):
    """Return the 32 dropout decisions of a neuron for 32 rows of a mini-batch.

    Parameters
    ----------
    keep_below : uint32
        A neuron is kept where 16 random bits are below it: the share kept times 2**16.
    seed : uint64
    step : int
        The update, counted from the start of the training; below 2**32.
    layer, neuron : int
    first_row : int
        Row of the mini-batch that bit 0 stands for.

    Returns
    -------
    uint32 : bit b is 1 where row first_row + b is kept.
    """
    shift = np.uint32(first_row % 32)
    start = first_row - first_row % 32
    bits = aligned_keep_bits(keep_below, seed, step, layer, neuron, start)
    if shift == 0:
        return bits
    following = aligned_keep_bits(keep_below, seed, step, layer, neuron, start + 32)
    return np.uint32((bits >> shift) | (following << (np.uint32(32) - shift)))

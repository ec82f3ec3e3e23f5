"""Dropout bits from a counter-based generator: Philox4x32 with 7 rounds.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (2011); 7 rounds pass
all of BigCrush. A bit is a function of (seed, step, layer, neuron, row within the mini-batch)
alone, so it does not depend on threads, on micro-batches, or on what else was drawn.
"""

from __future__ import annotations

import numpy as np

from .compiling import inline
from .operands import RESOLUTION

ROUNDS = 7
ROWS_PER_BLOCK = 8  # decisions that one call of the generator gives, of 16 bits each


@inline
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Return four random words for a counter of four words and a key of two.

    Words are 32 bits, in uint64: so the products need no casts, and a loop over counters
    vectorises.
    """
    low = np.uint64(0xFFFFFFFF)
    word = np.uint64(32)
    for _ in range(ROUNDS):
        p0 = c0 * np.uint64(0xD2511F53)
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0 = (p1 >> word) ^ c1 ^ k0
        c1 = p1 & low
        c2 = (p0 >> word) ^ c3 ^ k1
        c3 = p0 & low
        k0 = (k0 + np.uint64(0x9E3779B9)) & low
        k1 = (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


@inline
def share_kept(dropout):
    """Return the share of the neurons that dropout keeps, float32."""
    return np.float32(dropout.keep_below / RESOLUTION)


@inline
def draw_keep_bytes(dropout, first_neuron, first_block, out):
    """Draw the dropout decisions of neurons, for blocks of 8 rows of a mini-batch.

    Bit r of out[b, j], uint8, becomes 1 where neuron first_neuron + j is kept in row
    8 (first_block + b) + r. The step is below 2**32.
    """
    low = np.uint64(0xFFFFFFFF)
    k0 = dropout.seed & low
    k1 = dropout.seed >> np.uint64(32)
    bound = np.uint64(dropout.keep_below)
    for block in range(out.shape[0]):
        for j in range(out.shape[1]):
            w0, w1, w2, w3 = philox4x32(
                np.uint64(first_neuron + j),
                np.uint64(first_block + block),
                np.uint64(dropout.layer),
                np.uint64(dropout.step),
                k0,
                k1,
            )
            out[block, j] = (
                decide(w0, bound)
                | decide(w1, bound) << np.uint64(2)
                | decide(w2, bound) << np.uint64(4)
                | decide(w3, bound) << np.uint64(6)
            )


@inline
def decide(word, bound):
    """Return two bits: whether the low and the high half of a word are below a bound."""
    one = np.uint64(1)
    zero = np.uint64(0)
    low = one if (word & np.uint64(0xFFFF)) < bound else zero
    high = one if (word >> np.uint64(16)) < bound else zero
    return low | high << one


@inline
def draw_keep_words(dropout, first_neuron, rows, out):
    """Draw the dropout decisions of neurons for a micro-batch of so many rows.

    Bit r of word w of out[j], uint32, becomes 1 where neuron first_neuron + j is kept in row
    first_row + 32 w + r of the mini-batch. Bits beyond the rows are undefined.
    """
    neurons, words = out.shape
    if words == 0 or dropout.keep_below >= RESOLUTION:
        out[:] = np.uint32(0xFFFFFFFF)
        return
    shift = dropout.first_row % ROWS_PER_BLOCK
    blocks = (shift + rows + ROWS_PER_BLOCK - 1) // ROWS_PER_BLOCK
    drawn = np.empty((blocks, neurons), dtype=np.uint8)
    block = dropout.first_row // ROWS_PER_BLOCK
    draw_keep_bytes(dropout, first_neuron, block, drawn)
    for j in range(neurons):
        for word in range(words):
            bits = np.uint64(0)
            for q in range(min(5, blocks - 4 * word)):
                bits |= np.uint64(drawn[4 * word + q, j]) << np.uint64(8 * q)
            out[j, word] = np.uint32((bits >> np.uint64(shift)) & np.uint64(0xFFFFFFFF))

"""The kernel behind sketches of the cells that were ever connected: see `model.exploration`."""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import kernel
from .pattern_kernels import BLOCK, first_at_least

PIECES = 16  # of a pattern, at most, each with registers of its own


@kernel()
def keep_ranks(indptr, columns, n_out, registers):
    """Raise the registers of a sketch to the ranks of a pattern's cells.

    `registers`, uint8 (2**12,), are changed. The hash is that of SplitMix64 (Steele et al., 2014).
    """
    nnz = len(columns)
    n_pieces = min(PIECES, (nnz + BLOCK - 1) // BLOCK)
    found = np.zeros((n_pieces, len(registers)), dtype=np.uint8)
    for piece in prange(n_pieces):
        start, stop = piece * nnz // n_pieces, (piece + 1) * nnz // n_pieces
        i = first_at_least(indptr, 0, len(indptr), start + 1) - 1
        for k in range(start, stop):
            while k >= indptr[i + 1]:
                i += 1
            bits = np.uint64(np.int64(i) * n_out + columns[k]) + np.uint64(0x9E3779B97F4A7C15)
            bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            bits ^= bits >> np.uint64(31)
            place = bits >> np.uint64(52)
            rank = 1
            bits <<= np.uint64(12)
            while rank <= 52 and bits < np.uint64(1 << 63):
                bits <<= np.uint64(1)
                rank += 1
            found[piece, place] = max(found[piece, place], np.uint8(rank))
    for piece in range(n_pieces):
        for register in range(len(registers)):
            registers[register] = max(registers[register], found[piece, register])

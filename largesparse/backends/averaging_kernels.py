"""Compiled kernels that average replicas of a layer and prune the mean, parallel over rows.

Replicas come as a table of addresses, so that one compiled function serves any number of them; the
caller keeps the arrays alive. Every connection of the mean is summed by one thread in the
replicas' order, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .pattern_kernels import BINS, BLOCK, magnitude
from .step_kernel import floats, ints

# Addresses of int32 (n_in + 1,), int32 (nnz,) and float32 (nnz,), in input order.
REPLICA = np.dtype([(name, np.int64) for name in ("indptr", "indices", "values")])

MAX_PARTS = 64  # that magnitudes are counted in: 256 kB each
END = np.int32(2**31 - 1)  # the column after the last one of a row


@inline
def start_row(replicas, i, places, stops, columns):
    """Point at the first connection of row i in every replica: its place and its column.

    Returned is the first column of all; `END` where there is none.
    """
    first = END
    for r in range(len(replicas)):
        indptr = ints(replicas[r].indptr)
        places[r] = indptr[i]
        stops[r] = indptr[i + 1]
        columns[r] = ints(replicas[r].indices)[places[r]] if places[r] < stops[r] else END
        first = min(first, columns[r])
    return first


@inline
def leave_column(replicas, column, places, stops, columns):
    """Point at the connections behind a column, and return the sum over it and the next column."""
    total = 0.0
    first = END
    for r in range(len(replicas)):
        if columns[r] == column:
            place = places[r]
            total += floats(replicas[r].values)[place]
            place += 1
            places[r] = place
            columns[r] = ints(replicas[r].indices)[place] if place < stops[r] else END
        first = min(first, columns[r])
    return total, first


@kernel()
def count_union(replicas, n_in, block_rows):
    """Return the row pointers of the union of the replicas' patterns: int64 (n_in + 1,).

    A thread takes `block_rows` rows at a time.
    """
    indptr = np.zeros(n_in + 1, dtype=np.int64)
    for block in prange((n_in + block_rows - 1) // block_rows):
        places = np.empty(len(replicas), dtype=np.int64)
        stops = np.empty(len(replicas), dtype=np.int64)
        columns = np.empty(len(replicas), dtype=np.int32)
        for i in range(block * block_rows, min(n_in, (block + 1) * block_rows)):
            column = start_row(replicas, i, places, stops, columns)
            count = 0
            while column != END:
                _, column = leave_column(replicas, column, places, stops, columns)
                count += 1
            indptr[i + 1] = count
    for i in range(n_in):
        indptr[i + 1] += indptr[i]
    return indptr


@kernel()
def average_union(replicas, indptr, block_rows, indices, values):
    """Average the replicas over the union of their patterns: what one does not have counts 0.

    `indptr` is that of `count_union`; indices and values receive the mean. Sums are float64.
    """
    n_in = len(indptr) - 1
    for block in prange((n_in + block_rows - 1) // block_rows):
        places = np.empty(len(replicas), dtype=np.int64)
        stops = np.empty(len(replicas), dtype=np.int64)
        columns = np.empty(len(replicas), dtype=np.int32)
        for i in range(block * block_rows, min(n_in, (block + 1) * block_rows)):
            column = start_row(replicas, i, places, stops, columns)
            for place in range(indptr[i], indptr[i + 1]):
                indices[place] = column
                total, column = leave_column(replicas, column, places, stops, columns)
                values[place] = total / len(replicas)


@kernel()
def count_by_bits(values, shift, prefix):
    """Count the magnitudes by 16 of their bits: int64 (65536,).

    `shift` bits below those are left out, and so are values whose bits above differ from
    `prefix`.
    """
    n = len(values)
    parts = min(MAX_PARTS, n // BLOCK + 1)
    counts = np.zeros((parts, BINS), dtype=np.int64)
    for part in prange(parts):
        for k in range(n * part // parts, n * (part + 1) // parts):
            bits = magnitude(values[k]) >> shift
            if bits >> 16 == prefix:
                counts[part, bits & 0xFFFF] += 1
    for part in range(1, parts):
        for b in range(BINS):
            counts[0, b] += counts[part, b]
    return counts[0]


@kernel()
def keep_largest(indptr, indices, values, block_rows, threshold, ties):
    """Return the connections above a magnitude, and those of it after the first `ties`.

    `threshold` is the bits of the magnitude; `indptr` is int64, and int32 in what is returned.
    """
    n_in = len(indptr) - 1
    n_blocks = (n_in + block_rows - 1) // block_rows
    before = np.zeros(n_blocks + 1, dtype=np.int64)  # ties before a block
    for block in prange(n_blocks):
        stop = indptr[min(n_in, (block + 1) * block_rows)]
        for k in range(indptr[block * block_rows], stop):
            before[block + 1] += magnitude(values[k]) == threshold
    for block in range(n_blocks):
        before[block + 1] += before[block]

    new_indptr = np.zeros(n_in + 1, dtype=np.int32)
    for block in prange(n_blocks):
        seen = before[block]
        for i in range(block * block_rows, min(n_in, (block + 1) * block_rows)):
            for k in range(indptr[i], indptr[i + 1]):
                bits = magnitude(values[k])
                tied = bits == threshold
                new_indptr[i + 1] += bits > threshold or (tied and seen >= ties)
                seen += tied
    for i in range(n_in):
        new_indptr[i + 1] += new_indptr[i]

    new_indices = np.empty(new_indptr[n_in], dtype=np.int32)
    new_values = np.empty(new_indptr[n_in], dtype=np.float32)
    for block in prange(n_blocks):
        seen = before[block]
        place = new_indptr[block * block_rows]
        last = min(n_in, (block + 1) * block_rows)
        for k in range(indptr[block * block_rows], indptr[last]):
            bits = magnitude(values[k])
            tied = bits == threshold
            if bits > threshold or (tied and seen >= ties):
                new_indices[place] = indices[k]
                new_values[place] = values[k]
                place += 1
            seen += tied
    return new_indptr, new_indices, new_values

"""Compiled kernels on the pattern of a layer's connections, parallel and O(nnz).

Work is cut into blocks of a fixed size, and every result is unique: so neither depends on the
number of threads. Temporary arrays are few, because memory that is touched for the first time is
many times slower than memory in use.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .rows import reorder_range

BLOCK = 1 << 18  # connections that one thread takes at a time
BUCKET_BITS = 14  # a bucket has 2**14 outputs: their counters stay in the cache
ROW_BLOCK = 4096
BINS = 1 << 16


@inline
def first_at_least(values, low, high, value):
    """Return the first place from `low` on, before `high`, of an ascending value that is as large.

    `high` where none is. (`numpy.searchsorted` would take long to compile.)
    """
    while low < high:
        middle = (low + high) // 2
        if values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@inline
def starts_of_buckets(places):
    """Turn counts into the places where every block begins in every bucket, in place.

    `places` is (blocks, buckets); returned are the places where buckets begin, (buckets + 1,).
    """
    n_blocks, n_buckets = places.shape
    starts = np.empty(n_buckets + 1, dtype=places.dtype)
    total = 0
    for bucket in range(n_buckets):
        starts[bucket] = total
        for block in range(n_blocks):
            count = places[block, bucket]
            places[block, bucket] = total
            total += count
    starts[n_buckets] = total
    return starts


@kernel()
def transpose_pattern(n_out, indptr, indices):
    """Return the output order of a pattern given in input order, by counting.

    Connections are dealt to buckets of neighbouring outputs first, so that the counters of a
    bucket and the places that they point to stay in the cache. Returned are indptr and indices,
    and the places of the connections in them; neurons are int32, places of the dtype of `indptr`.
    """
    nnz = len(indices)
    n_buckets = (n_out >> BUCKET_BITS) + 1
    n_blocks = (nnz + BLOCK - 1) // BLOCK

    # places[block, bucket]: where the connections of a block go in a bucket
    places = np.zeros((n_blocks, n_buckets), dtype=indptr.dtype)
    for block in prange(n_blocks):
        for k in range(block * BLOCK, min(nnz, (block + 1) * BLOCK)):
            places[block, indices[k] >> BUCKET_BITS] += 1
    starts = starts_of_buckets(places)

    indices_by_output = np.empty(nnz, dtype=np.int32)  # by bucket at first
    connections = np.empty(nnz, dtype=indptr.dtype)
    for block in prange(n_blocks):
        k = block * BLOCK
        i = first_at_least(indptr, 0, len(indptr), k + 1) - 1
        for k in range(block * BLOCK, min(nnz, (block + 1) * BLOCK)):
            while k >= indptr[i + 1]:
                i += 1
            bucket = indices[k] >> BUCKET_BITS
            place = places[block, bucket]
            places[block, bucket] = place + 1
            indices_by_output[place] = i
            connections[place] = k

    indptr_by_output = np.empty(n_out + 1, dtype=indptr.dtype)
    indptr_by_output[n_out] = nnz
    to_output_order = np.empty(nnz, dtype=indptr.dtype)
    for bucket in prange(n_buckets):
        first = bucket << BUCKET_BITS
        start, stop = starts[bucket], starts[bucket + 1]
        inputs = indices_by_output[start:stop].copy()
        outputs = np.empty(stop - start, dtype=np.int32)
        free = np.zeros((1 << BUCKET_BITS) + 1, dtype=indptr.dtype)
        for e in range(stop - start):
            j = indices[connections[start + e]] - first
            outputs[e] = j
            free[j + 1] += 1
        place = start
        for j in range(min(1 << BUCKET_BITS, n_out - first)):
            place += free[j]
            free[j] = place
            indptr_by_output[first + j] = place
        for e in range(stop - start):
            place = free[outputs[e]]
            free[outputs[e]] = place + 1
            indices_by_output[place] = inputs[e]
            to_output_order[connections[start + e]] = place
    return indptr_by_output, indices_by_output, to_output_order


@kernel()
def reorder(values, places, out):
    """out[places[k]] = values[k]."""
    n = len(values)
    for block in prange((n + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        reorder_range(values, start, min(n, start + BLOCK), places, out)


@inline
def magnitude(value):
    """Return the bits of |value| as an integer, which has the same order; value is float32."""
    return np.int64(np.float32(value).view(np.uint32) & np.uint32(0x7FFFFFFF))


@kernel()
def count_magnitudes(values, shift, prefixes):
    """Count the magnitudes of a sign by 16 of their bits: int32 (blocks, 2, 65536).

    Signs are not negative, and negative. `shift` bits below those are left out, and so are values
    whose bits above differ from prefixes[sign].
    """
    nnz = len(values)
    n_blocks = (nnz + BLOCK - 1) // BLOCK
    counts = np.empty((n_blocks, 2, BINS), dtype=np.int32)
    for block in prange(n_blocks):
        for b in range(BINS):
            counts[block, 0, b] = counts[block, 1, b] = 0
        part = values[block * BLOCK : min(nnz, (block + 1) * BLOCK)]
        for k in range(len(part)):
            sign = 1 if part[k] < 0 else 0
            bits = magnitude(part[k]) >> shift
            if bits >> 16 == prefixes[sign]:
                counts[block, sign, bits & 0xFFFF] += 1
    return counts


@kernel()
def keep_large(values, thresholds, ties, keep):
    """Mark the values that are kept: those of a sign above the magnitude thresholds[sign].

    Of that very magnitude, the first ties[block, sign] go in every block; below 0, none of the
    sign goes.
    """
    nnz = len(values)
    for block in prange(len(ties)):
        gone = np.zeros(2, dtype=np.int64)
        for k in range(block * BLOCK, min(nnz, (block + 1) * BLOCK)):
            sign = 1 if values[k] < 0 else 0
            bits = magnitude(values[k])
            stays = bits > thresholds[sign]
            if bits == thresholds[sign]:
                stays = gone[sign] >= ties[block, sign]
                gone[sign] += 1
            keep[k] = stays


@kernel()
def sort_cells(cells, upper):
    """Return uniformly drawn cells, int64 below `upper`, sorted: by buckets of equal range."""
    n = len(cells)
    n_buckets = n // ROW_BLOCK + 1
    width = upper // n_buckets + 1
    n_blocks = (n + BLOCK - 1) // BLOCK
    places = np.zeros((n_blocks, n_buckets), dtype=np.int64)
    for block in prange(n_blocks):
        for k in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            places[block, cells[k] // width] += 1
    starts = starts_of_buckets(places)
    out = np.empty(n, dtype=np.int64)
    for block in prange(n_blocks):
        for k in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            bucket = cells[k] // width
            out[places[block, bucket]] = cells[k]
            places[block, bucket] += 1
    for bucket in prange(n_buckets):
        part = out[starts[bucket] : starts[bucket + 1]]
        part.sort()
    return out


@kernel()
def find_occupied(indptr, indices, keep, n_out, positions, occupied):
    """occupied[p] = whether cell positions[p] (row-major) is a connection that is kept."""
    for p in prange(len(positions)):
        i = positions[p] // n_out
        j = positions[p] - i * n_out
        k = first_at_least(indices, indptr[i], indptr[i + 1], j)
        occupied[p] = k < indptr[i + 1] and indices[k] == j and keep[k]


@kernel()
def merge_rows(indptr, keep, n_out, positions, counts):
    """Write the row pointers of the kept and the new connections: see `merge_pattern`."""
    n_in = len(indptr) - 1
    counts[0] = 0
    for block in prange((n_in + ROW_BLOCK - 1) // ROW_BLOCK):
        first = block * ROW_BLOCK
        p = first_at_least(positions, 0, len(positions), np.int64(first) * n_out)
        for i in range(first, min(n_in, first + ROW_BLOCK)):
            count = 0
            for k in range(indptr[i], indptr[i + 1]):
                count += keep[k]
            end = (np.int64(i) + 1) * n_out
            while p < len(positions) and positions[p] < end:
                count += 1
                p += 1
            counts[i + 1] = count
    for i in range(n_in):
        counts[i + 1] += counts[i]


@kernel()
def merge_pattern(old, velocity, keep, n_out, positions, grown, new, new_velocity, slot_map):
    """Merge the connections that are kept with new ones, in input order.

    `positions` are the row-major cells of the new connections, int64: ascending, distinct, free;
    `grown` are their values, zero where it is empty. The row pointers of `new` are those of
    `merge_rows`. `slot_map`, (nnz,), receives the place of every old connection in the new
    pattern, -1 where it is gone.
    """
    # numba loses what a parallel loop writes to an array of a tuple
    indptr, indices, values = old
    new_indptr, new_indices, new_values = new
    n_in = len(indptr) - 1
    n_new = len(positions)
    for block in prange((n_in + ROW_BLOCK - 1) // ROW_BLOCK):
        first = block * ROW_BLOCK
        p = first_at_least(positions, 0, len(positions), np.int64(first) * n_out)
        for i in range(first, min(n_in, first + ROW_BLOCK)):
            k = indptr[i]
            end = indptr[i + 1]
            row_start = np.int64(i) * n_out
            place = new_indptr[i]
            while True:
                while k < end and not keep[k]:
                    slot_map[k] = -1
                    k += 1
                new_column = positions[p] - row_start if p < n_new else np.int64(n_out)
                if k < end and indices[k] < new_column:
                    slot_map[k] = place
                    new_indices[place] = indices[k]
                    new_values[place] = values[k]
                    new_velocity[place] = velocity[k]
                    k += 1
                elif new_column < n_out:
                    new_indices[place] = new_column
                    new_values[place] = grown[p] if len(grown) > 0 else np.float32(0)
                    new_velocity[place] = 0
                    p += 1
                else:
                    break
                place += 1


@kernel()
def carry(old, slot_map, new):
    """new[slot_map[k]] = old[k], where the connection is kept: see `merge_pattern`."""
    n = len(old)
    for block in prange((n + BLOCK - 1) // BLOCK):
        for k in range(block * BLOCK, min(n, (block + 1) * BLOCK)):
            if slot_map[k] >= 0:
                new[slot_map[k]] = old[k]

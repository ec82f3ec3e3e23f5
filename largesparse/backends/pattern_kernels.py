"""Compiled kernels on the pattern of a layer's connections: transposing, looking up, merging."""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import kernel


@kernel(parallel=False)
def transpose_pattern(n_out, indptr, indices):
    """Return the output order of a pattern given in input order, by counting.

    Returns
    -------
    indptr_by_output : int32 (n_out + 1,)
    indices_by_output : int32 (nnz,)
    to_output_order : int32 (nnz,)
    """
    nnz = len(indices)
    indptr_by_output = np.zeros(n_out + 1, dtype=np.int32)
    for k in range(nnz):
        indptr_by_output[indices[k] + 1] += 1
    for j in range(n_out):
        indptr_by_output[j + 1] += indptr_by_output[j]
    free = indptr_by_output[:-1].copy()
    indices_by_output = np.empty(nnz, dtype=np.int32)
    to_output_order = np.empty(nnz, dtype=np.int32)
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            place = free[indices[k]]
            free[indices[k]] = place + 1
            indices_by_output[place] = i
            to_output_order[k] = place
    return indptr_by_output, indices_by_output, to_output_order


@kernel()
def find_occupied(indptr, indices, keep, n_out, positions, occupied):
    """occupied[p] = whether cell positions[p] (row-major) is a connection that is kept."""
    for p in prange(len(positions)):
        i = positions[p] // n_out
        j = positions[p] - i * n_out
        low = indptr[i]
        high = indptr[i + 1]
        while low < high:
            middle = (low + high) // 2
            if indices[middle] < j:
                low = middle + 1
            else:
                high = middle
        occupied[p] = low < indptr[i + 1] and indices[low] == j and keep[low]


@kernel(parallel=False)
def merge_pattern(indptr, indices, keep, n_out, positions):
    """Merge the connections that are kept with new ones, in input order.

    Parameters
    ----------
    indptr, indices : int32
        The old pattern in input order.
    keep : bool (nnz,)
    n_out : int
    positions : int64 (n_new,)
        Row-major cells of the new connections: ascending, distinct, free.

    Returns
    -------
    new_indptr : int32 (n_in + 1,)
    new_indices : int32 (kept + n_new,)
    slot_map : int32 (nnz,)
        Old connection -> its place in the new pattern; -1 where it is gone.
    new_slots : int32 (n_new,)
        The places of the new connections.
    """
    n_in = len(indptr) - 1
    n_new = len(positions)
    total = n_new
    for k in range(len(keep)):
        total += keep[k]
    new_indptr = np.empty(n_in + 1, dtype=np.int32)
    new_indices = np.empty(total, dtype=np.int32)
    slot_map = np.empty(len(indices), dtype=np.int32)
    new_slots = np.empty(n_new, dtype=np.int32)
    new_indptr[0] = 0
    place = 0
    p = 0
    for i in range(n_in):
        k = indptr[i]
        end = indptr[i + 1]
        row_start = np.int64(i) * n_out
        while True:
            while k < end and not keep[k]:
                slot_map[k] = -1
                k += 1
            new_column = positions[p] - row_start if p < n_new else np.int64(n_out)
            if k < end and indices[k] < new_column:
                slot_map[k] = place
                new_indices[place] = indices[k]
                k += 1
            elif new_column < n_out:
                new_slots[p] = place
                new_indices[place] = new_column
                p += 1
            else:
                break
            place += 1
        new_indptr[i + 1] = place
    return new_indptr, new_indices, slot_map, new_slots

"""Compiled kernels that count paths between a layer's neurons, whatever the number of threads."""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import kernel
from .pattern_kernels import ROW_BLOCK, first_at_least

PARTS = 32  # of the inputs, each with counters of its own, float32 (n_in,)


@kernel()
def thin_rows(indptr, indices, kept, most):
    """Return the connections of a pattern that are kept, at most `most` of a row.

    Of a row with more, as many are taken, evenly spread. Returned are indptr, of the dtype of
    the pattern's, and indices, int32, and how many connections every row keeps, int64.
    """
    n = len(indptr) - 1
    degrees = np.empty(n, dtype=np.int64)
    for block in prange((n + ROW_BLOCK - 1) // ROW_BLOCK):
        for i in range(block * ROW_BLOCK, min(n, (block + 1) * ROW_BLOCK)):
            degree = 0
            for k in range(indptr[i], indptr[i + 1]):
                degree += kept[k]
            degrees[i] = degree
    new_indptr = np.zeros(n + 1, dtype=indptr.dtype)
    for i in range(n):
        new_indptr[i + 1] = new_indptr[i] + min(degrees[i], most)
    new_indices = np.empty(new_indptr[n], dtype=np.int32)
    for block in prange((n + ROW_BLOCK - 1) // ROW_BLOCK):
        for i in range(block * ROW_BLOCK, min(n, (block + 1) * ROW_BLOCK)):
            place, due = new_indptr[i], 0
            degree = max(1, degrees[i])
            step = min(degree, most)
            for k in range(indptr[i], indptr[i + 1]):
                if kept[k]:  # as many as whole steps have passed
                    due += step
                    if due >= degree:
                        due -= degree
                        new_indices[place] = indices[k]
                        place += 1
    return new_indptr, new_indices, degrees


@kernel(reorder=True)
def score_paths(by_input, by_output, weights, cells, scores):
    """Score cells by the paths of three connections from their input to their output.

    A path i - h - g - j goes by an output h of i and an input g of j that are connected. It counts
    w[h]·v[g], and a cell's sum is multiplied by a[i]·b[j]; `weights` are w and b, (n_out,), and v
    and a, (n_in,), float32. `by_input` and `by_output` are (indptr, indices) of the connections in
    both orders, and `cells` are row-major and ascend.
    """
    indptr, indices = by_input
    indptr_by_output, indices_by_output = by_output
    w, b, v, a = weights
    n_in, n_out = len(indptr) - 1, len(indptr_by_output) - 1
    rows = (n_in + PARTS - 1) // PARTS
    for part in prange(PARTS):
        p = first_at_least(cells, 0, len(cells), np.int64(part) * rows * n_out)
        end = first_at_least(cells, 0, len(cells), np.int64(part + 1) * rows * n_out)
        strength = np.zeros(n_in if p < end else 0, dtype=np.float32)  # of the paths i - h - g
        while p < end:
            i = cells[p] // n_out
            walked = 0
            for k in range(indptr[i], indptr[i + 1]):
                h = indices[k]
                walked += indptr_by_output[h + 1] - indptr_by_output[h]
                for e in range(indptr_by_output[h], indptr_by_output[h + 1]):
                    g = indices_by_output[e]
                    strength[g] += w[h] * v[g]
            stop = (i + 1) * n_out
            while p < end and cells[p] < stop:
                j = cells[p] - i * n_out
                total = np.float32(0)
                if walked > 0:
                    for e in range(indptr_by_output[j], indptr_by_output[j + 1]):
                        total += strength[indices_by_output[e]]
                scores[p] = total * a[i] * b[j] if total > 0 else np.float32(0)
                p += 1
            if walked * 8 > n_in:
                strength[:] = 0
            else:
                for k in range(indptr[i], indptr[i + 1]):
                    h = indices[k]
                    for e in range(indptr_by_output[h], indptr_by_output[h + 1]):
                        strength[indices_by_output[e]] = 0

"""Compiled kernels on which neurons have connections: O(nnz + rows), whatever the threads."""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import kernel

ROW_BLOCK = 4096


@kernel()
def mark_reaching(indptr, indices, marked, out):
    """out[i] = whether a connection of row i has a column that is marked; both are bool."""
    n = len(out)
    for block in prange((n + ROW_BLOCK - 1) // ROW_BLOCK):
        for i in range(block * ROW_BLOCK, min(n, (block + 1) * ROW_BLOCK)):
            found = False
            for k in range(indptr[i], indptr[i + 1]):
                if marked[indices[k]]:
                    found = True
                    break
            out[i] = found


@kernel(parallel=False)
def move_to_rows(indptr, indices, receivers, offset, turns):
    """Move connections to empty rows from rows of two or more, within their columns.

    A row of d connections can spare d - 1. Those that all rows can spare are numbered; with s of
    them and r receivers, number ⌊(k·s + offset) / r⌋ goes to receiver k.

    Receivers, int64 (r,), are rows without connections, ascending; r <= s, and offset < s. A row
    that gives connections away, the first of them to receiver k, numbers its own from the
    turns[k]-th on; the last of them is the one that stays. Returned are the new indptr and
    indices; the columns of a row keep their order.
    """
    n, r = len(indptr) - 1, len(receivers)
    s = 0
    for i in range(n):
        s += max(0, indptr[i + 1] - indptr[i] - 1)

    moved = np.empty(r, dtype=np.int32)
    gone = np.zeros(len(indices), dtype=np.bool_)
    new_indptr = np.zeros(n + 1, dtype=indptr.dtype)
    k = 0  # receivers that have got one
    e = 0  # receivers passed
    numbered = 0
    for i in range(n):
        degree = indptr[i + 1] - indptr[i]
        left = degree
        if degree > 1:
            first = k
            while k < r:
                number = (k * s + offset) // r - numbered
                if number >= degree - 1:
                    break
                place = indptr[i] + (number + turns[first]) % degree
                moved[k] = indices[place]
                gone[place] = True
                left -= 1
                k += 1
            numbered += degree - 1
        elif e < r and receivers[e] == i:
            left = 1
            e += 1
        new_indptr[i + 1] = new_indptr[i] + left

    new_indices = np.empty(len(indices), dtype=np.int32)
    for e in range(r):
        new_indices[new_indptr[receivers[e]]] = moved[e]
    for i in range(n):
        place = new_indptr[i]
        for k in range(indptr[i], indptr[i + 1]):
            if not gone[k]:
                new_indices[place] = indices[k]
                place += 1
    return new_indptr, new_indices


@kernel()
def invert(places, out):
    """out[places[k]] = k: the inverse of a permutation, (n,)."""
    n = len(places)
    for block in prange((n + ROW_BLOCK - 1) // ROW_BLOCK):
        for k in range(block * ROW_BLOCK, min(n, (block + 1) * ROW_BLOCK)):
            out[places[k]] = k

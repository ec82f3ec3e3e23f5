"""Compiled kernels that only read memory: see `largesparse.backends.limits`."""

from __future__ import annotations

import numpy as np
from numba import prange

from .compiling import inline, kernel
from .lanes import CACHE_LINE
from .loops import ROWS
from .rows import prefetch_row
from .vectors import copy_16

BLOCK = 1 << 16


@kernel(reorder=True)
def read_in_order(X):
    """Return the sum of a flat float32 array, which reads it once."""
    n = len(X)
    blocks = (n + BLOCK - 1) // BLOCK
    sums = np.empty(blocks, dtype=np.float32)
    for block in prange(blocks):
        part = X[block * BLOCK : min(n, (block + 1) * BLOCK)]
        total = np.float32(0)
        for k in range(len(part)):
            total += part[k]
        sums[block] = total
    return sums.sum()


@inline
def copy_row(source, target, batch):
    """Copy float32 (batch,) from one address to another."""
    for b in range(0, batch - 15, 16):
        copy_16(source + 4 * b, target + 4 * b)


@kernel()
def copy_gathered(indptr, indices, X, ahead, out):
    """Copy every row that a forward product gathers to the output's row: its reads and writes."""
    n, batch = out.shape
    for chunk in prange((n + ROWS - 1) // ROWS):
        for j in range(chunk * ROWS, min(n, (chunk + 1) * ROWS)):
            start = np.int64(indptr[j])
            stop = np.int64(indptr[j + 1])
            if ahead > 0:
                prefetch_row(indptr, indices, j, X, ahead)
            to = out.ctypes.data + 4 * batch * j
            for k in range(start, stop):
                copy_row(X.ctypes.data + 4 * batch * np.int64(indices[k]), to, batch)


@kernel(reorder=True)
def read_gathered(indptr, indices, X, ahead, out):
    """Read a number of every cache line of the rows that a forward product gathers.

    Their sums go to `out`, float32 (n_out,), which is little beside them.
    """
    n = len(out)
    batch = X.shape[1]
    line = CACHE_LINE // 4
    for chunk in prange((n + ROWS - 1) // ROWS):
        for j in range(chunk * ROWS, min(n, (chunk + 1) * ROWS)):
            start = np.int64(indptr[j])
            stop = np.int64(indptr[j + 1])
            if ahead > 0:
                prefetch_row(indptr, indices, j, X, ahead)
            total = np.float32(0)
            for k in range(start, stop):
                row = np.uint64(indices[k])
                for b in range(0, batch, line):
                    total += X[row, np.uint64(b)]
            out[j] = total

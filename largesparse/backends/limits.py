"""What this machine can do at best: the measure of how good the kernels are.

Each function measures once, after a warm-up; compare its result with what was measured in the
same run, alternating, because the speed of a shared machine changes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np
from numba import prange
from numba.core import cgutils
from threadpoolctl import threadpool_limits

from ..machine.threads import kernel_threads
from .compiling import kernel
from .lanes import CACHE_LINE, I64, LANES
from .loops import ROWS
from .operands import Float32, Int32
from .rows import prefetch_row
from .tiles import Tile, emitted

DISTANCES = (0, 4, 8, 16, 32)  # connections
TRIED_ROWS = 1 << 15  # of the output, for the best of them
BLOCK = 1 << 16


def seconds_of(function: Callable[[], object], repeats: int = 3) -> float:
    """Return the median time of a call, after one that is not timed."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


def sequential_bandwidth(threads: int, megabytes: int = 512) -> float:
    """Return bytes a second that `threads` threads read from memory in order."""
    X = np.ones(megabytes * 2**18, dtype=np.float32)
    with kernel_threads(threads):
        return X.nbytes / seconds_of(lambda: _read_in_order(X))


def arithmetic_peak(threads: int, size: int = 1536) -> float:
    """Return float32 operations a second of a dense product by the BLAS that NumPy has."""
    A = np.random.default_rng(0).random((size, size), dtype=np.float32)
    out = np.empty_like(A)
    with threadpool_limits(threads, user_api="blas"):
        return 2 * size**3 / seconds_of(lambda: np.matmul(A, A, out=out))


def gather(
    indptr: Int32, indices: Int32, X: Float32, ahead: int, out: Float32 | None = None
) -> None:
    """Read the rows of X (n_in, batch) that a forward product gathers, and compute nothing.

    Rows are read in the product's order, that of connections by output, and prefetched `ahead`
    connections ahead. With `out` (n_out, batch) rows are written too, as the product does: every
    gathered row is copied to the output's row. The batch is then a multiple of 16.
    """
    if out is not None:
        _copy_gathered(indptr, indices, X, ahead, out)
    else:
        _read_gathered(indptr, indices, X, ahead, np.empty(len(indptr) - 1, dtype=np.float32))


def best_distance(indptr: Int32, indices: Int32, X: Float32, out: Float32 | None = None) -> int:
    """Return the prefetch distance with which `gather` is fastest here, for its first rows."""
    first = indptr[: TRIED_ROWS + 1]
    out = out if out is None else out[:TRIED_ROWS]
    seconds = []
    for distance in DISTANCES:
        call = functools.partial(gather, first, indices, X, distance, out)
        seconds.append(seconds_of(call, repeats=1))
    return DISTANCES[int(np.argmin(seconds))]


@kernel(reorder=True)
def _read_in_order(X):
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


@emitted()
def _copy_row(builder, X, i, out, j):
    """out[j] = X[i], 16 columns at a time."""
    with cgutils.for_range_slice(builder, I64(0), X.shape[1], I64(LANES)) as (column, _):
        out.store(j, Tile(column, LANES), X.load(i, Tile(column, LANES)))


@kernel()
def _copy_gathered(indptr, indices, X, ahead, out):
    n = len(out)
    for chunk in prange((n + ROWS - 1) // ROWS):
        for j in range(chunk * ROWS, min(n, (chunk + 1) * ROWS)):
            if ahead > 0:
                prefetch_row(indptr, indices, j, X, ahead)
            for k in range(indptr[j], indptr[j + 1]):
                _copy_row(X, indices[k], out, j)


@kernel(reorder=True)
def _read_gathered(indptr, indices, X, ahead, out):
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

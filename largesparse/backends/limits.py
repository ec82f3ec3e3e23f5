"""What this machine can do at best: the measure of how good the kernels are.

Each function measures once, after a warm-up; compare its result with what was measured in the
same run, alternating, because the speed of a shared machine changes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from ..machine.threads import kernel_threads
from .operands import Float32, Int32

DISTANCES = (0, 4, 8, 16, 32)  # connections
TRIED_ROWS = 1 << 15  # of the output, for the best of them


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
    from .limit_kernels import read_in_order

    X = np.ones(megabytes * 2**18, dtype=np.float32)
    with kernel_threads(threads):
        return X.nbytes / seconds_of(lambda: read_in_order(X))


def arithmetic_peak(threads: int, size: int = 1536) -> float:
    """Return float32 operations a second of a dense product by the BLAS that NumPy has."""
    A = np.random.default_rng(0).random((size, size), dtype=np.float32)
    out = np.empty_like(A)
    with threadpool_limits(threads, user_api="blas"):
        return 2 * size**3 / seconds_of(lambda: np.matmul(A, A, out=out))


def gather(
    indptr: Int32, indices: Int32, X: Float32, ahead: int, out: Float32 | None = None
) -> None:
    """Read the rows that a forward product gathers, in its order, and compute nothing.

    Parameters
    ----------
    indptr, indices : int32
        Connections in output order.
    X : float32 (n_in, batch)
    ahead : int
        Connections whose rows are prefetched ahead.
    out : float32 (n_out, batch), optional
        With it, rows are written too, as the product does: every gathered row is copied to the
        output's row. The batch is then a multiple of 16.
    """
    from .limit_kernels import copy_gathered, read_gathered

    if out is not None:
        copy_gathered(indptr, indices, X, ahead, out)
    else:
        read_gathered(indptr, indices, X, ahead, np.empty(len(indptr) - 1, dtype=np.float32))


def best_distance(indptr: Int32, indices: Int32, X: Float32, out: Float32 | None = None) -> int:
    """Return the prefetch distance with which `gather` is fastest here, for its first rows."""
    first = indptr[: TRIED_ROWS + 1]
    out = out if out is None else out[:TRIED_ROWS]
    seconds = []
    for distance in DISTANCES:
        call = functools.partial(gather, first, indices, X, distance, out)
        seconds.append(seconds_of(call, repeats=1))
    return DISTANCES[int(np.argmin(seconds))]

"""The `scipy` backend: products through SciPy, for machines without MKL."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from scipy.sparse import csr_matrix

from .base import Backend
from .operands import Counts, Float32, Int32

# SciPy allocates its result, so a product is made in blocks of rows: the temporary stays small,
# and threads can share the blocks (SciPy releases the GIL).
BLOCK_FLOATS = 1 << 18

_threads: ContextVar[int] = ContextVar("threads", default=1)


class SciPyBackend(Backend):
    """Sparse-dense products by SciPy; the rest by the shared kernels."""

    name = "scipy"

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        token = _threads.set(count)
        try:
            with super().threads(count):
                yield
        finally:
            _threads.reset(token)

    def spmm(
        self, indptr: Counts, indices: Int32, values: Float32, X: Float32, *, out: Float32
    ) -> None:
        rows, batch = out.shape
        step = max(1, BLOCK_FLOATS // batch)

        def multiply(start: int) -> None:
            stop = min(rows, start + step)
            low, high = indptr[start], indptr[stop]
            block = csr_matrix(
                (values[low:high], indices[low:high], indptr[start : stop + 1] - low),
                shape=(stop - start, X.shape[0]),
                copy=False,
            )
            np.copyto(out[start:stop], block @ X)

        starts = range(0, rows, step)
        count = min(_threads.get(), len(starts))
        if count <= 1:
            for start in starts:
                multiply(start)
        else:
            list(_pool(count).map(multiply, starts))


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="largesparse-scipy")


if hasattr(os, "register_at_fork"):  # a forked child has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


@functools.cache
def load() -> SciPyBackend:
    """Return the backend; it is made once in a process."""
    return SciPyBackend()

"""How many threads there are to use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import check_range


def available_threads() -> int:
    """Return the number of cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def resolve_threads(threads: int | None, owner: str) -> int:
    """Return `threads`, or all available cores where it is None."""
    if threads is None:
        return available_threads()
    return int(check_range("threads", threads, owner, low=1, high=4096, integer=True))


@contextmanager
def kernel_threads(count: int) -> Iterator[None]:
    """Let the compiled kernels that the calling thread starts use `count` threads."""
    import numba

    before = numba.get_num_threads()
    count = min(count, numba.config.NUMBA_NUM_THREADS)
    if count == before:
        yield
        return
    numba.set_num_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before)

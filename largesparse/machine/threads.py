"""How many threads there are to use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import check_range
from .control_groups import cpu_quota
from .threading_layers import check_fork, threading_layer

# Each limits the threads of a process; batch systems and joblib's workers set the first.
THREAD_LIMITS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


def usable_cores() -> int:
    """Return how many cores this process may keep busy.

    Those that it may run on, or fewer where a control group limits its CPU time (a container's
    `--cpus`, a batch job's share); a part of a core counts as one.
    """
    quota = cpu_quota()
    cores = len(core_numbers())
    return cores if quota is None else min(cores, math.ceil(quota))


def core_numbers() -> set[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # not Linux


def available_threads() -> int:
    """Return the default number of threads: the usable cores, or what the environment limits it to.

    The environment's limits are OMP_NUM_THREADS and NUMBA_NUM_THREADS.
    """
    limits = [os.environ.get(name, "").split(",")[0].strip() for name in THREAD_LIMITS]
    numbers = [int(limit) for limit in limits if limit.isdigit() and int(limit) > 0]
    return min([usable_cores(), *numbers])


def resolve_threads(threads: int | None, owner: str) -> int:
    """Return `threads`, or all available cores where it is None."""
    if threads is None:
        return available_threads()
    return int(check_range("threads", threads, owner, low=1, high=4096, integer=True))


@contextmanager
def kernel_threads(count: int) -> Iterator[None]:
    """Let the compiled kernels that the calling thread starts use `count` threads."""
    import numba

    threading_layer()  # before numba starts its threads
    check_fork()
    before = numba.get_num_threads()
    wanted = min(count, numba.config.NUMBA_NUM_THREADS)
    if wanted != before:
        numba.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted != before:
            numba.set_num_threads(before)

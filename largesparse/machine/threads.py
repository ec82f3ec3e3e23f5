"""How many threads there are to use."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

from ..errors import check_range
from .control_groups import cpu_quota
from .garbage import no_collection
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


@functools.cache
def _numba() -> Any:
    with no_collection():
        import numba
    return numba


@functools.cache
def numba_threads() -> tuple[Any, Any]:
    """Return what reads and sets a thread's number of threads, after numba has started them.

    Numba's own functions take a lock of processes at every call, twenty times the time.
    """
    from numba.np.ufunc import parallel

    threading_layer()  # before numba starts its threads
    parallel._launch_threads()
    return parallel._get_num_threads, parallel._set_num_threads


class kernel_threads:
    """Let the compiled kernels that the calling thread starts use `count` threads, in a `with`."""

    def __init__(self, count: int) -> None:
        numba = _numba()
        self.count = min(count, numba.config.NUMBA_NUM_THREADS)

    def __enter__(self) -> None:
        get, set_ = numba_threads()
        check_fork()
        self.before = get()
        if self.before != self.count:
            set_(self.count)

    def __exit__(self, *error: object) -> None:
        if self.before != self.count:
            numba_threads()[1](self.before)

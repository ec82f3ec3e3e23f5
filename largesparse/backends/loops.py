"""How threads share the iterations of a parallel loop.

By default numba gives each thread an equal share. On a machine that does something else as well, a
thread is interrupted now and then, and the others wait for it. With more pieces than threads, the
others take what it has not begun.
"""

from __future__ import annotations

from numba import types

from .compiling import inline

ROWS = 32  # of an array that are one iteration: they are computed, and their bits drawn, together
PIECES = 4  # of a loop for each thread

# As numba's functions of these names, with which kernels could not be cached on disk.
get_num_threads = types.ExternalFunction("get_num_threads", types.int32())
set_parallel_chunksize = types.ExternalFunction("set_parallel_chunksize", types.int32(types.int32))


@inline
def divide_loop(iterations):
    """Let threads take the parallel loop that follows in pieces, until `divide_evenly`."""
    threads = get_num_threads()
    if threads > 1:
        set_parallel_chunksize(max(1, iterations // (PIECES * threads)))


@inline
def divide_evenly():
    """Let each thread take an equal share of the parallel loops that follow."""
    set_parallel_chunksize(0)

"""Chunked transfers of arrays between two ranks of MPI.

`mpiexec -n 2 python -m benchmarks.transfers CHUNK_BYTES` is the job; asv starts it.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from .common import find, run_mpi

SIZE = 2**28  # bytes
REPEATS = 7


class Transfers:
    """Bytes a second that arrive in a buffer that is used again and again."""

    params = ((2**20, 2**28),)
    param_names = ("chunk_bytes",)

    def track_rate(self, chunk_bytes):
        return run_mpi("transfers", 2, chunk_bytes)

    track_rate.unit = "bytes/s"
    track_rate.pretty_name = "Transfer between two ranks"


def main(chunk_bytes: int) -> None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    buffer = np.full(SIZE, comm.rank, dtype=np.uint8)
    name = "start_receive" if comm.rank else "start_send"
    start = find(f"parallel.comm.transfer.{name}", f"parallel.transfer.{name}")
    seconds = []
    for _ in range(REPEATS + 1):
        comm.Barrier()
        started = time.perf_counter()
        start(comm, [buffer], 1 - comm.rank, tag=0, chunk_bytes=chunk_bytes).wait()
        seconds.append(time.perf_counter() - started)
    if comm.rank:
        print(SIZE / np.median(seconds[1:]))  # the first one touches the memory


if __name__ == "__main__":
    main(int(sys.argv[1]))

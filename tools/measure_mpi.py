"""Measure transfers of arrays between two ranks.

    mpiexec -n 2 python tools/measure_mpi.py transfer     beside copying out of shared memory
    mpiexec -n 2 python tools/measure_mpi.py big          an array of 5 GB arrives intact

`--help` after a name lists its settings. The array of `big` has more bytes than a count of MPI,
an int32, can name; on one machine it takes its memory twice. Ranks on two hosts, or in two network
namespaces (tools/two_hosts.sh), measure the network: there is no shared memory to copy out of.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from largesparse.cli import parse_size, run_command
from largesparse.errors import DataError, MemoryPlanError, ParameterError
from largesparse.memory import available_memory
from largesparse.parallel.transfer import (
    CHUNK_BYTES,
    check_chunk_bytes,
    start_receive,
    start_send,
)

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

MB, GB = 10**6, 10**9
BLOCK_BYTES = 2**26  # of a checksum


def transfer(comm: Comm, options: argparse.Namespace) -> None:
    """Time transfers from rank 0 to rank 1 into reused buffers, for several sizes of a chunk.

    In the same run, alternating: rank 1 copies as much out of memory that it shares with rank 0
    into a buffer of its own. All memory is touched beforehand. Medians.
    """
    from mpi4py import MPI

    size = options.megabytes * MB
    buffer = np.full(size, comm.rank, dtype=np.uint8)
    contestants: dict[str, Callable[[], None]] = {}
    on_one_node = comm.Split_type(MPI.COMM_TYPE_SHARED).size == comm.size
    if on_one_node:
        window = MPI.Win.Allocate_shared(size if comm.rank == 0 else 0, 1, comm=comm)
        memory, _ = window.Shared_query(0)
        shared: NDArray[Any] = np.frombuffer(memory, dtype=np.uint8)
        if comm.rank == 0:
            shared[:] = 1
        comm.Barrier()
        if comm.rank == 1:
            contestants["copy out of shared memory"] = lambda: np.copyto(buffer, shared)
        else:
            contestants["copy out of shared memory"] = lambda: None
    start = start_receive if comm.rank else start_send
    for chunk_bytes in options.chunk_bytes:

        def send(chunk_bytes: int = check_chunk_bytes(chunk_bytes)) -> None:
            start(comm, [buffer], 1 - comm.rank, tag=0, chunk_bytes=chunk_bytes).wait()

        contestants[f"chunks of {chunk_bytes} bytes"] = send

    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(options.repeats + 1):
        for name, run in contestants.items():
            comm.Barrier()
            started = time.perf_counter()
            run()
            if repeat:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
    if on_one_node:
        del shared, memory
        window.Free()
    if comm.rank == 1:
        print_speeds(size, seconds)


def print_speeds(size: int, seconds: dict[str, list[float]]) -> None:
    """Print medians and quartiles in GB/s, and the share of the first row's speed."""
    rows = {}
    for name, times in seconds.items():
        rate = size / np.array(times) / GB
        low, middle, high = np.percentile(rate, [25, 50, 75])
        rows[name] = {"GB/s": middle, "25 %": low, "75 %": high}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["of the first row, %"] = 100 * table["GB/s"] / table["GB/s"].iloc[0]
    print(f"{size / MB:.0f} MB, {len(times)} repeats")
    print(table.round(1).to_string())


def big(comm: Comm, options: argparse.Namespace) -> None:
    """Send a large array from rank 0 to rank 1, and compare checksums of its blocks."""
    count = round(options.gigabytes * GB / 4)
    available = available_memory()
    if comm.bcast(2 * 4 * count > 0.9 * available):  # so that both end
        raise MemoryPlanError(
            f"Two arrays of {options.gigabytes} GB do not fit into the {available / GB:.1f} GB "
            "that are free. Use a smaller --gigabytes."
        )
    array = np.zeros(count, dtype=np.float32)
    array[:] = 1  # touches it
    flat = array.view(np.uint8)
    if comm.rank == 0:
        rng = np.random.default_rng(options.seed)
        for begin in range(0, len(flat), BLOCK_BYTES):
            block = flat[begin : begin + BLOCK_BYTES]
            block[:] = np.frombuffer(rng.bytes(len(block)), dtype=np.uint8)
    comm.Barrier()
    start = start_receive if comm.rank else start_send
    started = time.perf_counter()
    moved = start(comm, [array], 1 - comm.rank, tag=0, chunk_bytes=options.chunk_bytes)
    moved.wait()
    seconds = time.perf_counter() - started
    own = [zlib.crc32(flat[b : b + BLOCK_BYTES]) for b in range(0, len(flat), BLOCK_BYTES)]
    sums = np.array(own, dtype=np.int64)
    if comm.rank == 0:
        comm.Send(sums, 1)
        return
    expected = np.empty_like(sums)
    comm.Recv(expected, 0)
    wrong = np.flatnonzero(sums != expected)
    print(
        f"{moved.nbytes} bytes in chunks of {options.chunk_bytes}: {seconds:.2f} s, "
        f"{moved.nbytes / seconds / GB:.1f} GB/s; "
        f"{len(sums) - len(wrong)} of {len(sums)} checksums agree"
    )
    if len(wrong):
        raise DataError(f"Block {wrong[0]} of the array did not arrive intact.")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE", required=True)
    speed = figures.add_parser("transfer", help=transfer.__doc__.splitlines()[0])
    speed.description = transfer.__doc__
    speed.add_argument("--megabytes", type=parse_size, default=256, help="default %(default)s")
    speed.add_argument("--repeats", type=parse_size, default=21, help="default %(default)s")
    sizes = [2**20, 2**22, 2**24, 2**26, CHUNK_BYTES]
    speed.add_argument(
        "--chunk-bytes", type=parse_size, nargs="+", default=sizes, help=f"default {sizes}"
    )
    speed.set_defaults(run=transfer)
    one = figures.add_parser("big", help=big.__doc__)
    one.description = big.__doc__
    one.add_argument("--gigabytes", type=float, default=5.0, help="default %(default)s")
    one.add_argument(
        "--chunk-bytes", type=parse_size, default=CHUNK_BYTES, help="default %(default)s"
    )
    one.add_argument("--seed", type=int, default=0, help="default %(default)s")
    one.set_defaults(run=big)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the measurement that the command line names."""
    options = make_parser().parse_args(argv)
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if comm.size != 2:
        raise ParameterError(
            f"Two ranks are measured. Got {comm.size} instead: start with 'mpiexec -n 2 python "
            f"tools/measure_mpi.py {options.figure}'."
        )
    options.run(comm, options)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""What ranks take: transfers of arrays between two, and waiting.

Ranks on two hosts, or in two network namespaces (python -m soak two_hosts), measure the network:
there is no shared memory to copy out of.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from largesparse.errors import DataError, MemoryPlanError, ParameterError
from largesparse.machine.sizes import parse_size
from largesparse.parallel.comm.collectives import barrier, gather
from largesparse.parallel.comm.control import connect
from largesparse.parallel.comm.guard import guard
from largesparse.parallel.comm.ranks import get_communicator
from largesparse.parallel.comm.transfer import (
    CHUNK_BYTES,
    check_chunk_bytes,
    start_receive,
    start_send,
)
from largesparse.training.memory import available_memory

from . import add_figure, seconds_in_turns

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

MB, GB = 10**6, 10**9
BLOCK_BYTES = 2**26  # of a checksum


def two_ranks(figure: str) -> Comm:
    """Return the communicator of two ranks."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if comm.size != 2:
        raise ParameterError(
            f"Two ranks are measured. Got {comm.size} instead: start with 'mpiexec -n 2 python "
            f"tools/measure.py {figure}'."
        )
    return comm


def transfer(options: argparse.Namespace) -> None:
    """Time transfers from rank 0 to rank 1 into reused buffers, for several sizes of a chunk.

    In the same run, alternating: rank 1 copies as much out of memory that it shares with rank 0
    into a buffer of its own. All memory is touched beforehand. Medians.
    """
    from mpi4py import MPI

    comm = two_ranks("transfer")
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

    seconds = {name: [] for name in contestants}
    for repeat in range(options.repeats + 1):
        for name, run in contestants.items():
            comm.Barrier()  # whose wait is not timed
            taken = seconds_in_turns({name: run}, 1)[name]
            seconds[name] += taken if repeat else []  # the first one warms up
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


def big(options: argparse.Namespace) -> None:
    """Send a large array from rank 0 to rank 1, and compare checksums of its blocks.

    It has more bytes than a count of MPI, an int32, can name; on one machine it takes its memory
    twice.
    """
    comm = two_ranks("big")
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


def idle_cost(options: argparse.Namespace) -> None:
    """Measure what ranks cost that wait for rank 0 (mpiexec -n 16).

    Every rank but rank 0 waits for a message, as a worker does that has nothing to do. Printed is
    the processor time of all of them together as a share of one core; it should be under 5 %. With
    --spin they wait in MPI's own blocking receive, for comparison: that takes every core there is.
    """
    seconds, spin = options.seconds, options.spin
    comm = get_communicator()
    if comm.size == 1:
        raise ParameterError("There is nobody to wait: start it by mpiexec -n 16, or 2 at least.")
    with guard(comm):
        idle = wait_by_mpi(comm, seconds) if spin else wait_by_line(comm, seconds)
        everyone = gather(comm, idle)
        if everyone is not None:
            report(everyone[1:], "MPI's blocking receive" if spin else "the line to rank 0")


def wait_by_line(comm: Any, seconds: float) -> tuple[float, float]:
    """Return the seconds that this rank waited, and its processor time meanwhile."""
    channel = connect(comm)
    barrier(comm)
    if comm.rank == 0:
        time.sleep(seconds)
        for rank in channel.ranks:
            channel.send(rank, "end")
    else:
        channel.receive()
    return channel.idle_s, channel.idle_cpu_s


def wait_by_mpi(comm: Any, seconds: float) -> tuple[float, float]:
    """The same by MPI's blocking receive."""
    barrier(comm)
    wall, cpu = time.perf_counter(), time.process_time()
    if comm.rank == 0:
        time.sleep(seconds)
        for rank in range(1, comm.size):
            comm.send("end", rank)
    else:
        comm.recv(source=0)
    return time.perf_counter() - wall, time.process_time() - cpu


def report(idle: list[tuple[float, float]], how: str) -> None:
    """Print what waiting has cost."""
    wall = sum(wall for wall, _ in idle) / len(idle)
    cpu = sum(cpu for _, cpu in idle)
    print(
        f"{len(idle)} ranks waited {wall:.1f} s each, in {how}: {cpu:.3f} s of processor time "
        f"together, {100 * cpu / wall:.2f} % of a core"
    )


def add_figures(figures: Any) -> None:
    """Add transfer, big and idle_cost."""
    speed = add_figure(figures, "transfer", transfer)
    speed.add_argument("--megabytes", type=parse_size, default=256, help="default %(default)s")
    speed.add_argument("--repeats", type=parse_size, default=21, help="default %(default)s")
    sizes = [2**20, 2**22, 2**24, 2**26, CHUNK_BYTES]
    text = f"default {sizes}"
    speed.add_argument("--chunk-bytes", type=parse_size, nargs="+", default=sizes, help=text)
    one = add_figure(figures, "big", big)
    one.add_argument("--gigabytes", type=float, default=5.0, help="default %(default)s")
    text = "default %(default)s"
    one.add_argument("--chunk-bytes", type=parse_size, default=CHUNK_BYTES, help=text)
    one.add_argument("--seed", type=int, default=0, help="default %(default)s")
    idle = add_figure(figures, "idle_cost", idle_cost)
    idle.add_argument("--seconds", type=float, default=10.0, help="how long (%(default)s)")
    idle.add_argument("--spin", action="store_true", help="wait in MPI's blocking receive")

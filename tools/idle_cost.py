"""Measure what ranks cost that wait for rank 0.

    mpiexec -n 16 python tools/idle_cost.py
    mpiexec -n 16 python tools/idle_cost.py --spin

Every rank but rank 0 waits for a message, as a worker does that has nothing to do. Printed is the
processor time of all of them together as a share of one core; it should be under 5 %. With `--spin`
they wait in MPI's own blocking receive, for comparison: that takes every core there is.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any

from largesparse.cli import run_command
from largesparse.errors import ParameterError
from largesparse.parallel.collectives import barrier, gather
from largesparse.parallel.control import connect
from largesparse.parallel.guard import guard
from largesparse.parallel.ranks import get_communicator


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool with the arguments `argv`."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (%(default)s)")
    parser.add_argument("--spin", action="store_true", help="wait in MPI's blocking receive")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments.seconds, arguments.spin))


def _run(seconds: float, spin: bool) -> None:
    comm = get_communicator()
    if comm.size == 1:
        raise ParameterError("There is nobody to wait: start it by mpiexec -n 16, or 2 at least.")
    with guard(comm):
        idle = _wait_by_mpi(comm, seconds) if spin else _wait_by_line(comm, seconds)
        everyone = gather(comm, idle)
        if everyone is not None:
            _report(everyone[1:], "MPI's blocking receive" if spin else "the line to rank 0")


def _wait_by_line(comm: Any, seconds: float) -> tuple[float, float]:
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


def _wait_by_mpi(comm: Any, seconds: float) -> tuple[float, float]:
    barrier(comm)
    wall, cpu = time.perf_counter(), time.process_time()
    if comm.rank == 0:
        time.sleep(seconds)
        for rank in range(1, comm.size):
            comm.send("end", rank)
    else:
        comm.recv(source=0)
    return time.perf_counter() - wall, time.process_time() - cpu


def _report(idle: list[tuple[float, float]], how: str) -> None:
    wall = sum(wall for wall, _ in idle) / len(idle)
    cpu = sum(cpu for _, cpu in idle)
    print(
        f"{len(idle)} ranks waited {wall:.1f} s each, in {how}: {cpu:.3f} s of processor time "
        f"together, {100 * cpu / wall:.2f} % of a core"
    )


if __name__ == "__main__":
    sys.exit(main())

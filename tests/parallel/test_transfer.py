"""Arrays between ranks: two processes under mpiexec, each running a function of this file."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from largesparse.errors import ParameterError, WorkerError
from largesparse.machine.environment import find_mpiexec
from largesparse.parallel.comm.transfer import check_chunk_bytes, start_receive, start_send

DTYPES = [np.float32, np.int32, np.uint8, np.float64, np.bool_]


def numbered_arrays(seed: int) -> list[np.ndarray]:
    """Arrays of odd sizes and several dtypes, some of them empty, the largest of 4 MB."""
    rng = np.random.default_rng(seed)
    shapes = [(7,), (0,), (), (3, 5), (0, 4), (1_000_003,), (129, 127)]
    return [
        rng.integers(0, 2 if dtype is np.bool_ else 100, shape).astype(dtype)
        for shape, dtype in zip(shapes, DTYPES * 2, strict=False)
    ]


def both_ways(comm) -> None:
    """Each rank sends and receives at once, with chunks of every kind of size."""
    other = 1 - comm.rank
    for chunk_bytes in (999, 4096, 2**20, 2**28):
        sent, expected = numbered_arrays(comm.rank), numbered_arrays(other)
        received = [np.empty_like(array) for array in expected]
        incoming = start_receive(comm, received, other, tag=3, chunk_bytes=chunk_bytes)
        outgoing = start_send(comm, sent, other, tag=3, chunk_bytes=chunk_bytes)
        assert incoming.nbytes == sum(array.nbytes for array in expected)
        while not (incoming.done() & outgoing.done()):
            pass
        assert incoming.done()
        for array, wanted in zip(received, expected, strict=True):
            np.testing.assert_array_equal(array, wanted, strict=True)


def byte_by_byte(comm) -> None:
    values = np.arange(20, dtype=np.float32) + 1
    array = values if comm.rank == 0 else np.zeros_like(values)
    start = start_receive if comm.rank else start_send
    start(comm, [array], 1 - comm.rank, tag=0, chunk_bytes=1).wait()
    np.testing.assert_array_equal(array, values)


def one_after_another(comm) -> None:
    """Transfers of the same tag that start before the earlier ones are done keep their order."""
    values = np.arange(500_000, dtype=np.int32)
    buffers = [values + k if comm.rank == 0 else np.zeros_like(values) for k in range(3)]
    start = start_receive if comm.rank else start_send
    transfers = []
    for buffer in buffers:
        transfers.append(start(comm, [buffer], 1 - comm.rank, tag=9, chunk_bytes=2**20))
    for transfer in transfers:
        transfer.wait()
    for k, buffer in enumerate(buffers):
        np.testing.assert_array_equal(buffer, values + k)


def does_not_wait(comm) -> None:
    """`done` returns while the other rank does nothing, and nothing has arrived before it sends."""
    buffer = np.zeros(2_000_000, dtype=np.float32)
    if comm.rank == 0:
        transfer = start_receive(comm, [buffer], 1, tag=1, chunk_bytes=2**20)
        assert not any(transfer.done() for _ in range(100))
        comm.Barrier()
        transfer.wait()
        assert buffer.min() == buffer.max() == 5
    else:
        comm.Barrier()
        buffer[:] = 5
        start_send(comm, [buffer], 0, tag=1, chunk_bytes=2**20).wait()


def chunks_are_bounded(comm) -> None:
    """No message is larger than a chunk, and few are posted at a time."""
    posted = []

    class Spy:
        def __getattr__(self, name):
            def post(message, rank, tag):
                _, count, datatype = message
                posted.append(count * datatype.Get_size())
                return getattr(comm, name)(message, rank, tag)

            return post

    array = np.ones(1000, dtype=np.float64)
    start = start_receive if comm.rank else start_send
    transfer = start(Spy(), [array], 1 - comm.rank, tag=0, chunk_bytes=300)
    assert posted == [300] * 4
    transfer.wait()
    assert posted == [300] * 26 + [200]


def disagreement(comm) -> None:
    array = np.ones(100, dtype=np.uint8)
    if comm.rank == 0:
        start_send(comm, [array], 1, tag=0, chunk_bytes=50).wait()
    else:
        transfer = start_receive(comm, [array], 0, tag=0, chunk_bytes=100)
        with pytest.raises(WorkerError, match="Rank 0 sent a chunk of 50 bytes where 100"):
            transfer.wait()
        comm.Recv(array, 0, 0)  # the rest


def across_hosts(comm) -> None:
    """On two hosts, each rank is a node of its own, and arrays cross the network between them."""
    from mpi4py import MPI

    assert comm.Split_type(MPI.COMM_TYPE_SHARED).size == 1
    assert sorted(comm.allgather(socket.gethostname())) == ["left", "right"]
    counter = Path("/sys/class/net/veth0/statistics/tx_bytes")
    before = int(counter.read_text())
    both_ways(comm)
    assert int(counter.read_text()) - before > 4 * sum(a.nbytes for a in numbered_arrays(0))


JOBS = [
    both_ways,
    byte_by_byte,
    one_after_another,
    does_not_wait,
    chunks_are_bounded,
    disagreement,
]


# Of this interpreter's environment first.
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
MPIEXEC = find_mpiexec()

needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIEXEC is None,
    reason="mpi4py and mpiexec are not installed",
)


def run_two_ranks(launcher, script, *arguments: str) -> subprocess.CompletedProcess[str]:
    # mpi4py's runner aborts both where one raises.
    command = [*launcher, "-n", "2", sys.executable, "-m", "mpi4py", script, *arguments]
    environment = os.environ | {"PATH": PATH}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def jobs():
    """How two ranks ended that ran all jobs, one after another up to the first that failed."""
    return run_two_ranks([MPIEXEC], __file__, *(job.__name__ for job in JOBS))


@needs_mpi
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_between_two_ranks(jobs, job):
    assert jobs.stdout.count(f"{job.__name__} passed") == 2, jobs.stderr


@needs_mpi
def test_two_ranks_end_well(jobs):
    assert jobs.returncode == 0, jobs.stdout + jobs.stderr


@needs_mpi
@pytest.mark.skipif(shutil.which("timeout") is None, reason="there is no 'timeout' command")
def test_between_two_hosts():
    launcher = ["timeout", "50", ROOT / "soak" / "two_hosts.sh"]  # ends it such that it cleans up
    result = run_two_ranks(launcher, __file__, across_hosts.__name__)
    if result.returncode == 77:
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("passed") == 2, result.stderr


@pytest.mark.long
@needs_mpi
def test_the_measuring_tool():
    tool = ROOT / "tools" / "measure.py"
    sizes = ["--megabytes", "1", "--repeats", "2", "--chunk-bytes", "5k", "1M"]
    result = run_two_ranks([MPIEXEC], tool, "transfer", *sizes)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 MB, 2 repeats\n")
    for row in ("copy out of shared memory", "chunks of 5000 bytes", "chunks of 1000000 bytes"):
        assert row in result.stdout
    result = run_two_ranks([MPIEXEC], tool, "big", "--gigabytes", "0.07", "--chunk-bytes", "1M")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("70000000 bytes in chunks of 1000000: ")
    assert result.stdout.endswith("; 2 of 2 checksums agree\n")


@pytest.mark.parametrize("value", [0, -1, 2**30 + 1, 1.5, True])
def test_a_chunk_has_a_size_that_mpi_can_count(value):
    with pytest.raises(ParameterError, match=r"'chunk_bytes'.*\[1, 1073741824\]"):
        check_chunk_bytes(value)


def test_chunks_of_every_size_allowed():
    assert [check_chunk_bytes(value) for value in (1, np.int64(7), 2**30)] == [1, 7, 2**30]


def test_arrays_that_cannot_be_sent_or_received():
    pytest.importorskip("mpi4py")
    array = np.zeros((4, 6), dtype=np.float32)
    for wrong in (array.T, array[:, ::2], np.array([None])):
        with pytest.raises(ParameterError, match="Array 1 of a transfer must be C-contiguous"):
            start_send(None, [array, wrong], 0, tag=0)
    array.flags.writeable = False
    with pytest.raises(ParameterError, match="Array 0 of a transfer is received, but read-only"):
        start_receive(None, [array], 0, tag=0)


if __name__ == "__main__":
    from mpi4py import MPI

    for name in sys.argv[1:]:
        globals()[name](MPI.COMM_WORLD)
        print(f"{name} passed\n", end="", flush=True)

"""Ranks, control messages, and how a job ends: scripts under mpiexec."""

from __future__ import annotations

import signal
import socket
import sys
import time
from functools import partial

import pytest
from helpers import ROOT
from mpi_runs import mpi_run, mpiexec, run_mpi

from largesparse.errors import DataError
from largesparse.machine.exit_codes import run_command
from largesparse.machine.threads import available_threads
from largesparse.parallel.comm.collectives import barrier, broadcast, gather
from largesparse.parallel.comm.control import connect
from largesparse.parallel.comm.guard import guard
from largesparse.parallel.comm.nodes import Host, Nodes
from largesparse.parallel.comm.ranks import agree, get_communicator, raise_together

ENDS_IN = 20  # seconds from the failure of a rank to the end of the job

CONNECTED = """
import os, sys, time
from largesparse.errors import DataError
from largesparse.parallel.comm.control import connect
from largesparse.parallel.comm.guard import guard
from largesparse.parallel.comm.ranks import get_communicator
comm = get_communicator()
with guard(comm):
    channel = connect(comm)
    if comm.rank == 0:
        for rank in channel.ranks:
            channel.send(rank, "begin")
        for rank in channel.ranks:
            channel.receive()
        print("ready", flush=True)
    else:
        channel.send(channel.receive())
    {}
"""
WAIT = "channel.receive()"


# Functions that four ranks call under one mpiexec


def messages_go_both_ways_in_order_and_ranks_take_turns(comm):
    channel = connect(comm)
    if comm.rank == 0:
        assert channel.ranks == [1, 2, 3]
        assert channel.receive(timeout=0.05) is None
        for rank in channel.ranks:
            for number in range(50):
                channel.send(rank, {"rank": rank, "number": number})
        barrier(comm)  # all that the ranks have to say is on its way
        received = [channel.receive() for _ in range(150)]
        for rank in channel.ranks:
            assert [m for sender, m in received if sender == rank] == [(rank, n) for n in range(50)]
        for turn in range(50):
            assert {sender for sender, _ in received[3 * turn : 3 * turn + 3]} == {1, 2, 3}
        assert channel.receive(timeout=0) is None
        time.sleep(0.5)
        for rank in channel.ranks:
            channel.send(rank, "end")
    else:
        for number in range(50):
            message = channel.receive()
            assert message == {"rank": comm.rank, "number": number}
            channel.send((comm.rank, number))
        barrier(comm)
        before = channel.idle_s
        assert channel.receive() == "end"
        assert channel.idle_s - before > 0.4
        assert channel.idle_cpu_s < 0.1


def connections_may_follow_one_another(comm):
    for run in range(2):
        channel = connect(comm)
        if comm.rank == 0:
            first = {}
            while len(first) < 3:
                rank, message = channel.receive()
                first.setdefault(rank, message)
            assert first == {1: run, 2: run, 3: run}
        else:
            channel.send(run)
            channel.send("never received")


def small_objects_reach_every_rank(comm):
    assert broadcast(comm, comm.rank, root=2) == 2
    assert broadcast(comm, None if comm.rank else "x" * 100_000) == "x" * 100_000
    everyone = gather(comm, "y" * comm.rank)
    assert everyone == (None if comm.rank else ["", "y", "yy", "yyy"])


def nodes_are_simulated(comm):
    nodes = Nodes.of(comm)
    assert nodes == Nodes([0] * 4, [available_threads()]), nodes
    nodes = Nodes.of(comm, ranks_per_node=3)
    assert nodes.node == [0, 0, 0, 1], nodes
    assert nodes.cores == [max(1, available_threads() // 2)] * 2, nodes
    assert len(nodes) == 2 and nodes.leader(1) == 3 and nodes.ranks(1) == [3]


def ranks_that_disagree_are_told_by_rank_0(comm):
    agree(comm, {"epochs": 3, "seed": 1})
    assert run_command(lambda: agree(comm, {"epochs": 3, "seed": comm.rank // 2})) == 2


def an_error_of_one_rank_is_raised_by_rank_0(comm):
    raise_together(comm, None)
    for error in (DataError("no data"), OSError("no file")):
        given = error if comm.rank == 2 else None
        assert run_command(partial(raise_together, comm, given)) == 2


CALLED = (
    messages_go_both_ways_in_order_and_ranks_take_turns,
    small_objects_reach_every_rank,
    nodes_are_simulated,
    ranks_that_disagree_are_told_by_rank_0,
    an_error_of_one_rank_is_raised_by_rank_0,
    connections_may_follow_one_another,  # last: it leaves messages that nobody receives
)


@pytest.fixture(scope="module")
def called():
    return run_mpi("", 4, program=(__file__,))


@pytest.mark.parametrize("function", CALLED, ids=lambda function: function.__name__)
def test_four_ranks(called, function):
    assert called.out.count(f"{function.__name__} passed") == 4, called.err


def test_four_ranks_end_well_and_rank_0_tells_what_the_ranks_raised(called):
    assert called.status == 0
    disagreement, *errors = called.err.splitlines()
    assert "disagree on seed: rank 0 has 0, rank 2 has 1." in disagreement
    assert errors == [
        "largesparse: error: Rank 2: no data",
        "largesparse: error: Rank 2: OSError: no file",
    ]


# Jobs that end otherwise


def assert_one_message(result, *parts):
    assert result.status != 0
    assert len(result.messages) == 1, result.err
    for part in parts:
        assert part in result.messages[0]


def test_ranks_may_finish_before_others():
    script = """
        from largesparse.parallel.comm.control import connect
        from largesparse.parallel.comm.guard import guard
        from largesparse.parallel.comm.ranks import get_communicator
        comm = get_communicator()
        with guard(comm):
            channel = connect(comm)
            if comm.rank == 0:
                assert channel.receive(timeout=1) is None  # the end of rank 1 is no message
                channel.send(1, "not received")
                channel.send(2, "go on")
                assert channel.receive() == (2, "here")
                channel.receive()
            elif comm.rank == 2:
                channel.send((channel.receive(), "here")[1])
    """
    result = run_mpi(script, 3, timeout=ENDS_IN)
    assert_one_message(result, "All other ranks have left, while rank 0 waits")


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("occupation", [WAIT, "time.sleep(100)"])
def test_a_killed_rank_ends_the_job(victim, occupation):
    # On a busy machine mpiexec may have killed another rank by the time that the end of the
    # victim's connection shows, and then that one is named.
    for _ in range(3):
        with mpi_run(CONNECTED.format(occupation), 3) as run:
            run.wait_for("ready")
            process = run.rank(victim)
            process.kill()
            result = run.finish(ENDS_IN)
        assert_one_message(result, "ended without a word")
        assert "Traceback" not in result.err
        if f"Rank {victim} (host {socket.gethostname()}, pid {process.pid})" in result.err:
            return
    raise AssertionError(result.err)


@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_of_the_library_is_one_message(rank):
    raises = f"if comm.rank == {rank}: raise DataError('no such table')\n    {WAIT}"
    result = run_mpi(CONNECTED.format(raises), 3, timeout=ENDS_IN)
    assert_one_message(result, f"largesparse: error: Rank {rank}: no such table")
    assert result.err.count("\n") == 1


def test_an_error_is_told_while_rank_0_is_busy():
    busy = """
    from largesparse.parallel.comm import control
    control.GRACE = 1
    if comm.rank == 2:
        raise DataError("no such table")
    time.sleep(100)
    """
    result = run_mpi(CONNECTED.format(busy), 3, timeout=ENDS_IN)
    assert_one_message(result, "largesparse: error: Rank 2: no such table")


def test_an_unexpected_error_comes_with_its_traceback():
    raises = f"if comm.rank == 2: [][7]\n    {WAIT}"
    result = run_mpi(CONNECTED.format(raises), 3, timeout=ENDS_IN)
    assert_one_message(result, "largesparse: error: Rank 2: IndexError: list index out of range")
    assert result.err.count("Traceback") == 1
    assert 'File "<string>"' in result.err
    assert "guard.py" not in result.err  # the traceback begins in the script


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("occupation", [WAIT, "while True: sum(range(1000))"])
def test_an_interrupted_job_says_so_once(number, occupation):
    with mpi_run(CONNECTED.format(occupation), 3) as run:
        run.wait_for("ready")
        if number == signal.SIGINT:
            run.send(number)
        else:
            run.rank(0).send_signal(number)
        result = run.finish(ENDS_IN)
    assert_one_message(result, "largesparse: interrupted")
    assert "Traceback" not in result.err


def test_an_error_after_the_parallel_part_ends_all_ranks():
    after = f"""
if comm.rank == 1:
    raise KeyError("own")
with guard(comm):
    {WAIT}
"""
    result = run_mpi(CONNECTED.format("pass" + after), 3, timeout=ENDS_IN)
    assert_one_message(result, "largesparse: error: Rank 1: KeyError: 'own'")
    assert result.err.count("Traceback") == 1


def test_ctrl_c_after_the_parallel_part_is_told_by_rank_0():
    after = "pass\nif comm.rank == 0: print('after', flush=True)\ntime.sleep(100)"
    with mpi_run(CONNECTED.format(after), 3) as run:
        run.wait_for("after")
        run.send(signal.SIGINT)
        result = run.finish(ENDS_IN)
    assert result.status != 0
    assert result.err.count("Traceback") == 1
    assert result.err.splitlines()[-1] == "KeyboardInterrupt"
    assert result.messages == []


def test_a_rank_that_leaves_early_is_told():
    script = CONNECTED.format(f"if comm.rank == 2: sys.exit()\n    {WAIT}")
    assert_one_message(run_mpi(script, 3, timeout=ENDS_IN), "Rank 2: SystemExit")


def test_an_end_of_rank_0_before_the_others_is_told():
    script = """
        import sys
        from largesparse.parallel.comm.control import connect
        from largesparse.parallel.comm.guard import guard
        from largesparse.parallel.comm.ranks import get_communicator
        comm = get_communicator()
        channel = connect(comm)
        if comm.rank == 0:
            sys.exit(3)
        with guard(comm):
            channel.receive()
    """
    result = run_mpi(script, 3, timeout=ENDS_IN)
    assert_one_message(result, "waits for a message, but rank 0 has left")


def test_an_unreachable_rank_0_is_told():
    script = """
        import sys
        from largesparse.machine.exit_codes import run_command
        from largesparse.parallel.comm import connecting, control
        from largesparse.parallel.comm.ranks import get_communicator
        comm = get_communicator()
        connecting.LOOPBACK = "" if comm.rank == 1 else connecting.LOOPBACK
        connecting.DIAL_TIMEOUT = 0.5
        def main(): control.connect(comm)
        sys.exit(run_command(main))
    """
    unreachable = {"LARGESPARSE_ADDRESS": "203.0.113.7"}  # set aside for documentation
    result = run_mpi(script, 3, timeout=ENDS_IN, environment=unreachable)
    assert result.status == 2
    assert_one_message(result, "Rank 1: ", "cannot reach rank 0", "203.0.113.7", "Allow TCP")


def test_connections_that_are_no_ranks_are_passed_over():
    """One says nothing, one speaks another language, one has another key; they come first."""
    script = """
        import socket, threading
        from multiprocessing import AuthenticationError
        from multiprocessing.connection import Client
        from largesparse.parallel.comm import connecting, control
        from largesparse.parallel.comm.ranks import get_communicator
        comm = get_communicator()
        broadcast, failed = connecting.broadcast, threading.Event()

        def guess(address):
            try:
                Client(address, authkey=b"another key")
            except AuthenticationError:
                failed.set()

        def with_strangers(comm, offer):
            if comm.rank == 0:
                address = "127.0.0.1", offer.port
                for words in (b"", b"GET / HTTP/1.1\\r\\n\\r\\n"):
                    strangers.append(socket.create_connection(address))
                    strangers[-1].sendall(words)
                threading.Thread(target=guess, args=(address,)).start()
            return broadcast(comm, offer)

        strangers = []
        connecting.broadcast = with_strangers
        connecting.HANDSHAKE_TIMEOUT = 1 if comm.rank == 0 else 60
        channel = control.connect(comm)
        if comm.rank == 0:
            assert failed.wait(10)
            assert channel.answers([1, 2]) == {1: "here", 2: "here"}
            print(channel.ranks)
        else:
            channel.send("here")
    """
    assert run_mpi(script, 3, timeout=ENDS_IN) == (0, "[1, 2]\n", "")


def test_a_missing_mpi4py_is_told_once(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no such library')")
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from largesparse.machine.exit_codes import run_command
        from largesparse.parallel.comm import ranks
        ranks.HEAD_START = 1
        def main(): ranks.get_communicator()
        sys.exit(run_command(main))
    """
    result = run_mpi(script, 3, timeout=ENDS_IN)
    assert_one_message(result, "3 ranks", "no such library", "pip install '.[mpi]'")
    assert "Traceback" not in result.err


def test_another_mpi_library_than_the_launchers_is_told_once():
    # Without what hydra tells a rank, MPICH starts alone: as it would under another launcher.
    script = """
        import os, sys
        rank = os.environ["PMI_RANK"]
        for name in [name for name in os.environ if name.startswith(("PMI_", "MPI", "HYDI"))]:
            del os.environ[name]
        os.environ.update(OMPI_COMM_WORLD_RANK=rank, OMPI_COMM_WORLD_SIZE="3")
        from largesparse.machine.exit_codes import run_command
        from largesparse.parallel.comm import ranks
        ranks.HEAD_START = 1
        def main(): ranks.get_communicator()
        sys.exit(run_command(main))
    """
    result = run_mpi(script, 3, timeout=ENDS_IN)
    assert_one_message(result, "3 ranks", "alone", "another MPI library", "mpiexec")
    assert "Traceback" not in result.err


def test_machines_are_nodes_and_namespaces_share_the_cores_of_theirs():
    a, b, other = Host("a", "m", "1"), Host("a", "m", "2"), Host("c", "n", "1")
    hosts = [a, other, a, b, other, other]
    first = [0, 1, 0, 3, 1, 1]
    cores = [{0, 1}, {0}, {2, 3}, {0, 1, 2, 3}, {1}, {2}]
    assert Nodes._split(hosts, first, cores, None) == Nodes([0, 1, 0, 2, 1, 1], [2, 3, 2])
    split = Nodes._split(hosts, first, cores, 2)
    assert split == Nodes([0, 1, 0, 2, 1, 3], [2, 2, 2, 1])


def test_one_process_needs_no_mpi(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    comm = get_communicator()
    assert (comm.rank, comm.size) == (0, 1)
    assert broadcast(comm, 5) == 5
    assert gather(comm, 5) == [5]
    agree(comm, {"epochs": 1})
    assert Nodes.of(comm).node == [0]
    with pytest.raises(KeyError), guard(comm):
        assert connect(comm).ranks == []
        raise KeyError


@pytest.mark.long
def test_the_cost_of_waiting_is_measured():
    mpiexec()
    tool = (str(ROOT / "tools" / "measure.py"), "idle_cost", "--seconds", "1")
    result = run_mpi("", 4, program=tool)
    assert (result.status, result.err) == (0, "")
    share = float(result.out.split("% of a core")[0].split()[-1])
    assert share < 30


if __name__ == "__main__":
    for called in CALLED:
        called(get_communicator())
        print(f"{called.__name__} passed\n", end="", flush=True)

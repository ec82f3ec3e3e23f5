"""How the ranks of a job end: together, by one message, without spinning.

MPI ends when every rank has come to its end, and the ranks that come first spin until then. So
before that each rank sleeps until all have come. A rank that ends by an error, or is interrupted,
does not wait; it ends the job. A signal ends it too while rank 0 waits in MPI for ranks that are
not to come, where Python's handlers of signals do not run.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from ...machine.environment import forget_left_over_variables, launched_ranks
from ...machine.launching import HEAD_START, spare_shared_memory
from ...machine.mapped_memory import forget_names
from ...machine.signals import StopRequest
from .collectives import barrier

if TYPE_CHECKING:
    from .control import RankChannel, RootChannel

FAILED = 1  # exit status of a job that a rank ended
FORWARDED = 0.2  # seconds in which the launcher passes on what was written, before it ends all
UNHEEDED = 30.0  # seconds after which a signal ends the job whatever the main thread does

logger = logging.getLogger(__name__)


class _Job:
    comm: Any = None  # the ranks that end together
    channel: RootChannel | RankChannel | None = None  # their connections, once there are any
    status = FAILED
    interrupted = False
    request: StopRequest | None = None  # that notes signals, in place of an interruption
    process = 0  # a forked child has no part in all this
    heeded = 0.0  # when the main thread last came to a signal


def end_together(comm: Any) -> None:
    """Arrange how the job ends; every rank calls it, and later calls change nothing.

    Ctrl-C (SIGINT) and SIGTERM reach every rank; only rank 0 heeds them.
    """
    if comm.size == 1 or _Job.comm is not None:
        return
    _Job.comm, _Job.process = comm, os.getpid()
    atexit.register(_leave)
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt if comm.rank == 0 else signal.SIG_IGN)
        if comm.rank == 0 and os.name == "posix":
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            # A forked child's signals are not the job's.
            os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
            threading.Thread(target=_end_unheeded, args=(reader,), daemon=True).start()
    if comm.rank > 0:
        write = sys.excepthook

        def write_own(kind: Any, error: BaseException, trace: TracebackType | None) -> None:
            if not getattr(error, "is_told_elsewhere", False):  # else rank 0 does it
                write(kind, error, trace)

        sys.excepthook = write_own


def watch_script() -> None:
    """Let an error in the script that imports this end the job, also before the ranks connect.

    Otherwise the other ranks would wait for a rank that is not to come.
    """
    left_over = forget_left_over_variables()
    if left_over and multiprocessing.parent_process() is None:
        logger.warning(
            "This is no rank of an MPI job, though %s are set, as a job leaves them to what it "
            "has started: going on as one process.",
            ", ".join(left_over),
        )
    if launched_ranks()[1] == 1:
        return
    with contextlib.suppress(ImportError, RuntimeError):  # `get_communicator` says what is wrong
        spare_shared_memory()
        from mpi4py import MPI

        end_together(MPI.COMM_WORLD)


def keep(channel: RootChannel | RankChannel) -> None:
    """Take over the connections; those of an earlier run are closed."""
    if _Job.channel is not None:
        _Job.channel.close()
    _Job.channel = channel


def end_job(text: str) -> NoReturn:
    """End all ranks, with a text on standard error unless it is empty.

    A rank other than 0 that is connected leaves both to rank 0.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if _Job.channel is not None:
        _Job.channel.tell(text)
        if _Job.comm.rank > 0:
            os._exit(FAILED)
    else:
        sys.stderr.write(text)
    sys.stderr.flush()
    time.sleep(FORWARDED)
    forget_names()
    signal.alarm(10)  # its signal ends this process should MPI not do so
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI's own words
    _Job.comm.Abort(_Job.status)
    os._exit(_Job.status)


def leave_at_once() -> NoReturn:
    """End this process without a word: rank 0 has gone, and is told by others."""
    os._exit(FAILED)


@contextlib.contextmanager
def noting(wanted: bool) -> Iterator[StopRequest]:
    """Note Ctrl-C and SIGTERM on rank 0, in place of being interrupted, while the block runs."""
    request = StopRequest()
    _Job.request = request if wanted else None
    try:
        yield request
    finally:
        _Job.request = None


def _interrupt(number: int, frame: FrameType | None) -> None:
    _Job.status = 128 + number
    _Job.heeded = time.monotonic()
    try:
        if _Job.request is None:
            raise KeyboardInterrupt
        _Job.request.note(number)
    except KeyboardInterrupt:
        _Job.interrupted = True
        raise


def _end_unheeded(reader: int) -> None:
    """End the job by a signal that the main thread has not come to."""
    while number := os.read(reader, 1)[0]:
        came = time.monotonic() - 1
        if number not in (signal.SIGINT, signal.SIGTERM):
            continue
        time.sleep(UNHEEDED)
        if _Job.heeded < came:
            _Job.status = 128 + number
            end_job("largesparse: interrupted\n")


def _leave() -> None:
    """Wait for the other ranks at the end of the process, or end them."""
    from mpi4py import MPI

    if os.getpid() != _Job.process or MPI.Is_finalized():
        return
    uncaught = getattr(sys, "last_value", None)  # the interpreter has written its traceback
    if _Job.interrupted or uncaught is not None:
        rank, kind = _Job.comm.rank, type(uncaught).__name__
        if getattr(uncaught, "is_told_elsewhere", False):
            time.sleep(HEAD_START)  # rank 0 tells it and ends the job, unless it has caught it
        end_job(f"largesparse: error: Rank {rank}: {kind}: {uncaught}\n" if rank else "")
    try:
        if _Job.channel is None:
            barrier(_Job.comm)
        else:
            _Job.channel.close()
    except KeyboardInterrupt:
        end_job("largesparse: interrupted\n")
    except Exception as error:
        if _Job.comm.rank > 0:  # rank 0 has gone, and is told by others
            os._exit(FAILED)
        end_job(getattr(error, "told", "") or f"largesparse: error: {error}\n")

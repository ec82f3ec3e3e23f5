"""An error of any rank ends the whole job, with one message."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import LargeSparseError, ParallelError
from . import leaving
from .control import HubLost, Line, RankFailed

GRACE = 10.0  # seconds that a rank which has failed leaves rank 0 to end the job


@contextmanager
def guard(comm: Any) -> Iterator[None]:
    """End all ranks if the block raises in any of them.

    Rank 0 writes one message to standard error, with the rank and the cause; the job's status is
    1, or 130 after Ctrl-C. An error that is not the library's comes with its traceback. Another
    rank sends its error to rank 0, which learns of it when it next sends or receives. In a single
    process exceptions pass as usual.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        The communicator from `get_communicator`.
    """
    if comm.size == 1:
        yield
        return
    try:
        yield
    except HubLost:
        os._exit(leaving.FAILED)
    except BaseException as error:
        line = leaving.kept()
        if isinstance(line, Line):
            line.fail(*describe(error), GRACE)
            os._exit(leaving.FAILED)
        leaving.tell(message(error, comm.rank))
        leaving.abort()


def message(error: BaseException, rank: int) -> str:
    """Return what is written about an error of a rank."""
    if isinstance(error, KeyboardInterrupt):
        return "largesparse: interrupted\n"
    cause, trace = describe(error)
    if isinstance(error, RankFailed):
        trace = error.trace
    if not (isinstance(error, ParallelError) or cause.startswith("Rank ")):
        cause = f"Rank {rank}: {cause}"
    return f"{trace}largesparse: error: {' '.join(cause.split())}\n"


def describe(error: BaseException) -> tuple[str, str]:
    """Return an error's text, and its traceback, which is empty where the text says all."""
    if isinstance(error, LargeSparseError):
        return str(error), ""
    if isinstance(error, MemoryError):
        return f"out of memory: {error}", ""
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    frames = error.__traceback__ and error.__traceback__.tb_next  # without the guard's own
    return text, "".join(traceback.format_exception(type(error), error, frames))

"""An error of any rank ends the whole job, with one message."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import LargeSparseError, ParallelError
from . import leaving
from .control import RankFailed, RootLost


@contextmanager
def guard(comm: Any) -> Iterator[None]:
    """End all ranks if the block raises in any of them.

    Rank 0 writes one message to standard error, with the rank and the cause; the job's status is
    1, or 130 after Ctrl-C. An error that is not the library's comes with its traceback. Another
    rank sends its error to rank 0, which learns of it when it next sends or receives. In a single
    process exceptions pass as usual.
    """
    if comm.size == 1:
        yield
        return
    try:
        yield
    except RootLost:
        os._exit(leaving.FAILED)
    except BaseException as error:
        leaving.end_job(message(error, comm.rank))


def message(error: BaseException, rank: int) -> str:
    """Return what is written about an error of a rank."""
    if isinstance(error, KeyboardInterrupt):
        return "largesparse: interrupted\n"
    if isinstance(error, RankFailed):
        return error.told
    text, trace = str(error), ""
    if isinstance(error, MemoryError) and not isinstance(error, LargeSparseError):
        text = f"out of memory: {error}"
    elif not isinstance(error, LargeSparseError):
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        frames = error.__traceback__ and error.__traceback__.tb_next  # without the guard's own
        trace = "".join(traceback.format_exception(type(error), error, frames))
    if not (isinstance(error, ParallelError) or text.startswith("Rank ")):
        text = f"Rank {rank}: {text}"
    return f"{trace}largesparse: error: {' '.join(text.split())}\n"

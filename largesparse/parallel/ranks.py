"""The ranks of a run: how they are found, and what they must agree on before it begins.

Until the ranks are connected (see `control`), an error is told by rank 0 alone. The other ranks
leave without a word.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import numpy

from .. import __version__
from ..environment import launched_ranks
from ..errors import LargeSparseError, ParallelError
from .collectives import barrier, broadcast, gather, wait
from .leaving import end_together
from .nodes import Host, Nodes

__all__ = [
    "Alone",
    "Host",
    "Nodes",
    "agree",
    "barrier",
    "broadcast",
    "gather",
    "get_communicator",
    "raise_together",
    "together",
    "wait",
]

QUIET = 2  # exit status of a rank that leaves an error to rank 0
Result = TypeVar("Result")
HEAD_START = 3.0  # seconds in which rank 0 can tell an error before a silent rank ends the job


class Alone:
    """Stands for the communicator of a single process where there is no mpi4py."""

    rank = 0
    size = 1


def get_communicator(comm: Any = None) -> Any:
    """Return the communicator of a run, by default that of all ranks; every rank calls it.

    From then on the ranks end together: see `leaving`.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional

    Raises
    ------
    ParallelError
        If a launcher has started several ranks, but there is no mpi4py, or its MPI library is
        not the launcher's, so that every rank is alone. Rank 0 raises it.
    """
    rank, size = launched_ranks()
    if comm is None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # no package, or no MPI library for it
            if size == 1:
                return Alone()
            _tell_at_first(
                rank,
                f"{size} ranks were started, but mpi4py cannot be imported by {sys.executable}: "
                f"{error}. Install it together with an MPI: pip install 'largesparse[mpi]'.",
            )
        comm = MPI.COMM_WORLD
        if comm.size == 1 and size > 1:
            library = MPI.Get_library_version().split("\n")[0].strip()
            _tell_at_first(
                rank,
                f"The launcher has started {size} ranks, but each thinks it is alone: mpi4py uses "
                f"another MPI library ({library}) than the launcher belongs to. "
                "Start the job with the mpiexec that belongs to that library: with "
                "'largesparse[mpi]' from pip it lies beside the Python program.",
            )
    end_together(comm)
    return comm


def raise_together(comm: Any, error: Exception | None) -> None:
    """Raise on all ranks if any rank passes an error; every rank calls it.

    Rank 0 raises the error of the lowest rank that has one, with that rank's number: an error of
    the library keeps its class, others become a `ParallelError`. Other ranks raise `SystemExit`.
    """
    told = None if error is None else _portable(error)
    everyone = gather(comm, told)
    failed = broadcast(comm, None if everyone is None else any(everyone))
    if not failed:
        return
    if everyone is None:
        raise SystemExit(QUIET)
    if error is not None:
        raise error
    rank, (kind, text) = next((rank, told) for rank, told in enumerate(everyone) if told)
    raise kind(f"Rank {rank}: {text}")


def together(comm: Any, function: Callable[[], Result]) -> Result:
    """Return what `function()` returns here; if it raises on any rank, all ranks stop as above."""
    result, error = None, None
    try:
        result = function()
    except Exception as wrong:
        error = wrong
    raise_together(comm, error)
    return result  # type: ignore[return-value]


def agree(comm: Any, facts: Mapping[str, Any]) -> None:
    """Check that all ranks were given the same; every rank calls it.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    facts : mapping of str to values
        Arguments by their name; they are compared by their `repr`. The versions of Python, NumPy
        and this library are compared too.

    Raises
    ------
    ParallelError
        On rank 0: the item, two ranks and their values. Other ranks raise `SystemExit`.
    """
    versions = {
        "version of largesparse": __version__,
        "version of numpy": numpy.__version__,
        "version of python": platform.python_version(),
    }
    mine = {name: repr(value) for name, value in (versions | dict(facts)).items()}
    everyone = gather(comm, mine)
    raise_together(comm, None if everyone is None else _first_difference(everyone))


def _first_difference(everyone: list[dict[str, str]]) -> ParallelError | None:
    first = everyone[0]
    for rank, other in enumerate(everyone):
        for name in first | other:
            here, there = (facts.get(name, "nothing") for facts in (first, other))
            if here != there:
                return ParallelError(
                    f"The ranks disagree on {name}: rank 0 has {here}, rank {rank} has {there}. "
                    "Start all ranks with the same arguments and the same installation."
                )
    return None


def _portable(error: Exception) -> tuple[type[LargeSparseError], str]:
    """Return the class and the text with which rank 0 raises another rank's error."""
    if isinstance(error, LargeSparseError):
        return type(error), str(error)
    return ParallelError, f"{type(error).__name__}: {error}"


def _tell_at_first(rank: int, message: str) -> NoReturn:
    """Raise on the launcher's rank 0; where the ranks cannot talk, the others let it go first."""
    if rank == 0:
        raise ParallelError(message)
    time.sleep(HEAD_START)
    raise SystemExit(QUIET)

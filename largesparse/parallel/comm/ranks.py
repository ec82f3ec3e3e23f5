"""The ranks of a run: how they are found, and what they must agree on before it begins.

Until the ranks are connected (see `control`), an error of any rank is raised by all, so that a
script that catches it goes on with all of them. Where nobody catches it, rank 0 alone tells it.
"""

from __future__ import annotations

import pickle
import platform
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy

from ..._version import __version__
from ...errors import LargeSparseError, ParallelError, install_command
from ...machine.environment import launched_ranks
from ...machine.launching import raise_at_first
from .collectives import broadcast, gather
from .leaving import end_together

Result = TypeVar("Result")


class Alone:
    """Stands for the communicator of a single process where there is no mpi4py."""

    rank = 0
    size = 1


def get_communicator(comm: Any = None) -> Any:
    """Return the communicator of a run, by default that of all ranks; every rank calls it.

    From then on the ranks end together: see `leaving`. `ParallelError` on rank 0 if a launcher has
    started several ranks, but there is no mpi4py, or its MPI library is not the launcher's, so that
    every rank is alone: see `raise_at_first`.
    """
    _, size = launched_ranks()
    if comm is None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # no package, or no MPI library for it
            if size == 1:
                return Alone()
            raise_at_first(
                f"{size} ranks were started, but mpi4py cannot be imported by {sys.executable}: "
                f"{error}. Install it together with an MPI: {install_command('mpi')}.",
            )
        comm = MPI.COMM_WORLD
        if comm.size == 1 and size > 1:
            library = MPI.Get_library_version().split("\n")[0].strip()
            raise_at_first(
                f"The launcher has started {size} ranks, but each thinks it is alone: mpi4py uses "
                f"another MPI library ({library}) than the launcher belongs to. "
                "Start the job with the mpiexec that belongs to that library: that of the extra "
                "'mpi' lies beside the Python program.",
            )
    end_together(comm)
    return comm


def raise_together(comm: Any, error: Exception | None) -> None:
    """Raise the same error on all ranks if any rank passes one; every rank calls it.

    It is the error of the lowest rank that has one, with that rank's number unless it is 0. Other
    ranks than 0 raise it with `is_told_elsewhere` set: see `LargeSparseError`.
    """
    everyone = gather(comm, None if error is None else _portable(error, comm.rank))
    first = None if everyone is None else next(filter(None, everyone), None)
    first = broadcast(comm, first)
    if first is None:
        return
    if comm.rank == 0 and error is not None:
        raise error
    same = pickle.loads(first)
    same.is_told_elsewhere = comm.rank > 0
    raise same from error


def together(comm: Any, function: Callable[[], Result]) -> Result:
    """Return what `function()` returns here; if it raises on any rank, all ranks raise as above."""
    result, error = None, None
    try:
        result = function()
    except Exception as wrong:
        error = wrong
    raise_together(comm, error)
    return result  # type: ignore[return-value]


def agree(comm: Any, facts: Mapping[str, Any]) -> None:
    """Check that all ranks were given the same arguments and have the same versions of libraries.

    Every rank calls it. `facts` are compared by their `repr`; the `ParallelError` names the first
    that differs, two ranks and their values.
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


def _portable(error: Exception, rank: int) -> bytes:
    """Return what the other ranks raise, pickled: an error of the same class where that can be."""
    own = isinstance(error, LargeSparseError)
    text = str(error) if own else f"{type(error).__name__}: {error}"
    text = f"Rank {rank}: {text}" if rank > 0 else text
    same = error
    if own or rank > 0:
        same = type(error)(text) if own else ParallelError(text)
    try:
        data = pickle.dumps(same)
        pickle.loads(data)
    except Exception:  # whatever somebody's own class of errors may raise
        data = pickle.dumps(ParallelError(text))
    return data

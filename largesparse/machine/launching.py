"""Starting ranks by `mpiexec`, and what a process does that a launcher has started without use."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import NoReturn

from ..errors import ParallelError, ParameterError, install_command
from .environment import SHARED_FOLDER, find_mpiexec, launched_ranks, launcher_variables

UCX_BYTES = 8 * 2**20  # of shared memory that a rank takes at most, by trials with 2 to 16 ranks
QUIET = 2  # exit status of a rank that leaves an error to rank 0
HEAD_START = 3.0  # seconds in which rank 0 can tell an error before another rank ends the job


def start_ranks(ranks: int) -> list[str]:
    """Return the words that begin a command of so many ranks: none for one."""
    if ranks == 1:
        return []
    mpiexec = find_mpiexec()
    if mpiexec is None:
        raise ParameterError(
            f"{ranks} ranks need mpiexec, which lies neither beside {sys.executable} nor on PATH: "
            f"{install_command('mpi')}."
        )
    return [mpiexec, "-n", str(ranks)]


def check_alone(command: str) -> None:
    """Raise where several ranks were started of a command that is no program for ranks.

    Each would do the whole work, into the same files. A command that is typed into a shell is
    alone, also where the shell belongs to a job and hands on its launcher's variables.
    """
    _, size = launched_ranks()
    if size == 1 or _is_typed():
        return
    raise_at_first(
        f"{size} ranks of '{command}' were started, and each would do all of its work: start it "
        "once, without mpiexec or srun. A script trains and predicts by ranks: see "
        "largesparse.parallel."
    )


def spare_shared_memory() -> None:
    """Have MPICH's ranks go without UCX where they are all here and /dev/shm is too small for it.

    UCX ends such a job by a segmentation fault in `MPI_Init`: 16 ranks under Docker's 64 MiB. It
    matters between machines only, and all ranks must choose alike, as these do. To be called
    before MPI is loaded; what the user has chosen stays.
    """
    _, size = launched_ranks()
    if size == 1 or os.environ.get("MPI_LOCALNRANKS") != str(size):
        return
    try:
        total = shutil.disk_usage(SHARED_FOLDER).total
    except OSError:
        return
    if total < size * UCX_BYTES:
        os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")


def raise_at_first(message: str) -> NoReturn:
    """Raise on the launcher's rank 0; the ranks cannot talk, and the others let it go first.

    `ParallelError` is raised on rank 0, and where somebody has typed the command and waits for an
    answer; `SystemExit` on the others, later: launchers end a job with the first rank that fails.
    """
    if launched_ranks()[0] == 0 or _is_typed():
        names = " ".join(launcher_variables())
        raise ParallelError(f"{message} Where no launcher has started this process: unset {names}.")
    time.sleep(HEAD_START)
    raise SystemExit(QUIET)


def _is_typed() -> bool:
    """Return whether the input is a terminal, which launchers do not give to ranks."""
    return sys.stdin is not None and sys.stdin.isatty()

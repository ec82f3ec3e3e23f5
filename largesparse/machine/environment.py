"""The environment variables that the library reads, and the folder that it caches files in."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from ..errors import ParameterError

BACKEND = "LARGESPARSE_BACKEND"  # the sparse backend
DATA = "LARGESPARSE_DATA"  # the folder in which data sets lie
CACHE = "LARGESPARSE_CACHE"  # the folder for generated data and compiled kernels
BENCH_MAX = "LARGESPARSE_BENCH_MAX"  # the largest size that benchmarks run
ADDRESS = "LARGESPARSE_ADDRESS"  # where the other ranks reach rank 0 by TCP
TOLD = "LARGESPARSE_TOLD"  # set by the library: what a job has been warned of

SHARED_FOLDER = Path("/dev/shm")  # memory that has file names, on Linux


def cache_folder() -> Path:
    """Return the folder for generated data and compiled kernels; it need not exist yet.

    It is `LARGESPARSE_CACHE`, else `$XDG_CACHE_HOME/largesparse`, else `~/.cache/largesparse`; for
    a user without a home, `temporary_cache_folder()`.
    """
    if named := os.environ.get(CACHE):
        return expand_user(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "largesparse"
    except RuntimeError:  # HOME is not set, and the user has no entry in passwd
        return temporary_cache_folder()


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path whose `~` is a home; a name that only begins so stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        if Path(path).parts[0] != "~":
            return Path(path)
        raise ParameterError(
            f"The path {str(path)!r} begins with a home that cannot be found. Give it from the "
            "root on."
        ) from error


def temporary_cache_folder() -> Path:
    """Return this user's cache among the temporary files, which it makes.

    Nobody else can write into it: compiled kernels are code, and others might put theirs there.
    """
    user = os.getuid() if hasattr(os, "getuid") else "cache"
    folder = Path(tempfile.gettempdir()) / f"largesparse-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o022):
            raise PermissionError("others can write into it")
    except OSError as error:
        raise ParameterError(
            f"The cache folder {folder} cannot be used: {error}. Set {CACHE} to another."
        ) from error
    return folder


def launched_ranks() -> tuple[int, int]:
    """Return (rank, number of ranks) as the MPI launcher tells it, without loading MPI.

    (0, 1) where the process was not started by `mpiexec` or the like, or has the variables of a
    job that it is not a rank of: see `left_over_variables`.
    """
    rank, size, _ = _launched()
    return rank, size


def launcher_variables() -> list[str]:
    """Return the names of the variables that `launched_ranks` has read, none in a lone process."""
    return _launched()[2]


def _launched() -> tuple[int, int, list[str]]:
    left_over = left_over_variables()
    for names in (
        ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
        ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH
        ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),  # srun --mpi=pmix
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun; a batch script is no step
    ):
        told = [os.environ.get(name, "") for name in names]
        if all(map(str.isdigit, told)) and names[0] not in left_over:
            return int(told[0]), int(told[1]), list(names)
    return 0, 1, []


_OF_RANKS = ("PMI_FD", "PMI_ID", "PMI_RANK", "PMI_SIZE")
# By these, too, a rank finds its launcher: a port, Windows, Cray's, PMIx.
_OTHER_CONNECTIONS = ("PMI_PORT", "PMI_CONTROL_PORT", "PMI_SMPD_FD", "PALS_RANKID", "PMIX_RANK")


def left_over_variables() -> list[str]:
    """Return the names of the variables of a job of MPICH's that this process is not a rank of.

    A shell or server that was started by a rank hands them on to all that it starts, also long
    after the job. MPICH's `MPI_Init` believes them, and ends the process. A rank has an open
    connection to its launcher, the file `PMI_FD`, which is closed in other processes, or has been
    hung up. Without any connection they are no rank's either.
    """
    names = [name for name in _OF_RANKS if name in os.environ]
    if os.name != "posix" or any(name in os.environ for name in _OTHER_CONNECTIONS):
        return []
    return [] if _is_connected(os.environ.get("PMI_FD", "")) else names


def forget_left_over_variables() -> list[str]:
    """Remove `left_over_variables` from the environment, so that MPI can start; return them."""
    names = left_over_variables()
    for name in names:
        del os.environ[name]
    return names


def _is_connected(descriptor: str) -> bool:
    """Return whether an inherited file is a connection whose other end is there."""
    if not descriptor.isdigit():
        return False
    try:
        with socket.socket(fileno=os.dup(int(descriptor))) as launcher:
            return launcher.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True  # it has nothing to say yet
    except OSError:
        return False


def find_mpiexec() -> str | None:
    """Return the path of mpiexec: the one beside this Python, else the first that PATH has."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")

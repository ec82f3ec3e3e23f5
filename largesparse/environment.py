"""The environment variables that the library reads, and the folder that it caches files in."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from .errors import ParameterError

BACKEND = "LARGESPARSE_BACKEND"  # the sparse backend
DATA = "LARGESPARSE_DATA"  # the folder in which data sets lie
CACHE = "LARGESPARSE_CACHE"  # the folder for generated data and compiled kernels
BENCH_MAX = "LARGESPARSE_BENCH_MAX"  # the largest size that benchmarks run
ADDRESS = "LARGESPARSE_ADDRESS"  # where the other ranks reach rank 0 by TCP


def cache_folder() -> Path:
    """Return the folder for generated data and compiled kernels; it need not exist yet.

    It is `LARGESPARSE_CACHE`, else `$XDG_CACHE_HOME/largesparse`, else `~/.cache/largesparse`.
    """
    if named := os.environ.get(CACHE):
        return expand_user(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "largesparse"


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` replaced by a home.

    Raises
    ------
    ParameterError
        Where there is no such user, or the user has no home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ParameterError(
            f"The path {str(path)!r} begins with a home that cannot be found. Give it from the "
            "root on."
        ) from error


def launched_ranks() -> tuple[int, int]:
    """Return (rank, number of ranks) as the MPI launcher tells it, without loading MPI.

    (0, 1) where the process was not started by `mpiexec` or the like.
    """
    for rank, size in (
        ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
        ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH
        ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),  # srun --mpi=pmix
    ):
        if os.environ.get(rank, "").isdigit() and os.environ.get(size, "").isdigit():
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def find_mpiexec() -> str | None:
    """Return the path of mpiexec: the one beside this Python, else the first that PATH has."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")

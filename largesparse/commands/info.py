"""What a bug report must know of the machine and the software on it.

`collect` also looks at what is loaded at run time: it makes a tiny MKL product and starts a child
process that loads MPI.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil

from .._version import __version__
from ..machine.control_groups import cpu_quota, group_free_memory, group_memory_limit
from ..machine.environment import ADDRESS, BACKEND, BENCH_MAX, CACHE, DATA
from ..machine.hardware import cpu_model
from ..machine.threading_layers import threading_layer
from ..machine.threads import usable_cores
from ..machine.versions import PACKAGES, commit, version, versions

ENVIRONMENT = (
    BACKEND,
    DATA,
    CACHE,
    BENCH_MAX,
    ADDRESS,
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMBA_THREADING_LAYER",
    "MKL_THREADING_LAYER",
)

# The version can be asked for before MPI is initialised, so this works inside a cluster's job too.
ASK_MPI = (
    "import mpi4py; mpi4py.rc(initialize=False, finalize=False); "
    "from mpi4py import MPI; print(MPI.Get_library_version().splitlines()[0])"
)


def collect() -> dict[str, Any]:
    """Return all that `largesparse info` prints, as plain values that JSON can hold.

    What is not there is None; what could not be found out is a string "failed: ...".
    """
    return {
        "largesparse": {"version": __version__, "commit": _probe(commit)},
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpu": {
            "model": _probe(cpu_model),
            "physical_cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
            "usable_cores": usable_cores(),
            "quota_cores": cpu_quota(),
        },
        "memory": {
            "total_bytes": psutil.virtual_memory().total,
            "available_bytes": psutil.virtual_memory().available,
            "cgroup_limit_bytes": _probe(group_memory_limit),
            "cgroup_free_bytes": _probe(group_free_memory),
        },
        "versions": versions(),
        "backend": _probe(_backend),
        "mkl_code_path": _probe(_mkl_code_path),
        "mpi_library": _probe(mpi_library),
        "numba_threads": _probe(_numba_threads),
        "thread_pools": _probe(_thread_pools),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
    }


def mpi_library(timeout: float = 20.0) -> str | None:
    """Return the first line of the MPI library's version, or what is missing.

    A child process loads the library: loading starts a part of MPI in this one, and a broken
    installation may hang.
    """
    if version("mpi4py") is None:
        return None
    try:
        child = subprocess.run(
            [sys.executable, "-c", ASK_MPI],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"failed: no answer within {timeout:g} s"
    if child.returncode == 0:
        return " ".join(child.stdout.split())
    return f"failed: {_last_line(child.stderr) or f'exit code {child.returncode}'}"


def format_listing(info: dict[str, Any]) -> str:
    """Return the result of `collect` as aligned lines for a person."""
    cpu, memory = info["cpu"], info["memory"]
    own = info["largesparse"]
    commit_note = f" (commit {own['commit']})" if own["commit"] else ""
    quota, free = "", ""
    if cpu["quota_cores"] is not None:
        quota = f" (control groups leave the time of {cpu['quota_cores']:g})"
    if memory["cgroup_free_bytes"] is not None:
        free = f" ({_gib(memory['cgroup_free_bytes'])} free)"
    groups: list[list[tuple[str, str]]] = [
        [
            ("largesparse", f"{own['version']}{commit_note}"),
            ("Python", info["python"]),
            ("platform", info["platform"]),
            ("CPU", _shown(cpu["model"], "unknown")),
            (
                "cores",
                f"{_shown(cpu['physical_cores'], '?')} physical, "
                f"{_shown(cpu['logical_cores'], '?')} logical, "
                f"{cpu['usable_cores']} usable by this process{quota}",
            ),
            (
                "memory",
                f"{_gib(memory['total_bytes'])}, {_gib(memory['available_bytes'])} available, "
                f"cgroup limit {_gib(memory['cgroup_limit_bytes'])}{free}",
            ),
        ],
        [(name, _shown(info["versions"][name])) for name in PACKAGES],
        [
            ("backend", _shown(info["backend"])),
            ("MKL code path", _shown(info["mkl_code_path"])),
            ("MPI library", _shown(info["mpi_library"])),
            ("numba threads", _shown(info["numba_threads"])),
            ("thread pools", _shown(info["thread_pools"], "none loaded")),
        ],
        [(name, _shown(value, "not set")) for name, value in info["environment"].items()],
    ]
    width = max(len(name) for group in groups for name, _ in group)
    blocks = ("\n".join(f"{name:{width}}  {text}" for name, text in group) for group in groups)
    return "\n\n".join(blocks)


def _backend() -> list[str]:
    from ..backends.choice import TYPICAL_SIZES, choose_backend

    chosen = {kind: choose_backend(None, sizes) for kind, sizes in TYPICAL_SIZES.items()}
    return [f"{kind} networks: {name} ({reason})" for kind, (name, reason) in chosen.items()]


def _mkl_code_path() -> str | None:
    from ..backends import mkl
    from ..errors import BackendError

    try:
        mkl.load()  # makes a product, at which MKL chooses its code path
    except BackendError as error:
        return None if version("mkl") is None else f"failed: {error}"
    return mkl.loaded_code_path() or "unknown"


def _numba_threads() -> str:
    import numba

    layer = threading_layer()
    return f"{numba.get_num_threads()}, run by {layer.name}: {layer.reason}"


def _thread_pools() -> list[str]:
    """Name the thread pools of the libraries that this process has loaded by now."""
    from threadpoolctl import threadpool_info

    return sorted(
        f"{pool['internal_api']} {pool['version'] or ''}".strip() + f" x{pool['num_threads']}"
        for pool in threadpool_info()
    )


def _probe(function: Callable[[], Any]) -> Any:
    """Call `function`, or say in one line how it failed.

    Whatever is broken on a machine is what the report is for, so every exception is caught.
    """
    try:
        return function()
    except Exception as error:
        return f"failed: {type(error).__name__}: {_last_line(str(error))}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _shown(value: Any, absent: str = "not installed") -> str:
    if value is None or value == []:
        return absent
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _gib(n_bytes: int | str | None) -> str:
    if n_bytes is None:
        return "none"
    return n_bytes if isinstance(n_bytes, str) else f"{n_bytes / 2**30:.1f} GiB"

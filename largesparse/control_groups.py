"""Memory that Linux's control groups leave to this process: in containers and batch jobs.

A limit holds for all processes of a group and of the groups in it together, so what is free is
less than the limit by what the others use.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

MEMBERSHIP = Path("/proc/self/cgroup")
MOUNTS = Path("/sys/fs/cgroup")
NO_LIMIT = 2**60  # bytes; version 1 says "no limit" by a number near 2**63


class _Files(NamedTuple):
    """The files of a group, and the lines in `memory.stat` about files in the page cache."""

    limit: str
    used: str
    cached: tuple[str, str]


VERSION_1 = _Files(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
VERSION_2 = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))


def free_memory() -> int:
    """Return the bytes that are free for this process, on its machine and in its groups."""
    free = group_free_memory()
    available: int = psutil.virtual_memory().available
    return available if free is None else min(available, free)


def group_memory_limit() -> int | None:
    """Return the smallest memory limit of this process's control groups in bytes, None if none.

    The total memory of the machine does not show it.
    """
    return min((limit for _, _, limit in _limited_groups()), default=None)


def group_free_memory() -> int | None:
    """Return the bytes that the control groups leave free, None without a limit.

    It is the least, over the groups that this process is in, of the limit less what all of the
    group's processes use. The page cache is not in use, since the system evicts it when it must.
    """
    found = []
    for folder, files, limit in _limited_groups():
        lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
        cached = sum(int(line[1]) for line in lines if line[0] in files.cached)
        used = _read(folder / files.used)
        found.append(limit - max(0, (int(used) if used.isdigit() else 0) - cached))
    return max(0, min(found)) if found else None


def _limited_groups() -> Iterator[tuple[Path, _Files, int]]:
    """Return the groups with a limit that this process is in, of either version."""
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, files = MOUNTS, VERSION_2
        elif "memory" in controllers.split(","):
            base, files = MOUNTS / "memory", VERSION_1
        else:
            continue
        # A container may see its own group as the base: what is not there has no limit.
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents[: len(folder.parts) - len(base.parts)]):
            limit = _read(group / files.limit)
            if limit.isdigit() and int(limit) < NO_LIMIT:
                yield group, files, int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""

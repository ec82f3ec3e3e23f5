"""What Linux's control groups leave to this process, in containers and batch jobs.

A limit holds for all processes of a group and of the groups in it together, so what is free is
less than the limit by what the others use.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

MEMBERSHIP = Path("/proc/self/cgroup")
MOUNTS = Path("/sys/fs/cgroup")
NO_LIMIT = 2**60  # bytes; version 1 says "no limit" by a number near 2**63


# By version: the files of a group, and what its lines on the page cache in `memory.stat` begin with
LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
USED = {1: "memory.usage_in_bytes", 2: "memory.current"}
CACHED = {1: ("total_inactive_file ", "total_active_file "), 2: ("inactive_file ", "active_file ")}


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
    for folder, version, limit in _limited_groups():
        lines = _read(folder / "memory.stat").splitlines()
        cached = sum(int(line.split()[1]) for line in lines if line.startswith(CACHED[version]))
        used = _read(folder / USED[version])
        found.append(limit - max(0, (int(used) if used.isdigit() else 0) - cached))
    return max(0, min(found)) if found else None


def cpu_quota() -> float | None:
    """Return the cores' worth of time that the groups leave this process, None if all."""
    quotas = []
    for folder, version in _groups("cpu"):
        if version == 2:
            text = _read(folder / "cpu.max")  # "max 100000" or "50000 100000"
        else:
            text = " ".join(_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        numbers = [int(word) for word in text.split() if word.isdigit()]
        if len(numbers) == 2 and min(numbers) > 0:  # version 1 says "no limit" by -1
            quotas.append(numbers[0] / numbers[1])
    return min(quotas, default=None)


def _limited_groups() -> Iterator[tuple[Path, int, int]]:
    """Return the groups with a limit of memory that this process is in, their version and limit."""
    for folder, version in _groups("memory"):
        limit = _read(folder / LIMIT[version])
        if limit.isdigit() and int(limit) < NO_LIMIT:
            yield folder, version, int(limit)


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """Return the group that this process is in, and those around it, with their version.

    Version 1 has a tree of groups for every controller; version 2 has one for all.
    """
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, version = MOUNTS, 2
        elif controller in controllers.split(","):
            base, version = MOUNTS / controllers, 1
            base = base if base.is_dir() else MOUNTS / controller
        else:
            continue
        # A container may see its own group as the base: what is not there has no limit.
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents[: len(folder.parts) - len(base.parts)]):
            yield group, version


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""

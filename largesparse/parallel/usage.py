"""What a process has used of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def cpu_seconds() -> float:
    """Return the seconds of processor time of this process, all threads together."""
    times = os.times()
    return times.user + times.system


def pss_bytes() -> int:
    """Return this process's memory, with what it shares divided by those who share it.

    The sum over the processes of a node is what they take together. Where the system does not
    tell it, the resident set is returned, which counts shared memory in every process.
    """
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return int(psutil.Process().memory_info().rss)

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
    found = _rollup_bytes("Pss:")
    return int(psutil.Process().memory_info().rss) if found is None else found


def own_bytes() -> int:
    """Return the memory of this process alone that is no file's; 0 where it is not told."""
    return _rollup_bytes("Pss_Anon:") or 0


def _rollup_bytes(name: str) -> int | None:
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)

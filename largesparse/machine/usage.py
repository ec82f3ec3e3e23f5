"""What processes use of the machine: processor time and memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

SLEEP_SECONDS, IDLE_SHARE = 0.01, 0.1


def cpu_seconds() -> float:
    """Return the seconds of processor time of this process, all threads together."""
    times = os.times()
    return times.user + times.system


def peak_rss_bytes() -> int:
    """Return the most memory this process has had in RAM, in bytes: see `start_peak_rss`."""
    # Not ru_maxrss where this can be had: that starts from what the parent had at the fork.
    found = _told_bytes("status", "VmHWM")
    if found is not None:
        return found
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def start_peak_rss() -> None:
    """Let `peak_rss_bytes` count from now on, on Linux; elsewhere it goes on from the start."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return


def pss_bytes() -> int:
    """Return this process's memory, with what it shares divided by those who share it.

    The sum over the processes of a node is what they take together. Where the system does not
    tell it, the resident set is returned, which counts shared memory in every process.
    """
    found = _told_bytes("smaps_rollup", "Pss")
    return int(psutil.Process().memory_info().rss) if found is None else found


def node_pss_bytes(pids: Iterable[int]) -> int | None:
    """Return the sum of `pss_bytes` over processes of one node.

    None where the system does not tell (not Linux, a process has ended, or is another's).
    """
    found = [_told_bytes("smaps_rollup", "Pss", pid) for pid in pids]
    told = [size for size in found if size is not None]
    return sum(told) if len(told) == len(found) else None


def own_bytes() -> int:
    """Return the memory of this process alone that is no file's; 0 where it is not told."""
    return _told_bytes("smaps_rollup", "Pss_Anon") or 0


def _told_bytes(file: str, key: str, pid: int | str = "self") -> int | None:
    """Return a number of kilobytes that Linux tells of a process, in bytes."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == key:
            return 1024 * int(rest.split()[0])
    return None


def let_threads_sleep(limit: float = 0.5) -> bool:
    """Wait until no thread of this process computes, and return whether none does.

    Threads of MKL, OpenMP and BLAS wait for their next work actively, for up to 0.2 s, and take a
    core from whatever is timed meanwhile.

    Parameters
    ----------
    limit : float
        Seconds to wait at most.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        used, started = time.process_time(), time.monotonic()
        time.sleep(SLEEP_SECONDS)
        if time.process_time() - used < IDLE_SHARE * (time.monotonic() - started):
            return True
    return False

"""Collective operations on small objects, in which a rank that waits sleeps.

MPI's own blocking calls spin: with more ranks than cores, the ranks that wait take the cores of
those that work.
"""

from __future__ import annotations

import pickle
import time
from typing import Any

import numpy as np

LONGEST_SLEEP = 0.02  # seconds between two looks at a request
GROWTH = 1.25  # of a sleep over the one before: a fifth of the time waited at most is lost


def wait(request: Any) -> None:
    """Wait for a request of MPI, sleeping for longer and longer between the looks at it."""
    sleep = 1e-4
    while not request.Test():
        time.sleep(sleep)
        sleep = min(GROWTH * sleep, LONGEST_SLEEP)


def barrier(comm: Any) -> None:
    """Return when every rank has come here."""
    if comm.size > 1:
        wait(comm.Ibarrier())


def broadcast(comm: Any, value: Any, root: int = 0) -> Any:
    """Return the `value` of rank `root` on every rank. It is pickled: for small objects."""
    if comm.size == 1:
        return value
    data = bytearray(pickle.dumps(value) if comm.rank == root else b"")
    length = np.array([len(data)], dtype=np.int64)
    wait(comm.Ibcast(length, root))
    if comm.rank != root:
        data = bytearray(int(length[0]))
    wait(comm.Ibcast(data, root))
    return value if comm.rank == root else pickle.loads(data)


def gather(comm: Any, value: Any, root: int = 0) -> list[Any] | None:
    """Return every rank's `value` on rank `root`, None elsewhere. For small objects, pickled."""
    if comm.size == 1:
        return [value]
    data = pickle.dumps(value)
    mine = np.array([len(data)], dtype=np.int64)
    if comm.rank != root:
        wait(comm.Igather(mine, None, root))
        wait(comm.Igatherv(np.frombuffer(data, dtype=np.uint8), None, root))
        return None
    lengths = np.empty(comm.size, dtype=np.int64)
    wait(comm.Igather(mine, lengths, root))
    received = bytearray(int(lengths.sum()))
    starts = np.cumsum(lengths) - lengths
    wait(comm.Igatherv(np.frombuffer(data, dtype=np.uint8), [received, (lengths, starts)], root))
    parts = zip(starts.tolist(), lengths.tolist(), strict=True)
    return [pickle.loads(received[start : start + length]) for start, length in parts]

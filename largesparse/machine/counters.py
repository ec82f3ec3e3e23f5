"""The processor's counters of this thread: cycles, instructions, misses of caches and of the TLB.

counters = Counters()
counters.why        # why there are none, or None
before = counters.read()
work()
counts = counters.since(before)

They are those of Linux's `perf_event_open`, for the thread that opens them, in user space. Virtual
machines seldom have them, and `kernel.perf_event_paranoid` above 2 forbids them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from typing import NamedTuple

SYSCALLS = {"x86_64": 298, "aarch64": 241}  # of perf_event_open, by machine
ATTRIBUTE_BYTES = 112  # of struct perf_event_attr, version 5
READ_FORMAT, FLAGS = 32, 40  # offsets in it
GROUP = 1 << 3  # PERF_FORMAT_GROUP
USER_ONLY = (1 << 5) | (1 << 6)  # exclude_kernel, exclude_hv
LINE_BYTES = 64  # that a miss of the last cache reads


class Event(NamedTuple):
    """An event as perf_event_open(2) numbers it."""

    type: int
    config: int


EVENTS = {
    "cycles": Event(0, 0),
    "instructions": Event(0, 1),
    "LLC misses": Event(0, 3),
    "TLB misses": Event(3, 3 | 1 << 16),  # of loads of data
}


class Counters:
    """Counters of the thread that makes this, which count from then on, until `close`.

    Attributes
    ----------
    names : list of str
        The events that this processor counts, of `EVENTS`.
    why : str or None
        Why it counts none.
    """

    def __init__(self, events: dict[str, Event] | None = None) -> None:
        self.names: list[str] = []
        self.why: str | None = None
        self._files: list[int] = []
        for name, event in (EVENTS if events is None else events).items():
            leader = self._files[0] if self._files else -1
            try:
                self._files.append(_open(event, leader))
            except OSError as error:
                self.why = self.why or str(error.strerror or error)
                continue
            self.names.append(name)
        if self.names:
            self.why = None

    def read(self) -> dict[str, int]:
        """Return what every event has counted so far; nothing where there is none."""
        if not self._files:
            return {}
        data = os.read(self._files[0], 8 * (1 + len(self._files)))
        counts = struct.unpack(f"{1 + len(self._files)}Q", data)[1:]
        return dict(zip(self.names, counts, strict=True))

    def since(self, before: dict[str, int]) -> dict[str, int]:
        """Return what was counted since `before`, and the bytes that misses of the LLC read."""
        found = {name: count - before[name] for name, count in self.read().items()}
        if "LLC misses" in found:
            found["bytes from memory"] = LINE_BYTES * found["LLC misses"]
        return found

    def close(self) -> None:
        """End the counting."""
        for file in self._files:
            os.close(file)
        self._files, self.names = [], []

    def __enter__(self) -> Counters:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(event: Event, leader: int) -> int:
    """Return the file of an event's counter, in the group of `leader`, which is -1 for none.

    Raises
    ------
    OSError
        Where it cannot be had, with the reason.
    """
    number = SYSCALLS.get(platform.machine())
    if sys.platform != "linux" or number is None:
        raise OSError("only Linux on x86-64 and aarch64 has them")
    attribute = bytearray(ATTRIBUTE_BYTES)
    struct.pack_into("IIQ", attribute, 0, event.type, ATTRIBUTE_BYTES, event.config)
    struct.pack_into("Q", attribute, READ_FORMAT, GROUP)
    struct.pack_into("Q", attribute, FLAGS, USER_ONLY)
    buffer = (ctypes.c_char * ATTRIBUTE_BYTES).from_buffer(attribute)
    file = ctypes.CDLL(None, use_errno=True).syscall(number, buffer, 0, -1, leader, 0)
    if file < 0:
        code = ctypes.get_errno()
        hints = {
            2: "this machine's processor shows no hardware counters",
            1: "kernel.perf_event_paranoid forbids it",
            13: "kernel.perf_event_paranoid forbids it",
        }
        raise OSError(code, hints.get(code, os.strerror(code)))
    return int(file)

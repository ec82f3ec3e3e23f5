"""Memory that the ranks of a node share.

A segment has no name in any file system: the ranks open it through the process that made it, and
the system frees it with the last process that uses it. So nothing is left behind, even where all
are killed, and no limit of a memory file system applies.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MemoryPlanError
from ..workspace import CACHE_LINE

HUGE_PAGE = 2**21  # bytes; smaller segments gain nothing from huge pages
KEPT = 2**24  # bytes of private memory that are not worth a release: new pages take time


class Segment:
    """A piece of memory that several processes map; `Segment.create` makes it.

    Attributes
    ----------
    path : str
        By which processes of the same user on the same machine can open it.
    buffer : mmap
    """

    def __init__(self, descriptor: int, size: int, path: str) -> None:
        self.descriptor = descriptor
        self.path = path
        self.buffer = mmap.mmap(descriptor, size)
        if size >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            self.buffer.madvise(mmap.MADV_HUGEPAGE)  # of use where the system has it on advice

    @classmethod
    def create(cls, size: int, *, on_disk: bool = False) -> Segment:
        """Make a segment of `size` bytes, in memory or in a file without a name on the disk.

        Raises
        ------
        MemoryPlanError
            Where the system refuses.
        """
        size = max(size, 1)
        try:
            if on_disk or not hasattr(os, "memfd_create"):
                with tempfile.TemporaryFile() as file:
                    descriptor = os.dup(file.fileno())
            else:
                descriptor = os.memfd_create("largesparse")
            if on_disk and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)  # a full disk is told now
            else:
                os.truncate(descriptor, size)
            return cls(descriptor, size, f"/proc/{os.getpid()}/fd/{descriptor}")
        except OSError as error:
            where = f"a file in {tempfile.gettempdir()}" if on_disk else "shared memory"
            raise MemoryPlanError(
                f"The ranks of this node cannot share {size} bytes in {where}: {error}. "
                "Use fewer slots or a smaller micro-batch, or set TMPDIR to a larger folder."
            ) from error

    @classmethod
    def open(cls, path: str) -> Segment:
        """Map a segment that another process made."""
        descriptor = os.open(path, os.O_RDWR)
        return cls(descriptor, os.fstat(descriptor).st_size, path)

    def unload(self) -> None:
        """Count the pages of a file on the disk no longer as this process's; they are kept."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let no more processes open it. Arrays in it stay usable, here and elsewhere."""
        os.close(self.descriptor)


class Arena:
    """Hands out consecutive arrays of a buffer, each beginning with a cache line.

    Processes that ask for the same arrays in the same order share them. Without a buffer it only
    counts the bytes; the arrays then cannot be written.
    """

    def __init__(self, buffer: mmap.mmap | None = None) -> None:
        self._buffer = buffer
        self.nbytes = 0

    def __call__(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """Return the next array, of zeros if nobody has written to it."""
        dtype = np.dtype(dtype)
        count = math.prod(shape) if isinstance(shape, tuple) else shape
        start = self.nbytes
        self.nbytes += -(-count * dtype.itemsize // CACHE_LINE) * CACHE_LINE
        if count == 0:
            return np.zeros(shape, dtype)
        if self._buffer is None:
            return np.broadcast_to(np.zeros((), dtype), shape)
        return np.frombuffer(self._buffer, dtype, count, start).reshape(shape)


class PrivateMemory:
    """Memory of this process alone, in large pages where the system has them on advice.

    Memory that is shared rarely has large pages, and what is read here and there is slower in
    small ones.

    Parameters
    ----------
    size : int
        Bytes; none is taken before it is used.

    Attributes
    ----------
    is_kept : bool
        So little that `release` leaves it.
    """

    def __init__(self, size: int) -> None:
        self.is_kept = size <= KEPT
        self.buffer = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            self.buffer.madvise(mmap.MADV_HUGEPAGE)

    def release(self) -> None:
        """Give the memory back to the system, unless it is little; what was in it is lost."""
        if not self.is_kept:
            self.buffer.madvise(mmap.MADV_DONTNEED)


def share_arrays(arrays: Sequence[NDArray[Any]]) -> tuple[Segment, list[NDArray[Any]]]:
    """Return a segment with copies of arrays, and the copies."""
    shapes = [(array.shape, array.dtype.str) for array in arrays]
    segment = Segment.create(arrays_size(shapes))
    copies = arrays_of(segment, shapes)
    for copy, array in zip(copies, arrays, strict=True):
        copy[...] = array
    return segment, copies


def arrays_size(shapes: Sequence[tuple[tuple[int, ...], str]]) -> int:
    """Return the bytes of a segment with arrays of these shapes and dtypes."""
    count = Arena()
    for shape, dtype in shapes:
        count(shape, dtype)
    return count.nbytes


def arrays_of(
    segment: Segment, shapes: Sequence[tuple[tuple[int, ...], str]]
) -> list[NDArray[Any]]:
    """Return the arrays of these shapes and dtypes that a segment holds."""
    arena = Arena(segment.buffer)
    return [arena(shape, dtype) for shape, dtype in shapes]


def forget_names() -> None:
    """Remove the names of what libraries share by files in memory, and have opened already.

    MPICH and MKL's threads remove them at their end only, so that a rank that is killed would
    leave them behind. What is mapped stays usable.
    """
    own = [f"/dev/shm/__KMP_REGISTERED_LIB_{os.getpid()}_{os.getuid()}"]
    with contextlib.suppress(OSError):  # not Linux
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        own += {name for line in lines if "mpich_shm" in (name := line.split(maxsplit=5)[-1])}
    for name in own:
        with contextlib.suppress(OSError):
            os.unlink(name)

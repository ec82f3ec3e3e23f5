"""Memory that arrays lie in: aligned, shared by processes, in files.

The arrays of a process alone begin with a cache line. The ranks of a node share arrays by segments,
worker processes of a prediction by files in memory; arrays of a memory-mapped file are shared where
they are. What does not fit in memory lies in files without a name.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from ..errors import MemoryPlanError
from .environment import SHARED_FOLDER

CACHE_LINE = 64  # bytes
HUGE_PAGE = 2**21  # bytes; smaller pieces gain nothing from huge pages
KEPT = 2**24  # bytes of private memory that are not worth a release: new pages take time

Arrays = list[NDArray[Any]]
Shapes = Sequence[tuple[tuple[int, ...], str]]  # shape and dtype of each array


class Allocate(Protocol):
    """Gives arrays of zeros that begin with a cache line."""

    def __call__(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]: ...


def aligned_zeros(shape: int | tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """Return zeros that begin with a cache line, in memory of this process alone."""
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    dtype = np.dtype(dtype)
    buffer = np.zeros(size * dtype.itemsize + CACHE_LINE, dtype=np.uint8)
    start = -buffer.ctypes.data % CACHE_LINE
    return buffer[start : start + size * dtype.itemsize].view(dtype).reshape(shape)


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


# --------------------------------------------------------------------------- mapped by the system
class Segment:
    """A piece of memory that several processes map; `Segment.create` makes it.

    It has no name in any file system: others open it through the process that made it, and the
    system frees it with the last process that uses it. So nothing is left behind, even where all
    are killed, and no limit of a memory file system applies.
    """

    def __init__(self, descriptor: int, size: int, path: str) -> None:
        self.descriptor = descriptor
        self.path = path  # by which processes of the same user on the same machine can open it
        self.buffer = mmap.mmap(descriptor, size)
        _take_large_pages(self.buffer)

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
            if on_disk:
                _reserve(descriptor, size)
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


class PrivateMemory:
    """Memory of this process alone, in large pages where the system has them on advice.

    Memory that is shared rarely has large pages, and what is read here and there is slower in
    small ones. No memory is taken before it is used.
    """

    def __init__(self, size: int) -> None:
        self.is_kept = size <= KEPT  # by `release`
        self.buffer = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _take_large_pages(self.buffer)

    def release(self) -> None:
        """Give the memory back to the system, unless it is little; what was in it is lost."""
        if not self.is_kept:
            self.buffer.madvise(mmap.MADV_DONTNEED)


def map_file(folder: str | Path, size: int) -> mmap.mmap:
    """Return a file without a name, in a folder, as memory; a full disk is told now by OSError."""
    if shutil.disk_usage(folder).free < size:
        raise OSError("no space left on the device")
    with tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), size)
        return mmap.mmap(file.fileno(), size)


def _reserve(descriptor: int, size: int) -> None:
    """Make a file so long, and have the disk keep the room for it where the system can."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)


def _take_large_pages(buffer: mmap.mmap) -> None:
    if len(buffer) >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)  # of use where the system has it on advice


# --------------------------------------------------------------------------- arrays for others
class SharedArray(NamedTuple):
    """Where another process finds an array."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    def open(self) -> NDArray[Any]:
        """Return the array; what is written to it, other processes do not see.

        A map that cannot be written would be another type to the compiled kernels.
        """
        if 0 in self.shape:
            return np.empty(self.shape, dtype=self.dtype)
        mapped = np.memmap(self.path, self.dtype, "c", self.offset, self.shape)
        return np.asarray(mapped)


class SharedFiles:
    """Files of arrays in shared memory, or among the temporary files where that is too small."""

    def __init__(self) -> None:
        self._folders: dict[Path, Path] = {}  # by the place that they lie in
        self._count = 0

    def share(self, array: NDArray[Any]) -> SharedArray:
        if (mapped := find_mapped(array)) is not None:
            return mapped
        self._count += 1
        full = []
        places = [SHARED_FOLDER] if os.access(SHARED_FOLDER, os.W_OK) else []
        for place in [*places, Path(tempfile.gettempdir())]:
            free = shutil.disk_usage(place).free
            if free > array.nbytes + array.nbytes // 8 + 2**20:
                if place not in self._folders:
                    self._folders[place] = Path(tempfile.mkdtemp(prefix="largesparse-", dir=place))
                path = self._folders[place] / str(self._count)
                try:
                    np.ascontiguousarray(array).tofile(path)
                    return SharedArray(str(path), array.dtype.str, array.shape)
                except OSError:  # another process was faster
                    path.unlink(missing_ok=True)
            full.append(f"{place} has {free} bytes free")
        raise MemoryPlanError(
            f"Worker processes need {array.nbytes} bytes more in files that they share, and "
            f"{', '.join(full)}. Use processes=1, or set TMPDIR to a folder with more room."
        )

    def delete(self) -> None:
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def find_mapped(array: NDArray[Any]) -> SharedArray | None:
    """Return where an array is, if it is a part of a memory-mapped file that others can open."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    is_seen = isinstance(root, np.memmap) and root.filename and root.mode != "c"
    if not is_seen or not array.flags.c_contiguous:
        return None
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return SharedArray(str(root.filename), array.dtype.str, array.shape, offset)


def shapes_of(arrays: Sequence[NDArray[Any]]) -> Shapes:
    """Return what a segment with such arrays is made of."""
    return [(array.shape, array.dtype.str) for array in arrays]


def make_arrays(shapes: Shapes) -> tuple[Segment, Arrays]:
    """Return a segment, and the arrays of zeros of these shapes and dtypes that it holds."""
    count = Arena()
    for shape, dtype in shapes:
        count(shape, dtype)
    segment = Segment.create(count.nbytes)
    return segment, arrays_of(segment, shapes)


def arrays_of(segment: Segment, shapes: Shapes) -> Arrays:
    """Return the arrays of these shapes and dtypes that a segment holds."""
    arena = Arena(segment.buffer)
    return [arena(shape, dtype) for shape, dtype in shapes]


def share(arrays: Arrays) -> tuple[list[SharedArray], Segment]:
    """Return where the ranks of this node find arrays; those of mapped files stay where they are.

    The segment has the others. It must be kept as long as ranks open it.
    """
    places = [find_mapped(array) for array in arrays]
    moved = [array for array, place in zip(arrays, places, strict=True) if place is None]
    segment, copies = make_arrays(shapes_of(moved))
    for copy, array in zip(copies, moved, strict=True):
        copy[...] = array
    new = iter(places_in(segment, copies))
    return [next(new) if place is None else place for place in places], segment


def places_in(segment: Segment, arrays: Sequence[NDArray[Any]]) -> list[SharedArray]:
    """Return where others find all arrays of a segment, in the order in which it has them."""
    count = Arena()
    places = []
    for array in arrays:
        places.append(SharedArray(segment.path, array.dtype.str, array.shape, count.nbytes))
        count(array.shape, array.dtype)
    return places


def X_to_arrays(X: Any) -> Arrays:
    """Return the arrays that a dense or CSR X consists of; `X_from_arrays` goes back."""
    return [X.data, X.indices, X.indptr] if issparse(X) else [X]


def X_from_arrays(shape: tuple[int, ...] | None, arrays: Iterator[NDArray]) -> Any:
    """Return the X of the next arrays, which is CSR of a shape, or dense where that is None."""
    if shape is None:
        return next(arrays)
    return csr_array((next(arrays), next(arrays), next(arrays)), shape=shape)


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

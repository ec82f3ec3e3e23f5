"""Arrays that several processes map from one file in shared memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from .errors import MemoryPlanError

SHARED_FOLDER = Path("/dev/shm")  # memory that has file names, on Linux


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
    """A folder of arrays in shared memory, or on the disk where that is too small."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._count = 0

    def share(self, array: NDArray[Any]) -> SharedArray:
        if (mapped := find_mapped(array)) is not None:
            return mapped
        self._count += 1
        path = self._folder_for(array.nbytes) / str(self._count)
        np.ascontiguousarray(array).tofile(path)
        return SharedArray(str(path), array.dtype.str, array.shape)

    def _folder_for(self, size: int) -> Path:
        """Return the folder, made at the first call where there is most likely to be room."""
        places = [SHARED_FOLDER] if os.access(SHARED_FOLDER, os.W_OK) else []
        places.append(Path(tempfile.gettempdir()))
        if self.folder is not None:
            places = [self.folder]
        for place in places:
            free = shutil.disk_usage(place).free
            if free > size + size // 8 + 2**20:
                if self.folder is None:
                    self.folder = Path(tempfile.mkdtemp(prefix="largesparse-", dir=place))
                return self.folder
        raise MemoryPlanError(
            f"Worker processes need {size} bytes more of shared memory than {places[-1]} has. "
            "Use processes=1, or set TMPDIR to a folder with more room."
        )

    def delete(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def find_mapped(array: NDArray[Any]) -> SharedArray | None:
    """Return where an array is, if it is a part of a memory-mapped file that others can open."""
    mapped = _memory_map(array)
    if mapped is None or not array.flags.c_contiguous:
        return None
    offset = mapped.offset + _address(array) - _address(mapped)
    return SharedArray(str(mapped.filename), array.dtype.str, array.shape, offset)


def _memory_map(array: NDArray[Any]) -> np.memmap[Any, Any] | None:
    """Return the memory map of a file that an array is a view of, if another process sees it."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if isinstance(root, np.memmap) and root.filename and root.mode != "c":
        return root
    return None


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def share_data(X: Any, files: SharedFiles) -> tuple[str, Any]:
    if issparse(X):
        arrays = [files.share(array) for array in (X.data, X.indices, X.indptr)]
        return "csr", (arrays, X.shape)
    return "dense", files.share(X)


def open_data(kind: str, data: Any) -> Any:
    if kind == "csr":
        arrays, shape = data
        return csr_array(tuple(array.open() for array in arrays), shape=shape)
    return data.open()

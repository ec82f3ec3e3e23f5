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

from .environment import SHARED_FOLDER
from .errors import MemoryPlanError


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
        for place in _places():
            free = shutil.disk_usage(place).free
            if free > array.nbytes + array.nbytes // 8 + 2**20:
                path = self._folder_in(place) / str(self._count)
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

    def _folder_in(self, place: Path) -> Path:
        if place not in self._folders:
            self._folders[place] = Path(tempfile.mkdtemp(prefix="largesparse-", dir=place))
        return self._folders[place]

    def delete(self) -> None:
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def _places() -> list[Path]:
    """Return the folders for shared files, that in memory first."""
    places = [SHARED_FOLDER] if os.access(SHARED_FOLDER, os.W_OK) else []
    return [*places, Path(tempfile.gettempdir())]


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

"""NumPy archives (.npz) of arrays, read without pickle, and the sparse arrays in them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import DataError
from .files import reading

if TYPE_CHECKING:
    from scipy.sparse import csr_array

HEADERS: dict[int, Callable[..., Any]] = {
    1: npy.read_array_header_1_0,
    2: npy.read_array_header_2_0,
}
# The most bytes that a byte of a compressed file, or rows that a value of a sparse array, can stand
# for.
DEFLATED = 1032


def read_archive(path: Path) -> dict[str, NDArray]:
    """Return the arrays of a NumPy archive by their names, or raise."""
    remedy = "Get it again, or write it with numpy.savez from arrays of numbers or strings."
    # A damaged file makes zipfile, zlib and NumPy raise all sorts.
    with (
        reading(path, "as a NumPy archive", remedy, damage=(Exception,)),
        open(path, "rb") as file,
    ):
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is a single array")
        _check_sizes(archive.zip, path.stat().st_size)
        arrays = {key: archive[key] for key in archive.files}
        for key, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{key} is not an array")
    return arrays


def array_names(path: Path) -> set[str]:
    """Return the names of the arrays of an archive, none where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile):
        return set()


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
    """Raise a ValueError where a header lies: its member would take memory before it is read."""
    for info in archive.infolist():
        if info.compress_size > size or info.file_size > DEFLATED * (info.compress_size + 1):
            raise ValueError(f"{info.filename} says that it has {info.file_size} bytes")
        with archive.open(info) as member:
            version, _ = npy.read_magic(member)
            if version not in HEADERS:
                raise ValueError(f"{info.filename} is an array of format version {version}")
            shape, _, dtype = HEADERS[version](member)
            expected = member.tell() + math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and expected != info.file_size:
            raise ValueError(f"{info.filename} has {info.file_size} bytes, not {expected}")


def holds_sparse(arrays: dict[str, NDArray]) -> bool:
    """Return whether an archive is one of `scipy.sparse.save_npz`, or has CSR arrays."""
    return {"format", "shape"} <= arrays.keys() or {"indptr", "indices", "shape"} <= arrays.keys()


def csr_from_archive(arrays: dict[str, NDArray], path: Path) -> csr_array:
    """Make a CSR array of what `scipy.sparse.save_npz` wrote, in any format.

    Without `format` the arrays are `indptr, indices, shape` of a CSR array, and if it is there
    `data` (else ones). Arrays that do not fit together raise a DataError.
    """
    import scipy.sparse as sp

    kind = str(arrays["format"].astype(np.str_)) if "format" in arrays else "csr"
    try:
        shape = tuple(arrays["shape"].tolist())
        if kind in ("csr", "csc", "bsr"):
            indices, data = arrays["indices"], arrays.get("data")
            if data is None:
                data = np.ones(indices.shape, np.float32)
            make = {"csr": sp.csr_array, "csc": sp.csc_array, "bsr": sp.bsr_array}[kind]
            X = make((data, indices, arrays["indptr"]), shape=shape)
            X.check_format(full_check=True)  # conversions trust indices
        elif kind == "coo":
            X = sp.coo_array((arrays["data"], (arrays["row"], arrays["col"])), shape=shape)
        elif kind == "dia":
            X = sp.dia_array((arrays["data"], arrays["offsets"]), shape=shape)
        else:
            raise ValueError(f"its format is {kind!r}, and csr, csc, bsr, coo and dia are known")
        if X.shape[0] > DEFLATED * (X.data.size + 1):  # a lie would take its memory, too
            raise ValueError(f"its shape says {X.shape[0]} rows for {X.data.size} values")
        csr = sp.csr_array(X)
        csr.check_format(full_check=True)
        return csr
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise DataError(
            f"{path} does not hold a valid {kind.upper():.9} array: {error}."
        ) from error


def flatten_rows(X: NDArray | csr_array) -> NDArray | csr_array:
    """Make rows of more than one dimension, as images are, flat."""
    return X.reshape(len(X), math.prod(X.shape[1:])) if X.ndim > 2 else X

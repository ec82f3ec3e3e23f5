"""NumPy archives (.npz) of arrays, read without pickle, and the CSR arrays in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def read_archive(path: Path) -> dict[str, NDArray]:
    """Return the arrays of a NumPy archive by their names.

    Raises
    ------
    DataError
        If the file cannot be read, or holds Python objects or a single array.
    """
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a single array")
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # a damaged file makes zipfile, zlib and NumPy raise all sorts
        raise DataError(
            f"{path} cannot be read as a NumPy archive: {error}. Get it again, or write it with "
            "numpy.savez from arrays of numbers or strings."
        ) from error


def csr_from_archive(arrays: dict[str, NDArray], path: Path) -> csr_array:
    """Make a CSR array of `indptr, indices, shape` and, if it is there, `data` (else ones).

    Raises
    ------
    DataError
        If the arrays do not fit together.
    """
    from scipy.sparse import csr_array

    indices = arrays["indices"]
    data = arrays.get("data")
    if data is None:
        data = np.ones(indices.shape, np.float32)
    try:
        shape = tuple(arrays["shape"].tolist())
        return csr_array((data, indices, arrays["indptr"]), shape=shape)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} does not hold a valid CSR array: {error}.") from error


def flatten_rows(X: NDArray | csr_array) -> NDArray | csr_array:
    """Make rows of more than one dimension, as images are, flat."""
    return X.reshape(len(X), math.prod(X.shape[1:])) if X.ndim > 2 else X

"""Loaders of data sets: NumPy archives, and FashionMNIST in its publisher's own files."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import environment
from .archives import csr_from_archive, flatten_rows, read_archive
from .errors import DataError, check_range
from .preprocessing import check_X_y, encode_labels

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NAMES = ("fashion_mnist", "madelon", "higgs", "dorothea", "microarray_nakayama")

IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
FASHION_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class Dataset(NamedTuple):
    """A classification task with its test part.

    X (n_samples, n_features) dense or CSR, y (n_samples,) class indices 0..k-1 in int32.
    """

    X_train: NDArray | csr_array
    y_train: NDArray[np.int32]
    X_test: NDArray | csr_array
    y_test: NDArray[np.int32]
    name: str


def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.3,
    seed: int = 0,
) -> Dataset:
    """Load a data set by its name or from a NumPy archive.

    An archive holds `x_train, y_train, x_test, y_test`, or `X, y`, or `indptr, indices, shape, y`
    and possibly `data` (CSR; without `data` every stored value is 1). Rows of more than one
    dimension, as images are, become flat. Features keep their dtype; labels become 0..k-1.

    Parameters
    ----------
    name_or_path : str or path
        One of `NAMES`, or the path of an `.npz` archive.
    folder : path, optional
        Where `NAME.npz` lies. By default `LARGESPARSE_DATA`, `./data` and `../shared/data` are
        searched in this order. "fashion_mnist" is also read from its publisher's IDX files,
        plain or gzipped, there or in a subfolder `fashion_mnist`.
    test_fraction : float
        In (0, 1). What share of the samples is the test part, where the archive has no split.
        Such a split is stratified.
    seed : int
        Of that split.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds something else.
    ParameterError
        If `test_fraction` or `seed` is out of range.
    """
    check_range(
        "test_fraction", test_fraction, "load_dataset", low=0, high=1, low_open=True, high_open=True
    )
    check_range("seed", seed, "load_dataset", low=0, high=2**32 - 1, integer=True)
    if name_or_path in NAMES:
        name = str(name_or_path)
        for place in _folders(folder):
            path = place / f"{name}.npz"
            if path.is_file():
                return _load_archive(path, name, test_fraction, seed)
            if name == "fashion_mnist":
                for holder in (place, place / name):
                    if files := _fashion_mnist_files(holder):
                        return _load_fashion_mnist(holder, files)
        searched = ", ".join(str(place) for place in _folders(folder))
        raise DataError(
            f"The data set {name!r} was not found: no {name}.npz in {searched}. "
            f"Set {environment.DATA} to the folder that holds it."
        )
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return _load_archive(path, path.stem, test_fraction, seed)
    raise DataError(
        f"{str(name_or_path)!r} is neither a file nor the name of a data set ({', '.join(NAMES)})."
    )


def read_idx(path: str | os.PathLike[str]) -> NDArray:
    """Read a file of the IDX format, plain or gzipped, as MNIST and FashionMNIST come.

    Raises
    ------
    DataError
        If the file cannot be read, its header is not one of IDX, or its size is not what the
        header says.
    """
    try:
        content = Path(path).read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"The IDX file {path} cannot be read: {error}. Get it again.") from error
    zeros, code, n_dimensions = struct.unpack(">HBB", content[:4].ljust(4, b"\0"))
    if zeros or code not in IDX_DTYPES or not n_dimensions:
        raise DataError(
            f"{path} is not an IDX file: it begins with {content[:4].hex() or 'nothing'}. "
            "Get it again from its publisher."
        )
    dtype, start = np.dtype(IDX_DTYPES[code]), 4 + 4 * n_dimensions
    header = content[4:start].ljust(4 * n_dimensions, b"\0")
    shape = struct.unpack(f">{n_dimensions}I", header)
    expected = start + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"The IDX file {path} is damaged: it holds {len(content)} bytes, but {expected} "
            f"follow from its shape {shape}. Get it again from its publisher."
        )
    try:
        values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    except ValueError as error:  # too many, or sizes that overflow beside a 0
        raise DataError(f"The IDX file {path} has an impossible shape: {error}.") from error
    return values.astype(dtype.newbyteorder("="))


def _folders(folder: str | os.PathLike[str] | None) -> list[Path]:
    if folder is not None:
        return [Path(folder).expanduser()]
    places = [Path("data"), Path("..", "shared", "data")]
    if named := os.environ.get(environment.DATA):
        places.insert(0, Path(named).expanduser())
    return places


def _fashion_mnist_files(folder: Path) -> dict[str, Path]:
    """Return those of FashionMNIST's own files that are in `folder`."""
    return {
        name: path
        for name in FASHION_MNIST_FILES
        for path in (folder / f"{name}.gz", folder / name)  # of two the plain one stays
        if path.is_file()
    }


def _load_fashion_mnist(folder: Path, files: dict[str, Path]) -> Dataset:
    if missing := [name for name in FASHION_MNIST_FILES if name not in files]:
        raise DataError(
            f"FashionMNIST in {folder} lacks {', '.join(missing)}. Get these files too."
        )
    parts = (read_idx(files[name]) for name in FASHION_MNIST_FILES)
    return _dataset("fashion_mnist", folder, *parts)


def _load_archive(path: Path, name: str, test_fraction: float, seed: int) -> Dataset:
    arrays = read_archive(path)
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        parts = (arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
        return _dataset(name, path, *parts)
    if {"X", "y"} <= arrays.keys():
        X = arrays["X"]
    elif {"indptr", "indices", "shape", "y"} <= arrays.keys():
        X = csr_from_archive(arrays, path)
    else:
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}; a data set needs "
            "x_train, y_train, x_test and y_test, or X and y, or indptr, indices, shape and y."
        )
    return _split(name, path, X, arrays["y"], test_fraction, seed)


def _split(
    name: str, path: Path, X: NDArray | csr_array, y: NDArray, test_fraction: float, seed: int
) -> Dataset:
    from sklearn.model_selection import train_test_split

    try:
        X, labels = check_X_y(flatten_rows(X), y)
        labels, _ = encode_labels(labels)
        parts = train_test_split(
            X, labels, test_size=test_fraction, stratify=labels, random_state=int(seed)
        )
    except ValueError as error:  # sklearn's as well: a class of one sample cannot be divided
        raise DataError(f"{path} cannot be used: {error}") from error
    X_train, X_test, y_train, y_test = parts
    return Dataset(X_train, y_train, X_test, y_test, name)


def _dataset(
    name: str, path: Path, x_train: NDArray, y_train: NDArray, x_test: NDArray, y_test: NDArray
) -> Dataset:
    try:
        X_train, labels_train = check_X_y(flatten_rows(x_train), y_train)
        X_test, labels_test = check_X_y(flatten_rows(x_test), y_test, n_features=X_train.shape[1])
        labels_train, classes = encode_labels(labels_train)
        labels_test, _ = encode_labels(labels_test, classes)
    except DataError as error:
        raise DataError(f"{path} cannot be used: {error}") from error
    return Dataset(X_train, labels_train, X_test, labels_test, name)

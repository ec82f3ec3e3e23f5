"""Data sets in the files that their publishers distribute: `PUBLISHERS` has these, and readers.

All but CIFAR10's may also be gzipped. They lie in a folder, or in a subfolder of it named as the
data set or as the publisher's archive unpacks.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, check_range
from ..machine.environment import expand_user
from .files import reading
from .geo import read_series_matrix

IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IDX_FILES = (
    ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
)
# The files of these two have the same names; their first training labels tell them apart.
FIRST_LABELS = {
    "mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4],
    "fashion_mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
}
MADELON_SHAPES = {"train": (2000, 500), "valid": (600, 500)}
HIGGS_FEATURES = 28
HIGGS_ROWS = 11_000_000
CIFAR10_RECORDS = 10000  # a file
CIFAR10_PIXELS = 3 * 32 * 32  # a plane a colour: red, green, blue

# X_train, y_train, X_test, y_test; or X, y where the publisher gives no split
Arrays = tuple[NDArray, ...]


def read_idx(path: str | os.PathLike[str]) -> NDArray:
    """Read a file of the IDX format, plain or gzipped, as MNIST and FashionMNIST come, or raise."""
    with reading(f"The IDX file {path}", "", "Get it again."):
        content = expand_user(path).read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
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


def _read_images(name: str, other: str, files: list[Path]) -> Arrays:
    """Read MNIST or FashionMNIST: images uint8 (n, 28, 28), with labels 0..9 in uint8 (n,)."""
    arrays = tuple(read_idx(path) for path in files)
    if arrays[1][:10].tolist() == FIRST_LABELS[other]:
        raise DataError(
            f"The files in {files[0].parent} are those of {other}, not of {name}. Both have the "
            f"same file names: put them into subfolders {name} and {other}."
        )
    return arrays


def _read_madelon(files: list[Path]) -> Arrays:
    """Read Madelon: int16 (2000, 500) and (600, 500), with labels -1 and 1 in int16 (n,).

    The validation part serves as the test part, since the labels of UCI's own test part are not
    public.
    """
    arrays = []
    shapes = [(n, width) for n, n_features in MADELON_SHAPES.values() for width in (n_features, 1)]
    for path, (n_rows, n_columns) in zip(files, shapes, strict=True):
        with reading(path, "as rows of integers", "Get it again from UCI."):
            values = np.loadtxt(path, np.int16, ndmin=2, comments=None)
        if values.shape != (n_rows, n_columns):
            raise DataError(
                f"{path} holds {values.shape[0]} rows of {values.shape[1]} values instead of "
                f"{n_rows} rows of {n_columns}. Get it again from UCI."
            )
        arrays.append(values if n_columns > 1 else values.ravel())
    return tuple(arrays)


def _read_higgs(files: list[Path], n_train: int = 105_000, n_test: int = 50_000) -> Arrays:
    """Read the first rows of HIGGS: float32 (n, 28), labels 0 (background) and 1 in float32.

    The rows are independent simulations. The defaults are the paper's sizes; the paper does not
    say which rows it took.
    """
    from .text_tables import csv_chunks

    check_range("n_train", n_train, "higgs", low=1, high=HIGGS_ROWS, integer=True)
    check_range("n_test", n_test, "higgs", low=1, high=HIGGS_ROWS - n_train, integer=True)
    path, n_rows = files[0], n_train + n_test
    X, y = np.empty((n_rows, HIGGS_FEATURES), np.float32), np.empty(n_rows, np.float32)
    done = 0
    with reading(path, "as HIGGS.csv", "Get it again from UCI."):
        dialect = {"sep": ",", "header": None, "nrows": n_rows}
        for chunk in csv_chunks(path, range(1 + HIGGS_FEATURES), np.float32, dialect):
            part = slice(done, done + len(chunk))
            values = chunk.to_numpy()
            X[part], y[part] = values[:, 1:], values[:, 0]
            done += len(chunk)
    if done < n_rows:
        raise DataError(
            f"{path} has {done} rows, but n_train + n_test is {n_rows}. Get it again from UCI "
            f"({HIGGS_ROWS} rows), or ask for fewer."
        )
    return X[:n_train], y[:n_train], X[n_train:], y[n_train:]


def _read_cifar10(files: list[Path]) -> Arrays:
    """Read the binary version of CIFAR10: 50000 and 10000 rows, uint8 (n, 3072), labels 0..9.

    The Python version consists of pickles, which are not read, since a pickle can run any program.
    """
    *batches, test = files
    X = np.empty((len(batches) * CIFAR10_RECORDS, CIFAR10_PIXELS), np.uint8)
    y = np.empty(len(X), np.uint8)
    for start, path in zip(range(0, len(X), CIFAR10_RECORDS), batches, strict=True):
        part = slice(start, start + CIFAR10_RECORDS)
        y[part], X[part] = _read_cifar10_batch(path)
    y_test, X_test = _read_cifar10_batch(test)
    return X, y, X_test, y_test


def _read_leukemia(files: list[Path], **options: str) -> Arrays:
    """Read GSE13159: X (2096, 54675) float32 and the class names (2096,)."""
    series = read_series_matrix(files[0], **options)
    assert series.labels is not None  # by default there is a field
    return series.X, series.labels


class Publisher(NamedTuple):
    """How a data set is distributed."""

    files: tuple[tuple[str, ...], ...]  # for each file the names that it may have
    read: Callable[..., Arrays]  # takes their paths, and the options as keywords
    subfolders: tuple[str, ...]  # where they may lie, beside the folder itself
    options: tuple[str, ...] = ()


PUBLISHERS = {
    "fashion_mnist": Publisher(  # Zalando
        IDX_FILES, partial(_read_images, "fashion_mnist", "mnist"), ("fashion_mnist",)
    ),
    "mnist": Publisher(  # LeCun et al.
        IDX_FILES, partial(_read_images, "mnist", "fashion_mnist"), ("mnist", "MNIST/raw")
    ),
    "madelon": Publisher(  # UCI, NIPS 2003
        (
            ("madelon_train.data",),
            ("madelon_train.labels",),
            ("madelon_valid.data",),
            ("madelon_valid.labels", "../madelon_valid.labels"),  # as UCI's archive has it
        ),
        _read_madelon,
        ("madelon", "MADELON", "madelon/MADELON"),
    ),
    # UCI, Baldi et al. 2014
    "higgs": Publisher((("HIGGS.csv",),), _read_higgs, ("higgs",), ("n_train", "n_test")),
    "cifar10": Publisher(  # Krizhevsky 2009, the binary version
        (*((f"data_batch_{i}.bin",) for i in range(1, 6)), ("test_batch.bin",)),
        _read_cifar10,
        ("cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"),
    ),
    "leukemia": Publisher(  # GEO, Haferlach et al. 2010
        (("GSE13159_series_matrix.txt",),), _read_leukemia, ("leukemia",), ("class_field",)
    ),
}


def find_files(name: str, folder: Path) -> list[Path] | None:
    """Return the publisher's files of a data set in `folder`, or None if none of them is there."""
    publisher = PUBLISHERS[name]
    for holder in (*(folder / subfolder for subfolder in publisher.subfolders), folder):
        found = [next(_existing(holder, names), None) for names in publisher.files]
        if not any(found):
            continue
        if None in found:
            missing = [
                names[0] for names, path in zip(publisher.files, found, strict=True) if path is None
            ]
            raise DataError(f"{name} in {holder} lacks {', '.join(missing)}. Get these files too.")
        return [path for path in found if path is not None]
    return None


def _existing(holder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        for path in (holder / name, holder / f"{name}.gz"):
            if path.is_file():
                yield path


def _read_cifar10_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return labels (10000,) and pixels (10000, 3072)."""
    expected = CIFAR10_RECORDS * (1 + CIFAR10_PIXELS)
    with reading(path, "", "Check its permissions."):
        content = np.fromfile(path, np.uint8)
    if len(content) != expected:
        raise DataError(
            f"{path} holds {len(content)} bytes, but {expected} make {CIFAR10_RECORDS} images. "
            "Get the binary version of CIFAR10 again."
        )
    records = content.reshape(CIFAR10_RECORDS, 1 + CIFAR10_PIXELS)
    labels = records[:, 0]
    if labels.max() > 9:
        row = int((labels > 9).argmax())
        raise DataError(
            f"{path} is not of CIFAR10: the label of record {row} is {labels[row]}, not 0 to 9. "
            "Get the binary version of CIFAR10 again."
        )
    return labels, records[:, 1:]

"""Loading data sets by name or file, with their test part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import environment
from .archives import csr_from_archive, flatten_rows, read_archive
from .errors import DataError, ParameterError, check_range
from .geo import read_series_matrix
from .openml import fetch
from .preprocessing import check_X_y, encode_labels
from .publishers import PUBLISHERS, find_files

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NAMES = (
    "fashion_mnist",
    "mnist",
    "madelon",
    "higgs",
    "cifar10",
    "leukemia",
    "dorothea",
    "microarray_nakayama",
)
OPENML = "openml:"


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
    **options: Any,
) -> Dataset:
    """Load a data set by its name, from OpenML or from a file.

    A name is looked up as an archive `NAME.npz` and in the files of its publisher (`publishers`).
    An archive holds `x_train, y_train, x_test, y_test`, or `X, y`, or `indptr, indices, shape, y`
    and possibly `data` (CSR; without `data` every stored value is 1). Rows of more than one
    dimension, as images are, become flat. Features keep their dtype; labels become 0..k-1.
    Other files are tables (`tables.read_table`) and GEO series matrices, in float32.

    Parameters
    ----------
    name_or_path : str or path
        One of `NAMES`; or "openml:NAME" or "openml:NUMBER"; or the path of an `.npz` archive, of
        a table (`.csv`, `.parquet`, `.svm`, ...) or of a `*_series_matrix.txt` (also `.gz`).
    folder : path, optional
        Where `NAME.npz` or the publisher's files lie, the latter possibly in a subfolder `NAME`.
        By default `LARGESPARSE_DATA`, `./data` and `../shared/data` are searched in this order.
    test_fraction : float
        In (0, 1). What share of the samples is the test part, where the source has no split
        (the paper's Leukemia has 1/3). Such a split is stratified.
    seed : int
        Of that split.
    **options
        `n_train`, `n_test` : int, for "higgs": the numbers of rows (105000 and 50000).
        `class_field` : str, for "leukemia" and series matrices: see `geo.read_series_matrix`.
        `target` : str or int, for tables with columns: the column of the labels.
        `version` : int, for OpenML: by default the oldest that is active.
        With the first two only the publisher's files are read, not an archive.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds something else; for OpenML, without a network.
    ParameterError
        If `test_fraction`, `seed` or an option is out of range, or the source has no such option.
    """
    check_range(
        "test_fraction", test_fraction, "load_dataset", low=0, high=1, low_open=True, high_open=True
    )
    check_range("seed", seed, "load_dataset", low=0, high=2**32 - 1, integer=True)
    split = (test_fraction, seed)
    if name_or_path in NAMES:
        return _load_named(str(name_or_path), folder, split, options)
    if isinstance(name_or_path, str) and name_or_path.startswith(OPENML):
        _check_options(name_or_path, options, "version")
        X, y = fetch(name_or_path.removeprefix(OPENML), **options)
        return _split(name_or_path, name_or_path, X, y, *split)
    path = environment.expand_user(name_or_path)
    if path.is_file():
        return _load_file(path, split, options)
    raise DataError(
        f"{str(name_or_path)!r} is neither a file nor the name of a data set ({', '.join(NAMES)})."
    )


def _load_named(
    name: str,
    folder: str | os.PathLike[str] | None,
    split: tuple[float, int],
    options: dict[str, Any],
) -> Dataset:
    publisher = PUBLISHERS.get(name)
    _check_options(name, options, *(publisher.options if publisher else ()))
    for place in _folders(folder):
        path = place / f"{name}.npz"
        if path.is_file() and not options:
            return _load_archive(path, name, *split)
        if publisher and (files := find_files(name, place)):
            arrays = publisher.read(files, **options)
            if len(arrays) == 2:
                return _split(name, files[0], *arrays, *split)
            return _dataset(name, files[0].parent, *arrays)
    searched = ", ".join(str(place) for place in _folders(folder))
    own = ", ".join(names[0] for names in publisher.files) if publisher else ""
    wanted = f"no {name}.npz" if not options else f"no {own} (which {next(iter(options))} needs)"
    hint = f", or the files of its publisher, {own}" if publisher else ""
    raise DataError(
        f"The data set {name!r} was not found: {wanted} in {searched}. "
        f"Set {environment.DATA} to the folder that holds it{hint}."
    )


def _load_file(path: Path, split: tuple[float, int], options: dict[str, Any]) -> Dataset:
    from .tables import read_table, table_format

    name = path.name.split(".")[0]
    if path.name.endswith(("series_matrix.txt", "series_matrix.txt.gz")):
        _check_options(str(path), options, "class_field")
        series = read_series_matrix(path, **options)
        return _split(name, path, series.X, series.labels, *split)
    kind = table_format(path)
    if kind in ("csv", "parquet", "svmlight"):
        _check_options(str(path), options, *(() if kind == "svmlight" else ("target",)))
        table = read_table(path, **options)
        if table.y is None:
            raise DataError(f"{path} needs the column of the labels: pass target=NAME.")
        return _split(name, path, table.X, table.y, *split)
    _check_options(str(path), options)
    return _load_archive(path, path.stem, *split)


def _check_options(source: str, options: dict[str, Any], *known: str) -> None:
    if unknown := [name for name in options if name not in known]:
        raise ParameterError(
            f"load_dataset has no option {unknown[0]!r} for {source!r}; "
            f"it has {', '.join(known) or 'none there'}."
        )


def _folders(folder: str | os.PathLike[str] | None) -> list[Path]:
    if folder is not None:
        return [environment.expand_user(folder)]
    places = [Path("data"), Path("..", "shared", "data")]
    if named := os.environ.get(environment.DATA):
        places.insert(0, environment.expand_user(named))
    return places


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
    name: str,
    path: Path | str,
    X: NDArray | csr_array,
    y: NDArray,
    test_fraction: float,
    seed: int,
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

"""Loading data sets by name or file, with their test part."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError, check_range, check_share
from ..machine import environment
from ..machine.environment import expand_user
from .archives import csr_from_archive, flatten_rows, holds_sparse, read_archive
from .checks import check_X_y, encode_labels
from .geo import read_series_matrix
from .openml import fetch
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


class Source(NamedTuple):
    """A data set as it comes: X, y, or X_train, y_train, X_test, y_test, not checked."""

    name: str
    place: Path | str  # what messages call it
    arrays: tuple[Any, ...]


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
        `header`, `zero_based`, `drop`, ... : for tables: see `tables.read_table`.
        `version` : int, for OpenML: by default the oldest that is active.
        With the first two only the publisher's files are read, not an archive.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds something else; for OpenML, without a network.
    ParameterError
        If `test_fraction`, `seed` or an option is out of range, or the source has no such option.
    """
    check_share("test_fraction", test_fraction, "load_dataset")
    check_range("seed", seed, "load_dataset", low=0, high=2**32 - 1, integer=True)
    return _split(read_source(name_or_path, folder=folder, **options), test_fraction, seed)


def read_source(
    name_or_path: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Source:
    """Read a data set as it comes, with the labels of its source; see `load_dataset`."""
    if name_or_path in NAMES:
        return _named(str(name_or_path), folder, options)
    if isinstance(name_or_path, str) and name_or_path.startswith(OPENML):
        _check_options(name_or_path, options, "version")
        X, y = fetch(name_or_path.removeprefix(OPENML), **options)
        return Source(name_or_path, name_or_path, (X, y))
    path = expand_user(name_or_path)
    if path.is_file():
        return _file(path, options)
    raise DataError(
        f"{str(name_or_path)!r} is neither a file nor the name of a data set ({', '.join(NAMES)})."
    )


def _named(name: str, folder: str | os.PathLike[str] | None, options: dict[str, Any]) -> Source:
    publisher = PUBLISHERS.get(name)
    _check_options(name, options, *(publisher.options if publisher else ()))
    for place in _folders(folder):
        path = place / f"{name}.npz"
        if path.is_file() and not options:
            return _archive(path, name)
        if publisher and (files := find_files(name, place)):
            arrays = tuple(map(flatten_rows, publisher.read(files, **options)))
            return Source(name, files[0] if len(arrays) == 2 else files[0].parent, arrays)
    searched = ", ".join(str(place) for place in _folders(folder))
    own = ", ".join(names[0] for names in publisher.files) if publisher else ""
    wanted = f"no {name}.npz" if not options else f"no {own} (which {next(iter(options))} needs)"
    hint = f", or the files of its publisher, {own}" if publisher else ""
    raise DataError(
        f"The data set {name!r} was not found: {wanted} in {searched}. "
        f"Set {environment.DATA} to the folder that holds it{hint}."
    )


def _file(path: Path, options: dict[str, Any]) -> Source:
    from .formats import table_format
    from .tables import read_table

    name = path.name.split(".")[0]
    if path.name.endswith(("series_matrix.txt", "series_matrix.txt.gz")):
        _check_options(str(path), options, "class_field")
        series = read_series_matrix(path, **options)
        return Source(name, path, (series.X, series.labels))
    if options.get("format", table_format(path)) != "npz":
        known = (name for name in inspect.signature(read_table).parameters if name != "path")
        _check_options(str(path), options, *known)
        table = read_table(path, **options)
        if table.y is None:
            raise DataError(f"{path} needs the column of the labels: pass target=NAME.")
        return Source(name, path, (table.X, table.y))
    _check_options(str(path), options)
    return _archive(path, path.stem)


def _check_options(source: str, options: dict[str, Any], *known: str) -> None:
    if unknown := [name for name in options if name not in known]:
        raise ParameterError(
            f"load_dataset has no option {unknown[0]!r} for {source!r}; "
            f"it has {', '.join(known) or 'none there'}."
        )


def _folders(folder: str | os.PathLike[str] | None) -> list[Path]:
    if folder is not None:
        return [expand_user(folder)]
    places = [Path("data"), Path("..", "shared", "data")]
    if named := os.environ.get(environment.DATA):
        places.insert(0, expand_user(named))
    return places


def _archive(path: Path, name: str) -> Source:
    arrays = read_archive(path)
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        parts = (arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
        return Source(name, path, tuple(map(flatten_rows, parts)))
    if {"X", "y"} <= arrays.keys():
        X = arrays["X"]
    elif holds_sparse(arrays) and "y" in arrays:
        X = csr_from_archive(arrays, path)
    else:
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}; a data set needs "
            "x_train, y_train, x_test and y_test, or X and y, or indptr, indices, shape and y."
        )
    return Source(name, path, (flatten_rows(X), arrays["y"]))


def _split(source: Source, test_fraction: float, seed: int) -> Dataset:
    """Return the source's arrays, checked, with the test part that it has or one of a share."""
    try:
        X, labels = check_X_y(*source.arrays[:2])
        y, classes = encode_labels(labels)
        if len(source.arrays) == 2:
            from sklearn.model_selection import train_test_split

            X, X_test, y, y_test = train_test_split(
                X, y, test_size=test_fraction, stratify=y, random_state=int(seed)
            )
        else:
            X_test, y_test = source.arrays[2:]
            X_test, labels = check_X_y(X_test, y_test, n_features=X.shape[1])
            y_test, _ = encode_labels(labels, classes)
    except ValueError as error:  # sklearn's as well: a class of one sample cannot be divided
        raise DataError(f"{source.place} cannot be used: {error}") from error
    return Dataset(X, y, X_test, y_test, source.name)

"""Tables of samples from files: CSV, parquet, svmlight and NumPy archives, by the suffix."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .archives import csr_from_archive, flatten_rows, read_archive
from .columns import positions_of, read_csv, read_parquet
from .environment import expand_user
from .errors import DataError, ParameterError

if TYPE_CHECKING:
    import os

    from scipy.sparse import csr_array

SUFFIXES = {  # a further .gz may follow those of text
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".npz": "npz",
    ".svm": "svmlight",
    ".libsvm": "svmlight",
    ".svmlight": "svmlight",
}


class Table(NamedTuple):
    """Samples from a file.

    X (n_samples, n_features), float32 or CSR; y (n_samples,) the labels as they are in the file,
    strings or numbers, or None; feature_names in the order of X's columns, or None where the file
    has none; target the name of the column that became y, or None.
    """

    X: NDArray[np.float32] | csr_array
    y: NDArray | None
    feature_names: list[str] | None
    target: str | None


def read_table(
    path: str | os.PathLike[str],
    target: str | int | None = None,
    *,
    columns: Sequence[str] | None = None,
    part: str = "train",
) -> Table:
    """Read the samples of a file, whose format follows from its suffix.

    - `.csv`, `.tsv` (also with `.gz`): a column a feature, separated by comma, semicolon or tab.
      The first line holds the names, unless all its fields are numbers: then there are no names
      (0, 1, 2, ... are taken for names). The file is read in chunks.
    - `.parquet`: likewise; needs pyarrow (`pip install 'largesparse[tables]'`).
    - `.svm`, `.libsvm`, `.svmlight` (also with `.gz`): X is CSR and y the labels. Indices start
      at 0 if a 0 is among them, else at 1.
    - `.npz`: arrays `X` and possibly `y`, or `x_train, y_train, x_test, y_test`, or CSR arrays
      `indptr, indices, shape` and possibly `data` and `y`; names may be in `feature_names`.
      Rows of images become flat.

    Parameters
    ----------
    path : path
    target : str or int, optional
        The column of the labels: its name, or its position where -1 is the last. Without it no
        column is split off; svmlight files and archives give their own y all the same. For an
        archive, the name of the array.
    columns : sequence of str, optional
        The features that are wanted, in this order, as a fitted model has them. The other
        columns may be anything. Where the file has no names their number must agree.
    part : "train" or "test"
        Which part of an archive that has two.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        If the file is missing, empty, damaged or of another format; if a column is missing, not
        numeric, or has a missing or infinite value; if names are doubled or missing; or if there
        is one row only beside a target. Rows in messages count from 1, without the header.
    ParameterError
        If `part` is another word.
    """
    path = expand_user(path)
    if part not in ("train", "test"):
        raise ParameterError(
            f"The 'part' parameter of read_table must be 'train' or 'test'. Got {part!r} instead."
        )
    kind = table_format(path)
    if kind is None:
        raise DataError(
            f"{path} has a suffix that no reader knows. Known are {', '.join(SUFFIXES)}, of which "
            "text may also end in .gz; rename or convert the file."
        )
    if not path.is_file():
        raise DataError(f"There is no file {path}. Check the path.")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty. Get or write it again.")
    if kind == "csv":
        table = Table(*read_csv(path, target, columns))
    elif kind == "parquet":
        table = Table(*read_parquet(path, target, columns))
    elif kind == "svmlight":
        table = _read_svmlight(path, target)
    else:
        table = _read_npz(path, target, part)
    if columns is not None:
        table = align_columns(table, columns)
    if not table.X.shape[0]:
        raise DataError(f"{path} has no rows of data. Get or write it again.")
    if target is not None and table.X.shape[0] == 1:
        raise DataError(f"{path} has one row only. Training and testing need more samples.")
    return table


def table_format(path: Path) -> str | None:
    """Return "csv", "parquet", "npz" or "svmlight" after the suffix of `path`, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        kind = SUFFIXES.get(suffixes[-2]) if len(suffixes) > 1 else None
        return kind if kind in ("csv", "svmlight") else None
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def align_columns(
    table: Table, feature_names: Sequence[str] | None, n_features: int | None = None
) -> Table:
    """Pick the columns that a model was trained on, by name and in the model's order.

    Other columns, such as the target, are left out. Where the table or the model has no names the
    number of columns must agree; a CSR table may have fewer, as svmlight files leave out the last
    features when they are 0 in all samples.

    Parameters
    ----------
    table : Table
    feature_names : sequence of str or None
        Of the model.
    n_features : int, optional
        Of the model; by default the number of names.

    Raises
    ------
    DataError
        If columns are missing, or their number is another.
    """
    n_columns = table.X.shape[1]
    if feature_names is not None and table.feature_names is not None:
        order = positions_of(list(feature_names), table.feature_names, "The table")
        if order == list(range(n_columns)):
            return table
        return table._replace(X=table.X[:, order], feature_names=list(feature_names))
    expected = n_features if feature_names is None else len(feature_names)
    if expected is None or n_columns == expected:
        return table
    if n_columns < expected and not isinstance(table.X, np.ndarray):
        wide = table.X.copy()
        wide.resize((wide.shape[0], expected))
        return table._replace(X=wide)
    raise DataError(
        f"The table has {n_columns} columns, but the model was trained on {expected} features. "
        "Pass the same columns in the same order, or files with column names to both."
    )


def _read_svmlight(path: Path, target: str | int | None) -> Table:
    from scipy.sparse import csr_array
    from sklearn.datasets import load_svmlight_file

    if target is not None:
        raise DataError(
            f"{path} is an svmlight file, which begins every line with the label: it has no "
            f"column {target!r}. Leave the target out."
        )
    try:
        X, y = load_svmlight_file(str(path), dtype=np.float32)
    except (OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} cannot be read as svmlight: {error}. Lines are 'label index:value ...', "
            "with one label and rising indices."
        ) from error
    whole = np.abs(y).max(initial=0) < 2**53 and (y == np.trunc(y)).all()
    return Table(csr_array(X), y.astype(np.int64) if whole else y, None, None)


def _read_npz(path: Path, target: str | int | None, part: str) -> Table:
    arrays = read_archive(path)
    X: NDArray | csr_array
    label = "y"
    if "X" in arrays:
        X = arrays["X"]
    elif "x_train" in arrays:
        if f"x_{part}" not in arrays:
            raise DataError(f"{path} has no array 'x_{part}'. Pass the other part.")
        X, label = arrays[f"x_{part}"], f"y_{part}"
    elif {"indptr", "indices", "shape"} <= arrays.keys():
        X = csr_from_archive(arrays, path)
    else:
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}; a table needs X, or "
            "x_train, or indptr, indices and shape."
        )
    if target is not None and target != "y":
        label = str(target)
    y = arrays.get(label)
    if y is None and target is not None:
        raise DataError(
            f"{path} has no array {label!r} for the target: it holds {', '.join(sorted(arrays))}."
        )
    if X.ndim < 2 or X.dtype.kind not in "biuf":
        raise DataError(
            f"X in {path} must be numbers of shape (samples, features), but is {X.dtype} of shape "
            f"{X.shape}. Write it so."
        )
    if y is not None and y.shape[:1] != X.shape[:1]:
        raise DataError(f"X in {path} has {X.shape[0]} samples but {label} has {y.shape[:1]}.")
    names = [str(name) for name in arrays["feature_names"]] if "feature_names" in arrays else None
    X = flatten_rows(X).astype(np.float32, copy=False)
    if names is not None and len(names) != X.shape[1]:
        raise DataError(f"{path} has {len(names)} feature_names for {X.shape[1]} features.")
    return Table(X, y, names, None if target is None else label)

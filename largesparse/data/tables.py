"""Tables of samples from files, whose format follows from the suffix.

- `.csv`, `.tsv` (also with `.gz`): a column a feature, separated by comma, semicolon or tab. The
  file is read in chunks. Labels are numbers where printing these gives the same text, or where some
  have a fraction, else text, without spaces around it: `007`, `+1` and `NA` stay so.
- `.parquet`: likewise, with types of its own; needs pyarrow (`pip install '.[tables]'`).
- `.svm`, `.libsvm`, `.svmlight` (also with `.gz`): X is CSR and y the labels.
- `.npz`: arrays `X` and possibly `y`, or `x_train, y_train, x_test, y_test`, or CSR arrays
  `indptr, indices, shape` and possibly `data` and `y`, or what `scipy.sparse.save_npz` writes,
  which becomes CSR; names may be in `feature_names`. Rows of images become flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError
from ..machine.environment import expand_user
from .archives import array_names, csr_from_archive, flatten_rows, holds_sparse, read_archive
from .columns import read_csv, read_parquet
from .files import reading
from .frames import first_doubled, positions_of
from .precision import narrowest, needs_float64
from .targets import check_values

if TYPE_CHECKING:
    import os

    from scipy.sparse import csr_array

    from ..model.network import SparseMLP

SUFFIXES = {  # a further .gz may follow those of text
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".npz": "npz",
    ".svm": "svmlight",
    ".libsvm": "svmlight",
    ".svmlight": "svmlight",
}


class FileLayout(NamedTuple):
    """What a file does not say itself, and a model keeps of the file that it was trained on.

    header: whether a text table begins with the names of its columns; zero_based: whether the
    indices of an svmlight file begin at 0. None where there is no such thing, or it is not known.
    """

    header: bool | None = None
    zero_based: bool | None = None


class Table(NamedTuple):
    """Samples from a file.

    X (n_samples, n_features), array or CSR: float32, or float64 where rounding to float32 would
    lose what distinguishes the values of a column (times in seconds, say); y (n_samples,) the
    labels as they are in the file, strings or numbers, or None; feature_names in the order of X's
    columns, or None where the file has none; target the name of the column that became y, or None;
    layout how the file was read.
    """

    X: NDArray[np.float32] | NDArray[np.float64] | csr_array
    y: NDArray | None
    feature_names: list[str] | None
    target: str | None
    layout: FileLayout = FileLayout()


def read_table(
    path: str | os.PathLike[str],
    target: str | int | None = None,
    *,
    columns: Sequence[str] | None = None,
    part: str | None = None,
    header: bool | None = None,
    zero_based: bool | None = None,
    dtype: type | None = None,
) -> Table:
    """Read the samples of a file, whose format follows from its suffix: see above.

    Parameters
    ----------
    path : path
    target : str or int, optional
        The column of the labels: its name, or its position, where -1 is the last. A string is a
        position only where the columns have no names. Without it no column is split off; svmlight
        files and archives give their own y all the same. For an archive, the name of the array,
        without `_train` and `_test` where it has two parts.
    columns : sequence of str, optional
        The features that are wanted, in this order, as a fitted model has them. The other
        columns may be anything. Where a file that is not text has no names their number must agree.
    part : "train" or "test", optional
        Which part of an archive that has two (see `parts_of`), by default the former.
    header : bool, optional
        Whether the first line of text holds the names of the columns. By default it does where it
        holds text, the wanted columns, or 0, 1, 2, ..., and does not where it is other numbers; a
        file where either may be meant is refused.
    zero_based : bool, optional
        Whether the indices of an svmlight file begin at 0. By default they do if a 0 is among them.
    dtype : type, optional
        `numpy.float64` keeps X so. By default it is float32 if that is enough.

    Raises
    ------
    DataError
        If the file is missing, empty, damaged or of another format; if a column is missing, not
        numeric, or has a missing or infinite value; if names are doubled or missing; if the first
        line may hold names or data; or if there is one row only beside a target. Rows in messages
        count from 1, without the header.
    ParameterError
        If `part` is another word, or it, `header` or `zero_based` is given and the file has none.
    """
    path = expand_user(path)
    kind = _check_file(path, part, header=header, zero_based=zero_based)
    if kind == "csv":
        parts = read_csv(path, target, columns, header=header, dtype=dtype)
        table = Table(*parts, FileLayout(header=parts.feature_names is not None))
    elif kind == "parquet":
        table = Table(*read_parquet(path, target, columns, dtype=dtype))
    else:
        npz = kind == "npz"
        table = _read_npz(path, target, part) if npz else _read_svmlight(path, target, zero_based)
        table = table._replace(X=narrowest(table.X) if dtype is None else table.X.astype(dtype))
    if part is not None and not parts_of(path):
        raise ParameterError(
            f"{path} has no part {part!r}: only archives with arrays x_train and x_test have "
            "parts. Leave the part out."
        )
    if columns is not None:
        table = align_columns(table, columns)
    if not table.X.shape[0]:
        raise DataError(f"{path} has no rows of data. Get or write it again.")
    if table.y is not None:
        owner = f"{path}: the target" + ("" if table.target is None else f" {table.target!r}")
        table = table._replace(y=check_values(table.y, owner))
    if target is not None and table.X.shape[0] == 1:
        raise DataError(f"{path} has one row only. Training and testing need more samples.")
    return table


def _check_file(
    path: Path, part: str | None, *, header: bool | None, zero_based: bool | None
) -> str:
    """Return the format of a file that is there, if what is asked for fits it."""
    if part not in (None, "train", "test"):
        raise ParameterError(
            f"The 'part' parameter of read_table must be 'train' or 'test'. Got {part!r} instead."
        )
    kind = table_format(path)
    if kind is None:
        raise DataError(
            f"{path} has a suffix that no reader knows. Known are {', '.join(SUFFIXES)}, of which "
            "text may also end in .gz; rename or convert the file."
        )
    for name, value, owner in (("header", header, "csv"), ("zero_based", zero_based, "svmlight")):
        if value is not None and kind != owner:
            raise ParameterError(
                f"The {name!r} parameter of read_table is for {owner} files, and {path} is "
                f"{kind}. Leave it out."
            )
    if not path.is_file():
        raise DataError(f"There is no file {path}. Check the path.")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty. Get or write it again.")
    return kind


def read_table_for(
    network: SparseMLP,
    path: str | os.PathLike[str],
    target: str | int | None = None,
    *,
    part: str | None = None,
    header: bool | None = None,
    zero_based: bool | None = None,
) -> Table:
    """Read a file as `read_table` does, with the columns that a network was trained on.

    What the file does not say is as in the file of the training, where the network has it: whether
    there are names of columns, and where indices begin.

    Raises
    ------
    DataError
        As `read_table` does, or if it is not certain which column is which feature.
    """
    kind, trained = table_format(Path(path)), network.file_layout or FileLayout()
    if header is None and kind == "csv" and trained.header is False:
        header = False
    if zero_based is None and kind == "svmlight":
        zero_based = trained.zero_based
    table = read_table(
        path,
        target,
        columns=network.feature_names,
        part=part,
        header=header,
        zero_based=zero_based,
        dtype=np.float64 if needs_float64(network.preprocessing) else None,
    )
    n_features = network.config.layer_sizes[0]
    if zero_based is None and table.layout.zero_based is False and table.X.shape[1] < n_features:
        raise DataError(
            f"{path} has {table.X.shape[1]} features if its indices begin at 1, fewer than the "
            f"{n_features} of the model, so they may begin at 0. Say which: zero_based=True or "
            "zero_based=False (--index-base 0 or --index-base 1 on the command line)."
        )
    return align_columns(table, network.feature_names, n_features)


def parts_of(path: Path) -> list[str]:
    """Return which of the parts "train" and "test" of an archive have features.

    There are none in an archive with `X` or CSR arrays, and in any other file.
    """
    names = array_names(path) if table_format(path) == "npz" else set()
    return [] if "X" in names else [part for part in ("train", "test") if f"x_{part}" in names]


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


def _read_svmlight(path: Path, target: str | int | None, zero_based: bool | None) -> Table:
    from scipy.sparse import csr_array
    from sklearn.datasets import load_svmlight_file

    if target is not None:
        raise DataError(
            f"{path} is an svmlight file, which begins every line with the label: it has no "
            f"column {target!r}. Leave the target out."
        )
    lines = "Lines are 'label index:value ...', with one label and rising indices."
    with reading(path, "as svmlight", lines):
        # From 0 in any case: how low the indices go is seen only then.
        X, y = load_svmlight_file(str(path), dtype=np.float64, zero_based=True)
    has_zero = bool((X.indices == 0).any())
    if zero_based is None:
        zero_based = has_zero
    elif has_zero and not zero_based:
        raise DataError(
            f"{path} has the index 0, but indices are to begin at 1, as in the file that a model "
            "was trained on. Write it with the same indices as that file."
        )
    whole = np.abs(y).max(initial=0) < 2**53 and (y == np.trunc(y)).all()
    y = y.astype(np.int64) if whole else y
    if not zero_based:
        X.indices -= 1
        X = csr_array((X.data, X.indices, X.indptr), shape=(X.shape[0], max(0, X.shape[1] - 1)))
    X = csr_array(X)
    return Table(X, y, None, None, FileLayout(zero_based=zero_based))


def _read_npz(path: Path, target: str | int | None, part: str | None) -> Table:
    arrays = read_archive(path)
    X: NDArray | csr_array
    label = "y" if target is None else str(target)
    if "X" in arrays:
        X = arrays["X"]
    elif "x_train" in arrays or "x_test" in arrays:
        part = part or "train"
        if f"x_{part}" not in arrays:
            raise DataError(f"{path} has no array 'x_{part}'. Choose the other part.")
        X, label = arrays[f"x_{part}"], f"{label}_{part}"
    elif holds_sparse(arrays):
        X = csr_from_archive(arrays, path)
    else:
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}; a table needs X, or "
            "x_train or x_test, or indptr, indices and shape."
        )
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
    X = flatten_rows(X)
    if names is not None and len(names) != X.shape[1]:
        raise DataError(f"{path} has {len(names)} feature_names for {X.shape[1]} features.")
    if names is not None and (twice := first_doubled(names)) is not None:
        raise DataError(f"{path} has two features named {twice!r}. Rename or remove one.")
    return Table(X, y, names, None if target is None else label)

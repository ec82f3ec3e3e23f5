"""Tables of samples from files, whose format follows from the suffix.

- `.csv`, `.tsv`, `.txt`, `.tab`, `.data` (also with `.gz`): a column a feature, separated by comma,
  semicolon or tab, or by spaces where the suffix is none of the first two. The file is read in
  chunks. Labels are numbers where printing these gives the same text, or where some have a
  fraction, else text, without spaces around it: `007`, `+1` and `NA` stay so.
- `.parquet`: likewise, with types of its own; needs pyarrow (`pip install '.[tables]'`).
- `.arff` (also with `.gz`), dense and sparse: likewise; of sparse data X is CSR.
- `.svm`, `.libsvm`, `.svmlight` (also with `.gz`), and `.txt` of such lines: X is CSR and y the
  labels; where lines have several (`3,17 1:0.5 …`) y is an indicator matrix, CSR, with a column for
  each number up to the largest.
- `.txt` of extreme classification, whose first line has the numbers of rows, features and labels:
  likewise, and both are counted from 0.
- `.npz`: arrays `X` and possibly `y`, or `x_train, y_train, x_test, y_test`, or CSR arrays
  `indptr, indices, shape` and possibly `data` and `y`, or what `scipy.sparse.save_npz` writes,
  which becomes CSR; names may be in `feature_names`. Rows of images become flat.
- `.npy`: an array of which the target may be a column.
- `.mat`, before MATLAB's version 7.3: `X` and `y`, as in `.npz`, or `Y`; or a single matrix.
- `*_series_matrix.txt` (also with `.gz`), of GEO: the target is a characteristic of the samples.
- `.h5ad`: the target is a column of `obs`; needs anndata (`pip install '.[anndata]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ..errors import DataError
from ..machine.environment import expand_user
from .categories import Encoded
from .columns import Parts
from .formats import check_file, table_format
from .frames import positions_of
from .label_sets import check_label_sets
from .labels import read_labels
from .layout import FileLayout, Wanted
from .missing import complete, row_numbers
from .precision import narrowest, needs_float64
from .targets import check_values

if TYPE_CHECKING:
    import os

    from scipy.sparse import csr_array

    from ..model.network import SparseMLP


class Table(NamedTuple):
    """Samples from a file.

    X (n_samples, n_features), array or CSR: float32, or float64 where rounding to float32 would
    lose what distinguishes the values of a column (times in seconds, say); y (n_samples,) the
    labels as they are in the file, strings or numbers, or None; feature_names in the order of X's
    columns, or None where the file has none; target the name of the column that became y, or None;
    layout how the file was read; ids (n_samples,) the names of the samples, or None; notes what
    was guessed and what looks wrong, a sentence each.
    """

    X: NDArray[np.float32] | NDArray[np.float64] | csr_array
    y: Any
    feature_names: list[str] | None
    target: str | None
    layout: FileLayout = FileLayout()
    ids: NDArray | None = None
    notes: tuple[str, ...] = ()


def read_table(
    path: str | os.PathLike[str],
    target: str | int | None = None,
    *,
    columns: Sequence[str] | None = None,
    part: str | None = None,
    format: str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
    zero_based: bool | None = None,
    drop: Sequence[str | int] = (),
    id: str | int | None = None,
    categorical: Sequence[str | int] | None = None,
    missing: str | None = None,
    transpose: bool = False,
    labels: str | os.PathLike[str] | None = None,
    log: bool = False,
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
    format : str, optional
        One of `FORMATS`, where the suffix does not say it.
    header : bool, optional
        Whether the first line of text holds the names of the columns. By default it does where it
        holds text, the wanted columns, or 0, 1, 2, ..., and does not where it is other numbers; a
        file where either may be meant is refused.
    delimiter : str, optional
        The character that separates the fields of text; a space stands for any number of spaces
        and tabs. By default it is found in the first line.
    decimal : "." or ",", optional
        The decimal sign of text.
    zero_based : bool, optional
        Whether the indices of an svmlight file begin at 0. By default they do if a 0 is among them.
    drop : sequence of str or int
        Columns that are left out, as in `target`. The column without a name is "".
    id : str or int, optional
        The column that names the rows. It is no feature; `Table.ids` has it.
    categorical : sequence of str or int, optional
        Columns of text, each of which becomes a feature a category (`COLUMN=CATEGORY`) that is 1
        in the rows of the category, else 0. An empty sequence: every column that has text. X is CSR
        where so few of its values are nonzeros that they are computed as such.
    missing : "mean", "indicator" or "drop", optional
        What becomes of values that are empty, `?` or `NA`: the mean of the column in this file; or
        that, and a feature `COLUMN=?` for each column that lacks some, 1 where it does and else 0;
        or rows with one are left out. Of a category that is missing all features are 0, or with
        "indicator" that is a category, `COLUMN=?`. By default missing values are refused.
    transpose : bool
        Whether the rows of text are features, named in the first column, and the columns samples,
        named in the first line. The target is then a row.
    labels : path, optional
        A file with the labels, one a line in the order of the samples; or with the names of the
        samples in a first column and the labels in a second, or in that called `target`. Or `.npy`
        or `scipy.sparse.save_npz` of an indicator matrix.
    log : bool
        Whether the features become log(1 + x), as counts of very different sizes should.
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
        If a parameter has another value, or is given and the file has no such thing.
    """
    path = expand_user(path)
    given = {
        "header": header,
        "delimiter": delimiter,
        "decimal": decimal,
        "transpose": transpose or None,
        "zero_based": zero_based,
        "drop": drop or None,
        "id": id,
        "categorical": categorical,
    }
    check_file(path, part, format, given)
    wanted = Wanted(
        target=None if labels is not None else target,
        columns=columns,
        drop=tuple(drop),
        id=id,
        categorical=categorical,
        missing=missing,
        dtype=dtype,
        header=header,
        delimiter=delimiter,
        decimal=decimal or ".",
    )
    try:
        table, encoded = _read(
            path, format, wanted, part=part, zero_based=zero_based, transpose=transpose
        )
    except DataError as error:
        if labels is None or transpose or (format or table_format(path)) != "csv":
            raise
        raise DataError(
            f"{error} Or, if its rows are features and its columns samples, pass transpose=True "
            "(--transpose)."
        ) from error
    if columns is not None and categorical is None:
        table = align_columns(table, columns)
    if labels is not None:
        table = _with_labels(table, labels, target)
    if columns is None and isinstance(table.X, np.ndarray) and (encoded or table.X.shape[1] > 1):
        notes = row_numbers(table.X, table.feature_names)
        table = table._replace(notes=(*table.notes, *notes))
    return _checked(path, complete(table, encoded, missing, log=log), target)


def _read(
    path: Path,
    format: str | None,
    wanted: Wanted,
    *,
    part: str | None,
    zero_based: bool | None,
    transpose: bool,
) -> tuple[Table, Encoded | None]:
    """Read a file with the reader of its format; columns of text that are encoded come apart."""
    from . import arff, arrays, text_tables, typed_tables

    kind = format or table_format(path)
    parts: Parts
    if kind == "csv":
        read = text_tables.read_transposed if transpose else text_tables.read_csv
        parts = read(path, wanted)
    elif kind == "parquet":
        parts = typed_tables.read_parquet(path, wanted)
    elif kind == "npy":
        parts = arrays.read_npy(path, wanted)
    elif kind == "arff":
        parts = arff.read_arff(path, wanted)
    elif kind == "npz":
        parts = arrays.read_npz(path, wanted.target, part)
    elif kind == "extreme":
        parts = arrays.read_extreme_text(path, wanted.target)
    elif kind == "mat":
        parts = arrays.read_mat(path, wanted.target)
    elif kind == "series":
        parts = arrays.read_series(path, wanted.target)
    elif kind == "h5ad":
        parts = arrays.read_h5ad(path, wanted.target)
    else:
        parts = arrays.read_svmlight(path, wanted.target, zero_based)
    X = parts.X
    if kind not in ("csv", "parquet", "npy"):  # which are read so
        X = narrowest(X) if wanted.dtype is None else X.astype(wanted.dtype)
    return Table(*parts._replace(X=X)[:-1]), parts.encoded


def _with_labels(table: Table, labels: str | os.PathLike[str], target: str | int | None) -> Table:
    y, name = read_labels(str(labels), table.X.shape[0], table.ids, target)
    return table._replace(y=y, target=name)


def _checked(path: Path, table: Table, target: str | int | None) -> Table:
    if not table.X.shape[0]:
        raise DataError(f"{path} has no rows of data. Get or write it again.")
    if table.y is not None:
        owner = f"{path}: the target" + ("" if table.target is None else f" {table.target!r}")
        y = check_label_sets(table.y).to_csr(np.int8) if issparse(table.y) else table.y
        table = table._replace(y=y if issparse(y) else check_values(y, owner))
    if target is not None and table.X.shape[0] == 1:
        raise DataError(f"{path} has one row only. Training and testing need more samples.")
    return table


def read_table_for(
    network: SparseMLP,
    path: str | os.PathLike[str],
    target: str | int | None = None,
    **options: Any,
) -> Table:
    """Read a file as `read_table` does, with the columns that a network was trained on.

    `options` are parameters of `read_table`, but for `columns`, `categorical`, `log` and `dtype`.
    What the file does not say is as in the file of the training, where the network has it: whether
    there are names of columns, where indices begin, the decimal sign, whether rows are features,
    the codes of categories, and the means that missing values are replaced by.

    Raises
    ------
    DataError
        As `read_table` does, or if it is not certain which column is which feature.
    """
    trained, scaling = network.file_layout or FileLayout(), network.preprocessing
    names, n_features = network.feature_names, network.config.layer_sizes[0]
    if trained.means is None and scaling is not None:
        means = scaling.mean.tolist()
        if trained.categories:  # a model of an earlier release
            known = dict(zip(names or [], means, strict=True))
            means = [known[name] for name in trained.columns or [] if name in known]
        trained = trained._replace(means=means)
    dtype = np.float64 if needs_float64(scaling) else None
    return read_table_like(trained, names, n_features, path, target, dtype=dtype, **options)


def read_table_like(
    trained: FileLayout,
    feature_names: list[str] | None,
    n_features: int,
    path: str | os.PathLike[str],
    target: str | int | None = None,
    *,
    part: str | None = None,
    format: str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
    zero_based: bool | None = None,
    drop: Sequence[str | int] = (),
    id: str | int | None = None,
    missing: str | None = None,
    transpose: bool = False,
    labels: str | os.PathLike[str] | None = None,
    dtype: type | None = None,
) -> Table:
    """Read a file with the features of a table that has been read: see `read_table_for`."""
    path = expand_user(path)
    kind = format or table_format(path)
    if kind == "csv":
        if header is None and trained.header is False:
            header = False
        decimal = decimal or trained.decimal
        transpose = transpose or bool(trained.transpose)
    if kind == "svmlight" and zero_based is None:
        zero_based = trained.zero_based
    if missing is None and trained.missing != "drop":
        missing = trained.missing
    given = {
        "header": header,
        "delimiter": delimiter,
        "decimal": decimal,
        "transpose": transpose or None,
        "zero_based": zero_based,
        "drop": drop or None,
        "id": id,
    }
    check_file(path, part, format, given)
    sources = feature_names
    if trained.categories or trained.indicators:
        sources = trained.columns
    counted = all(name.isdecimal() for name in trained.columns or [])
    wanted = Wanted(
        target=None if labels is not None else target,
        columns=sources,
        drop=tuple(drop),
        id=trained.id if id is None else id,
        id_if_there=id is None,
        missing=missing,
        dtype=dtype,
        header=header,
        delimiter=delimiter,
        decimal=decimal or ".",
        positions=list(map(int, trained.columns or [])) if counted else None,
        n_columns=trained.n_columns,
        categories=trained.categories,
    )
    table, encoded = _read(
        path, format, wanted, part=part, zero_based=zero_based, transpose=transpose
    )
    if trained.labels and table.layout.labels:
        order = positions_of(trained.labels, table.layout.labels, f"Of labels, {path}")
        table = table._replace(y=table.y[:, order])
    n_columns = table.X.shape[1]
    if zero_based is None and table.layout.zero_based is False and n_columns < n_features:
        raise DataError(
            f"{path} has {n_columns} features if its indices begin at 1, fewer than the "
            f"{n_features} of the model, so they may begin at 0. Say which: zero_based=True or "
            "zero_based=False (--index-base 0 or --index-base 1 on the command line)."
        )
    if sources is not None:
        sources = [name for name in sources if name not in (trained.categories or {})]
    table = align_columns(table, sources, n_features)
    if trained.indicators:
        table = table._replace(feature_names=sources)
    if labels is not None:
        table = _with_labels(table, labels, target)
    table = complete(table, encoded, missing, log=bool(trained.log), trained=trained)
    return _checked(path, table, target)


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

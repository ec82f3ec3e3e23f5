"""Tables with columns, CSV and parquet: read in chunks, with errors that name the column."""

from __future__ import annotations

import csv
import difflib
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame

CHUNK_BYTES = 2**25  # of the values of a chunk, in float64
SHOWN = 5  # names in a message
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

# X, y, the names of X's columns, the name of the target
Parts = tuple[NDArray[np.float32], NDArray | None, list[str] | None, str | None]


class _Columns(NamedTuple):
    """Which columns of a file are read."""

    features: list[int]  # positions in the file, in the order of X's columns
    target: int | None  # a position
    names: list[str] | None  # of all columns


def read_csv(path: Path, target: str | int | None, wanted: Sequence[str] | None) -> Parts:
    """Read text with separators, as `tables.read_table` says."""
    try:
        first, separator = _first_line(path)
        names = first if _is_header(first, path) else None
        columns = _choose_columns(path, len(first), names, target, wanted)
        dtypes = dict.fromkeys(columns.features, np.float32)
        dialect = {"sep": separator, "header": None if names is None else 0}
        every = range(len(first))
        try:
            mixed = {i: dtypes.get(i, str) for i in every}
            with np.errstate(over="ignore"):  # infinities are refused
                X, y, features, label = _from_chunks(
                    path, csv_chunks(path, every, mixed, dialect), columns
                )
            return X, None if y is None else _numbers_if_all(y), features, label
        except DataError:
            raise
        except ValueError:  # perhaps of a value that is no number; pandas does not say where
            _refuse_text(path, csv_chunks(path, every, str, dialect), columns)
            raise
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a table: {str(error).strip()}. Write it again."
        ) from error


def csv_chunks(
    path: Path, every: range, dtype: Any, dialect: dict[str, Any]
) -> Iterator[DataFrame]:
    """Read text in chunks of rows whose columns are positions.

    All columns are read: pandas checks the lengths of lines only then.

    Parameters
    ----------
    path : path
        Plain or gzipped.
    every : range
        The positions of the columns.
    dtype : dtype, or dict of position to dtype
    dialect : dict
        Further keywords of `pandas.read_csv`: the separator and the header.

    Raises
    ------
    DataError
        If the rows have more fields than there are columns. Else what pandas raises.
    """
    import pandas as pd

    value_bytes = 64 if dtype is str else 8  # strings are Python objects
    with pd.read_csv(
        path,
        names=every,
        dtype=dtype,
        encoding="utf-8-sig",
        skipinitialspace=True,
        chunksize=max(1, CHUNK_BYTES // (value_bytes * len(every))),
        **dialect,
    ) as reader:
        for chunk in reader:
            if not isinstance(chunk.index, pd.RangeIndex):  # pandas takes the first for row names
                raise DataError(
                    f"{path}: the rows have more fields than the first line, which has "
                    f"{len(every)}. Name all columns; quote fields that hold the separator."
                )
            yield chunk


def read_parquet(path: Path, target: str | int | None, wanted: Sequence[str] | None) -> Parts:
    """Read a parquet file, as `tables.read_table` says."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"Reading {path} needs pyarrow, which is not installed. Install it with pip install "
            "'largesparse[tables]', or save the table as .csv."
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            frame = file.schema_arrow.empty_table().to_pandas()  # without pandas' index columns
            names = [str(name) for name in frame.columns]
            columns = _choose_columns(path, len(names), names, target, wanted)
            if columns.target is not None:
                _check_type(path, columns, file.schema_arrow.field(names[columns.target]).type)
            size = max(1, CHUNK_BYTES // (8 * len(names)))
            with np.errstate(over="ignore"):  # infinities are refused
                return _from_chunks(path, _frames(path, file, size, columns), columns)
    except DataError:
        raise
    except Exception as error:  # a damaged file makes pyarrow and pandas raise all sorts
        raise DataError(f"{path} cannot be read as parquet: {error}. Write it again.") from error


def _first_line(path: Path) -> tuple[list[str], str]:
    """Return the fields of the first line that is not blank, and what separates them."""
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        line = next((line for line in file if line.strip()), "")
        if not line:
            raise DataError(f"{path} is empty. Get or write it again.")
        separator = max(",;\t", key=line.count)
        file.seek(0)
        rows = csv.reader(file, delimiter=separator, skipinitialspace=True)
        return next(row for row in rows if row), separator


def _is_header(fields: list[str], path: Path) -> bool:
    numbers = [bool(NUMBER.fullmatch(field.strip())) for field in fields]
    if all(numbers):
        return len(fields) > 2 and fields == [str(i) for i in range(len(fields))]
    for field, number in zip(fields, numbers, strict=True):
        if number and not field.strip().isdigit():
            raise DataError(
                f"{path}: the first line looks like data ({field!r} in it is a number), but not "
                "all of it is numbers. Put a line of column names before it."
            )
    return True


def _choose_columns(
    path: Path,
    n_columns: int,
    names: list[str] | None,
    target: str | int | None,
    wanted: Sequence[str] | None,
) -> _Columns:
    if names is not None:
        if "" in names:
            raise DataError(
                f"{path}: column {names.index('') + 1} has no name. Name it, or leave it out if "
                "it only counts the rows (to_csv(..., index=False) in pandas)."
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path} has two columns named {twice!r}. Rename or remove one.")
    position = None if target is None else _target_position(path, n_columns, names, target)
    if names is not None and wanted is not None:
        features = positions_of(list(wanted), names, str(path))
    else:
        features = [i for i in range(n_columns) if i != position]
    if not features:
        raise DataError(f"{path} has no column of features beside the target. Add some.")
    return _Columns(features, position, names)


def _target_position(path: Path, n_columns: int, names: list[str] | None, target: str | int) -> int:
    if names is not None and target in names:
        return names.index(str(target))
    if isinstance(target, str) and (names is not None or not re.fullmatch(r"-?\d+", target)):
        known = "it has no column names, so pass a position" if names is None else _known(names)
        near = difflib.get_close_matches(target, names or [], SHOWN)
        meant = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise DataError(f"{path} has no column {target!r} for the target: {known}.{meant}")
    position = int(target)
    if not -n_columns <= position < n_columns:
        raise DataError(
            f"{path} has no column at position {position} for the target: it has {n_columns} "
            f"columns, 0 to {n_columns - 1}. Pass one of these."
        )
    return position % n_columns


def _known(names: list[str]) -> str:
    more = f" and {len(names) - 2 * SHOWN} more" if len(names) > 2 * SHOWN else ""
    return f"its columns are {', '.join(map(repr, names[: 2 * SHOWN]))}{more}"


def positions_of(wanted: list[str], names: list[str], owner: str) -> list[int]:
    """Return where the wanted names stand among `names`; `owner` is for the message.

    Raises
    ------
    DataError
        If one is not there.
    """
    where = {name: position for position, name in enumerate(names)}
    if missing := [name for name in wanted if name not in where]:
        shown = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        near = difflib.get_close_matches(missing[0], names, 1)
        meant = f" {missing[0]!r} may be its {near[0]!r}." if near else ""
        raise DataError(
            f"{owner} lacks {len(missing)} of the {len(wanted)} columns that the model was trained "
            f"on: {shown}.{meant} Add these columns under these names."
        )
    return [where[name] for name in wanted]


def _from_chunks(path: Path, chunks: Iterable[DataFrame], columns: _Columns) -> Parts:
    """Collect chunks whose columns are positions; X is never there twice."""
    values, labels, n_rows = bytearray(), [], 0
    for chunk in chunks:
        block = chunk[columns.features].to_numpy(np.float32)
        if not np.isfinite(block).all():
            row, column = np.argwhere(~np.isfinite(block))[0]
            missing = np.isnan(block[row, column])
            _refuse(
                path,
                columns,
                columns.features[column],
                "a missing value" if missing else "a value that is infinite in float32",
                n_rows + int(row) + 1,
                "Fill or remove it first" if missing else "Rescale or remove it first",
            )
        values += block.tobytes()
        if columns.target is not None:
            label = chunk[columns.target]
            if label.isna().any():
                row = n_rows + int(label.isna().to_numpy().argmax()) + 1
                remedy = "Remove the samples that have no label"
                _refuse(path, columns, columns.target, "a missing value", row, remedy)
            labels.append(np.array(label.tolist()))  # strings of a few bytes, not objects
        n_rows += len(chunk)
    X = np.frombuffer(values, np.float32).reshape(n_rows, len(columns.features))
    y = None if columns.target is None else np.concatenate(labels or [np.empty(0)])
    names = columns.names
    return (
        X,
        y,
        None if names is None else [names[i] for i in columns.features],
        None if columns.target is None else _name(columns, columns.target),
    )


def _numbers_if_all(labels: NDArray) -> NDArray:
    """Return labels read as text as integers or floats if all are such."""
    if labels.dtype.kind == "f":  # a feature too, and read as one
        return labels
    for dtype in (np.int64, np.float64):
        try:
            return labels.astype(dtype)
        except (ValueError, OverflowError):
            continue
    return labels


def _frames(path: Path, file: Any, size: int, columns: _Columns) -> Iterator[DataFrame]:
    """Read chunks; columns become positions and features that are no numbers are refused."""
    from pandas.api.types import is_numeric_dtype
    from pyarrow.types import is_decimal

    assert columns.names is not None
    read = [*columns.features, *([] if columns.target is None else [columns.target])]
    for batch in file.iter_batches(size, columns=[columns.names[i] for i in read]):
        frame = batch.to_pandas()
        frame.columns = [columns.names.index(str(name)) for name in frame.columns]
        target = columns.target
        if target is not None and is_decimal(batch.schema.field(columns.names[target]).type):
            frame[target] = frame[target].astype(float)
        for position in columns.features:
            if not is_numeric_dtype(frame[position].dtype):
                present = frame[position].dropna()
                value = present.iloc[0] if len(present) else None
                _refuse_column(path, columns, position, value, 1)
        yield frame


def _check_type(path: Path, columns: _Columns, kind: Any) -> None:
    """Raise a DataError unless the target of a parquet file is text, numbers or booleans."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    known = (
        *(types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null),
        *(types.is_string, types.is_large_string, types.is_string_view),
    )
    if not any(is_known(kind) for is_known in known):
        remedy = "Convert it to text or numbers first, for instance dates to days"
        _refuse(path, columns, columns.target or 0, f"values of the type {kind}", 1, remedy)


def _refuse_text(path: Path, chunks: Iterable[DataFrame], columns: _Columns) -> None:
    """Raise for the first value that is not a number."""
    import pandas as pd

    n_rows = 0
    for chunk in chunks:
        text = pd.Series(chunk[columns.features].to_numpy(object).ravel())
        bad = (pd.to_numeric(text, errors="coerce").isna() & text.notna()).to_numpy()
        if bad.any():
            first = int(bad.argmax())
            row, column = divmod(first, len(columns.features))
            position = columns.features[column]
            _refuse_column(path, columns, position, text.iloc[first], n_rows + row + 1)
        n_rows += len(chunk)


def _refuse_column(path: Path, columns: _Columns, position: int, value: Any, row: int) -> None:
    remedy = (
        "Encode it as numbers, for instance with pandas.get_dummies, leave it out, or make it "
        "the target if it holds the labels"
    )
    _refuse(path, columns, position, f"{value!r:.50}, which is not a number,", row, remedy)


def _refuse(path: Path, columns: _Columns, position: int, what: str, row: int, remedy: str) -> None:
    name = repr(_name(columns, position))
    raise DataError(f"{path}: the column {name} has {what} in row {row}. {remedy}.")


def _name(columns: _Columns, position: int) -> str:
    return str(position) if columns.names is None else columns.names[position]

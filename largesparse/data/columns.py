"""Tables with columns, CSV and parquet: read in chunks, with errors that name the column."""

from __future__ import annotations

import csv
import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, install_command
from .checks import first_true
from .files import open_text, reading
from .frames import SHOWN, first_doubled, positions_of
from .headers import has_names, is_missing, is_number, read_first_rows
from .precision import Rounding, float32_prints_the_same
from .targets import labels_of_text

if TYPE_CHECKING:
    from pandas import DataFrame

CHUNK_BYTES = 2**25  # of the values of a chunk, in float64


class Parts(NamedTuple):
    """What a file with columns holds, as `tables.Table` has it."""

    X: NDArray[np.float32] | NDArray[np.float64]
    y: NDArray | None
    feature_names: list[str] | None
    target: str | None


class _Columns(NamedTuple):
    """Which columns of a file are read."""

    path: Path
    features: list[int]  # positions in the file, in the order of X's columns
    target: int | None  # a position
    names: list[str] | None  # of all columns


def read_csv(
    path: Path,
    target: str | int | None,
    wanted: Sequence[str] | None,
    *,
    header: bool | None = None,
    dtype: type | None = None,
) -> Parts:
    """Read text with separators, as `tables.read_table` says."""
    with reading(path, "as a table", "Write it again."):
        rows, separator = read_first_rows(path)
        named = has_names(path, rows, target, wanted) if header is None else header
        names = rows[0] if named else None
        columns = _choose_columns(path, len(rows[0]), names, target, wanted)
        parts = _collect(columns, partial(_numbers_and_text, columns, rows[0], separator), dtype)
        y, position = parts.y, columns.target
        if y is not None and position is not None and y.dtype.kind != "f":  # of a feature read so
            parts = parts._replace(y=labels_of_text(y, partial(_refuse, columns, position)))
    return parts


def _numbers_and_text(columns: _Columns, first: list[str], separator: str) -> Iterator[DataFrame]:
    """Read chunks with features in float64, and all other columns as text."""
    from pandas.errors import ParserError

    every, features = range(len(first)), set(columns.features)
    dtypes = {i: np.float64 if i in features else str for i in every}
    dialect = {
        "sep": separator,
        "header": None if columns.names is None else 0,
        "na_filter": False,  # "NA" is a label; in a feature it is refused as no number
    }
    n_rows = 0
    try:
        for chunk in csv_chunks(columns.path, every, dtypes, dialect):
            yield chunk
            n_rows += len(chunk)
    except (DataError, ParserError):
        raise
    except ValueError:  # perhaps of a value that is no number; pandas does not say where
        _refuse_text(columns, separator, n_rows)
        raise


def csv_chunks(
    path: Path, every: range, dtype: Any, dialect: dict[str, Any]
) -> Iterator[DataFrame]:
    """Read text in chunks of rows whose columns are positions.

    All columns are read: pandas checks the lengths of lines only then. `dialect` are further
    keywords of `pandas.read_csv`: the separator and the header.
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


def read_parquet(
    path: Path,
    target: str | int | None,
    wanted: Sequence[str] | None,
    *,
    dtype: type | None = None,
) -> Parts:
    """Read a parquet file, as `tables.read_table` says."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"Reading {path} needs pyarrow, which is not installed. Install it with "
            f"{install_command('tables')}, or save the table as .csv."
        ) from error
    # A damaged file makes pyarrow and pandas raise all sorts.
    with (
        reading(path, "as parquet", "Write it again.", damage=(Exception,)),
        parquet.ParquetFile(path) as file,
    ):
        frame = file.schema_arrow.empty_table().to_pandas()  # without pandas' index columns
        names = [str(name) for name in frame.columns]
        columns = _choose_columns(path, len(names), names, target, wanted)
        if columns.target is not None:
            _check_type(columns, file.schema_arrow.field(names[columns.target]).type)
        size = max(1, CHUNK_BYTES // (8 * len(names)))
        parts = _collect(columns, partial(_frames, file, size, columns), dtype)
    return parts


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
        if (twice := first_doubled(names)) is not None:
            raise DataError(f"{path} has two columns named {twice!r}. Rename or remove one.")
    position = None if target is None else _target_position(path, n_columns, names, target)
    if names is not None and wanted is not None:
        features = positions_of(list(wanted), names, str(path))
    else:
        features = [i for i in range(n_columns) if i != position]
    if not features:
        raise DataError(f"{path} has no column of features beside the target. Add some.")
    return _Columns(path, features, position, names)


def _target_position(path: Path, n_columns: int, names: list[str] | None, target: str | int) -> int:
    if names is not None and isinstance(target, str) and target in names:
        return names.index(target)
    if names is not None and str(target) in names and names.index(str(target)) != int(target):
        raise DataError(
            f"{path} has a column named {str(target)!r}, which is not the one at position "
            f"{target}. Pass the name of the target column as a string."
        )
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


def _collect(
    columns: _Columns, chunks: Callable[[], Iterable[DataFrame]], dtype: type | None
) -> Parts:
    """Collect chunks, by default in float32 if that is enough; X is never there twice."""
    rounding = Rounding(len(columns.features))
    parts = _gather(columns, chunks(), dtype or np.float32, rounding)
    if dtype is None and (suspects := rounding.suspects()).size:
        features = [columns.features[k] for k in suspects]
        exact = (
            float32_prints_the_same(chunk[features].to_numpy(np.float64)) for chunk in chunks()
        )
        if not all(exact):
            del parts
            return _gather(columns, chunks(), np.float64)
    return parts


def _gather(
    columns: _Columns, chunks: Iterable[DataFrame], dtype: type, rounding: Rounding | None = None
) -> Parts:
    """Check chunks, whose columns are positions, and put them together in a dtype."""
    values, n_rows = bytearray(), 0
    labels: list[NDArray] = []
    for chunk in chunks:
        block = chunk[columns.features].to_numpy(np.float64)
        with np.errstate(over="ignore"):  # infinities are refused
            rounded = block.astype(np.float32)
        if (place := first_true(~np.isfinite(rounded))) is not None:
            row, column = place
            _refuse_number(columns, columns.features[column], float(block[place]), n_rows + row)
        if rounding is not None:
            rounding.add(block, rounded)
        values += (rounded if np.dtype(dtype) == np.float32 else block).tobytes()
        if columns.target is not None:
            label = chunk[columns.target]
            if label.isna().any():
                row = n_rows + int(label.isna().to_numpy().argmax())
                remedy = "Remove the samples without label"
                _refuse(columns, columns.target, "a missing value", row, remedy)
            array = label.to_numpy()  # strings are Python objects
            labels.append(array if array.dtype.kind in "biuf" else np.array(label.tolist()))
        n_rows += len(chunk)
    names, target = columns.names, columns.target
    return Parts(
        np.frombuffer(values, dtype).reshape(n_rows, len(columns.features)),
        None if target is None else np.concatenate(labels or [np.empty(0, np.str_)]),
        None if names is None else [names[i] for i in columns.features],
        None if target is None else _name(columns, target),
    )


def _frames(file: Any, size: int, columns: _Columns) -> Iterator[DataFrame]:
    """Read chunks; columns become positions and features that are no numbers are refused."""
    from pandas.api.types import is_numeric_dtype
    from pyarrow.types import is_decimal

    assert columns.names is not None
    where = {name: position for position, name in enumerate(columns.names)}
    read = [*columns.features, *([] if columns.target is None else [columns.target])]
    for batch in file.iter_batches(size, columns=[columns.names[i] for i in read]):
        frame = batch.to_pandas()
        frame.columns = [where[str(name)] for name in frame.columns]
        target = columns.target
        if target is not None and is_decimal(batch.schema.field(columns.names[target]).type):
            frame[target] = frame[target].astype(float)
        for position in columns.features:
            if not is_numeric_dtype(frame[position].dtype):
                present = frame[position].dropna()
                value = present.iloc[0] if len(present) else None
                _refuse_word(columns, position, value, 0)
        yield frame


def _check_type(columns: _Columns, kind: Any) -> None:
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
        _refuse(columns, columns.target or 0, f"values of the type {kind}", 0, remedy)


def _refuse_text(columns: _Columns, separator: str, n_rows: int) -> None:
    """Raise for the first value after `n_rows` rows that is not a number."""
    with open_text(columns.path) as file:
        rows = (row for row in csv.reader(file, delimiter=separator, skipinitialspace=True) if row)
        start = n_rows + (columns.names is not None)
        for number, row in enumerate(itertools.islice(rows, start, None), n_rows):
            fields = [row[i] if i < len(row) else "" for i in columns.features]
            if _are_finite(fields):
                continue
            k = next(k for k, field in enumerate(fields) if not _are_finite([field]))
            if is_missing(fields[k]):
                _refuse_number(columns, columns.features[k], np.nan, number)
            if is_number(fields[k]) or fields[k].strip(" +-").lower() in ("inf", "infinity"):
                _refuse_number(columns, columns.features[k], np.inf, number)
            _refuse_word(columns, columns.features[k], fields[k], number)


def _are_finite(fields: list[str]) -> bool:
    """Return whether all fields are finite numbers; of a wide table there are very many."""
    try:
        numbers = np.fromiter(map(float, fields), np.float64, len(fields))
    except ValueError:
        return False
    return bool(np.isfinite(numbers).all()) and "_" not in "".join(fields)


def _refuse_number(columns: _Columns, position: int, value: float, row: int) -> NoReturn:
    if np.isnan(value):
        _refuse(columns, position, "a missing value", row, "Fill or remove it first")
    what = "a value that is infinite in float32"
    _refuse(columns, position, what, row, "Rescale or remove it first")


def _refuse_word(columns: _Columns, position: int, value: Any, row: int) -> NoReturn:
    remedy = (
        "Encode it as numbers, for instance with pandas.get_dummies, leave it out, or make it "
        "the target if it holds the labels"
    )
    if columns.names is None and row == 0:
        remedy = (
            "If the first line holds the names of the columns, pass header=True (--header yes on "
            "the command line)"
        )
    _refuse(columns, position, f"{value!r:.50}, which is not a number,", row, remedy)


def _refuse(columns: _Columns, position: int, what: str, row: int, remedy: str) -> NoReturn:
    """Raise for a value in a row, which counts from 0 here and from 1 in the message."""
    name = repr(_name(columns, position))
    raise DataError(f"{columns.path}: the column {name} has {what} in row {row + 1}. {remedy}.")


def _name(columns: _Columns, position: int) -> str:
    return str(position) if columns.names is None else columns.names[position]

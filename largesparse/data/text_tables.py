"""Text with separators: CSV and its kin, with a row a sample, or a column a sample (transposed)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..errors import DataError
from . import columns as columned
from .columns import (
    Columns,
    Parts,
    choose_columns,
    collect,
    refuse,
    refuse_number,
    refuse_word,
    text_columns,
)
from .files import open_text, reading
from .headers import (
    MISSING,
    SPACE,
    csv_rows,
    has_names,
    is_missing,
    is_number,
    read_first_rows,
)
from .layout import Wanted
from .targets import labels_of_text
from .typed_tables import parts_of_frame

if TYPE_CHECKING:
    from pandas import DataFrame

INFINITE = ("inf", "infinity")
SPELLINGS = [form for word in MISSING for form in (word, word.upper(), word.title())] + ["NaN"]


def read_csv(path: Path, wanted: Wanted) -> Parts:
    """Read text with separators, as `tables.read_table` says."""
    with reading(path, "as a table", "Write it again, as UTF-8 text."):
        rows, separator = read_first_rows(path, wanted.delimiter, wanted.decimal)
        plain = [[with_point(field, wanted.decimal) for field in row] for row in rows]
        guessed = wanted.header is None
        named = has_names(path, plain, wanted.target, wanted.columns) if guessed else wanted.header
        names, following = rows[0] if named else None, rows[1:]
        if names and following and all(len(row) == len(names) + 1 for row in following):
            names = ["", *names]  # R writes names of rows under none
        width = len(names or rows[0])
        _check_not_transposed(path, names, separator, wanted)
        columns = choose_columns(path, width, names, wanted)
        find_text = partial(_find_text, columns, separator, wanted.decimal)
        columns = text_columns(columns, width, wanted, find_text)
        chunks = partial(_numbers_and_text, columns, width, separator, wanted.decimal)
        parts = collect(columns, chunks, wanted)
        parts = parts._replace(
            y=_labels(columns, parts.y, columns.target, wanted.decimal),
            ids=_plain_ids(parts.ids),
            layout=parts.layout._replace(
                header=bool(named), decimal="," if wanted.decimal == "," else None
            ),
        )
    if guessed and not named:
        told = (
            f"the first line of {path} is taken for data (--header yes: it has names); columns are "
            f"called by their positions, 0 to {width - 1}"
        )
        parts = parts._replace(notes=(told, *parts.notes))
    return parts


def with_point(field: str, decimal: str) -> str:
    """Return a number with a decimal point, and other text as it is."""
    if decimal == ".":
        return field
    changed = field.replace(decimal, ".")
    return changed if is_number(changed) else field


def _labels(columns: Columns, y: Any, position: int | None, decimal: str) -> Any:
    if y is None or position is None or y.dtype.kind == "f":  # of a feature read so
        return y
    if decimal != "." and y.dtype.kind == "U":
        y = np.array([with_point(text, decimal) for text in y.tolist()], str)
    return labels_of_text(y, partial(refuse, columns, position))


def _plain_ids(ids: Any) -> Any:
    return ids if ids is None or ids.dtype.kind != "U" else np.char.strip(ids)


def _numbers_and_text(
    columns: Columns, width: int, separator: str, decimal: str
) -> Iterator[DataFrame]:
    """Read chunks with features in float64, and all other columns as text."""
    from pandas.errors import ParserError

    every, numbers = range(width), set(columns.numbers)
    dtypes = {i: np.float64 if i in numbers else str for i in every}
    dialect: dict[str, Any] = {
        "sep": separator,
        "header": None if columns.names is None else 0,
        "na_filter": False,  # "NA" is a label; in a feature it is refused as no number
        "decimal": decimal,
    }
    if columns.missing is not None:
        values = {i: SPELLINGS for i in numbers}
        dialect |= {"na_filter": True, "keep_default_na": False, "na_values": values}
    n_rows = 0
    try:
        for chunk in csv_chunks(columns.path, every, dtypes, dialect):
            yield chunk
            n_rows += len(chunk)
    except (DataError, ParserError):
        raise
    except ValueError:  # perhaps of a value that is no number; pandas does not say where
        _refuse_text(columns, separator, n_rows, decimal)
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
    if dialect.get("sep") == SPACE:
        dialect = dialect | {"sep": r"\s+"}
    with pd.read_csv(
        path,
        names=every,
        dtype=dtype,
        encoding="utf-8-sig",
        skipinitialspace=True,
        chunksize=max(1, columned.CHUNK_BYTES // (value_bytes * len(every))),
        **dialect,
    ) as reader:
        for chunk in reader:
            if not isinstance(chunk.index, pd.RangeIndex):  # pandas takes the first for row names
                raise DataError(
                    f"{path}: the rows have more fields than the first line, which has "
                    f"{len(every)}. Name all columns; quote fields that hold the separator."
                )
            yield chunk


def _find_text(columns: Columns, separator: str, decimal: str) -> set[int]:
    """Return the features that have a value which is neither a number nor missing."""
    text: set[int] = set()
    numbers = columns.features
    with open_text(columns.path) as file:
        rows = csv_rows(file, separator)
        for row in itertools.islice(rows, int(columns.names is not None), None):
            fields = [with_point(row[i], decimal) if i < len(row) else "" for i in numbers]
            if not _are_finite(fields):
                text.update(i for i, field in zip(numbers, fields, strict=True) if _is_word(field))
                numbers = [i for i in numbers if i not in text]
    return text


def _is_word(field: str) -> bool:
    return not (is_missing(field) or is_number(field) or field.strip(" +-").lower() in INFINITE)


def _refuse_text(columns: Columns, separator: str, n_rows: int, decimal: str) -> None:
    """Raise for the first value after `n_rows` rows that is not a number."""
    numbers = columns.numbers
    with open_text(columns.path) as file:
        rows = csv_rows(file, separator)
        start = n_rows + (columns.names is not None)
        for number, row in enumerate(itertools.islice(rows, start, None), n_rows):
            fields = [row[i] if i < len(row) else "" for i in numbers]
            if decimal != ".":
                fields = [with_point(field, decimal) for field in fields]
            if columns.missing is not None:
                fields = ["0" if field in SPELLINGS else field for field in fields]
            if _are_finite(fields):
                continue
            k = next(k for k, field in enumerate(fields) if not _are_finite([field]))
            _refuse_field(columns, numbers[k], fields[k], number)


def _refuse_field(columns: Columns, position: int, field: str, row: int) -> NoReturn:
    if is_missing(field):
        refuse_number(columns, position, np.nan, row)
    if is_number(field) or field.strip(" +-").lower() in INFINITE:
        refuse_number(columns, position, np.inf, row)
    refuse_word(columns, position, field, row)


def _are_finite(fields: list[str]) -> bool:
    """Return whether all fields are finite numbers; of a wide table there are very many."""
    try:
        numbers = np.fromiter(map(float, fields), np.float64, len(fields))
    except ValueError:
        return False
    return bool(np.isfinite(numbers).all()) and "_" not in "".join(fields)


def _check_not_transposed(
    path: Path, names: list[str] | None, separator: str, wanted: Wanted
) -> None:
    """Raise where the target is no column, and stands in the first column."""
    target = wanted.target
    if not isinstance(target, str) or names is None or target in names:
        return
    with open_text(path) as file:
        if any(row[0] == target for row in csv_rows(file, separator)):
            raise DataError(
                f"{path} has no column {target!r}, and a row of this name: its rows are features "
                "and its columns samples. Pass transpose=True (--transpose on the command line)."
            )


def read_transposed(path: Path, wanted: Wanted) -> Parts:
    """Read text in which a row is a feature, named in the first column, and a column is a sample.

    The first line names the samples. The target may be a row.
    """
    import pandas as pd

    with reading(path, "as a table", "Write it again, as UTF-8 text."):
        rows, separator = read_first_rows(path, wanted.delimiter, wanted.decimal)
        if len(rows) < 2:
            raise DataError(f"{path} has no rows of features. Get or write it again.")
        width = len(rows[1])
        samples = rows[0] if len(rows[0]) == width - 1 else rows[0][1:]  # R writes no corner
        options: dict[str, Any] = {
            "header": None,
            "names": range(width),
            "skiprows": 1,
            "sep": r"\s+" if separator == SPACE else separator,
            "encoding": "utf-8-sig",
            "skipinitialspace": True,
            "keep_default_na": False,
            "index_col": False,
        }
        try:
            texts = None
            table = pd.read_csv(path, dtype={0: str} | dict.fromkeys(range(1, width), np.float64),
                                decimal=wanted.decimal, na_filter=False, **options)  # fmt: skip
            values = table.iloc[:, 1:].to_numpy()
        except ValueError:  # rows of text: the target, or missing values
            table = pd.read_csv(path, dtype=str, na_filter=False, **options)
            texts = table.iloc[:, 1:].to_numpy(dtype=object)
            values = np.full(texts.shape, np.nan)
        if len(samples) != values.shape[1]:
            raise DataError(
                f"{path}: the first line has {len(samples)} names for {values.shape[1]} samples. "
                "Name every column."
            )
        features = table[0].tolist()
        words: dict[int, list[str]] = {}
        for k, line in enumerate(texts if texts is not None else ()):
            fields = [with_point(field, wanted.decimal) for field in line]
            if not _are_finite(fields):
                if any(map(_is_word, fields)):
                    words[k] = fields
                    continue
                fields = ["nan" if is_missing(field) else field for field in fields]
            values[k] = list(map(float, fields))
            if features[k] == str(wanted.target):
                words[k] = list(line)
        frame = pd.DataFrame(values.T, columns=range(len(features)))
        if words:
            text = pd.DataFrame({k: words[k] for k in words}, dtype=object)
            frame = pd.concat([frame.drop(columns=list(words)), text], axis=1)[range(len(features))]
        parts = parts_of_frame(path, frame, features, wanted)
        target = None if parts.target is None else features.index(parts.target)
        owner = Columns(path, [], target, features)
        ids = np.array(samples, str)
        return parts._replace(
            y=_labels(owner, parts.y, target, wanted.decimal),
            ids=ids if parts.ids is None else parts.ids,
            layout=parts.layout._replace(transpose=True),
        )

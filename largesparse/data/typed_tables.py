"""Tables whose columns have types: parquet files, and data frames of other readers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, install_command
from . import columns as columned
from .columns import Columns, Parts, choose_columns, collect, refuse, refuse_word, text_columns
from .files import reading
from .layout import Wanted

if TYPE_CHECKING:
    from pandas import DataFrame


def read_parquet(path: Path, wanted: Wanted) -> Parts:
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
        columns = choose_columns(path, len(names), names, wanted)
        if columns.target is not None:
            _check_type(columns, file.schema_arrow.field(names[columns.target]).type)
        text = {i for i in columns.features if _is_text(frame.iloc[:, i])}
        columns = text_columns(columns, len(names), wanted, lambda: text)
        size = max(1, columned.CHUNK_BYTES // (8 * len(names)))
        return collect(columns, partial(_frames, file, size, columns), wanted)


def parts_of_frame(path: Path, frame: DataFrame, names: list[str] | None, wanted: Wanted) -> Parts:
    """Take the wanted columns of a data frame, whose columns are positions."""
    n_columns = frame.shape[1]
    columns = choose_columns(path, n_columns, names, wanted)
    text = {i for i in columns.features if _is_text(frame[i])}
    columns = text_columns(columns, n_columns, wanted, lambda: text)
    _check_numbers(columns, frame)
    return collect(columns, lambda: [frame], wanted)


def _frames(file: Any, size: int, columns: Columns) -> Iterator[DataFrame]:
    """Read chunks; columns become positions and features that are no numbers are refused."""
    from pyarrow.types import is_decimal

    assert columns.names is not None
    where = {name: position for position, name in enumerate(columns.names)}
    others = [i for i in (columns.target, columns.id) if i is not None]
    read = [columns.names[i] for i in [*columns.features, *others]]
    for batch in file.iter_batches(size, columns=read):
        frame = _whole_numbers(batch, columns).to_pandas()
        frame.columns = [where[str(name)] for name in frame.columns]
        target = columns.target
        if target is not None and is_decimal(batch.schema.field(columns.names[target]).type):
            frame[target] = frame[target].astype(float)
        _check_numbers(columns, frame)
        yield frame


def _whole_numbers(batch: Any, columns: Columns) -> Any:
    """Return a batch whose integers that are encoded are text: with gaps pandas makes 1 to 1.0."""
    from pyarrow import string
    from pyarrow.types import is_integer

    for i in columns.text:
        place = batch.schema.get_field_index(columns.name(i))
        if is_integer(batch.schema.field(place).type):
            batch = batch.set_column(place, columns.name(i), batch.column(place).cast(string()))
            batch = batch.replace_schema_metadata(None)  # pandas' own, which says integers
    return batch


def _check_numbers(columns: Columns, frame: DataFrame) -> None:
    for position in columns.numbers:
        if _is_text(frame[position]):
            present = frame[position].dropna()
            value = present.iloc[0] if len(present) else None
            refuse_word(columns, position, value, 0)


def _is_text(column: Any) -> bool:
    from pandas.api.types import is_numeric_dtype

    return not is_numeric_dtype(column.dtype)


def _check_type(columns: Columns, kind: Any) -> None:
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
        refuse(columns, columns.target or 0, f"values of the type {kind}", 0, remedy)

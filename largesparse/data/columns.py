"""Tables with columns: which of them are read, and how chunks of rows become arrays."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .categories import Encoded, encode
from .checks import first_true
from .frames import SHOWN, first_doubled, positions_of, some_of
from .headers import is_missing
from .layout import MISSING_MARK, FileLayout, Wanted
from .precision import Rounding, float32_prints_the_same

if TYPE_CHECKING:
    from pandas import DataFrame

TEXT_GAPS = (MISSING_MARK, "NA")  # what stands for a text that is missing, beside an empty one
CHUNK_BYTES = 2**25  # of the values of a chunk, in float64


class Parts(NamedTuple):
    """What a file with columns holds, as `tables.Table` has it."""

    X: NDArray[np.float32] | NDArray[np.float64]
    y: NDArray | None
    feature_names: list[str] | None
    target: str | None
    layout: FileLayout
    ids: NDArray | None
    notes: tuple[str, ...]
    encoded: Encoded | None = None  # the columns of text, which are not in X yet


class Columns(NamedTuple):
    """Which columns of a file are read; columns are positions in the file."""

    path: Path
    features: list[int]  # in the order of X's columns
    target: int | None
    names: list[str] | None  # of all columns
    id: int | None = None
    missing: str | None = None
    text: frozenset[int] = frozenset()  # features that are encoded
    n_columns: int | None = None  # of the file

    @property
    def numbers(self) -> list[int]:
        """The features that are numbers."""
        return [i for i in self.features if i not in self.text] if self.text else self.features

    def name(self, position: int) -> str:
        """Return what messages call a column."""
        return str(position) if self.names is None else self.names[position]


def choose_columns(path: Path, n_columns: int, names: list[str] | None, wanted: Wanted) -> Columns:
    """Find the columns that are wanted, or raise."""

    def find(column: str | int, role: str) -> int:
        return _position(path, n_columns, names, column, role)

    dropped = {find(column, "--drop") for column in wanted.drop}
    if names is not None:
        kept = [name for k, name in enumerate(names) if k not in dropped]
        if "" in kept and wanted.id != "":
            raise DataError(
                f"{path}: column {names.index('') + 1} has no name. Name it, or leave it out if it "
                "only counts or names the rows: drop=[''] or id='' (--drop '' or --id '' on the "
                "command line)."
            )
        if (twice := first_doubled(kept)) is not None:
            raise DataError(f"{path} has two columns named {twice!r}. Rename or remove one.")
    target = None if wanted.target is None else find(wanted.target, "the target")
    number = None
    if wanted.id is not None and not (wanted.id_if_there and _lacks_id(n_columns, names, wanted)):
        number = find(wanted.id, "--id")
    for role, position in (("--id", number), ("the target", target)):
        if position is not None and position in dropped:
            raise DataError(
                f"{path}: the column {names[position] if names else position!r} is {role}, and to "
                "be dropped. Say one of the two."
            )
    if number is not None and number == target:
        raise DataError(f"{path}: --id and the target are one column. Name two.")
    others = [i for i in range(n_columns) if i not in dropped | {target, number}]
    if names is not None and wanted.columns is not None:
        others = positions_of(list(wanted.columns), names, str(path))
    elif names is None and wanted.positions and n_columns == wanted.n_columns:
        others = list(wanted.positions)  # else they may have moved
    if target is not None and target in others:
        raise DataError(
            f"{path}: the target {wanted.target!r} is one of the features that the model predicts "
            "from. Name the column that it predicts."
        )
    if not others:
        raise DataError(f"{path} has no column of features beside the target. Add some.")
    return Columns(path, others, target, names, number, wanted.missing, n_columns=n_columns)


def _lacks_id(n_columns: int, names: list[str] | None, wanted: Wanted) -> bool:
    """Return whether a file is without the column of the training that names the rows."""
    if names is not None:
        return wanted.id not in names
    return n_columns != wanted.n_columns


def _position(
    path: Path, n_columns: int, names: list[str] | None, column: str | int, role: str
) -> int:
    if names is not None and isinstance(column, str) and column in names:
        return names.index(column)
    if names is not None and str(column) in names and names.index(str(column)) != int(column):
        raise DataError(
            f"{path} has a column named {str(column)!r}, which is not the one at position "
            f"{column}. Pass the name of the column as a string."
        )
    if isinstance(column, str) and (names is not None or not re.fullmatch(r"-?\d+", column)):
        known = "it has no column names, so pass a position" if names is None else _known(names)
        near = difflib.get_close_matches(column, names or [], SHOWN)
        meant = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise DataError(f"{path} has no column {column!r} for {role}: {known}.{meant}")
    position = int(column)
    if not -n_columns <= position < n_columns:
        raise DataError(
            f"{path} has no column at position {position} for {role}: it has {n_columns} "
            f"columns, 0 to {n_columns - 1}. Pass one of these."
        )
    return position % n_columns


def _known(names: list[str]) -> str:
    more = f" and {len(names) - 2 * SHOWN} more" if len(names) > 2 * SHOWN else ""
    return f"its columns are {', '.join(map(repr, names[: 2 * SHOWN]))}{more}"


def text_columns(
    columns: Columns, n_columns: int, wanted: Wanted, find_text: Callable[[], set[int]]
) -> Columns:
    """Return the columns with those that are to be encoded: `find_text` tells if none is named.

    A model knows its own.
    """
    if wanted.categories is not None:
        known = wanted.columns or [columns.name(i) for i in columns.features]
        pairs = zip(columns.features, known, strict=False)
        return columns._replace(text=frozenset(i for i, name in pairs if name in wanted.categories))
    if wanted.categorical is None:
        return columns
    named = {
        _position(columns.path, n_columns, columns.names, column, "--categorical")
        for column in wanted.categorical
    }
    for position in named - set(columns.features):
        raise DataError(
            f"{columns.path}: the column {columns.name(position)!r} is for --categorical, and no "
            "feature. Leave it out of one of the two."
        )
    return columns._replace(text=frozenset(named or find_text()))


def collect(columns: Columns, chunks: Callable[[], Iterable[DataFrame]], wanted: Wanted) -> Parts:
    """Collect chunks, by default in float32 if that is enough; X is never there twice."""
    rounding = Rounding(len(columns.numbers))
    parts = _gather(columns, chunks(), wanted, wanted.dtype or np.float32, rounding)
    if wanted.dtype is None and (suspects := rounding.suspects()).size:
        features = [columns.numbers[k] for k in suspects]
        exact = (
            float32_prints_the_same(chunk[features].to_numpy(np.float64)) for chunk in chunks()
        )
        if not all(exact):
            del parts
            return _gather(columns, chunks(), wanted, np.float64)
    return parts


def _gather(
    columns: Columns,
    chunks: Iterable[DataFrame],
    wanted: Wanted,
    dtype: type,
    rounding: Rounding | None = None,
) -> Parts:
    """Check chunks, whose columns are positions, and put them together in a dtype."""
    values, n_rows, n_kept = bytearray(), 0, 0
    labels: list[NDArray] = []
    ids: list[NDArray] = []
    words: dict[int, list[NDArray[np.object_]]] = {
        i: [] for i in columns.features if i in columns.text
    }
    same: dict[str, str] = {}  # a text is kept once
    for chunk in chunks:
        first, n_rows = n_rows, n_rows + len(chunk)
        if columns.missing == "drop" and columns.target is not None:
            label = chunk[columns.target]
            chunk = chunk[~(label.isna() | label.isin(("", "?")))]
        block = chunk[columns.numbers].to_numpy(np.float64)
        with np.errstate(over="ignore"):  # infinities are refused
            rounded = block.astype(np.float32)
        bad = ~np.isfinite(rounded)
        if columns.missing is not None:
            bad &= ~np.isnan(block)
        if (place := first_true(bad)) is not None:
            row, column = place
            refuse_number(columns, columns.numbers[column], float(block[place]), first + row)
        if rounding is not None:
            rounding.add(block, rounded)
        values += (rounded if np.dtype(dtype) == np.float32 else block).tobytes()
        for i, texts in words.items():
            text = _texts(chunk[i], same)
            if columns.missing is None and (place := first_true(text == "")) is not None:
                refuse_number(columns, i, np.nan, first + place[0])
            texts.append(text)
        if columns.target is not None:
            label = chunk[columns.target]
            if label.isna().any():
                row = first + int(label.isna().to_numpy().argmax())
                remedy = "Remove the samples without label, or pass missing='drop' (--missing drop)"
                refuse(columns, columns.target, "a missing value", row, remedy)
            labels.append(_plain(label))
        if columns.id is not None:
            ids.append(_plain(chunk[columns.id]))
        n_kept += len(chunk)
    X: NDArray = np.frombuffer(values, dtype).reshape(n_kept, len(columns.numbers))
    names, target = columns.names, columns.target
    sources = [columns.name(i) for i in columns.features]
    if wanted.categories is not None and wanted.columns is not None:
        sources = list(wanted.columns)
    layout = FileLayout(
        columns=sources if names is None else None,
        id=None if columns.id is None else columns.name(columns.id),
        missing=columns.missing,
        n_columns=columns.n_columns if names is None else None,
    )
    features = None if names is None else sources
    notes: tuple[str, ...] = ()
    encoded = None
    if words and len(sources) != len(columns.features):
        raise DataError(
            f"{columns.path} has {len(columns.features)} columns of features, and the model was "
            f"trained on {len(sources)}: {some_of(sources, SHOWN)}. Write those, in this order."
        )
    if words and n_kept:
        whole = {i: np.concatenate(parts) for i, parts in words.items()}
        encoded, categories, notes = encode(columns, sources, whole, wanted)
        layout = layout._replace(columns=sources, categories=categories)
        features = [name for name in sources if name not in categories]
    if n_kept < n_rows:
        notes = (*notes, f"{n_rows - n_kept} rows without label are left out")
    return Parts(
        X,
        None if target is None else np.concatenate(labels or [np.empty(0, np.str_)]),
        features,
        None if target is None else columns.name(target),
        layout,
        None if columns.id is None else np.concatenate(ids or [np.empty(0, np.str_)]),
        notes,
        encoded,
    )


def _plain(column: Any) -> NDArray:
    array = column.to_numpy()  # strings are Python objects
    return array if array.dtype.kind in "biuf" else np.array(array.astype(object).tolist())


def _texts(column: Any, same: dict[str, str]) -> NDArray[np.object_]:
    """Return the values of a column as text without spaces around it, missing ones empty."""
    gaps = column.isna().to_numpy()
    words = ["" if gap else str(value).strip() for value, gap in zip(column, gaps, strict=True)]
    texts = np.empty(len(words), object)
    texts[:] = ["" if word in TEXT_GAPS else same.setdefault(word, word) for word in words]
    return texts


def refuse_number(columns: Columns, position: int, value: float, row: int) -> NoReturn:
    """Raise for a value that is missing or infinite."""
    if np.isnan(value):
        remedy = (
            "Fill or remove it first, or pass missing='mean', 'indicator' or 'drop' (--missing "
            "mean, --missing indicator or --missing drop on the command line)"
        )
        refuse(columns, position, "a missing value", row, remedy)
    what = "a value that is infinite in float32"
    refuse(columns, position, what, row, "Rescale or remove it first")


def refuse_word(columns: Columns, position: int, value: Any, row: int) -> NoReturn:
    """Raise for a value that is no number."""
    remedy = (
        "Encode the columns of text (categorical=[]; --categorical on the command line), leave "
        "this one out (drop=…; --drop), or make it the target if it holds the labels"
    )
    if columns.names is None and row == 0:
        remedy = (
            "If the first line holds the names of the columns, pass header=True (--header yes on "
            "the command line)"
        )
    elif isinstance(value, str) and re.fullmatch(r"[+-]?\d+,\d+", value.strip()):
        remedy = "If the comma is a decimal sign, pass decimal=',' (--decimal ,)"
    elif isinstance(value, str) and is_missing(value):
        refuse_number(columns, position, np.nan, row)
    refuse(columns, position, f"{value!r:.50}, which is not a number,", row, remedy)


def refuse(columns: Columns, position: int, what: str, row: int, remedy: str) -> NoReturn:
    """Raise for a value in a row, which counts from 0 here and from 1 in the message."""
    name = repr(columns.name(position))
    raise DataError(f"{columns.path}: the column {name} has {what} in row {row + 1}. {remedy}.")

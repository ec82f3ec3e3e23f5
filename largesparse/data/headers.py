"""Whether the first line of a text table holds the names of its columns."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .files import open_text

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MISSING = frozenset({"", "#n/a", "<na>", "n/a", "na", "nan", "none", "null", "?"})  # lower case

SPACE = " "  # separates fields by any number of spaces and tabs
SAMPLED_ROWS = 20  # that the first line is compared with
LONG_ORDER = 6  # so many numbers in order are by chance once in 360
USUAL = 0.25  # share of the rows from which on an order like the first line's is the data's own
OUTLIERS = 0.75  # share of the columns in which a header of numbers lies far from the data
ALL_TEXT = 0.5  # share of the fields that recur in their columns, from which on text is data
SAY_WHICH = (
    "Say which it is: header=True or header=False (--header yes or --header no on the command line)"
)


def read_first_rows(
    path: Path, delimiter: str | None = None, decimal: str = "."
) -> tuple[list[list[str]], str]:
    """Return the fields of the first rows that are not blank, and what separates them.

    Unless it is given, that is the most frequent of comma, semicolon and tab in the first line,
    else spaces where the suffix is not .csv; a comma where numbers have a decimal comma is none.
    """
    with open_text(path) as file:
        line = next((line for line in file if line.strip()), "")
        if not line:
            raise DataError(f"{path} is empty. Get or write it again.")
        separator = delimiter or max(",;\t".replace(decimal, ""), key=line.count)
        plain = {".csv", ".tsv"}.isdisjoint(suffix.lower() for suffix in path.suffixes)
        if plain and delimiter is None and separator not in line and SPACE in line.strip():
            separator = SPACE
        file.seek(0)
        return list(itertools.islice(csv_rows(file, separator), 1 + SAMPLED_ROWS)), separator


def csv_rows(file: Iterable[str], separator: str) -> Iterator[list[str]]:
    """Read the fields of rows that are not blank; where spaces separate them, of any number."""
    return (row for _, row in numbered_rows(file, separator))


def numbered_rows(file: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Read what `csv_rows` does, each with the number of its last line, from 1 on."""
    if separator == SPACE:
        file = (line.strip().replace("\t", SPACE) for line in file)
    reader = csv.reader(file, delimiter=separator, skipinitialspace=True)
    return ((reader.line_num, row) for row in reader if row)


def has_names(
    path: Path, rows: Sequence[list[str]], target: str | int | None, wanted: Sequence[str] | None
) -> bool:
    """Return whether the first of the rows names the columns.

    It does where all of it is text, where it has the wanted names or a target that is text, where
    text stands above numbers, and where it counts 0, 1, 2, ..., as pandas does. It does not where
    it is numbers and there is no reason to think otherwise, nor where it has numbers and a text
    that stands in the same column again, or text that mostly does. Where it may be either, a
    DataError is raised.
    """
    first, following = rows[0], rows[1:]
    if wanted is not None and set(wanted) <= set(first):
        return True
    text = [not is_number(field) and not is_missing(field) for field in first]
    if any(text):
        columns = [[row[k] for row in following if k < len(row)] for k in np.flatnonzero(text)]
        words = [first[k] for k in np.flatnonzero(text)]
        if target not in words and _recurring(words, columns) > (ALL_TEXT if all(text) else 0):
            return False
        return _check_text(path, first, columns, target)
    if len(first) > 2 and first == [str(k) for k in range(len(first))]:
        return True
    shown = ", ".join(first[:5]) + (", …" if len(first) > 5 else "")
    if wanted is not None:
        raise DataError(
            f"{path}: the first line ({shown}) is numbers, and none of the column names that the "
            f"model was trained on ({', '.join(map(repr, wanted[:3]))}, …). Put them in a first "
            "line; or, where the columns are those of the training in their order, say whether "
            "this line is data: header=False (--header no on the command line)."
        )
    if isinstance(target, str) and target in first and not _is_position(target, len(first)):
        return True
    if all(map(is_number, first)) and _may_be_names(first, following):
        raise DataError(
            f"{path}: the first line ({shown}) is numbers, and may hold column names or data. "
            f"{SAY_WHICH}."
        )
    return False


def _recurring(fields: list[str], columns: list[list[str]]) -> float:
    """Return the share of fields of the first line that stand below it too, as names never do."""
    return float(np.mean([field in column for field, column in zip(fields, columns, strict=True)]))


def _check_text(
    path: Path, first: list[str], columns: list[list[str]], target: str | int | None
) -> bool:
    """Return True where a first line with text names the columns; `columns` are under the text."""
    numbers = [field for field in first if is_number(field)]
    if not numbers or (target in first and not is_number(str(target))):
        return True
    # Names with decimals are rare: where no target shows that the file is known, it is asked.
    above_numbers = any(column and all(map(is_number, column)) for column in columns)
    if above_numbers and (target is not None or all(map(_is_whole, numbers))):
        return True
    raise DataError(
        f"{path}: the first line looks like data ({numbers[0]!r} in it is a number), but not all "
        f"of it is numbers; it may hold column names. {SAY_WHICH}, or name the target column."
    )


def is_number(field: str) -> bool:
    """Return whether a field is a finite number, written as text tables have it."""
    return NUMBER.fullmatch(field.strip()) is not None


def is_missing(field: str) -> bool:
    """Return whether a field of a column of numbers stands for a missing value."""
    return field.strip().lower() in MISSING


def _is_position(target: str, n_columns: int) -> bool:
    return re.fullmatch(r"-?\d+", target) is not None and -n_columns <= int(target) < n_columns


def _may_be_names(first: list[str], following: Sequence[list[str]]) -> bool:
    """Return whether numbers look like a header: evenly spaced, in order, or unlike the data."""
    if len(set(first)) < len(first):
        return False
    rows = [row for row in following if len(row) == len(first) and all(map(is_number, row))]
    line = np.array(first, dtype=np.float64)
    data = np.array(rows, dtype=np.float64).reshape(len(rows), len(first))
    for test in (_is_even, _is_long_order):
        if test(line) and (not rows or np.mean([test(row) for row in data]) < USUAL):
            return True
    if not rows:
        return False
    if all(map(_is_whole, first)) and not any(_is_whole(field) for row in rows for field in row):
        return True
    low, high = data.min(axis=0), data.max(axis=0)
    gap = np.maximum(low - line, line - high)
    return len(rows) >= 5 and len(first) > 1 and bool((gap > high - low).mean() >= OUTLIERS)


def _is_whole(field: str) -> bool:
    return field.strip().lstrip("+-").isdigit()


def _is_even(values: NDArray[np.float64]) -> bool:
    """Return whether at least three values go up or down by equal steps."""
    steps = np.diff(values)
    return len(values) > 2 and steps[0] != 0 and np.allclose(steps, steps[0], rtol=1e-6, atol=0)


def _is_long_order(values: NDArray[np.float64]) -> bool:
    """Return whether many values all go up, or all go down."""
    steps = np.diff(values)
    return len(values) >= LONG_ORDER and bool((steps > 0).all() or (steps < 0).all())

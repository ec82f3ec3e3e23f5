"""How a table is read: what is asked for, and what a model keeps of the file of its training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import ParameterError

MISSING_CHOICES = ("mean", "indicator", "drop")
MISSING_MARK = "?"  # in the name of a feature that says whether a value is missing
DECIMALS = (".", ",")


class FileLayout(NamedTuple):
    """What a file does not say itself, and a model keeps of the file that it was trained on.

    None where there is no such thing, or it is not known.
    """

    header: bool | None = None  # whether a text table begins with the names of its columns
    zero_based: bool | None = None  # whether the indices of an svmlight file begin at 0
    columns: list[str] | None = None  # features in the file, where names or their number differ
    categories: dict[str, list[str]] | None = None  # of text columns, by the column
    id: str | None = None  # the column that names the rows
    missing: str | None = None
    decimal: str | None = None
    transpose: bool | None = None
    log: bool | None = None  # whether the features became log(1 + x)
    n_columns: int | None = None  # of a file without names
    means: list[float] | None = None  # of the columns of numbers, which missing values become
    indicators: list[str] | None = None  # columns of numbers, of which a feature says what lacks
    labels: list[str] | None = None  # of y with several labels a row, where they have names

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FileLayout:
        """Return what `_asdict` gave, if it can be true; else raise a ValueError or TypeError."""
        layout = cls(**values)
        truths = (layout.header, layout.zero_based, layout.transpose, layout.log)
        words = (layout.id, layout.missing, layout.decimal)
        lists = [layout.columns or [], layout.indicators or [], layout.labels or []]
        lists += (layout.categories or {}).values()
        np.asarray(layout.means or [], np.float64)
        if (
            not isinstance(layout.n_columns, int | None)
            or not all(value is None or isinstance(value, bool) for value in truths)
            or not all(value is None or isinstance(value, str) for value in words)
            or not all(isinstance(value, list) for value in lists)
            or not all(isinstance(name, str) for names in lists for name in names)
        ):
            raise ValueError("what it says of the file it was trained on is not known")
        return layout


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked of a table with columns; the fields are parameters of `tables.read_table`."""

    target: str | int | None = None
    columns: Sequence[str] | None = None
    drop: Sequence[str | int] = ()
    id: str | int | None = None
    categorical: Sequence[str | int] | None = None  # (): every column of text
    missing: str | None = None
    dtype: type | None = None
    header: bool | None = None
    delimiter: str | None = None
    decimal: str = "."
    # What a model says of the file of its training:
    positions: Sequence[int] | None = None  # of the features, where columns have no names
    n_columns: int | None = None  # of a file whose features have these positions
    categories: Mapping[str, Sequence[str]] | None = None
    id_if_there: bool = False  # `id` is the model's, and the file may be without it

    def __post_init__(self) -> None:
        for name, allowed in (("missing", MISSING_CHOICES), ("decimal", DECIMALS)):
            value = getattr(self, name)
            if value not in (*allowed, None):
                raise ParameterError(
                    f"The {name!r} parameter of read_table must be one of "
                    f"{', '.join(map(repr, allowed))}. Got {value!r} instead."
                )
        if self.delimiter is not None and (
            len(self.delimiter) != 1 or self.delimiter in f'"\r\n{self.decimal}'
        ):
            raise ParameterError(
                "The 'delimiter' parameter of read_table must be one character that is neither a "
                f"quote nor the decimal sign. Got {self.delimiter!r} instead. Pass ',', ';', ' ' "
                "or a tab (on the command line also tab and space)."
            )
        if self.dtype not in (None, np.float32, np.float64):
            raise ParameterError("The 'dtype' parameter of read_table must be numpy.float64.")

    def replace(self, **changes: Any) -> Wanted:
        return dataclasses.replace(self, **changes)

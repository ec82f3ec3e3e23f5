"""Tables with named columns: which column is which feature of a model."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import Any

from ..errors import DataError

SHOWN = 5  # names in a message


def some_of(names: list[Any], count: int = 8) -> str:
    """Return the first names of a list as a message shows them."""
    return ", ".join(map(repr, names[:count])) + (", …" if len(names) > count else "")


def first_doubled(names: list[str]) -> str | None:
    """Return the first name that occurs more than once, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def positions_of(wanted: list[str], names: list[str], owner: str) -> list[int]:
    """Return where the wanted names stand among `names`, or raise; `owner` is for the message."""
    if wanted == names:
        return list(range(len(names)))
    where = {name: position for position, name in enumerate(names)}
    if missing := [name for name in wanted if name not in where]:
        shown = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        near = difflib.get_close_matches(missing[0], names, 1)
        meant = f" {missing[0]!r} may be its {near[0]!r}." if near else ""
        raise DataError(
            f"{owner} lacks {len(missing)} of the {len(wanted)} columns that the model was trained "
            f"on: {shown}.{meant} Add these columns under these names."
        )
    if (twice := first_doubled(wanted)) is not None:
        raise DataError(
            f"The model has two features named {twice!r}, so that columns cannot be told apart by "
            "their names. Train it on columns with different names, or pass an array."
        )
    counts = Counter(names)
    if (twice := next((name for name in wanted if counts[name] > 1), None)) is not None:
        raise DataError(f"{owner} has two columns named {twice!r}. Rename or remove one.")
    return [where[name] for name in wanted]


def column_names(X: Any) -> list[str] | None:
    """Return the names of a data frame's columns where all are text, else None."""
    names = _columns(X)
    return names if names and all(isinstance(name, str) for name in names) else None


def align_frame(X: Any, feature_names: list[str] | None) -> Any:
    """Return a data frame's columns that a network was trained on, in its order.

    Other columns are left out; missing and doubled ones raise. An array, a network without names,
    and a frame whose columns are only counted stay as they are.
    """
    columns = _columns(X)
    if feature_names is None or columns is None:
        return X
    names = [str(name) for name in columns]
    if columns == list(range(len(columns))) and not set(feature_names) <= set(names):
        return X
    order = positions_of(feature_names, names, "X")
    if order == list(range(len(names))):
        return X
    return X.iloc[:, order] if hasattr(X, "iloc") else X[[columns[k] for k in order]]


def _columns(X: Any) -> list[Any] | None:
    columns = getattr(X, "columns", None)
    return None if columns is None or not hasattr(X, "shape") else list(columns)

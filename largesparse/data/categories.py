"""Columns of text as numbers: a feature for each category, 1 where a row is of it and else 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .frames import SHOWN, some_of
from .layout import MISSING_MARK
from .standardizer import are_few

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from .columns import Columns
    from .layout import Wanted

MANY = 1000  # texts of a column, of which more than half differ: they name rows


class Encoded(NamedTuple):
    """The columns of text of a table, encoded.

    features (n_samples, n_categories), CSR; names of all of the table's features, in their order;
    order, where these stand among the columns of numbers and, behind them, those of `features`;
    absent (n_samples,), whether a text is missing.
    """

    features: csr_array
    names: list[str]
    order: NDArray[np.int64]
    absent: NDArray[np.bool_]


def encode(
    columns: Columns, sources: list[str], texts: dict[int, NDArray[np.object_]], wanted: Wanted
) -> tuple[Encoded, dict[str, list[str]], tuple[str, ...]]:
    """Return the columns of text encoded, their categories, and notes.

    `sources` are the names of all features in the file, and `texts` the texts of some by the
    positions of their columns, empty where they are missing: such rows
    are 0 in all features of the column, unless missing="indicator" makes that a category. Rows of a
    category that is not among the known ones of `wanted` are 0 as well.
    """
    from scipy.sparse import csr_array
    from sklearn.preprocessing import OneHotEncoder

    found: dict[str, list[str]] = {}
    names: list[str] = []
    order: list[int] = []
    numbers, coded = 0, len(columns.numbers)  # how many columns of each kind there are so far
    for name, i in zip(sources, columns.features, strict=True):
        if i not in texts:
            names.append(name)
            order.append(numbers)
            numbers += 1
            continue
        found[name] = categories = _categories(columns, name, texts[i], wanted)
        names += [f"{name}={category or MISSING_MARK}" for category in categories]
        order += range(coded, coded + len(categories))
        coded += len(categories)
    table = np.stack([texts[i] for i in columns.features if i in texts], axis=1)
    kinds = [np.array(categories, object) for categories in found.values()]
    encoder = OneHotEncoder(categories=kinds, handle_unknown="ignore", dtype=np.float32)
    features = csr_array(encoder.fit_transform(table))
    absent = (table == "").any(axis=1)
    notes = _unseen(table, found) if wanted.categories is not None else _told(found)
    return Encoded(features, names, np.array(order), absent), found, notes


def _categories(
    columns: Columns, name: str, texts: NDArray[np.object_], wanted: Wanted
) -> list[str]:
    """Return the categories of a column: those that are known, or all there are, sorted."""
    known = wanted.categories or {}
    if name in known:
        return list(known[name])
    different = set(texts.tolist())
    present = different - {""}
    if not present:
        raise DataError(f"{columns.path}: the column {name!r} has no text at all. --drop it.")
    if len(present) > max(MANY, len(texts) / 2):
        raise DataError(
            f"{columns.path}: the column {name!r} has {len(present)} different texts in "
            f"{len(texts)} rows, so that it names rows rather than says what they are. Leave it "
            "out by --drop, or use it as --id."
        )
    return sorted(different if wanted.missing == "indicator" else present)


def _told(found: dict[str, list[str]]) -> tuple[str, ...]:
    """Return a note of the columns that were encoded."""
    counts = ", ".join(f"{name!r} ({len(kinds)})" for name, kinds in list(found.items())[:SHOWN])
    more = ", …" if len(found) > SHOWN else ""
    return (f"columns encoded by their categories: {counts}{more}",)


def _unseen(table: NDArray[np.object_], found: dict[str, list[str]]) -> tuple[str, ...]:
    """Return a warning, if any row has a category that is not known."""
    rows, examples = np.zeros(len(table), bool), []
    for k, (name, categories) in enumerate(found.items()):
        known = {"", *categories}
        unseen = np.array([text not in known for text in table[:, k]], bool)
        if unseen.any():
            examples.append(f"{name}={min(table[unseen, k]):.40}")
        rows |= unseen
    if not examples:
        return ()
    return (
        f"warning: {rows.sum()} rows have a category that the model was not trained on "
        f"({some_of(examples, SHOWN)}); they are 0 in all features of the column",
    )


def join(numbers: NDArray, encoded: Encoded) -> NDArray | csr_array:
    """Return columns of numbers and encoded ones as one table: CSR, where few values are stored.

    Numbers are, also where they are 0: they are standardised as in an array.
    """
    from scipy.sparse import csr_array, hstack

    n_rows, n_numbers = numbers.shape
    if are_few(numbers.size + encoded.features.nnz, n_rows * len(encoded.order)):
        places = np.tile(np.arange(n_numbers, dtype=np.int32), n_rows)
        stored = csr_array(
            (numbers.ravel(), places, n_numbers * np.arange(n_rows + 1)), shape=numbers.shape
        )
        joined: Any = hstack([stored, encoded.features], format="csr")
        joined = csr_array(joined[:, encoded.order].astype(numbers.dtype, copy=False))
        joined.sort_indices()
        return joined
    X = np.hstack([numbers, encoded.features.toarray().astype(numbers.dtype, copy=False)])
    return np.ascontiguousarray(X[:, encoded.order])

"""Columns of text as numbers: a feature for each category, 1 where a row is of it and else 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .frames import SHOWN

if TYPE_CHECKING:
    from .columns import Columns
    from .layout import Wanted

MOST_CATEGORIES = 1000  # of a column; more of them name rows rather than say what they are


def encode(
    columns: Columns, X: NDArray, words: dict[int, NDArray[np.str_]], wanted: Wanted
) -> tuple[NDArray, list[str], dict[str, list[str]], tuple[str, ...]]:
    """Return X with the encoded columns in their places, names, categories, and notes.

    `X` has the columns of numbers; `words` are the texts of the others, by position, empty where
    they are missing. Those rows are 0 in all features of the column, or NaN where they are to be
    dropped, and 0 as well where a category is not among the known ones of `wanted`.
    """
    known = wanted.categories or {}
    sources = wanted.columns if wanted.categories is not None else None
    found: dict[str, list[str]] = {}
    blocks: list[NDArray] = []
    names: list[str] = []
    notes: list[str] = []
    place = 0
    for k, i in enumerate(columns.features):
        name = columns.name(i) if sources is None else sources[k]
        if i not in words:
            blocks.append(X[:, place : place + 1])
            names.append(name)
            place += 1
            continue
        texts = words[i]
        present = np.unique(texts[texts != ""])
        found[name] = categories = list(known.get(name, present.tolist()))
        if len(categories) > MOST_CATEGORIES:
            raise DataError(
                f"{columns.path}: the column {name!r} has {len(categories)} different texts, more "
                f"than the {MOST_CATEGORIES} that are encoded. Leave it out by --drop, or use it "
                "as --id."
            )
        block = (texts[:, None] == np.array(categories, str)).astype(X.dtype)
        if columns.missing == "drop":
            block[texts == ""] = np.nan
        blocks.append(block)
        names += [f"{name}={category}" for category in categories]
        if unseen := sorted(set(present.tolist()) - set(categories)):
            rows = int(np.isin(texts, unseen).sum())
            notes.append(
                f"warning: {rows} rows have a {name!r} that the model was not trained on "
                f"({unseen[0]!r:.40}{', …' if len(unseen) > 1 else ''}); they count as none of its "
                "categories"
            )
    if wanted.categories is None and found:
        counts = ", ".join(
            f"{name!r} ({len(kinds)})" for name, kinds in list(found.items())[:SHOWN]
        )
        more = ", …" if len(found) > SHOWN else ""
        notes.append(f"columns encoded by their categories: {counts}{more}")
    return np.ascontiguousarray(np.hstack(blocks)), names, found, tuple(notes)

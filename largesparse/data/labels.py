"""Labels as a file has them: numbers only where printing these gives the same text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from .headers import MISSING

PADDED = re.compile(r"[+-]?0\d|.*_")  # float() reads these, but they are codes, not numbers

Refuse = Callable[[str, int, str], NoReturn]  # what is wrong, the row from 0, and the remedy


def labels_of_text(texts: NDArray[np.str_], refuse: Refuse) -> NDArray:
    """Return labels that were read as text as int64, float64 or text.

    They are numbers where each is printed as it stands in the file: `1`, `-2` and `1.0`, but not
    `007`, `+1`, `1_1` or an integer beyond int64. Numbers of which some have a fraction are
    measurements, whatever their digits. `NA`, `None` and the like are labels among other words; in
    a column that is numbers but for them they are missing values.

    Parameters
    ----------
    texts : str (n,)
    refuse : callable
        Raises for a label that cannot be used.
    """
    texts = np.char.strip(texts)
    missing = np.isin(np.char.lower(texts), list(MISSING))
    empty = texts == ""
    if empty.any():
        refuse("a missing value", int(empty.argmax()), "Remove the samples that have no label")
    labels = _parse(texts[~missing], refuse, np.flatnonzero(~missing))
    if not missing.any():
        return labels
    if labels.dtype.kind == "U" or not len(labels):
        return texts
    row = int(missing.argmax())
    refuse(
        f"{str(texts[row])!r} among numbers, which is taken for a missing value,",
        row,
        "Remove the samples that have no label, or write the label as another word",
    )


def _parse(texts: NDArray[np.str_], refuse: Refuse, rows: NDArray[np.int64]) -> NDArray:
    try:
        whole = texts.astype(np.int64)
        if (whole.astype(np.str_) == texts).all():
            return whole
    except (ValueError, OverflowError):
        pass
    try:
        numbers = texts.astype(np.float64)
    except ValueError:
        return texts
    if any(map(PADDED.match, texts.tolist())):
        return texts
    infinite = ~np.isfinite(numbers)
    if infinite.any():
        first = int(infinite.argmax())
        what = f"{str(texts[first])!r:.50}, which is infinite,"
        refuse(what, int(rows[first]), "Remove or replace it")
    if (numbers != np.trunc(numbers)).any() or (numbers.astype(np.str_) == texts).all():
        return numbers
    return texts

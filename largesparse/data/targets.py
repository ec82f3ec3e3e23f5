"""What the values of a target are: text or numbers, and labels of classes or numbers to predict.

Whole numbers may be either. They are labels where there are few of them, or where they number the
classes; else the user is asked, because a wrong guess trains for nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ..errors import DataError, ParameterError
from .checks import encode_labels
from .headers import MISSING

TASKS = ("auto", "classification", "regression", "multilabel")
FEW_CLASSES = 20  # distinct whole numbers that need no look at what they are
ROWS_PER_CLASS = 10  # that each of more whole numbers has, where they number classes
PADDED = re.compile(r"[+-]?0\d|.*_")  # float() reads these, but they are codes, not numbers
Refuse = Callable[[str, int, str], NoReturn]  # what is wrong, the row from 0, and the remedy
# The rule as --help tells it.
RULE = (
    "auto: regression where the target has fractions; classification where it is text, where it "
    f"has at most {FEW_CLASSES} different whole numbers, or where these run from 0 or 1 without a "
    f"gap and stand in {ROWS_PER_CLASS} rows or more each. What may be meant otherwise is refused "
    "until you choose: other whole numbers, and more than two labels that are more than half as "
    "many as the rows. Columns of 0 and 1, of which rows have several that are 1, are multilabel"
)


def labels_of_text(texts: NDArray[np.str_], refuse: Refuse) -> NDArray:
    """Return labels that were read as text as int64, float64 or text.

    They are numbers where each is printed as it stands in the file: `1`, `-2` and `1.0`, but not
    `007`, `+1`, `1_1` or an integer beyond int64. Numbers of which some have a fraction are
    measurements, whatever their digits. `NA`, `None` and the like are labels among other words; in
    a column that is numbers but for them they are missing values. `refuse` raises for a label that
    cannot be used.
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


def check_values(y: NDArray, name: str) -> NDArray:
    """Return a target as booleans, numbers or text, (n_samples,) or (n_samples, n_targets).

    Bytes, as other programs write text into archives, become text, and a single column flat.
    Anything else raises a DataError, as do values that are not finite and text that is not Unicode;
    `name` is what the messages call y.
    """
    if y.dtype.kind == "S":
        try:
            y = np.char.decode(y, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name} holds bytes that are not UTF-8. Write text.") from error
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "biufU":
        raise DataError(
            f"{name} holds {y.dtype}, which is neither text nor numbers. Convert it first, for "
            "instance dates to days."
        )
    if y.ndim not in (1, 2) or not y.size:
        raise DataError(f"{name} has the shape {y.shape}. Give one label or number a row.")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        row = int(np.argwhere(~np.isfinite(y))[0][0])
        value = y[row] if y.ndim == 1 else y[row].tolist()
        raise DataError(
            f"{name} has {value} in row {row + 1}, which is missing or infinite. Remove such rows."
        )
    for text in np.unique(y).tolist() if y.dtype.kind == "U" else ():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which no file can hold
            message = f"{name} has the text {text!a:.50}, which is not Unicode. Change it."
            raise DataError(message) from error
    return y


def numbers_of_text(y: NDArray) -> NDArray:
    """Return text that is finite numbers as float64, and anything else as it is.

    Labels such as `100.00` stay text, as they would be printed otherwise; quantities need not.
    """
    if y.dtype.kind != "U" or "_" in "".join(np.unique(y).tolist()):
        return y
    try:
        numbers = y.astype(np.float64)
    except ValueError:
        return y
    return numbers if np.isfinite(numbers).all() else y


def choose_task(y: Any, asked: str, name: str) -> str:
    """Return "classification", "regression" or "multilabel" for what `check_values` returned.

    A DataError is raised if what is asked for cannot be done with y, a ParameterError if "auto"
    cannot tell.
    """
    if y.ndim == 2 and asked in ("auto", "multilabel") and _is_indicator(y):
        sums = y.sum(axis=1)
        if issparse(y) or asked == "multilabel" or (sums != 1).any():
            return "multilabel"
    if issparse(y) or asked == "multilabel":
        what = "rows of any number of labels" if issparse(y) else "no columns of 0 and 1"
        raise DataError(f"{name} has {what}: --task {asked} does not fit. Leave it out.")
    text = y.dtype.kind == "U"
    fractions = y.dtype.kind == "f" and bool(_is_fraction(y).any())
    if asked == "regression" or (asked == "auto" and fractions):
        if text:
            raise DataError(
                f"{name} holds text such as {str(y.flat[0])!r:.50}, and a regression predicts "
                "numbers. Leave --task regression out, or choose another target."
            )
        return "regression"
    if y.ndim == 2:
        raise DataError(
            f"{name} has {y.shape[1]} columns. Give class labels in one, y.argmax(axis=1) of "
            "one-hot rows, or say --task regression to predict several numbers, or --task "
            "multilabel for columns of 0 and 1."
        )
    if fractions:
        row = int(_is_fraction(y).argmax())
        raise DataError(
            f"{name} holds fractions, {y[row]} in row {row + 1}, and labels of classes are whole "
            "numbers or text. Say --task regression."
        )
    if asked == "auto":
        _check_looks_like_classes(y, name)
    return "classification"


def warn_of_quantities(y: NDArray) -> None:
    """Warn where labels that a classifier is given look like quantities.

    They are more than `FEW_CLASSES` whole numbers, and do not run from 0 or 1 without a gap.
    scikit-learn itself warns where there are more labels than half the rows.
    """
    if y.dtype.kind not in "iuf" or not y.size or not (y == np.trunc(y)).all():
        return
    values = np.unique(y)
    first, last = values[0].item(), values[-1].item()
    if len(values) > FEW_CLASSES and not (first in (0, 1) and last - first + 1 == len(values)):
        warnings.warn(
            f"y has {len(values)} different whole numbers, {first} to {last}, and each becomes a "
            "class. If they are quantities use SparseMLPRegressor.",
            UserWarning,
            stacklevel=3,
        )


def _is_indicator(y: Any) -> bool:
    """Return whether all values are 0 or 1; those of a sparse y are."""
    return issparse(y) or (y.dtype.kind in "biuf" and bool(np.isin(y, (0, 1)).all()))


def _is_fraction(y: NDArray) -> NDArray[np.bool_]:
    """Return where y is not whole, or so large that its unit's place is not kept."""
    return (y != np.trunc(y)) | (np.abs(y) >= 2**53)


def _check_looks_like_classes(y: NDArray, name: str) -> None:
    """Raise a ParameterError unless text or whole numbers are plainly labels: see `RULE`."""
    values, counts = np.unique(y, return_counts=True)
    first, last = values[0].item(), values[-1].item()
    n_values, text = len(values), isinstance(first, str)
    often = n_values <= 2 or 2 * n_values <= len(y)
    numbered = not text and first in (0, 1) and last - first + 1 == n_values
    if often and (text or n_values <= FEW_CLASSES or (numbered and counts.min() >= ROWS_PER_CLASS)):
        return
    if text:
        other = "Choose another target"
        if numbers_of_text(y).dtype.kind != "U":
            other = "Say --task regression if they are quantities"
        raise ParameterError(
            f"{name} has {n_values} different texts in {len(y)} rows, such as "
            f"{first!r:.50}. {other}, or say --task classification if these are classes."
        )
    raise ParameterError(
        f"{name} has {n_values} different whole numbers in {len(y)} rows, {first} to "
        f"{last}. Say --task regression if they are quantities, or --task "
        "classification if they are labels."
    )


def match_labels(labels: NDArray, classes: NDArray) -> NDArray:
    """Return labels in the type of classes: in a file of few rows text may read as numbers."""
    if (labels.dtype.kind == "U") == (classes.dtype.kind == "U"):
        return labels
    if classes.dtype.kind == "U":
        return labels.astype(str)
    names = classes.astype(str)
    unknown = np.setdiff1d(labels, names)
    if len(unknown):
        raise DataError(
            f"y holds the text {str(unknown[0])!r:.50}, which is not among the {len(classes)} "
            "known classes: they are numbers. Remove such rows, or train with labels like theirs."
        )
    return classes[encode_labels(labels, names)[0]]

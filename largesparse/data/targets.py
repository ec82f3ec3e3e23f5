"""What the values of a target are: labels of classes, or numbers to predict.

Whole numbers may be either. They are labels where there are few of them, or where they number the
classes; else the user is asked, because a wrong guess trains for nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError
from .checks import encode_labels

TASKS = ("auto", "classification", "regression")
FEW_CLASSES = 20  # distinct whole numbers that need no look at what they are
ROWS_PER_CLASS = 10  # that each of more whole numbers has, where they number classes
# The rule as --help tells it.
RULE = (
    "auto: regression where the target has fractions; classification where it is text, where it "
    f"has at most {FEW_CLASSES} different whole numbers, or where these run from 0 or 1 without a "
    f"gap and stand in {ROWS_PER_CLASS} rows or more each. What may be meant otherwise is refused "
    "until you choose: other whole numbers, and more than two labels that are more than half as "
    "many as the rows"
)


def check_values(y: NDArray, name: str) -> NDArray:
    """Return a target as booleans, numbers or text, (n_samples,) or (n_samples, n_targets).

    Bytes, as other programs write text into archives, become text, and a single column flat.

    Parameters
    ----------
    y : array of shape (n_samples, ...)
    name : str
        What the messages call it.

    Raises
    ------
    DataError
        If y holds something else, a value that is not finite, or text that is not Unicode.
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
    if y.dtype.kind == "U":
        check_unicode(np.unique(y).tolist(), name)
    return y


def check_unicode(texts: Iterable[str], owner: str) -> None:
    """Raise a DataError where a text has half a surrogate pair, which no file can hold."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"{owner} has the text {text!a:.50}, which is not Unicode. Change it."
            raise DataError(message) from error


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


def choose_task(y: NDArray, asked: str, name: str) -> str:
    """Return "classification" or "regression" for the target y.

    Parameters
    ----------
    y : array
        As `check_values` returns it.
    asked : "auto", "classification" or "regression"
    name : str
        What the messages call it.

    Raises
    ------
    DataError
        If what is asked for cannot be done with y.
    ParameterError
        If "auto" cannot tell.
    """
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
            "one-hot rows, or say --task regression to predict several numbers."
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
    """Return labels that compare with classes: a file of few rows may read as numbers what is text.

    Raises
    ------
    DataError
        If labels that are text are not among classes that are numbers.
    """
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

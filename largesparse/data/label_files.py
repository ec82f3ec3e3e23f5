"""Text of rows that have several labels: svmlight, and that of extreme classification.

A line is `label,label index:value index:value …`, with any number of labels. The second kind
begins with a line of the numbers of rows, features and labels, and counts both from 0. Files are
read line by line.
"""

from __future__ import annotations

import gzip
import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .files import DAMAGE, reading
from .label_sets import LabelSets

if TYPE_CHECKING:
    from scipy.sparse import csr_array

HEADER = re.compile(rb"\d+ \d+ \d+\s*")
LINE = re.compile(rb"[^\s:,]*(,[^\s:,]+)*( +\d+:\S+)+\s*")
LINES = "Lines are 'label,label index:value ...', with rising indices."
HEADERS = "It begins with a line 'rows features labels', and counts features and labels from 0. "
LARGEST = 2**31 - 2  # label
PART_BYTES = 2**24  # of lines that are parsed at once


def kind_of_text(path: Path) -> str | None:
    """Return "extreme" or "svmlight" where the first lines of text look so, else None."""
    try:
        with _open(path) as file:
            first, second = file.readline(1 << 16), file.readline(1 << 16)
    except DAMAGE:  # its reader tells
        return None
    # of a long line the end may be missing, and with it a value
    second = second.rsplit(b" ", 1)[0] if len(second) == 1 << 16 else second
    if HEADER.fullmatch(first) and LINE.fullmatch(second.rstrip()):
        return "extreme"
    return "svmlight" if LINE.fullmatch(first.rstrip()) else None


def read_extreme(path: Path) -> tuple[csr_array, csr_array]:
    """Return the features (n_samples, n_features) and labels (n_samples, n_labels) of a file."""
    with reading(path, "as text of extreme classification", HEADERS + LINES):
        with _open(path) as file:
            header = file.readline(1 << 16)
            if not HEADER.fullmatch(header):
                raise ValueError(f"it begins with {header[:50]!r}")
            n_rows, n_features, n_labels = map(int, header.split())
            if not (0 < n_features <= LARGEST and 0 < n_labels <= LARGEST):
                raise ValueError(
                    f"it says {n_features} features and {n_labels} labels, which must be 1 to "
                    f"{LARGEST}"
                )
            X, y = _read_lines(file, n_features, n_labels)
        if X.shape[0] != n_rows:
            raise ValueError(f"it has {X.shape[0]} lines with features, and says {n_rows}")
        return X, y


def read_multilabel(path: Path) -> tuple[Any, csr_array]:
    """Return the features of an svmlight file from index 0, and its labels, a column a number.

    A ValueError is raised where no line has several labels.
    """
    with _open(path) as file:
        X, y = _read_lines(file)
    if np.diff(y.indptr).max(initial=0) < 2:
        raise ValueError("no line has several labels")
    return X, y


def _read_lines(
    file: Any, n_features: int | None = None, n_labels: int | None = None
) -> tuple[csr_array, csr_array]:
    """Return features and labels of lines, which are read in parts: labels come as tuples."""
    from scipy.sparse import csr_array, vstack
    from sklearn.datasets import load_svmlight_file

    options: dict[str, Any] = {"zero_based": True, "multilabel": True, "dtype": np.float64}
    parts, labels, counts = [], [np.empty(0)], [np.empty(0, np.int64)]
    while lines := file.readlines(PART_BYTES):
        X, y = load_svmlight_file(BytesIO(b"".join(lines)), n_features=n_features, **options)
        parts.append(X)
        counts.append(np.fromiter(map(len, y), np.int64, len(y)))
        labels.append(np.fromiter((label for row in y for label in row), float, counts[-1].sum()))
    width = max((part.shape[1] for part in parts), default=0)
    for part in parts:
        part.resize(part.shape[0], width)
    X = csr_array(vstack(parts, "csr")) if parts else csr_array((0, width))
    return X, _to_csr(np.concatenate(labels), np.concatenate(counts), n_labels)


def _open(path: Path) -> Any:
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rb")


def _to_csr(
    found: NDArray[np.float64], counts: NDArray[np.int64], n_labels: int | None
) -> csr_array:
    """Return the labels of all rows, and how many each row has, as an indicator matrix."""
    limit = LARGEST if n_labels is None else n_labels - 1
    wrong = found[~((found >= 0) & (found <= limit) & (found == np.trunc(found)))]
    if len(wrong):
        raise DataError(
            f"A line has the label {wrong[0]:g}, and labels of which a row has several are whole "
            f"numbers from 0 to {limit}. Number them."
        )
    if n_labels is None:
        n_labels = int(found.max(initial=0)) + 1
    rows = np.repeat(np.arange(len(counts)), counts)
    cells = np.unique(rows * n_labels + found.astype(np.int64))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(cells // n_labels, minlength=len(counts)))])
    return LabelSets(indptr, (cells % n_labels).astype(np.int32), n_labels).to_csr()

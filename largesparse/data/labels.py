"""Labels of samples in a file of their own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..machine.environment import expand_user
from .archives import csr_from_archive, holds_sparse, read_archive
from .columns import Columns, refuse
from .files import open_text, reading
from .frames import some_of
from .headers import csv_rows, read_first_rows
from .targets import labels_of_text


def read_labels(
    place: str, n_rows: int, ids: NDArray | None, target: str | int | None
) -> tuple[Any, str]:
    """Return the labels (n_rows,) of a file, or an indicator matrix, and the name of their column.

    One column has a label a sample, in their order, perhaps under a name. Of several columns the
    first names the samples, which are found by `ids`, and the second, or that called `target`, is
    the label. A `.npy` file has an array of labels, an `.npz` file a sparse indicator matrix.
    """
    path = expand_user(place)
    if not path.is_file():
        raise DataError(f"There is no file {path} for --labels. Check the path.")
    if path.suffix.lower() == ".npz":
        arrays = read_archive(path)
        if not holds_sparse(arrays):
            raise DataError(
                f"{path} is no sparse matrix of scipy.sparse.save_npz, as --labels takes it. Write "
                "labels by that, or by numpy.save."
            )
        sparse = csr_from_archive(arrays, path)
        _check_count(path, sparse.shape[0], n_rows)
        return sparse, "labels"
    if path.suffix.lower() == ".npy":
        with reading(path, "as an array of NumPy", "Write labels.", damage=(Exception,)):
            y = np.load(path, allow_pickle=False)
        _check_count(path, len(y) if y.ndim else 1, n_rows)
        return y, "labels"
    with reading(path, "as labels", "Write it again."):
        _, separator = read_first_rows(path)
        with open_text(path) as file:
            rows = list(csv_rows(file, separator))
    width = len(rows[0])
    if width == 1:
        named = len(rows) == n_rows + 1 and rows[0] not in rows[1:]  # a name is no label
        _check_count(path, len(rows) - named, n_rows)
        texts = [row[0] for row in rows[named:]]
        name = rows[0][0] if named else "labels"
    else:
        name, texts = _by_name(path, rows, ids, target)
    owner = Columns(path, [], 0, [name])
    return labels_of_text(np.array(texts, str), partial(refuse, owner, 0)), name


def _by_name(
    path: Path, rows: list[list[str]], ids: NDArray | None, target: str | int | None
) -> tuple[str, list[str]]:
    head, width = rows[0], len(rows[0])
    if target is not None and str(target) not in head:
        raise DataError(f"{path} has no column {target!r}: its columns are {some_of(head)}.")
    if target is None and width > 2:
        raise DataError(
            f"{path} has {width} columns: name that of the labels by --target. They are "
            f"{some_of(head)}."
        )
    column = 1 if target is None else head.index(str(target))
    if ids is None:
        raise DataError(
            f"{path} names samples in its first column, and the table does not. Name the column "
            "of the table that does by --id, or give labels alone, in the order of the samples."
        )
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise DataError(f"{path} has {len(row)} fields for {width} in row {number}. Add them.")
        if found.setdefault(row[0].strip(), row[column]) != row[column]:
            raise DataError(f"{path} has two labels for {row[0]!r}. Remove one.")
    names = [str(name) for name in ids.tolist()]
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{path} has no label for {len(missing)} of {len(names)} samples: {some_of(missing)}. "
            "Add them, or leave these samples out."
        )
    return head[column] if head[0] not in names else "labels", [found[name] for name in names]


def _check_count(path: Path, n_labels: int, n_rows: int) -> None:
    if n_labels != n_rows:
        raise DataError(f"{path} has {n_labels} labels for {n_rows} samples. Give one a sample.")

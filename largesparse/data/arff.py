"""ARFF, the format of Weka, dense and sparse; the parser is scikit-learn's."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .columns import Columns, Parts, choose_columns, refuse, refuse_word
from .files import open_text, reading
from .headers import is_number
from .layout import FileLayout, Wanted
from .targets import labels_of_text
from .typed_tables import parts_of_frame

# In the name of the relation, as Meka has it: behind a colon. Options of Weka's filters may be -C.
LABELS = re.compile(r"(?:^\s*|:\s*|:.*\s)-C\s+(-?\d+)(?![\d.])")


def read_arff(path: Path, wanted: Wanted) -> Parts:
    """Read the attributes as columns; nominal ones are text, unless all their values are numbers.

    Of sparse data, X is CSR. Where the relation's name has `-C k`, and no target is wanted, the
    first k attributes are labels, or the last k where k is negative, and y is an indicator, CSR.
    """
    from sklearn.externals import _arff

    with (
        reading(path, "as ARFF", "Write it again.", damage=(Exception,)),
        open_text(path) as file,
    ):
        sparse = _is_sparse(file)
        file.seek(0)
        kind = _arff.LOD_GEN if sparse else _arff.DENSE  # rows of sparse data one by one
        found = _arff.load(file, return_type=kind)
        names = [str(name) for name, _ in found["attributes"]]
        kinds = [kind for _, kind in found["attributes"]]
        labels = _labels_of(path, found["relation"], names, wanted)
        for option, columns in (("--drop", wanted.drop), ("--id", (wanted.id,))):
            if taken := {names[k] for k in labels}.intersection(map(str, columns)):
                raise DataError(
                    f"{path}: the column {min(taken)!r} is a label by -C in the relation's name, "
                    f"and {option}. Say one of the two, or name a --target."
                )
        others = wanted.replace(drop=(*wanted.drop, *(names[k] for k in labels)))
        if sparse:
            parts, rows = _of_sparse(path, found["data"], names, kinds, others, set(labels))
        else:
            parts, rows = _of_dense(path, found["data"], names, kinds, others), found["data"]
    if labels:
        y = _indicator(path, rows, {k: names[k] for k in labels}, kinds, sparse)
        layout = parts.layout._replace(labels=[names[k] for k in labels])
        return parts._replace(y=y, layout=layout)
    return parts


def _is_sparse(file: Any) -> bool:
    """Return whether the first row of a file is in braces."""
    for line in file:
        if line.strip().lower() == "@data":
            break
    rows = (line.strip() for line in file)
    return next((row for row in rows if row and row[0] != "%"), "").startswith("{")


def _labels_of(path: Path, relation: str, names: list[str], wanted: Wanted) -> list[int]:
    """Return the attributes that are labels by the relation's name."""
    found = LABELS.search(str(relation))
    if found is None or wanted.target is not None:
        return []
    count = int(found[1])
    if count == 0 or (wanted.columns is not None and abs(count) >= len(names)):
        return []  # a model's rows to predict may have no labels
    if abs(count) >= len(names):
        raise DataError(
            f"{path}: the relation's name has -C {count}, and there are {len(names)} attributes. "
            "Write how many of the first ones are labels there, or below 0 of the last ones."
        )
    labels = list(range(count) if count > 0 else range(len(names) + count, len(names)))
    return [] if {names[k] for k in labels} & set(wanted.columns or ()) else labels


def _indicator(
    path: Path, rows: list[Any], labels: dict[int, str], kinds: list[Any], sparse: bool
) -> Any:
    """Return which labels rows have, csr_array int64 (n_samples, n_labels)."""
    from scipy.sparse import csr_array

    values = {0: 0, 1: 1, "0": 0, "1": 1}
    indptr, indices = [0], []
    absent = {k: kinds[k][0] if sparse and isinstance(kinds[k], list) else 0 for k in labels}
    for number, row in enumerate(rows):
        for place, (k, name) in enumerate(labels.items()):
            value = row.get(k, absent[k]) if sparse else row[k]
            if value not in values:
                raise DataError(
                    f"{path}: {name!r} is a label by -C in the relation's name, and has {value!r} "
                    f"in row {number + 1}. Labels are 0 or 1: change it, or name a --target."
                )
            if values[value]:
                indices.append(place)
        indptr.append(len(indices))
    ones = np.ones(len(indices), np.int64)
    return csr_array((ones, np.array(indices, np.int32), indptr), shape=(len(rows), len(labels)))


def _of_dense(
    path: Path, rows: list[Any], names: list[str], kinds: list[Any], wanted: Wanted
) -> Parts:
    """Return features and target of rows of values."""
    import pandas as pd

    columns: Any = zip(*rows, strict=True) if rows else [()] * len(names)
    pairs = zip(names, kinds, strict=True)
    numeric = [_is_numeric(kind) and name != wanted.target for name, kind in pairs]
    parsed = {
        k: np.array(values, np.float64 if is_numeric else object)
        for k, (is_numeric, values) in enumerate(zip(numeric, columns, strict=True))
    }
    frame = pd.DataFrame(parsed) if parsed else pd.DataFrame(columns=range(len(names)))
    parts = parts_of_frame(path, frame, names, wanted)
    if parts.y is None or parts.y.dtype.kind != "U" or parts.target is None:
        return parts
    owner = Columns(path, [], names.index(parts.target), names)
    y = labels_of_text(parts.y, partial(refuse, owner, owner.target or 0))
    return parts._replace(y=y)


def _is_numeric(kind: Any) -> bool:
    """Return whether an attribute holds numbers; of a nominal one, its values."""
    if isinstance(kind, list):
        return all(map(is_number, kind))
    return str(kind).upper() in ("NUMERIC", "REAL", "INTEGER")


def _of_sparse(
    path: Path,
    rows: Iterable[dict[int, Any]],
    names: list[str],
    kinds: list[Any],
    wanted: Wanted,
    labels: set[int],
) -> tuple[Parts, list[dict[int, Any]]]:
    """Return CSR of rows that name what is not 0, or not the first value of a nominal attribute.

    And what the rows say of attributes that are labels.
    """
    from scipy.sparse import csr_array

    columns = choose_columns(path, len(names), names, wanted)
    for k in columns.features:
        kind = kinds[k]
        if not _is_numeric(kind):
            refuse_word(columns, k, kind[0] if isinstance(kind, list) else kind, 0)
        if isinstance(kind, list) and float(kind[0]) != 0:
            raise DataError(
                f"{path}: the values of {names[k]!r} begin with {kind[0]}, so that what is left "
                "out is not 0. Write the file as dense ARFF."
            )
    where = {k: place for place, k in enumerate(columns.features)}
    others: dict[int, list[Any]] = {k: [] for k in (columns.target, columns.id) if k is not None}
    absent = {k: kinds[k][0] if isinstance(kinds[k], list) else 0 for k in others}
    indptr, indices, values, said = array("q", [0]), array("i"), array("d"), []
    for row in rows:
        for k, value in row.items():
            if k in where:
                indices.append(where[k])
                values.append(np.nan if value is None else float(value))
        indptr.append(len(indices))
        for k, found in others.items():
            found.append(row.get(k, absent[k]))
        if labels:
            said.append({k: value for k, value in row.items() if k in labels})
    shape = len(indptr) - 1, len(where)
    X = csr_array((np.array(values), np.array(indices), np.array(indptr)), shape=shape)
    X.sort_indices()

    def column(k: int | None) -> Any:
        if k is None:
            return None
        found = np.array(others[k])
        if found.dtype.kind == "O":
            row = others[k].index(None)
            refuse(columns, k, "a missing value", row, "Remove the samples without label")
        return found

    y = column(columns.target)
    if y is not None and y.dtype.kind == "U":
        y = labels_of_text(y, partial(refuse, columns, columns.target or 0))
    target = None if columns.target is None else names[columns.target]
    layout = FileLayout(id=None if columns.id is None else names[columns.id])
    features = [names[k] for k in columns.features]
    return Parts(X, y, features, target, layout, column(columns.id), ()), said

"""What becomes of the values of a table: missing ones, logarithms, and numbers of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError
from .categories import Encoded, join
from .frames import first_doubled, some_of
from .layout import MISSING_MARK, FileLayout

if TYPE_CHECKING:
    from .tables import Table

FEW_ROWS = 20  # of which chance can make a column look like a row number


def complete(
    table: Table,
    encoded: Encoded | None,
    missing: str | None,
    *,
    log: bool,
    trained: FileLayout | None = None,
) -> Table:
    """Take logarithms, fill what is missing or leave such rows out, and add what is encoded.

    With what a model was `trained` its columns are filled, and have indicators.
    """
    X: Any = table.X
    if log:
        X = logarithms(X)
        encoded = encoded and encoded._replace(features=encoded.features.log1p())
    table = table._replace(layout=table.layout._replace(missing=missing, log=log or None))
    if not isinstance(X, np.ndarray):
        if missing is not None and (gaps := int(np.isnan(X.data).sum())):
            raise DataError(
                f"{gaps} values are missing, which missing={missing!r} (--missing {missing}) "
                "cannot mend in a sparse table. Fill them first, or leave such rows out."
            )
        return table._replace(X=X)
    names = table.feature_names or table.layout.columns or list(map(str, range(X.shape[1])))
    wanted = [] if trained is None else trained.indicators or []
    marked = [names.index(name) for name in wanted]
    if missing == "indicator" and trained is None:
        marked = np.flatnonzero(np.isnan(X).any(axis=0)).tolist()
    marks = np.isnan(X[:, marked])
    if missing == "drop":
        present = ~np.isnan(X).any(axis=1)
        if encoded is not None:
            present &= ~encoded.absent
            encoded = encoded._replace(features=encoded.features[present])
        if left := len(X) - int(present.sum()):
            note = f"{left} rows with missing values are left out"
            table = table._replace(notes=(*table.notes, note))
        X, marks = X[present], marks[present]
        y, ids = (part if part is None else part[present] for part in (table.y, table.ids))
        table = table._replace(y=y, ids=ids)
    means = None if trained is None else trained.means
    filled = missing in ("mean", "indicator")
    if trained is None and (encoded is not None or filled) and len(X):
        means = _means(X, names).tolist()
        table = table._replace(layout=table.layout._replace(means=means))
    if filled:
        if means is None:
            raise ParameterError(
                f"missing={missing!r} (--missing {missing}) takes the means of the model's "
                "training, and this model has none. Fill the values first."
            )
        X = np.where(np.isnan(X), np.array(means, X.dtype), X)
    features = names
    if encoded is not None:
        X, features = join(X, encoded), encoded.names
        table = table._replace(feature_names=features)
    if marked:
        from scipy.sparse import csr_array, hstack

        marks = marks.astype(X.dtype)
        dense = isinstance(X, np.ndarray)
        X = np.hstack([X, marks]) if dense else csr_array(hstack([X, csr_array(marks)], "csr"))
        indicators = [names[k] for k in marked]
        layout = table.layout
        table = table._replace(
            layout=layout._replace(indicators=indicators, columns=layout.columns or names),
            feature_names=[*features, *(f"{name}={MISSING_MARK}" for name in indicators)],
        )
    twice = first_doubled(table.feature_names or []) if encoded is not None or marked else None
    if twice is not None:
        raise DataError(
            f"Two features would be named {twice!r}, which is COLUMN=CATEGORY. Rename a column."
        )
    return table._replace(X=X)


def _means(X: NDArray, names: list[str]) -> NDArray[np.float64]:
    """Return the means of the columns where they have values."""
    absent = np.isnan(X)
    counts = (~absent).sum(axis=0)
    if (empty := np.flatnonzero(counts == 0)).size:
        columns = [names[k] for k in empty.tolist()]
        raise DataError(
            f"The columns {some_of(columns)} have no value at all. Leave them out by drop=… "
            "(--drop)."
        )
    means: NDArray[np.float64] = np.where(absent, 0, X).sum(axis=0, dtype=np.float64) / counts
    return means


def logarithms(X: Any) -> Any:
    """Return log(1 + x) of an array, or of what a CSR array stores."""
    values = X if isinstance(X, np.ndarray) else X.data
    if (values < 0).any():
        raise DataError("The table has negative values, which have no logarithm. Leave --log out.")
    return np.log1p(X) if isinstance(X, np.ndarray) else X.log1p()


def row_numbers(X: NDArray, names: list[str] | None) -> list[str]:
    """Return a warning where a column counts the rows, or the first one seems to name them."""
    if len(X) < FEW_ROWS or X.shape[1] == 0:
        return []
    suspects = []
    for k in np.flatnonzero((X[1:3] - X[:2] == 1).all(axis=0)).tolist():
        if (np.diff(X[:, k]) == 1).all():
            suspects.append(k)
    first = X[:, 0]
    differ = _whole(first) and len(np.unique(first)) == len(X)
    if differ and 0 not in suspects and not _whole(X[:, 1:9]):
        suspects.insert(0, 0)
    called = [k if names is None else names[k] for k in suspects]
    return [
        f"warning: the column {name!r} looks like a row number or a name of rows, which says "
        f"nothing of other rows: is it a feature? If not, say --id {name} or --drop {name}"
        for name in called
    ]


def _whole(values: NDArray) -> bool:
    return bool((values == np.trunc(values)).all())

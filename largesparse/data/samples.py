"""Which rows the command `train` trains on, and which it holds out to test on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ..errors import DataError, ParameterError
from ..machine.environment import expand_user
from .checks import check_X, encode_labels
from .frames import some_of
from .targets import check_values, choose_task, match_labels, numbers_of_text

if TYPE_CHECKING:
    from pathlib import Path

    from .layout import FileLayout
    from .tables import Table

FEW_COUNTS = 50  # features of counts that are no wide table
LARGE_COUNT = 1000  # from which on counts are told from codes and pixels
FLAGS = {"zero_based": "index-base"}  # whose names differ
TEST_FRACTION = 0.2  # held out where the data has no test part


class Samples(NamedTuple):
    """Rows to train on, and rows to test on (none where X_test is None)."""

    X: Any
    y: NDArray[Any]
    X_test: Any
    y_test: Any
    target: str  # what messages call y
    feature_names: list[str] | None = None
    layout: FileLayout | None = None  # of a file
    task: str = "auto"  # classification | regression, once it is chosen
    notes: Sequence[str] = ()  # what the user should know of the data, a sentence each


def read_samples(
    source: str,
    *,
    target: str | None,
    task: str,
    test_fraction: float | None,
    seed: int,
    held_out_by_default: bool = True,
    test: str | None = None,
    **options: Any,
) -> Samples:
    """Read a file or a data set by its name, find out what its target is, and hold rows out.

    `test` is a file of rows to test on, of the kind of `source`, None where there is none. `target`
    is the column to predict, `task` one of `targets.TASKS`. Where the data has no test
    part the share `test_fraction` is held out; by default `TEST_FRACTION` or nothing. `options` are
    parameters of `tables.read_table`.

    Raises
    ------
    DataError, ParameterError
        Where the data cannot be used, with the part that is tested on, or an option does not fit.
    """
    rows = _read(source, target, options)
    if test is not None:
        rows = _with_test(rows, source, test, target, options)
    X, y, X_test, y_test, *_ = rows
    if task == "regression":
        y = numbers_of_text(y)
        y_test = None if y_test is None else numbers_of_text(y_test)
    if test is not None and test_fraction is not None:
        raise ParameterError(
            f"--test-fraction: {test} has the rows to test on. Leave one of the flags out."
        )
    if X_test is not None and test_fraction is not None:
        raise ParameterError(
            f"--test-fraction: {source} has a test part of its own, of {X_test.shape[0]} rows. "
            "Leave the flag out."
        )
    task = choose_task(y, task, rows.target)
    indices = None
    try:
        X = check_X(X)
        if task == "classification":
            indices, _ = encode_labels(y)
        if X_test is not None:
            X_test, y_test = _check_test(X.shape[1], y, X_test, y_test, task)
    except DataError as error:
        more = " Or say --missing mean, indicator or drop." if "NaN" in str(error) else ""
        raise DataError(f"{source}: {error}{more}") from error
    notes = [*rows.notes, *_note_counts(X)]
    if test_fraction is None and not held_out_by_default:
        test_fraction = 0
    if X_test is None and test_fraction != 0:
        train_rows, test_rows, alone = hold_out(y.shape[0], indices, test_fraction, seed)
        if len(alone):
            notes.append(
                f"{len(alone)} of the classes {'has' if len(alone) == 1 else 'have'} one row only, "
                f"which is trained on and never held out: {some_of(y[alone].tolist())}"
            )
        X, X_test, y, y_test = X[train_rows], X[test_rows], y[train_rows], y[test_rows]
    return rows._replace(X=X, y=y, X_test=X_test, y_test=y_test, task=task, notes=notes)


def _read(source: str, target: str | None, options: dict[str, Any]) -> Samples:
    """Return what the source holds, with its test part where it has one."""
    from .datasets import NAMES, OPENML, read_source
    from .formats import parts_of, table_format
    from .tables import read_table

    path = expand_user(source)
    if (source in NAMES or source.startswith(OPENML)) and not path.is_file():
        said = {"target": target, **options}
        if flags := [name for name, value in said.items() if value not in (None, (), False)]:
            raise ParameterError(
                f"--{FLAGS.get(flags[0], flags[0])} is for files, and {source!r} is a data set "
                "with labels of its own. Leave the flag out."
            )
        X, y, *rest = read_source(source).arrays
        owner = f"{source}: the target"
        X_test, y_test = (rest[0], check_values(rest[1], owner)) if rest else (None, None)
        return Samples(X, check_values(y, owner), X_test, y_test, owner)
    kind = options.get("format") or table_format(path)
    if kind is None and not path.exists():
        read_source(source)  # tells what is known
    table = read_table(path, target, **options)
    if table.y is None:
        if kind == "series":
            read_table(path, "")  # tells which characteristics there are
        known = table.feature_names
        raise DataError(
            f"{path} has no values to predict. Name their column by --target, or a file that has "
            "them by --labels" + (f"; its columns are {some_of(known)}." if known else ".")
        )
    X_test = y_test = None
    if "test" in parts_of(path, kind):
        part = _read_like(table, path, target, {**options, "part": "test"})
        if part.y is None:
            raise DataError(
                f"{path} has a test part without known values: x_test but no y_test. Add them, or "
                "leave x_test out of the archive."
            )
        X_test, y_test = part.X, part.y
    owner = f"{path}: the target" + ("" if table.target is None else f" {table.target!r}")
    names, layout = table.feature_names, table.layout
    return Samples(table.X, table.y, X_test, y_test, owner, names, layout, notes=table.notes)


def _with_test(
    rows: Samples, source: str, test: str, target: str | None, options: dict[str, Any]
) -> Samples:
    """Return samples with the rows of another file to test on."""
    if rows.X_test is not None:
        raise ParameterError(f"--test: {source} has a test part of its own. Leave the flag out.")
    table = _read_like(rows, test, target, options | {"labels": None})
    if table.y is None:
        raise DataError(f"{test} has no values to compare predictions with. Add them.")
    return rows._replace(X_test=table.X, y_test=table.y, notes=[*rows.notes, *table.notes])


def _read_like(
    rows: Table | Samples, path: str | Path, target: str | None, options: dict[str, Any]
) -> Table:
    """Read rows to test on, with the features of those that are trained on."""
    from .layout import FileLayout
    from .tables import read_table_like

    own = {name: value for name, value in options.items() if name not in ("categorical", "log")}
    layout = rows.layout or FileLayout()
    try:
        return read_table_like(layout, rows.feature_names, rows.X.shape[1], path, target, **own)
    except DataError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path}, in the rows to test on: {error}") from error


def _note_counts(X: Any) -> list[str]:
    """Return a hint where all features are counts of very different sizes."""
    values = X if isinstance(X, np.ndarray) else X.data
    if not values.size or X.shape[1] < FEW_COUNTS or values[:1].min() < 0:
        return []
    largest = float(values.max())
    if largest < LARGE_COUNT or values.min() < 0 or (values != np.trunc(values)).any():
        return []
    if np.mean(values) * 10 > largest:  # such as the brightness of pixels
        return []
    return [
        f"all features are counts, up to {largest:.0f}: their logarithm often predicts better; "
        "try --log, log(1 + x)"
    ]


def _check_test(
    n_features: int, y: NDArray[Any], X_test: Any, y_test: NDArray[Any], task: str
) -> tuple[Any, NDArray[Any]]:
    """Return a test part that a model of the training part can be tested on, or raise."""
    try:
        X_test = check_X(X_test, n_features)
        if task == "multilabel":
            return X_test, same_labels(y_test, y.shape[1])
        if y_test.ndim != y.ndim or y_test.shape[1:] != y.shape[1:]:
            raise DataError(f"y has the shape {y_test.shape}, and {y.shape} in the training part.")
        if task == "classification":
            y_test = match_labels(y_test, np.unique(y))
            encode_labels(y_test, np.unique(y))
        elif y_test.dtype.kind == "U":
            raise DataError(f"y holds text such as {str(y_test.flat[0])!r:.50}, not numbers.")
    except DataError as error:
        raise DataError(f"In the rows to test on: {error}") from error
    return X_test, y_test


def same_labels(y: Any, n_labels: int) -> Any:
    """Return the indicator matrix of a test part; labels that training lacks count as missed."""
    if not issparse(y) and (y.ndim != 2 or y.shape[1] != n_labels):
        raise DataError(f"y has the shape {y.shape}, and {n_labels} labels in the training part.")
    if issparse(y) and y.shape[1] < n_labels:
        y = y.copy()
        y.resize((y.shape[0], n_labels))
    return y


def hold_out(
    n_rows: int, indices: NDArray[np.int32] | None, fraction: float | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Divide rows in those that are trained on and those that are held out.

    Classes are divided alike where there are rows enough, and each keeps at least one row to train
    on, so that no class is tested which the model has never seen. `indices` are the classes of the
    rows, None for a regression.

    Returns
    -------
    train_rows, test_rows : int64
    alone : int64
        Those of `train_rows` that are the only ones of their class.
    """
    from sklearn.model_selection import train_test_split

    fraction = TEST_FRACTION if fraction is None else fraction
    wanted, rows, alone = int(np.ceil(fraction * n_rows)), np.arange(n_rows), np.arange(0)
    stratify = None
    if indices is not None:
        counts = np.bincount(indices)
        rows, alone = rows[counts[indices] > 1], rows[counts[indices] == 1]
        n_classes = int((counts > 1).sum())
        wanted = min(wanted, len(rows) - n_classes)
        if n_classes <= min(wanted, len(rows) - wanted):
            stratify = indices[rows]
    if not 0 < wanted < n_rows:
        raise ParameterError(
            f"--test-fraction {fraction:g} cannot be held out of {n_rows} rows"
            + (f", {len(alone)} of which are alone in their class" if len(alone) else "")
            + ". Say --test-fraction 0 to train on all rows."
        )
    train, test = train_test_split(rows, test_size=wanted, random_state=seed, stratify=stratify)
    if indices is not None:
        _, first = np.unique(indices[test], return_index=True)
        back = test[first][~np.isin(indices[test][first], indices[train])]
        train = np.concatenate([train, back, alone])
        test = test[~np.isin(test, back)]
    return train, test, alone

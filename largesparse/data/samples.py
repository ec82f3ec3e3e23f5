"""Which rows the command `train` trains on, and which it holds out to test on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError
from ..machine.environment import expand_user
from .checks import check_X, encode_labels
from .targets import check_values, choose_task, match_labels, numbers_of_text

if TYPE_CHECKING:
    from .tables import FileLayout

TEST_FRACTION = 0.2  # held out where the data has no test part


class Rows(NamedTuple):
    """What a file or a data set holds: X (n, n_features), y (n,) and possibly a test part."""

    X: Any
    y: NDArray[Any]
    test: tuple[Any, NDArray[Any]] | None
    feature_names: list[str] | None
    target: str  # what messages call y
    layout: FileLayout | None = None


class Samples(NamedTuple):
    """Rows to train on, and rows to test on (none where X_test is None)."""

    X: Any
    y: NDArray[Any]
    X_test: Any
    y_test: NDArray[Any] | None
    feature_names: list[str] | None
    target: str
    task: str  # classification | regression
    notes: list[str]  # what the user should know of the choice, a sentence each
    layout: FileLayout | None  # of a file


def read_samples(
    source: str,
    *,
    target: str | None,
    task: str,
    test_fraction: float | None,
    seed: int,
    header: bool | None = None,
    zero_based: bool | None = None,
) -> Samples:
    """Read a file or a data set, find out what its target is, and hold rows out.

    Parameters
    ----------
    source : str
        A path, or the name of a data set (`datasets.read_source`).
    target : str, optional
        The column to predict.
    task : "auto", "classification" or "regression"
    test_fraction : float in [0, 1), optional
        By default `TEST_FRACTION` where the data has no test part, which is taken else.
    seed : int
        Of the rows that are held out.
    header, zero_based : bool, optional
        As in `tables.read_table`.

    Raises
    ------
    DataError, ParameterError
        Where the data cannot be used, with the part that is tested on, or an option does not fit.
    """
    rows = _read(source, target, header, zero_based)
    if task == "regression":
        test = rows.test and (rows.test[0], numbers_of_text(rows.test[1]))
        rows = rows._replace(y=numbers_of_text(rows.y), test=test)
    if rows.test is not None and test_fraction is not None:
        raise ParameterError(
            f"--test-fraction: {source} has a test part of its own, of {rows.test[0].shape[0]} "
            "rows. Leave the flag out."
        )
    task = choose_task(rows.y, task, rows.target)
    try:
        X, y, indices, test = check_X(rows.X), rows.y, None, rows.test
        if task == "classification":
            indices, _ = encode_labels(y)
        if test is not None:
            test = _check_test(X.shape[1], y, test, task)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    notes: list[str] = []
    if test is None and test_fraction != 0:
        train_rows, test_rows, alone = hold_out(len(y), indices, test_fraction, seed)
        if len(alone):
            notes.append(
                f"{len(alone)} of the classes {'has' if len(alone) == 1 else 'have'} one row only, "
                f"which is trained on and never held out: {some_of(y[alone].tolist())}"
            )
        X, test, y = X[train_rows], (X[test_rows], y[test_rows]), y[train_rows]
    X_test, y_test = test or (None, None)
    return Samples(X, y, X_test, y_test, rows.feature_names, rows.target, task, notes, rows.layout)


def _read(source: str, target: str | None, header: bool | None, zero_based: bool | None) -> Rows:
    from .datasets import NAMES, OPENML, read_source
    from .tables import parts_of, read_table, table_format

    path = expand_user(source)
    if table_format(path) is None and not path.is_file():
        named = source in NAMES or source.startswith(OPENML)
        if target is not None and named:
            raise ParameterError(
                f"--target {target}: the data set {source!r} has labels of its own. Leave the "
                "flag out."
            )
        if named and (header is not None or zero_based is not None):
            raise ParameterError(
                f"--header and --index-base are for files, and {source!r} is a data set. Leave "
                "them out."
            )
        X, y, *rest = read_source(source).arrays
        owner = f"{source}: the target"
        test = (rest[0], check_values(rest[1], owner)) if rest else None
        return Rows(X, check_values(y, owner), test, None, owner)
    options: dict[str, Any] = {"header": header, "zero_based": zero_based}
    table = read_table(path, target, **options)
    if table.y is None:
        raise DataError(
            f"{path} has no values to predict. Name their column by --target"
            + (f"; its columns are {some_of(table.feature_names)}." if table.feature_names else ".")
        )
    test = None
    if "test" in parts_of(path):
        part = read_table(path, target, part="test", **options)
        if part.y is None:
            raise DataError(
                f"{path} has a test part without known values: x_test but no y_test. Add them, or "
                "leave x_test out of the archive."
            )
        test = part.X, part.y
    owner = f"{path}: the target" + ("" if table.target is None else f" {table.target!r}")
    return Rows(table.X, table.y, test, table.feature_names, owner, table.layout)


def _check_test(
    n_features: int, y: NDArray[Any], test: tuple[Any, NDArray[Any]], task: str
) -> tuple[Any, NDArray[Any]]:
    """Return a test part that a model of the training part can be tested on, or raise."""
    try:
        X_test, y_test = check_X(test[0], n_features), test[1]
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


def hold_out(
    n_rows: int, indices: NDArray[np.int32] | None, fraction: float | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Divide rows in those that are trained on and those that are held out.

    Classes are divided alike where there are rows enough, and each keeps at least one row to train
    on, so that no class is tested which the model has never seen.

    Parameters
    ----------
    n_rows : int
    indices : int32 (n_rows,), optional
        The class of every row; None for a regression.
    fraction : float in (0, 1), optional
        Share held out, `TEST_FRACTION` by default; of a few rows or small classes less.
    seed : int
        Same seed, same rows.

    Returns
    -------
    train_rows, test_rows : int64
    alone : int64
        Those of `train_rows` that are the only ones of their class.

    Raises
    ------
    ParameterError
        Where nothing can be held out, or too little would be left.
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


def some_of(names: list[Any], count: int = 8) -> str:
    """Return the first names of a list as a message shows them."""
    return ", ".join(map(repr, names[:count])) + (", …" if len(names) > count else "")

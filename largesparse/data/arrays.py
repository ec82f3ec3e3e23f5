"""Files of arrays: svmlight, NumPy's, MATLAB's and anndata's files, GEO series matrices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, install_command
from .archives import csr_from_archive, flatten_rows, holds_sparse, read_archive
from .columns import Parts
from .files import reading
from .frames import first_doubled
from .geo import read_series_matrix
from .label_files import read_extreme, read_multilabel
from .layout import FileLayout, Wanted
from .typed_tables import parts_of_frame

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Target = str | int | None


def read_extreme_text(path: Path, target: Target) -> Parts:
    """Read text of extreme classification: see `label_files`."""
    _refuse_target(path, target, "text of extreme classification")
    X, y = read_extreme(path)
    return _parts(X, y, None, None, FileLayout(zero_based=True))


def read_svmlight(path: Path, target: Target, zero_based: bool | None) -> Parts:
    """Read lines of a label, or several, and the values that are not 0."""
    from scipy.sparse import csr_array
    from sklearn.datasets import load_svmlight_file

    _refuse_target(path, target, "an svmlight file")
    lines = "Lines are 'label index:value ...', with one label and rising indices."
    with reading(path, "as svmlight", lines):
        try:
            # From 0 in any case: how low the indices go is seen only then.
            X, y = load_svmlight_file(str(path), dtype=np.float64, zero_based=True)
        except ValueError as error:
            try:
                X, y = read_multilabel(path)
            except ValueError:
                raise error from None
    has_zero = bool((X.indices == 0).any())
    if zero_based is None:
        zero_based = has_zero
    elif has_zero and not zero_based:
        raise DataError(
            f"{path} has the index 0, but indices are to begin at 1, as in the file that a model "
            "was trained on. Write it with the same indices as that file."
        )
    if isinstance(y, np.ndarray):
        whole = np.abs(y).max(initial=0) < 2**53 and (y == np.trunc(y)).all()
        y = y.astype(np.int64) if whole else y
    if not zero_based:
        X.indices -= 1
        X = csr_array((X.data, X.indices, X.indptr), shape=(X.shape[0], max(0, X.shape[1] - 1)))
    X = csr_array(X)
    return _parts(X, y, None, None, FileLayout(zero_based=zero_based))


def _refuse_target(path: Path, target: Target, kind: str) -> None:
    if target is not None:
        raise DataError(
            f"{path} is {kind}, which begins every line with the label: it has no "
            f"column {target!r}. Leave the target out."
        )


def read_npz(path: Path, target: Target, part: str | None) -> Parts:
    """Read the arrays of an archive, as `tables` says."""
    return _of_arrays(path, read_archive(path), target, part)


def _of_arrays(
    path: Path, arrays: dict[str, Any], target: Target, part: str | None = None
) -> Parts:
    X: NDArray | csr_array
    label = "y" if target is None else str(target)
    if "X" in arrays:
        X = arrays["X"]
    elif "x_train" in arrays or "x_test" in arrays:
        part = part or "train"
        if f"x_{part}" not in arrays:
            raise DataError(f"{path} has no array 'x_{part}'. Choose the other part.")
        X, label = arrays[f"x_{part}"], f"{label}_{part}"
    elif holds_sparse(arrays):
        X = csr_from_archive(arrays, path)
    else:
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}; a table needs X, or "
            "x_train or x_test, or indptr, indices and shape."
        )
    y = arrays.get(label)
    if y is None and target is not None:
        raise DataError(
            f"{path} has no array {label!r} for the target: it holds {', '.join(sorted(arrays))}."
        )
    if X.ndim < 2 or X.dtype.kind not in "biuf":
        raise DataError(
            f"X in {path} must be numbers of shape (samples, features), but is {X.dtype} of shape "
            f"{X.shape}. Write it so."
        )
    if y is not None and y.shape[:1] != X.shape[:1]:
        raise DataError(f"X in {path} has {X.shape[0]} samples but {label} has {y.shape[:1]}.")
    names = [str(name) for name in arrays["feature_names"]] if "feature_names" in arrays else None
    X = flatten_rows(X)
    if names is not None and len(names) != X.shape[1]:
        raise DataError(f"{path} has {len(names)} feature_names for {X.shape[1]} features.")
    if names is not None and (twice := first_doubled(names)) is not None:
        raise DataError(f"{path} has two features named {twice!r}. Rename or remove one.")
    return _parts(X, y, names, None if target is None else label)


def _parts(
    X: Any,
    y: Any,
    names: list[str] | None = None,
    target: str | None = None,
    layout: FileLayout | None = None,
    ids: Any = None,
) -> Parts:
    return Parts(X, y, names, target, layout or FileLayout(), ids, ())


def read_npy(path: Path, wanted: Wanted) -> Parts:
    """Read an array of NumPy: rows are samples; the target may be one of its columns."""
    import pandas as pd

    remedy = "Write it with numpy.save from an array of numbers."
    with reading(path, "as an array of NumPy", remedy, damage=(Exception,)):
        X = np.load(path, allow_pickle=False, mmap_mode="r")
        if not isinstance(X, np.ndarray) or X.ndim < 2 or X.dtype.kind not in "biuf":
            raise ValueError("it is no array of numbers (samples, features)")
    X = flatten_rows(X)
    return parts_of_frame(path, pd.DataFrame(X), None, wanted)


def read_mat(path: Path, target: Target) -> Parts:
    """Read a file of MATLAB: X, or its only matrix, and y, which may be a capital Y or labels."""
    from scipy.io import loadmat

    try:
        with reading(path, "as a file of MATLAB", "Save it again.", damage=(Exception,)):
            found = loadmat(path)
            arrays = {name: _plain(value) for name, value in found.items() if name[:2] != "__"}
    except DataError as error:
        if isinstance(error.__cause__, NotImplementedError):
            raise DataError(
                f"{path} is of MATLAB's version 7.3. Save it in MATLAB by "
                f"save('{path.name}', 'X', 'y', '-v7')."
            ) from error
        raise
    for name, others in (("X", ("x",)), ("y", ("Y", "labels", "label"))):
        for other in others:
            if name not in arrays and other in arrays:
                arrays[name] = arrays.pop(other)
    if "X" not in arrays:
        matrices = [
            name
            for name, array in arrays.items()
            if array.ndim == 2 and min(array.shape) > 1 and array.dtype.kind in "biuf"
        ]
        if len(matrices) == 1:
            arrays["X"] = arrays.pop(matrices[0])
    n_rows = arrays["X"].shape[0] if "X" in arrays else 0
    for name, array in arrays.items():
        if array.ndim == 2 and array.shape == (1, n_rows) and name != "X":
            arrays[name] = array[0]
    return _of_arrays(path, arrays, target)


def _plain(value: Any) -> Any:
    """Return an array of MATLAB as one of numbers or text; cells of text become text."""
    from scipy.sparse import csr_array, issparse

    if issparse(value):
        if hasattr(value, "check_format"):
            value.check_format(full_check=True)  # conversions trust indices
        return csr_array(value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        cells = [np.asarray(cell).squeeze() for cell in value.ravel()]
        if all(cell.ndim == 0 for cell in cells):
            return np.array([str(cell) for cell in cells])
    return value


def read_series(path: Path, target: Target) -> Parts:
    """Read a GEO series matrix; the target is a characteristic of the samples."""
    series = read_series_matrix(path, None if target is None else str(target))
    name = None if target is None else str(target)
    ids = np.array(series.samples)
    return _parts(series.X, series.labels, series.probes, name, ids=ids)


def read_h5ad(path: Path, target: Target) -> Parts:
    """Read an AnnData file: X, names of genes and cells; the target is a column of obs."""
    try:
        from anndata import read_h5ad as read
    except ImportError as error:
        raise DataError(
            f"Reading {path} needs anndata, which is not installed: {install_command('anndata')}."
        ) from error
    with reading(path, "as an AnnData file", "Write it again.", damage=(Exception,)):
        data = read(path)
    y = None
    if target is not None:
        if target not in data.obs:
            known = ", ".join(map(repr, map(str, data.obs.columns)))
            raise DataError(f"{path} has no {target!r} in its obs, which has {known or 'nothing'}.")
        column = data.obs[target]
        if column.isna().any():
            row = int(column.isna().to_numpy().argmax()) + 1
            raise DataError(f"{path}: {target!r} is missing in row {row}. Remove such cells.")
        y = column.to_numpy()
        y = y if y.dtype.kind in "biuf" else np.array([str(value) for value in y])
    names = [str(name) for name in data.var_names]
    if (twice := first_doubled(names)) is not None:
        raise DataError(f"{path} has two features named {twice!r}: data.var_names_make_unique().")
    X = _plain(data.X)
    name = None if target is None else str(target)
    return _parts(X, y, names, name, ids=np.array([str(i) for i in data.obs_names]))

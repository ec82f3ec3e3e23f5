"""Data sets of OpenML, downloaded once into the cache folder."""

from __future__ import annotations

from http.client import HTTPException
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, check_range
from ..machine import environment
from .precision import narrowest

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def fetch(name: str, version: int | None = None) -> tuple[NDArray | csr_array, NDArray]:
    """Fetch a data set from OpenML with `sklearn.datasets.fetch_openml`.

    It is kept in the folder `openml` of `environment.cache_folder()`, so that a network is needed
    the first time only. `name` may be the number of the data set, which implies the version; by
    default that is the oldest that is active.
    """
    from sklearn.datasets import fetch_openml

    if version is not None:
        check_range("version", version, "load_dataset", low=1, integer=True)
    folder = environment.cache_folder() / "openml"
    which = {"name": name, "version": version or "active"}
    if name.isdigit():
        which = {"data_id": int(name)}
    try:
        bunch = fetch_openml(**which, data_home=folder, as_frame=False, parser="auto")
    except ValueError as error:  # what scikit-learn raises for a data set that is not there, too
        raise DataError(f"OpenML's data set {name!r} cannot be used: {error}") from error
    except (OSError, EOFError, HTTPException) as error:  # URLError is an OSError
        raise DataError(
            f"OpenML's data set {name!r} is not in {folder} and could not be fetched: {error}. "
            f"Connect to the network, or copy that folder from a machine that has one and set "
            f"{environment.CACHE} to the folder above it."
        ) from error
    if bunch.target is None or bunch.target.ndim != 1:
        raise DataError(f"OpenML's data set {name!r} has no single target. Choose another version.")
    if bunch.data.dtype.kind == "O":
        return _numbers(bunch.data, bunch.feature_names, name), bunch.target
    return bunch.data, bunch.target


def _numbers(X: NDArray, feature_names: list[str], name: str) -> NDArray[np.float32]:
    """Return an array of Python objects, as sets with categorical features have, as float32."""
    numbers = np.empty(X.shape, np.float32)
    for column, feature in enumerate(feature_names):
        try:
            numbers[:, column] = X[:, column].astype(np.float32)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"The feature {feature!r} of OpenML's data set {name!r} is no number: {error}. "
                "Encode it as numbers and save the table as .csv, or choose another version."
            ) from error
    return narrowest(numbers)

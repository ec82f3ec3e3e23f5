"""Data sets of OpenML, downloaded once into the cache folder."""

from __future__ import annotations

from http.client import HTTPException
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from . import environment
from .errors import DataError, check_range

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def fetch(name: str, version: int | None = None) -> tuple[NDArray | csr_array, NDArray]:
    """Fetch a data set from OpenML with `sklearn.datasets.fetch_openml`.

    It is kept in the folder `openml` of `environment.cache_folder()`, so that a network is needed
    the first time only. A categorical feature becomes the number of its category.

    Parameters
    ----------
    name : str
        The name on OpenML, or the number of the data set.
    version : int, optional
        By default the oldest version that is active. Not for numbers.

    Returns
    -------
    X : array or CSR array of shape (n_samples, n_features)
    y : array of shape (n_samples,)

    Raises
    ------
    DataError
        If there is no network, no such data set, or it has no target or other than numbers.
    ParameterError
        If `version` is out of range.
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
    return bunch.data, bunch.target

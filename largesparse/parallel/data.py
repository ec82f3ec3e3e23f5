"""The data of a training as a list of arrays, which the ranks of a node share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from ..sharing import SharedArray, find_mapped
from ..standardizer import Standardizer
from ..training_data import TrainingData
from .segments import Arena, Segment, share_arrays

Arrays = list[NDArray[Any]]


class Layout(NamedTuple):
    """What the arrays of a training's data are, in their order."""

    X_shape: tuple[int, ...] | None  # of a sparse X; None is a dense one
    has_weights: bool
    test_shape: tuple[int, ...] | None
    has_test: bool
    is_standardized: bool


def to_arrays(data: TrainingData, scaling: Standardizer | None) -> tuple[Layout, Arrays]:
    """Return the data and the standardisation as arrays; `from_arrays` goes back."""
    arrays = [*parts(data.X), data.y, data.train_rows, data.loss_rows]
    if data.weights is not None:
        arrays.append(data.weights)
    if data.test is not None:
        arrays += [*parts(data.test[0]), data.test[1]]
    if scaling is not None:
        arrays += [scaling.mean, scaling.scale]
    layout = Layout(
        data.X.shape if issparse(data.X) else None,
        data.weights is not None,
        data.test[0].shape if data.test is not None and issparse(data.test[0]) else None,
        data.test is not None,
        scaling is not None,
    )
    return layout, arrays


def from_arrays(
    layout: Layout, arrays: Sequence[NDArray]
) -> tuple[TrainingData, Standardizer | None]:
    """Return the data and the standardisation that `to_arrays` was given."""
    rest = iter(arrays)
    X = whole(layout.X_shape, rest)
    y, train_rows, loss_rows = next(rest), next(rest), next(rest)
    weights = next(rest) if layout.has_weights else None
    test = (whole(layout.test_shape, rest), next(rest)) if layout.has_test else None
    scaling = Standardizer(next(rest), next(rest)) if layout.is_standardized else None
    nothing = np.empty(0, np.int64)
    return TrainingData(X, y, weights, train_rows, loss_rows, nothing, test), scaling


def share(arrays: Arrays) -> tuple[list[SharedArray], Segment]:
    """Return where the ranks of this node find arrays; those of mapped files stay where they are.

    The segment has the others. It must be kept as long as ranks open it.
    """
    places = [find_mapped(array) for array in arrays]
    moved = [array for array, place in zip(arrays, places, strict=True) if place is None]
    segment, copies = share_arrays(moved)
    new = iter(places_in(segment, copies))
    return [next(new) if place is None else place for place in places], segment


def places_in(segment: Segment, arrays: Sequence[NDArray[Any]]) -> list[SharedArray]:
    """Return where others find all arrays of a segment, in the order in which it has them."""
    count = Arena()
    places = []
    for array in arrays:
        places.append(SharedArray(segment.path, array.dtype.str, array.shape, count.nbytes))
        count(array.shape, array.dtype)
    return places


def parts(X: Any) -> Arrays:
    """Return the arrays that a dense or CSR X consists of; `whole` goes back."""
    return [X.data, X.indices, X.indptr] if issparse(X) else [X]


def whole(shape: tuple[int, ...] | None, arrays: Iterator[NDArray]) -> Any:
    """Return the X of the next arrays, which is CSR of a shape, or dense where that is None."""
    if shape is None:
        return next(arrays)
    return csr_array((next(arrays), next(arrays), next(arrays)), shape=shape)

"""The data of a training as a list of arrays, which the ranks of a node share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ...data.standardizer import Standardizer
from ...machine.mapped_memory import Arrays, X_from_arrays, X_to_arrays
from ...training.prepared import TrainingData


class Layout(NamedTuple):
    """What the arrays of a training's data are, in their order."""

    X_shape: tuple[int, ...] | None  # of a sparse X; None is a dense one
    has_weights: bool
    test_shape: tuple[int, ...] | None
    has_test: bool
    is_standardized: bool


def to_arrays(data: TrainingData, scaling: Standardizer | None) -> tuple[Layout, Arrays]:
    """Return the data and the standardisation as arrays; `from_arrays` goes back."""
    arrays = [*X_to_arrays(data.X), data.y, data.train_rows, data.loss_rows]
    if data.weights is not None:
        arrays.append(data.weights)
    if data.test is not None:
        arrays += [*X_to_arrays(data.test[0]), data.test[1]]
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
    X = X_from_arrays(layout.X_shape, rest)
    y, train_rows, loss_rows = next(rest), next(rest), next(rest)
    weights = next(rest) if layout.has_weights else None
    test = (X_from_arrays(layout.test_shape, rest), next(rest)) if layout.has_test else None
    scaling = Standardizer(next(rest), next(rest)) if layout.is_standardized else None
    nothing = np.empty(0, np.int64)
    return TrainingData(X, y, weights, train_rows, loss_rows, nothing, test), scaling

"""Logistic or linear regression for a training to begin with: see `model.linear_path`."""

from __future__ import annotations

import copy
import math
import os
import threading
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from ..data.batches import StandardizedRows, is_sparse, load_sparse_batch
from ..model.linear_path import install_, reserve_, what_is_in_the_way
from ..model.losses import LOSSES
from ..model.network import SparseMLP
from ..training.history import EpochRecord
from ..training.prepared import TrainingData
from ..training.trainer import Callback, Trainer

PENALTY = 0.02  # λ of the mean loss + λ/2·|weights|²
FEATURE_PENALTY = 0.3  # of it a row, where sparse X has fewer features, such as categories
RIDGE_PENALTIES = np.logspace(-3, 2, 6)  # times the number of features
MOST_ITERATIONS = 200
LEARNT = 0.03  # mean loss below which there is nothing left for the other neurons to learn
DUAL_FACTOR, DUAL_ROWS = (
    4,
    512,
)  # from so many features a row, up to so many rows: by the rows' products
MOST_CONNECTIONS = 4_000_000  # of linear maps
MOST_PRODUCTS = 2_000_000_000  # of values and maps: logistic regression takes tens of seconds
SPARSE_COST = 10  # of a product, where X is sparse
RIDGE_ROWS = 4000  # or features, the fewer of them: ridge regression takes half a minute
LARGEST_MEAN = 100  # in deviations, of what is not centred; a tenth of it for all features
RANK = 1e-7  # eigenvalues of the inner products below this share of the largest one are 0


class LinearStart(NamedTuple):
    """A linear map of the standardised features, and what it says of the rows of a training."""

    weights: NDArray[np.floating]  # (n_features, n_maps): one map for two classes
    bias: NDArray[np.floating]  # (n_maps,)
    offsets: NDArray[np.float32]  # (n_samples, n_outputs), to be added to the network's outputs

    def is_as_good_as(self, accuracy: float, data: TrainingData) -> bool:
        """Return whether it predicts the validation rows as well, but for a standard error.

        The accuracy is that of the best epoch, and so a bit too high.
        """
        rows = data.validation_rows
        weights = None if data.weights is None else data.weights[rows]
        right = self.offsets[rows].argmax(axis=1) == data.y[rows]
        own = float(np.average(right, weights=weights))
        return own + 0.5 / math.sqrt(len(rows)) > accuracy

    def reserve_(self, network: SparseMLP) -> None:
        """Set neurons aside for the map; a trainer with the offsets trains what it leaves."""
        reserve_(network, self.weights.shape[1])

    def install_(self, network: SparseMLP) -> None:
        """Make the map a part of a network that was trained beside it."""
        install_(network, self.weights, self.bias)

    def seen_whole(self, estimator: Any, callback: Callback) -> Callback:
        """Return a callback for which the estimator's network has the map while it is trained."""

        def call(trainer: Trainer, record: EpochRecord) -> Any:
            trained = estimator.network_
            estimator.network_ = copy.copy(trained)
            estimator.network_.layers = [layer.copy() for layer in trained.layers]
            self.install_(estimator.network_)
            try:
                return callback(trainer, record)
            finally:
                estimator.network_ = trained

        return call


def what_prevents(network: SparseMLP, data: TrainingData, most_bytes: int) -> str | None:
    """Return why a training cannot begin linearly; None where it can."""
    X, scaled, config = data.X, network.preprocessing, network.config
    n_classes = config.layer_sizes[-1]
    classifies = LOSSES[config.loss].is_classification
    n_maps = 1 if classifies and n_classes == 2 else n_classes
    nbytes = 4 * (X.nnz if issparse(X) else X.shape[0] * X.shape[1])
    if config.loss == "binary_cross_entropy":
        return "it is for one label a row, and for numbers"
    if config.start_factor > 1:
        return "the network is to become smaller (start_factor)"
    if scaled is None:
        return "it takes standardised features (standardize=True)"
    if nbytes > most_bytes or 2 * n_maps * X.shape[1] > MOST_CONNECTIONS:
        return "the table is too large"
    if _takes_long(X, n_maps, len(data.train_rows), classifies):
        return "the table is so large that linear regression would take long"
    means = np.abs(scaled.mean * scaled.scale)
    rms = np.sqrt(np.mean(np.square(means)))
    centred = not issparse(X) or is_sparse(X, scaled)
    if not centred and (means.max() > LARGEST_MEAN or rms > LARGEST_MEAN / 10):
        return "sparse X has features whose means are far larger than their deviations"
    if classifies and len(np.unique(data.y[data.train_rows])) < n_classes:
        return "there are no rows of some classes"
    return what_is_in_the_way(network, n_maps)


def _takes_long(X: Any, n_maps: int, n_rows: int, classifies: bool) -> bool:
    if classifies:
        products = SPARSE_COST * X.nnz if issparse(X) else n_rows * X.shape[1]
        return n_maps * products > MOST_PRODUCTS
    return n_rows * min(n_rows, X.shape[1]) ** 2 > RIDGE_ROWS**3


def has_learnt(trainer: Trainer, record: EpochRecord) -> bool:
    """Return whether to end a training that began linearly: a callback."""
    return record.running_loss is not None and record.running_loss < LEARNT


def fit_linear(network: SparseMLP, data: TrainingData) -> LinearStart:
    """Return L2-regularised logistic or linear regression on the rows of a training.

    Its result does not depend on the number of threads: BLAS gets one.
    """
    from threadpoolctl import threadpool_limits

    X, rows, preprocessing = data.X, data.train_rows, network.preprocessing
    shift: NDArray[np.floating] | None = None
    if isinstance(X, StandardizedRows):
        X = X.values
    else:  # centring changes the intercept alone, which has no penalty
        assert preprocessing is not None
        batch = load_sparse_batch(X, np.arange(X.shape[0]), preprocessing, X.shape[1])
        if batch is not None:
            indptr = np.append(batch.starts[:, 0], batch.starts[-1, -1])
            X = csr_array((batch.values, batch.features, indptr), shape=X.shape)
            shift = batch.shift if len(batch.shift) else None
        else:
            values = preprocessing.scale[X.indices]
            values *= X.data
            X = csr_array((values.astype(np.float32), X.indices, X.indptr), shape=X.shape)
            shift = preprocessing.mean * preprocessing.scale
    sample_weight = None if data.weights is None else data.weights[rows]
    fit = _logistic if LOSSES[network.config.loss].is_classification else _ridge
    with _turn, threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its iterations: what is left, training learns
        own = X if len(rows) == X.shape[0] else X[rows]  # a copy, of as many bytes as the table
        weights, bias = fit(own, data.y[rows], sample_weight)
        weights = weights.astype(np.float32)  # or the product would be of a copy in float64
        offsets = np.asarray(X @ weights) + bias
    if offsets.shape[1] < network.config.layer_sizes[-1]:
        offsets = np.hstack([-offsets / 2, offsets / 2])
    if shift is not None:
        bias = bias + shift @ weights
    return LinearStart(weights, bias, offsets.astype(np.float32))


def _logistic(X: Any, y: NDArray[Any], sample_weight: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return weights (n_features, n_maps) and intercepts of logistic regression."""
    from sklearn.linear_model import LogisticRegression

    share = X.shape[1] / X.shape[0]
    penalty = FEATURE_PENALTY * share if issparse(X) and share <= 1 else PENALTY
    model = LogisticRegression(C=1 / (penalty * len(y)), max_iter=MOST_ITERATIONS)
    if DUAL_FACTOR * len(y) <= X.shape[1] and len(y) <= DUAL_ROWS:
        return _fit_in_row_space(model, X, y, sample_weight)
    model.fit(X, y, sample_weight=sample_weight)
    return model.coef_.T, model.intercept_


def _ridge(X: Any, y: NDArray[Any], sample_weight: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return weights (n_features, n_targets) and intercepts, the penalty by leaving one out."""
    from sklearn.linear_model import RidgeCV

    model, y = RidgeCV(X.shape[1] * RIDGE_PENALTIES), y.astype(np.float64)
    if X.shape[1] > len(y):  # RidgeCV copies what it is given, in float64
        return _fit_in_row_space(model, X, y, sample_weight)
    model.fit(X, y, sample_weight=sample_weight)
    return np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_)


def _fit_in_row_space(
    model: Any, X: Any, y: NDArray[Any], sample_weight: Any
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Do as for all features, with the rows in an orthonormal basis of the space they span.

    The penalised optimum lies in that space (the representer theorem).
    """
    products = X @ X.T
    products = products.toarray() if issparse(X) else products
    eigenvalues, vectors = np.linalg.eigh(products.astype(np.float64))
    eigenvalues = np.maximum(eigenvalues, np.finfo(np.float64).tiny)  # 0 where X is 0
    kept = eigenvalues > RANK * eigenvalues[-1]
    roots, vectors = np.sqrt(eigenvalues[kept]), vectors[:, kept]
    model.fit(vectors * roots, y, sample_weight=sample_weight)
    # the basis itself is X.T @ (vectors / roots): as large as X if that were dense
    of_rows = (vectors / roots) @ np.atleast_2d(model.coef_).T
    return np.asarray(X.T @ of_rows.astype(np.float32)), np.atleast_1d(model.intercept_)


_turn = threading.Lock()  # BLAS's threads and the filters of warnings are those of the process


def _after_fork() -> None:
    global _turn
    _turn = threading.Lock()  # a thread that only the parent has may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

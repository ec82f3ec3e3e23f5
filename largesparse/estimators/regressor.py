"""The scikit-learn face: a regressor with truly sparse layers."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import RegressorMixin

from ..data.checks import LARGEST, check_targets, first_true, refuse_masked
from ..data.standardizer import moments
from ..errors import DataError
from ..training.prediction import Predictor
from .base import BaseSparseMLP, Weights, count_rows, undone_on_error


class SparseMLPRegressor(RegressorMixin, BaseSparseMLP):
    """A regressor: a truly sparse multilayer perceptron that evolves while it is trained.

    The loss is the mean squared error of the targets, shifted and scaled to mean 0 and variance
    1; losses in `loss_curve_` and `history_` are of these.

    Parameters
    ----------
    hidden_layer_sizes, epsilon, density, distribution, start_factor, output_epsilon, \
    output_density, activation, alpha, recipe, rate_fan_in, regrowth, batch_norm, topology, zeta, \
    zeta_decay, evolve_output, drop, drop_factor, growth, growth_candidates, redistribute, \
    keep_active, shrink_start, shrink_end, pruning_start, pruning_every, pruning_percentile, \
    dropout, label_smoothing, average_decay, optimizer, learning_rate, schedule, momentum, \
    weight_decay, beta2, adam_epsilon, step_counts, connection_warmup, clip_norm, batch_size, \
    max_epochs, early_stopping, validation_fraction, patience, standardize, linear_start, \
    warm_start, random_state, n_jobs, backend, verbose
        As in `SparseMLPClassifier`; a linear start is by ridge regression, and there are no labels
        to smooth.

    Attributes
    ----------
    n_features_in_, feature_names_in_, network_, history_, loss_curve_, n_iter_, n_steps_
        As in `SparseMLPClassifier`.
    validation_scores_, best_validation_score_
        R² in place of accuracy.
    n_outputs_ : int
    y_mean_, y_scale_ : float64 (n_outputs_,)
        Mean and standard deviation of the targets.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> regressor = SparseMLPRegressor((50,), random_state=0).fit(X, y)
    >>> regressor.score(X, y) > 0.4
    True
    """

    _loss = "mean_squared_error"
    _losses = ("mean_squared_error",)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @undone_on_error
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on a table.

        Parameters
        ----------
        X : (n_samples, n_features) dense or sparse
        y : (n_samples,) or (n_samples, n_outputs)
        sample_weight : (n_samples,), optional
            As in `SparseMLPClassifier.fit`, which raises the same errors.
        """
        going_on = self.warm_start and hasattr(self, "network_")
        X, targets = self._check_targets(X, y, reset=not going_on)
        weights = self._check_weights(sample_weight, X, ratios=True)
        if not going_on:
            self._scale_targets(targets, weights, count_rows(X, weights), X)
        self._train(X, self._scaled(targets, weights), weights)
        return self

    @undone_on_error
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Make one pass over some rows, at a constant learning rate and without evolution.

        Features and targets are standardised by the rows of the first call.

        Parameters
        ----------
        X, y : as in `fit`
        sample_weight : (n_samples,), optional
            As in `SparseMLPClassifier.partial_fit`.
        """
        first = not hasattr(self, "network_")
        X, targets = self._check_targets(X, y, reset=first)
        weights = self._check_weights(sample_weight, X, ratios=False)
        if first:
            self._scale_targets(targets, weights, None, X)
        self._train_once(X, self._scaled(targets, weights), weights)
        return self

    def predict(self, X: Any) -> NDArray[np.floating]:
        """Return float64 (n_samples,); of several targets (n_samples, n_outputs_)."""
        found: NDArray[np.floating] = self._predict(X, Predictor.predict)
        return found

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R² of `predict(X)`."""
        refuse_masked(y=y, sample_weight=sample_weight)
        return float(super().score(X, y, sample_weight))

    def _check_targets(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, NDArray[np.float64]]:
        """Return X, and y as (n_samples, n_outputs)."""
        if issparse(y):
            raise DataError(
                "y is sparse, and SparseMLPRegressor predicts numbers. Pass y.toarray(); for "
                "labels of 0 and 1 use SparseMLPClassifier."
            )
        X, y = self._check_data(X, y, reset=reset, multi_output=True, y_numeric=True)
        targets = np.asarray(y).reshape(len(y), -1)
        if not reset and targets.shape[1] != self.n_outputs_:
            raise DataError(
                f"y has {targets.shape[1]} targets a row, but SparseMLPRegressor is expecting "
                f"{self.n_outputs_}. Pass the targets that the model was trained on."
            )
        return X, check_targets(targets, targets.shape[1])

    def _scale_targets(
        self, targets: NDArray[np.float64], weights: Weights | None, n_rows: int | None, X: Any
    ) -> None:
        """Make the network, for targets of this mean and scale."""
        rows = np.arange(len(targets)) if weights is None else np.flatnonzero(weights)
        unit = np.abs(targets[rows]).max(axis=0)  # so that squares are in range
        unit[unit == 0] = 1
        mean, deviation = moments(targets / unit, rows, weights)
        self.n_outputs_ = targets.shape[1]
        self._make_network(self.n_outputs_, n_rows, X, weights)
        self.network_.target_mean = mean * unit
        self.network_.target_scale = np.where(deviation > 0, deviation * unit, 1.0)
        self._take_targets()

    def _scaled(self, targets: NDArray[np.float64], weights: Weights | None) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            scaled = (targets - self.y_mean_) / self.y_scale_
        if weights is not None:
            scaled[weights == 0] = 0
        if (place := first_true(~(np.abs(scaled) <= LARGEST))) is not None:
            raise DataError(
                f"y contains {targets[place]} at row {place[0]}, too far from the targets that "
                "the model was trained on first. Remove or rescale it."
            )
        return scaled.astype(np.float32)

    def _take_targets(self) -> None:
        network = self.network_
        self.n_outputs_ = network.config.layer_sizes[-1]
        mean, scale = network.target_mean, network.target_scale
        self.y_mean_ = np.zeros(self.n_outputs_) if mean is None else mean
        self.y_scale_ = np.ones(self.n_outputs_) if scale is None else scale

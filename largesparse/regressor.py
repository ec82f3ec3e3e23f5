"""The scikit-learn face: a regressor with truly sparse layers."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin

from .errors import DataError
from .estimator_base import BaseSparseMLP
from .preprocessing import check_X, refuse_masked


class SparseMLPRegressor(RegressorMixin, BaseSparseMLP):
    """A regressor: a truly sparse multilayer perceptron that evolves while it is trained.

    The loss is the mean squared error of the targets, shifted and scaled to mean 0 and variance
    1; losses in `loss_curve_` and `history_` are of these.

    Parameters
    ----------
    hidden_layer_sizes, epsilon, density, activation, alpha, recipe, regrowth, zeta, zeta_decay, \
    growth, pruning_start, pruning_every, pruning_percentile, dropout, learning_rate, schedule, \
    momentum, weight_decay, batch_size, max_epochs, early_stopping, validation_fraction, \
    patience, standardize, warm_start, random_state, n_jobs, backend, verbose
        As in `SparseMLPClassifier`.

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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on a table.

        Parameters
        ----------
        X : (n_samples, n_features) dense or sparse
        y : (n_samples,) or (n_samples, n_outputs)
        sample_weight : (n_samples,), optional
            At least 0; only ratios matter.

        Raises
        ------
        DataError, ParameterError, NumericalError
            As `SparseMLPClassifier.fit` does.
        """
        going_on = self.warm_start and self._has_network()
        X, targets = self._check_targets(X, y, reset=not going_on)
        weights = self._check_weights(sample_weight, X)
        if going_on:
            self._check_same_network()
        else:
            check_X(X)
            self._scale_targets(targets, weights, X.shape[0], X)
        self._train(X, self._scaled(targets), weights)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Make one pass over some rows, at a constant learning rate and without evolution.

        Features and targets are standardised by the rows of the first call.

        Parameters
        ----------
        X, y : as in `fit`
        sample_weight : (n_samples,), optional
            The gradient of every row is multiplied by its weight.
        """
        first = not self._has_network()
        X, targets = self._check_targets(X, y, reset=first)
        X = check_X(X)
        weights = self._check_weights(sample_weight, X)
        if first:
            self._scale_targets(targets, weights, None, X)
        else:
            self._check_same_network()
        self._train_once(X, self._scaled(targets), weights)
        return self

    def predict(self, X: Any) -> NDArray[np.floating]:
        """Return float32 (n_samples,); of several targets float64 (n_samples, n_outputs_)."""
        X = self._check_inputs(X)
        with self._predictor(X.shape[0]) as predictor:
            out = predictor.predict(X)
        return out if out.ndim == 1 else out.astype(np.float64)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R² of `predict(X)`."""
        refuse_masked(y=y, sample_weight=sample_weight)
        return float(super().score(X, y, sample_weight))

    def _check_targets(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, NDArray[np.float64]]:
        """Return X, and y as (n_samples, n_outputs)."""
        X, y = self._check_data(X, y, reset=reset, multi_output=True, y_numeric=True)
        targets = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        if not reset and targets.shape[1] != self.n_outputs_:
            raise DataError(
                f"y has {targets.shape[1]} targets a row, but SparseMLPRegressor is expecting "
                f"{self.n_outputs_}. Pass the targets that the model was trained on."
            )
        return X, targets

    def _scale_targets(
        self, targets: NDArray, weights: NDArray | None, n_rows: int | None, X: Any
    ) -> None:
        """Make the network, for targets of this mean and scale."""
        if weights is not None and not weights.any():
            weights = None  # training refuses them, and says why
        mean = np.average(targets, axis=0, weights=weights)
        scale = np.sqrt(np.average((targets - mean) ** 2, axis=0, weights=weights))
        scale[scale <= 1e-7 * np.abs(mean)] = 1  # constant, but for rounding
        self.n_outputs_ = targets.shape[1]
        self._make_network(self.n_outputs_, n_rows, X)
        self.network_.target_mean = mean.astype(np.float32)
        self.network_.target_scale = scale.astype(np.float32)
        self._take_targets()

    def _scaled(self, targets: NDArray[np.float64]) -> NDArray[np.float32]:
        return ((targets - self.y_mean_) / self.y_scale_).astype(np.float32)

    def _take_targets(self) -> None:
        network = self.network_
        self.n_outputs_ = network.config.layer_sizes[-1]
        mean, scale = network.target_mean, network.target_scale
        self.y_mean_ = np.zeros(self.n_outputs_) if mean is None else mean.astype(np.float64)
        self.y_scale_ = np.ones(self.n_outputs_) if scale is None else scale.astype(np.float64)

"""The scikit-learn face: a classifier with truly sparse layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from ..data.checks import LARGEST, encode_labels, refuse_masked
from ..data.targets import warn_of_quantities
from ..errors import ParameterError, check_range
from ..training.prediction import Predictor
from .base import BaseSparseMLP, Weights, count_rows, undone_on_error


@dataclass(eq=False, repr=False, kw_only=True)
class SparseMLPClassifier(ClassifierMixin, BaseSparseMLP):
    """A classifier: a truly sparse multilayer perceptron that evolves while it is trained.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int
        Neurons of every hidden layer.
    epsilon : float, optional
        Density control ε: a layer of n_in × n_out has about ε·(n_in + n_out) connections, at the
        most all. 20, less above 25,000 features, where `density` is not given either.
    density : float in (0, 1], optional
        Share of the connections of a dense layer, in place of `epsilon`.
    activation : {"all_relu", "relu", "leaky_relu", "linear", "srelu", "prelu"}
        Of the hidden layers.
    alpha : float or "auto"
        Slope of the negative side, where the activation has one; "auto" is by the data's skewness.
    recipe : {"auto", "paper", "width"}
        How initial values and learning rates depend on width; see `largesparse.model.recipes`.
        "auto" is "width", or "paper" in `fit` where there are more features than rows.
    regrowth : {"initial", "zero"} or None
        Values of new connections: drawn like the first ones, or 0. None is by recipe.
    zeta : float in [0, 1)
        Share ζ of the connections that evolution replaces after an epoch, with at least 16 updates
        in between; 0 keeps the topology.
    zeta_decay : float in [0, 1]
        ζ is multiplied by this after every evolution.
    growth : {"random", "gradient"}
        Where connections grow: at random cells, or where the gradient is largest.
    pruning_start : int or None
        Epoch from which on Importance Pruning removes neurons, for a smaller and faster model;
        None is never. Early stopping may restore an epoch from before it.
    pruning_every : int
        Prunings come after the epochs that this divides, but not after the last one.
    pruning_percentile : float in [0, 100)
        In every hidden layer a pruning removes the neurons below this percentile of those that
        are left, in importance.
    dropout : float in [0, 1)
        Share of the hidden neurons that are dropped while training.
    learning_rate : float or "auto"
        η. It rises over the first twentieth of the epochs, and then follows `schedule`. "auto"
        is by recipe and shape of the table; a training that diverges with it starts again at a
        quarter.
    schedule : {"cosine", "step", "constant"}
    momentum : float in [0, 1)
    weight_decay : float in [0, 1] or "auto"
        Share that every weight loses at every update; not scaled by the learning rate. "auto" is
        one over the number of updates; 1e-5 with early stopping.
    batch_size : int or "auto"
        Samples per update. "auto" is a power of two from 8 to 128, by the number of rows.
    max_epochs : int or "auto"
        "auto" is 50, or 100 with early stopping; fewer above 20,000 rows or 20 million cells, but
        20 at least. After a linear start it is 20, and ends when nothing is left to learn.
    early_stopping : bool or "auto"
        Whether to set a part of the rows aside, and to end with the weights of the epoch that
        predicted it best. "auto" does so above 10,000 rows: fewer are better trained on.
    validation_fraction : float in (0, 1)
        Share of the rows set aside with early stopping.
    patience : int
        Epochs without a better validation score after which early stopping stops.
    standardize : bool
        Whether to shift and scale the features to mean 0 and variance 1. Where few values of a
        sparse X are nonzeros, only features stored in more than half of the rows are shifted.
    linear_start : bool or "auto"
        Whether to begin with L2-regularised logistic regression: two neurons of every hidden layer
        for each class hold it exactly (see `largesparse.model.linear_path`), and the others learn
        what it leaves. "auto" does so with more features than rows, where it is hard to beat.
    class_weight : dict, "balanced" or None
        Weights of the classes in the loss; they multiply `sample_weight`.
    warm_start : bool
        Whether `fit` goes on with the network of the call before.
    random_state : int, RandomState or None
    n_jobs : int or None
        Threads. As in scikit-learn, None is 1, or what `joblib.parallel_config` says, and -1 is
        all cores. The result does not depend on it.
    backend : {"auto", "mkl", "fused", "scipy"}
        "auto" is the environment's LARGESPARSE_BACKEND, else what `largesparse tune` has measured
        here for such a network, else what is fastest on most machines: "fused", or "mkl" for
        extremely large networks where MKL has a code path made for the CPU.
    verbose : bool
        Whether to show a progress bar where standard error is a terminal, and elsewhere to print
        a line for every tenth of the epochs.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    n_features_in_ : int
    feature_names_in_ : ndarray (n_features_in_,)
        Where X had names of columns that are all strings.
    network_ : SparseMLP
    history_ : History
        Of the last call of `fit`; no training row is evaluated, so that `running_loss` is the loss.
    loss_curve_ : list of float
        Mean loss, with dropout, of the mini-batches of every epoch; with `warm_start` over all
        calls.
    validation_scores_ : list of float or None
        Accuracy over the rows set aside, after every epoch.
    best_validation_score_ : float or None
        The best of the last call of `fit`, which the weights are of.
    learning_rate_, alpha_ : float
        The learning rate and the slope that were used.
    n_iter_ : int
        Epochs of the last call of `fit` or `partial_fit`.
    n_steps_ : int
        Updates made; with `warm_start` in all calls.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = SparseMLPClassifier((50,), random_state=0).fit(X, y)
    >>> classifier.score(X, y) > 0.9
    True
    """

    class_weight: dict[Any, float] | Literal["balanced"] | None = None

    classes_: NDArray[Any] = field(init=False)
    _loss = "softmax_cross_entropy"

    @undone_on_error
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on a table.

        Parameters
        ----------
        X : (n_samples, n_features) dense or sparse
        y : (n_samples,)
            Class labels: integers, strings or booleans. Many integers that do not number the
            classes get a warning.
        sample_weight : (n_samples,), optional
            At least 0; only ratios matter. Rows of weight 0 are as if they were not there.

        Raises
        ------
        DataError, ParameterError
            Both are ValueErrors.
        NumericalError
            Where the loss is not finite. As after any error, the estimator is as before the call.
        """
        going_on = self.warm_start and hasattr(self, "network_")
        X, y = self._check_data(X, y, reset=not going_on)
        warn_of_quantities(y)
        check_classification_targets(y)
        weights = self._weights(sample_weight, X, y, ratios=True)
        if not going_on:
            self.classes_ = encode_labels(y)[1]
            self._make_network(len(self.classes_), count_rows(X, weights), X, weights)
            self.network_.classes = self.classes_
        self._train(X, y, weights)
        return self

    @undone_on_error
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Make one pass over some rows, at a constant learning rate and without evolution.

        Features are standardised by the rows of the first call.

        Parameters
        ----------
        X, y : as in `fit`
        classes : (n_classes,)
            All labels that may come; needed in the first call.
        sample_weight : (n_samples,), optional
            The gradient of every row is multiplied by its weight; rows of weight 0 are left out.

        Raises
        ------
        DataError, ParameterError, NumericalError
            As `fit` does.
        """
        first = not hasattr(self, "network_")
        if first and classes is None:
            raise ParameterError(
                "The 'classes' parameter must be passed on the first call to partial_fit: all "
                "labels that may come."
            )
        X, y = self._check_data(X, y, reset=first)
        check_classification_targets(y)
        if isinstance(self.class_weight, str):
            raise ParameterError(
                f"The 'class_weight' parameter {self.class_weight!r} needs all rows at once and "
                "cannot be used with partial_fit. Pass a dictionary of weights."
            )
        weights = self._weights(sample_weight, X, y, ratios=False)
        known = encode_labels(classes)[1] if classes is not None else self.classes_
        if not first and not np.array_equal(known, self.classes_):
            raise ParameterError(
                f"The 'classes' parameter of partial_fit, {known.tolist()}, is not what the first "
                f"call had, {self.classes_.tolist()}. Leave it out."
            )
        labels = encode_labels(y, known)[0]
        if first:
            self.classes_ = known
            self._make_network(len(known), None, X, weights)
            self.network_.classes = known
        self._train_once(X, labels, weights)
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable label of every row, (n_samples,)."""
        best: NDArray[np.intp] = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return class probabilities, float32 (n_samples, n_classes), in the order of classes_."""
        return self._predict(X, Predictor.predict_proba)

    def predict_log_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):  # a probability that is 0 in float32
            return np.log(self.predict_proba(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy of `predict(X)`."""
        refuse_masked(y=y, sample_weight=sample_weight)
        return float(super().score(X, y, sample_weight))

    def _weights(self, sample_weight: Any, X: Any, y: NDArray, *, ratios: bool) -> Weights | None:
        """Return the product of the weights of rows and of their classes."""
        weights = self._check_weights(sample_weight, X, ratios=ratios)
        if self.class_weight is None:
            return weights
        of_class = self._class_weights(y, weights)
        return of_class if weights is None else weights * of_class

    def _class_weights(self, y: NDArray, weights: Weights | None) -> Weights:
        """Return the weight of every row's class."""
        given, name = self.class_weight, "class_weight"
        classes, indices = np.unique(y, return_inverse=True)
        if isinstance(given, dict):
            for value in given.values():
                check_range(name, value, type(self).__name__, low=0, high=LARGEST)
            factors = [given.get(label, 1.0) for label in classes.tolist()]
            return np.array(factors, dtype=np.float64)[indices]
        if not isinstance(given, str) or given != "balanced":
            raise ParameterError(
                f"The {name!r} parameter of {type(self).__name__} must be a dictionary of label to "
                f"weight, 'balanced' or None. Got {given!r} instead."
            )
        counts = np.bincount(indices, weights)
        counts[counts == 0] = 1  # rows of weight 0 alone
        return (counts.sum() / (len(counts) * counts))[indices]

    def _take_targets(self) -> None:
        network = self.network_
        if network.classes is None:
            network.classes = np.arange(network.config.layer_sizes[-1])
        self.classes_ = network.classes

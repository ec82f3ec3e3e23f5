"""The scikit-learn face: a classifier with truly sparse layers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
)

from ..data.checks import LARGEST, encode_labels, refuse_masked
from ..data.label_sets import LabelSets, check_label_sets
from ..data.targets import warn_of_quantities
from ..errors import DataError, ParameterError, check_range
from ..model.config import Loss
from ..training.prediction import Predictor
from .base import BaseSparseMLP, Weights, count_rows, undone_on_error
from .defaults import OWNER


@dataclass(eq=False, repr=False, kw_only=True)
class SparseMLPClassifier(ClassifierMixin, BaseSparseMLP):
    """A classifier: a truly sparse multilayer perceptron that evolves while it is trained.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int or "auto"
        Neurons of every hidden layer; "auto" is (400, 400), and (1000, 400) with an indicator
        matrix.
    epsilon : float, optional
        Density control ε: a layer of n_in × n_out has about ε·(n_in + n_out) connections, at the
        most all. 20, less above 25,000 features, where `density` is not given either.
    density : float in (0, 1], optional
        Share of the connections of a dense layer, in place of `epsilon`.
    distribution : {"uniform", "erdos_renyi"}
        Whether `density` is that of every layer, or that of all together: ε is solved for it.
    start_factor : float >= 1
        The network begins with so many times the connections, in its hidden layers, and evolution
        takes the surplus away: most of it early, by a cubic schedule. Early stopping looks at
        epochs after that. `zeta=0` makes it gradual pruning without regrowth.
    activation : {"all_relu", "relu", "leaky_relu", "linear", "srelu", "prelu"}
        Of the hidden layers.
    alpha : float or "auto"
        Slope of the negative side, where the activation has one; "auto" is by the data's skewness.
    recipe : {"auto", "paper", "width"}
        How initial values and learning rates depend on width; see `largesparse.model.recipes`.
        "auto" is "width", or "paper" in `fit` where there are more features than rows.
    rate_fan_in : float or None
        The learning rate of a layer's weights is multiplied by this over its connections a neuron
        (SμPar, for Adam), in place of the recipe's factor.
    regrowth : {"initial", "zero"} or None
        Values of new connections: drawn like the first ones, or 0. None is by recipe.
    batch_norm : bool
        Whether to normalise the hidden layers by mini-batch; predictions use running statistics.
    topology : optional
        Hidden layers whose connections are given: a `GivenTopology`, a matrix (n_features, n_out),
        a file of named connections or a callable for the first one, or a list of such, or a
        dictionary by the layers' numbers (2 is the first hidden one). With "auto" sizes they give
        the sizes of their layers. Inputs are found by the names of a data frame's columns. A model
        that is loaded has the topology of its network.
    zeta : float in [0, 1)
        Share ζ of the connections that evolution replaces after an epoch, with at least 16 updates
        in between; 0 keeps the topology.
    zeta_decay : float in [0, 1]
        ζ is multiplied by this after every evolution.
    evolve_output : bool
        Whether the output layer evolves, too.
    drop : {"set", "magnitude", "mest", "soft"} or callable
        Which connections go: those of each sign, or of all, closest to zero; those of the smallest
        |w| + |dL/dw|; or small ones at random. Or a function or "module:function", which
        `largesparse.model.rules` describes.
    drop_factor : float >= 0
        What "mest" multiplies |dL/dw| by; of "soft" the temperature: with 0 the smallest |w| go.
    growth : {"random", "gradient", "topology", "reconnect"} or callable
        Where connections grow: at random cells; where the gradient is largest, or most paths lead,
        of some random cells; or first at neurons that have none. Or as for `drop`.
    growth_candidates : float >= 1
        Random cells that "gradient" looks at for every connection that grows; "topology" looks at
        half as many, at least one.
    redistribute : bool
        Whether connections move between hidden layers: one threshold tells which go, and others
        grow in proportion to those that a layer has left.
    keep_active : bool
        Whether evolution leaves every neuron its last connection on either side.
    shrink_start, shrink_end : int; int or None
        Epochs over which a network with a `start_factor` becomes smaller; None is half of all.
    pruning_start : int or None
        Epoch from which on Importance Pruning removes neurons, for a smaller and faster model;
        None is never. Early stopping may restore an epoch from before it.
    pruning_every : int
        Prunings come after the epochs that this divides, but not after the last one.
    pruning_percentile : float in [0, 100)
        In every hidden layer a pruning removes the neurons below this percentile of those that
        are left, in importance.
    dropout : float in [0, 1) or "auto"
        Share of the hidden neurons that are dropped while training; "auto" is 0.2, and 0.5 with an
        indicator matrix.
    label_smoothing : float in [0, 1)
        Share of each label that all classes get in equal parts, in the loss that is trained for;
        0 with an indicator matrix.
    average_decay : float in [0, 1)
        Where it is not 0, predictions are by an average of the weights over the updates, of which
        such a share stays at each: 0.99 averages over about 100 of them.
    optimizer : {"sgd", "nesterov", "adam", "adamw"}
        Momentum SGD, with Nesterov's momentum, Adam, or Adam with decoupled weight decay. Adam
        counts the updates of every connection: see `largesparse.model.optimizer.Adam`.
    learning_rate : float or "auto"
        η. It rises over the first twentieth of the epochs, and then follows `schedule`. "auto"
        is by recipe and shape of the table; a training that diverges with it starts again at a
        quarter.
    schedule : {"cosine", "step", "constant"}
    momentum : float in [0, 1)
        μ, or Adam's β1.
    weight_decay : float in [0, 1] or "auto"
        Share that every weight loses at every update; not scaled by the learning rate. "auto" is
        one over the number of updates, and 1e-5 with early stopping; with an indicator matrix 4
        over it, at the most 1e-3. Of "adamw" the share is the decay times the learning rate, and
        "auto" divides by that; of "adam" it is what is added to the gradient, and "auto" is 0.
    beta2 : float in [0, 1)
        Adam's β2.
    adam_epsilon : float > 0
        What Adam adds to the root of the mean square.
    step_counts : {"connection", "global"}
        Whether Adam corrects its moments by the updates of each connection, or of the training.
    connection_warmup : int
        Updates over which Adam's learning rate of a new connection rises; 0 is at once.
    clip_norm : float or None
        Euclidean norm of the gradient of an update, over all parameters, at the most.
    batch_size : int or "auto"
        Samples per update. "auto" is a power of two from 8 to 128, by the number of rows; with an
        indicator matrix at the most 64.
    max_epochs : int or "auto"
        "auto" is 50, or 100 with early stopping; fewer above 20,000 rows or 20 million cells, but
        20 at least. After a linear start it is 20, and ends when nothing is left to learn. With
        an indicator matrix it is 50 up to 10,000 rows, fewer for more, and at least 10.
    early_stopping : bool or "auto"
        Whether to set a part of the rows aside, and to end with the weights of the epoch that
        predicted it best. "auto" does so above 10,000 rows, as fewer are better trained on, but not
        with an indicator matrix.
    validation_fraction : float in (0, 1)
        Share of the rows set aside with early stopping.
    patience : int
        Epochs without a better validation score after which early stopping stops.
    standardize : bool, "centered" or "auto"
        Whether to shift and scale the features to mean 0 and variance 1. Where few values of a
        sparse X are nonzeros, only features stored in more than half of the rows are shifted, or
        with "centered" all, without making a row dense.
        "auto" does so, but with an indicator matrix y scales features that are not negative and
        mostly 0 all alike, to a mean square of 1.
    linear_start : bool or "auto"
        Whether to begin with L2-regularised logistic regression: two neurons of every hidden layer
        for each class hold it exactly (see `largesparse.model.linear_path`), and the others learn
        what it leaves. "auto" does so with more features than rows, where it is hard to beat. Of a
        sparse X with 1000 rows or more it trains without, and begins anew, on all rows, if logistic
        regression predicts a tenth of the rows as well.
    class_weight : dict, "balanced" or None
        Weights of the classes in the loss; they multiply `sample_weight`. Of labels: a dictionary
        of column to weight.
    warm_start : bool
        Whether `fit` goes on with the network of the call before.
    random_state : int, RandomState or None
    n_jobs : int or None
        Threads. As in scikit-learn, None is 1, or what `joblib.parallel_config` says, and -1 is
        all cores. The result does not depend on it.
    backend : {"auto", "mkl", "fused", "scipy"}
        "auto" is the environment's LARGESPARSE_BACKEND, else what `largesparse tune` has measured
        here for such a network, else what is fastest on all machines that were measured: "fused".
    verbose : bool
        Whether to show a progress bar where standard error is a terminal, and elsewhere to print
        a line for every tenth of the epochs.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
        The numbers of the columns, where y is an indicator matrix.
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
        Accuracy over the rows set aside, after every epoch; precision at 1 of an indicator matrix.
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
    _loss: Loss = field(init=False, default="softmax_cross_entropy")
    _losses = ("softmax_cross_entropy", "binary_cross_entropy")
    _sparse_labels: bool | None = field(init=False)  # whether `predict` is to return CSR
    _label_share: float = field(init=False)  # that a row has, of all labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    @undone_on_error
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on a table.

        Parameters
        ----------
        X : (n_samples, n_features) dense or sparse
        y : (n_samples,) or (n_samples, n_labels) dense or sparse
            Class labels: integers, strings or booleans. Many integers that do not number the
            classes get a warning. Or an indicator matrix of 0 and 1, where rows have any number of
            labels; a sparse one is never made dense.
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
        if has_label_sets(y):
            return self._fit_labels(X, y, sample_weight, going_on)
        self._choose_loss("softmax_cross_entropy", going_on)
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
            All labels that may come; needed in the first call, but for an indicator matrix y.
        sample_weight : (n_samples,), optional
            The gradient of every row is multiplied by its weight; rows of weight 0 are left out.

        Raises
        ------
        DataError, ParameterError, NumericalError
            As `fit` does.
        """
        first = not hasattr(self, "network_")
        if has_label_sets(y):
            return self._partial_fit_labels(X, y, classes, sample_weight, first)
        self._choose_loss("softmax_cross_entropy", not first)
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

    def _fit_labels(self, X: Any, y: Any, sample_weight: Any, going_on: bool) -> Self:
        """Do what `fit` does, for an indicator matrix y."""
        X, labels, weights = self._check_labels(X, y, sample_weight, going_on, ratios=True)
        if not going_on:
            self._make_network(labels.n_labels, count_rows(X, weights), X, weights)
        self._train(X, labels, weights)
        return self

    def _partial_fit_labels(
        self, X: Any, y: Any, classes: Any, sample_weight: Any, first: bool
    ) -> Self:
        """Do what `partial_fit` does, for an indicator matrix y."""
        X, labels, weights = self._check_labels(X, y, sample_weight, not first, ratios=False)
        if classes is not None and not np.array_equal(classes, self.classes_):
            raise ParameterError(
                "The 'classes' parameter of partial_fit must be the numbers of the columns of an "
                f"indicator matrix, 0 to {labels.n_labels - 1}. Leave it out."
            )
        if first:
            self._make_network(labels.n_labels, None, X, weights)
        self._train_once(X, labels, weights)
        return self

    def _check_labels(
        self, X: Any, y: Any, sample_weight: Any, going_on: bool, *, ratios: bool
    ) -> tuple[Any, LabelSets, Weights | None]:
        """Return X, the labels of its rows with their weights, and the weights of the rows."""
        self._choose_loss("binary_cross_entropy", going_on)
        X, y = self._check_data(X, y, reset=not going_on, multi_output=True)
        n_labels = self.network_.config.layer_sizes[-1] if going_on else None
        labels = check_label_sets(y, n_labels)
        self._sparse_labels = issparse(y)
        self.classes_ = np.arange(labels.n_labels)
        if self.class_weight is not None:
            labels = dataclasses.replace(labels, weights=self._label_weights(labels.n_labels))
        weights = self._check_weights(sample_weight, X, ratios=ratios)
        counted = labels if weights is None else labels[np.flatnonzero(weights)]
        self._label_share = len(counted.indices) / (len(counted) * labels.n_labels)
        return X, labels, weights

    def _choose_loss(self, loss: Loss, going_on: bool) -> None:
        if going_on and loss != self.network_.config.loss:
            raise ParameterError(
                "y is a label a row in one call and an indicator matrix in the other, and training "
                "cannot go on with the network of the first. Pass y as before, or fit with "
                "warm_start=False."
            )
        self._loss = loss

    def _label_weights(self, n_labels: int) -> NDArray[np.float32]:
        """Return what every label counts in the loss, float32 (n_labels,)."""
        given = self.class_weight
        if not isinstance(given, dict):
            raise ParameterError(
                "The 'class_weight' parameter must be a dictionary of column to weight, or None, "
                f"where y is an indicator matrix. Got {given!r} instead."
            )
        weights = np.ones(n_labels, dtype=np.float32)
        for label, weight in given.items():
            remedy = "Its keys are the columns of y."
            check_range(
                "class_weight", label, OWNER, low=0, high=n_labels - 1, integer=True, remedy=remedy
            )
            weights[label] = check_range("class_weight", weight, OWNER, low=0, high=LARGEST)
        return weights

    def predict(self, X: Any) -> Any:
        """Return the most probable label of every row, (n_samples,).

        After an indicator matrix y, return one, int64 (n_samples, n_labels), of the labels with a
        probability of a half or more: csr_array where y was sparse.
        """
        check_is_fitted(self)
        if self._loss == "binary_cross_entropy":
            found: Any = self._predict(X, Predictor.predict)
            return found if self._sparse_labels else found.toarray()
        best: NDArray[np.intp] = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def predict_top(self, X: Any, k: int = 5) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Return the k most probable labels of every row, and their probabilities.

        Both are (n_samples, k), the most probable first. Only k numbers a row are kept, however
        many labels there are.
        """
        top: tuple[NDArray[Any], NDArray[np.float32]]
        top = self._predict(X, lambda predictor, X: predictor.predict_top(X, k))
        return top

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the probabilities of classes or labels, float32, in the order of classes_.

        They are (n_samples, n_classes); those of the labels of a row are independent of each other
        after an indicator matrix y.
        """
        probabilities: NDArray[np.float32] = self._predict(X, Predictor.predict_proba)
        return probabilities

    def predict_log_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):  # a probability that is 0 in float32
            return np.log(self.predict_proba(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy of `predict(X)`.

        With an indicator matrix y, that is the share of rows all of whose labels are predicted, and
        no other; `precision_at_k` says more.
        """
        refuse_masked(y=y, sample_weight=sample_weight)
        check_is_fitted(self)
        if self._loss == "softmax_cross_entropy":
            return float(super().score(X, y, sample_weight))
        n_labels = self.network_.config.layer_sizes[-1]
        given = check_label_sets(y, n_labels).to_csr()
        check_consistent_length(X, given, sample_weight)
        found = self._predict(X, Predictor.predict)
        right = np.asarray((found != given).sum(axis=1) == 0, np.float64)
        weights = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        if not weights.any():
            raise DataError("sample_weight is 0 for all rows to score. Give some a weight.")
        return float(np.average(right, weights=weights))

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
        self.classes_ = np.arange(network.config.layer_sizes[-1])
        if network.classes is not None:
            self.classes_ = network.classes
        elif self._loss == "softmax_cross_entropy":
            network.classes = self.classes_


def has_label_sets(y: Any) -> bool:
    """Return whether y is an indicator matrix, to judge by its shape."""
    if issparse(y):
        return True
    try:
        shape = y.shape if hasattr(y, "shape") else np.asarray(y).shape
    except ValueError:  # rows of unequal lengths, which the checks of labels tell
        return False
    return len(shape) == 2 and shape[1] > 1

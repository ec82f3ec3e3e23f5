"""Feature selection by the strength of a sparse network's inputs.

Evolution takes connections away from features that say little, and weight decay weakens them; so
what is left to leave an input says how much the network uses it. The paper remarks on this for
Madelon, whose redundant features are eliminated ("implicit feature selection", section 4).
"""

from __future__ import annotations

import math
import numbers
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.validation import _num_features, check_is_fitted

from ..errors import ParameterError, check_range
from ..model.importance import input_strength
from ..model.ranking import mark_smallest
from .classifier import SparseMLPClassifier
from .defaults import DOC_LINK

OWNER = "SparseFeatureSelector"


@dataclass(eq=False, repr=False)
class SparseFeatureSelector(SelectorMixin, MetaEstimatorMixin, BaseEstimator):
    """Selects the features whose inputs are the strongest in a sparse network.

    Strengths are those of `input_strength` over all paths to the outputs.

    Parameters
    ----------
    estimator : estimator, optional
        With a `network_` after fitting. By default a `SparseMLPClassifier`.
    n_features_to_select : int >= 1 or float in (0, 1], optional
        Number or share of the features, ties by position. By default half of them, where no
        threshold is given either.
    threshold : float >= 0, optional
        In place of the number: features of this strength and more are selected.
    prefit : bool
        Whether `estimator` is fitted already. Otherwise `fit` fits a clone of it.

    Attributes
    ----------
    estimator_ : estimator
    strengths_ : float32 (n_features,)
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Where the features have names.

    Examples
    --------
    >>> from largesparse import SparseMLPClassifier  # doctest: +SKIP
    >>> selector = SparseFeatureSelector(SparseMLPClassifier(), n_features_to_select=20)
    >>> X_small = selector.fit_transform(X, y)  # doctest: +SKIP
    """

    _doc_link_module, _doc_link_template = DOC_LINK

    estimator: Any = None
    _: KW_ONLY
    n_features_to_select: int | float | None = None
    threshold: float | None = None
    prefit: bool = False

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> SparseFeatureSelector:
        """Fit the estimator, where it is not yet, and measure the strengths.

        Parameters
        ----------
        X : (n_samples, n_features) dense or sparse
        y : (n_samples,)
        **fit_params
            Passed on to the estimator's `fit`.

        Raises
        ------
        ParameterError
            Where a parameter is out of range, or both a number and a threshold are given.
        """
        self._check()
        if self.prefit:
            if self.estimator is None:
                raise ParameterError(
                    f"The 'estimator' parameter of {OWNER} must be a fitted estimator where "
                    "'prefit' is True. Got None instead."
                )
            check_is_fitted(self.estimator)
            self.estimator_ = self.estimator
        else:
            chosen = SparseMLPClassifier() if self.estimator is None else self.estimator
            self.estimator_ = clone(chosen)
            self.estimator_.fit(X, y, **fit_params)
        self.strengths_ = input_strength(self.estimator_.network_, paths=True)
        self.n_features_in_ = len(self.strengths_)
        names = getattr(self.estimator_, "feature_names_in_", None)
        if names is None and hasattr(X, "columns"):
            names = np.asarray(X.columns, dtype=object)
        if names is not None:
            self.feature_names_in_ = names
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        n_features = _num_features(X)
        if n_features != self.n_features_in_:
            raise ParameterError(
                f"The 'estimator' parameter of {OWNER} must be fitted to data like X, which has "
                f"{n_features} features. Got one for {self.n_features_in_} instead."
            )
        return self

    def _check(self) -> None:
        number, threshold = self.n_features_to_select, self.threshold
        if number is not None and threshold is not None:
            raise ParameterError(
                f"One of the 'n_features_to_select' and 'threshold' parameters of {OWNER} must be "
                f"None. Got {number!r} and {threshold!r} instead."
            )
        name = "n_features_to_select"
        if isinstance(number, numbers.Integral):
            check_range(name, number, OWNER, low=1, integer=True)
        elif number is not None:
            check_range(name, number, OWNER, low=0, high=1, low_open=True)
        if threshold is not None:
            check_range("threshold", threshold, OWNER, low=0)

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        self._check()
        if self.threshold is not None:
            return self.strengths_ >= self.threshold
        n, number = len(self.strengths_), self.n_features_to_select
        if number is None:
            number = 0.5
        if isinstance(number, numbers.Integral):
            count = min(int(number), n)
        else:
            count = max(1, math.floor(number * n))
        return mark_smallest(-self.strengths_, count)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = not self.prefit
        tags.input_tags.sparse = True
        return tags

"""How good predictions are: accuracies with what chance would give, and cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.ranking import precision_at_k
from ..errors import DataError, check_range

RANKS = (1, 3, 5)  # at which precision is told


def precisions(y: Any, labels: NDArray[np.integer]) -> dict[str, float]:
    """Return P@1, P@3 and P@5, or what there are labels for, of the most probable labels."""
    return {f"P@{k}": precision_at_k(y, labels, k) for k in RANKS if k <= labels.shape[1]}


def describe_precisions(found: dict[str, float]) -> str:
    """Return precisions on one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in found.items())


class Accuracy(NamedTuple):
    """A share of right predictions, its 95 % interval (Wilson's), and the simplest rival."""

    share: float
    low: float
    high: float
    frequent: Any  # the most frequent class of the rows
    baseline: float  # the accuracy of predicting it always

    def __str__(self) -> str:
        return (
            f"{self.share:.4f} (95 % interval {self.low:.4f} to {self.high:.4f}; "
            f"always {self.frequent!r}: {self.baseline:.4f})"
        )


def accuracy(right: NDArray[np.bool_], y: NDArray) -> Accuracy:
    """Return the accuracy of predictions, of which `right` says which agree with y."""
    from scipy.stats import binomtest

    count, n_rows = int(np.sum(right)), len(y)
    interval = binomtest(count, n_rows).proportion_ci(0.95, method="wilson")
    classes, counts = np.unique(y, return_counts=True)
    most = int(counts.argmax())
    low, high = float(interval.low), float(interval.high)
    return Accuracy(count / n_rows, low, high, classes.tolist()[most], counts[most] / n_rows)


def describe_score(estimator: Any, X: Any, y: Any) -> str:
    """Return accuracy, R² or precisions of an estimator's predictions."""
    if y.ndim == 2 and hasattr(estimator, "classes_"):
        top = estimator.predict_top(X, min(RANKS[-1], len(estimator.classes_)))[0]
        return describe_precisions(precisions(y, top))
    if hasattr(estimator, "classes_"):
        return str(accuracy(estimator.predict(X) == y, y))
    return f"{estimator.score(X, y):.4f}" if len(y) > 1 else "one row has none"


def cross_validate(make: Callable[[], Any], X: Any, y: NDArray, folds: int, seed: int) -> str:
    """Train on all folds but one, test on that, for each; print scores, and return their sum.

    Folds have the classes alike where each class has a row for every fold.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    n_rows = X.shape[0]
    numbers = not hasattr(make(), "class_weight")
    most = n_rows // 2 if numbers else n_rows  # R² needs two rows
    if most < 2:
        raise DataError(f"--folds: {n_rows} rows are too few to test on parts of them.")
    check_range("--folds", folds, "train", low=2, high=most, integer=True)
    alike = not numbers and np.unique(y, return_counts=True)[1].min() >= folds
    splitter = (StratifiedKFold if alike else KFold)(folds, shuffle=True, random_state=seed)
    kind = "R²" if numbers else "accuracy"
    right, scores = np.zeros(n_rows, bool), []
    for k, (train, test) in enumerate(splitter.split(np.zeros(n_rows), y), 1):
        estimator = make().fit(X[train], y[train])
        if numbers:
            scores.append(estimator.score(X[test], y[test]))
        else:
            right[test] = estimator.predict(X[test]) == y[test]
            scores.append(right[test].mean())
        print(f"fold {k} of {folds}: {kind} {scores[-1]:.4f}", flush=True)
    spread = f"standard deviation of the folds {np.std(scores, ddof=1):.4f}"
    if numbers:
        return f"R² by {folds} folds: {np.mean(scores):.4f}, {spread}"
    return f"accuracy by {folds} folds: {accuracy(right, y)}, {spread}"

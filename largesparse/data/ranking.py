"""How good rankings of labels are, of which a row has several: precision, nDCG, and theirs by
propensity.

`labels` are the k most probable labels of every row, the best first, as `predict_top` returns
them, and `truth` is the indicator matrix of the right ones. Rows without a label count 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError, check_range
from .label_sets import LabelSets, check_label_sets

OWNER = "a measure of rankings"


def precision_at_k(truth: Any, labels: Any, k: int) -> float:
    """Return the mean share of the first k labels that are right.

    Parameters
    ----------
    truth : (n_samples, n_labels) dense or sparse
        Indicator matrix of 0 and 1.
    labels : int (n_samples, at least k)
        Columns of truth, the most probable first.
    k : int

    Examples
    --------
    >>> precision_at_k([[1, 0, 1], [0, 1, 0]], [[0, 1], [2, 1]], 2)
    0.5
    """
    return float(_hits(truth, labels, k)[0].mean())


def ndcg_at_k(truth: Any, labels: Any, k: int) -> float:
    """Return the mean nDCG of the first k labels.

    A right label at place r (1 is the first) gains 1 / log2(r + 1); the sum is divided by that of
    the best ranking. Parameters are those of `precision_at_k`.
    """
    hits, sets = _hits(truth, labels, k)
    gains = hits @ _discounts(k)
    best = np.concatenate([[0.0], np.cumsum(_discounts(k))])
    most = best[np.minimum(np.diff(sets.indptr), k)]
    return float(np.mean(np.divide(gains, most, out=np.zeros_like(gains), where=most > 0)))


def propensities(y: Any, *, a: float = 0.55, b: float = 1.5) -> NDArray[np.float64]:
    """Return the propensity of every label, float64 (n_labels,): the chance that it is noted.

    Frequent labels are rarely forgotten, rare ones often. The propensity of a label of N_l of N
    rows is 1 / (1 + C·(N_l + b)^-a), where C = (ln N - 1)·(b + 1)^a (Jain, Prabhu and Varma,
    "Extreme multi-label loss functions", 2016).

    Parameters
    ----------
    y : (n_samples, n_labels) dense or sparse
        Indicator matrix of the rows that were trained on; at least 3 rows.
    a, b : float
        By default as for most data sets; published figures take 0.5 and 0.4 for Wikipedia, and
        0.6 and 2.6 for Amazon.
    """
    sets = check_label_sets(y)
    check_range("y", len(sets), OWNER, low=3, remedy="It counts rows.")
    c = (np.log(len(sets)) - 1) * (b + 1) ** a
    found: NDArray[np.float64] = 1 / (1 + c * (sets.counts() + b) ** -a)
    return found


def psp_at_k(truth: Any, labels: Any, k: int, propensity: NDArray[np.floating]) -> float:
    """Return the propensity-scored precision of the first k labels.

    Every right label counts 1 / propensity, which is (n_labels,); the sum over all rows is divided
    by that of the best ranking (Jain, Prabhu and Varma, 2016). Other parameters are those of
    `precision_at_k`.
    """
    return _by_propensity(truth, labels, k, propensity, np.ones(k))


def psndcg_at_k(truth: Any, labels: Any, k: int, propensity: NDArray[np.floating]) -> float:
    """Return the propensity-scored nDCG of the first k labels: see `psp_at_k` and `ndcg_at_k`."""
    return _by_propensity(truth, labels, k, propensity, _discounts(k))


def _by_propensity(
    truth: Any,
    labels: Any,
    k: int,
    propensity: NDArray[np.floating],
    discounts: NDArray[np.float64],
) -> float:
    hits, sets = _hits(truth, labels, k)
    propensity = np.asarray(propensity, dtype=np.float64)
    if propensity.shape != (sets.n_labels,) or not (propensity > 0).all():
        raise ParameterError(
            f"The 'propensity' parameter of {OWNER} must be positive numbers, one for each of the "
            f"{sets.n_labels} labels. Got the shape {propensity.shape}. See `propensities`."
        )
    gains = np.where(hits, 1 / propensity[np.asarray(labels)[:, :k]], 0) @ discounts
    # the best ranking has the labels of a row by falling gain
    rows = np.repeat(np.arange(len(sets)), np.diff(sets.indptr))
    values = 1 / propensity[sets.indices]
    order = np.lexsort((-values, rows))
    places = np.arange(len(rows)) - sets.indptr[rows]
    first = places < k
    best = float(values[order][first] @ discounts[places[first]])
    return float(gains.sum() / best) if best else 0.0


def _discounts(k: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1 / np.log2(np.arange(2, k + 2))
    return found


def _hits(truth: Any, labels: Any, k: int) -> tuple[NDArray[np.bool_], LabelSets]:
    """Return which of the first k labels are right, bool (n_samples, k), and all that are."""
    sets, labels = check_label_sets(truth), np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or len(labels) != len(sets):
        raise ParameterError(
            f"The 'labels' parameter of {OWNER} must be numbers of labels, integers "
            f"({len(sets)}, k), as `predict_top` returns them. Got {labels.dtype} {labels.shape}."
        )
    check_range("k", k, OWNER, low=1, high=labels.shape[1], integer=True)
    labels = labels[:, :k].astype(np.int64)
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= sets.n_labels:
        raise ParameterError(
            f"The 'labels' parameter of {OWNER} must be columns of 'truth', 0 to "
            f"{sets.n_labels - 1}. Got {labels.min()} to {labels.max()}."
        )
    rows = np.repeat(np.arange(len(sets)), np.diff(sets.indptr))
    right = rows * sets.n_labels + sets.indices  # cells, ascending
    cells = np.arange(len(sets))[:, None] * sets.n_labels + labels
    places = np.minimum(np.searchsorted(right, cells), len(right) - 1)
    return (right[places] == cells) if len(right) else np.zeros(cells.shape, bool), sets

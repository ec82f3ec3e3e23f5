"""Measures of rankings, against loops over rows and labels, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics import ndcg_score

from largesparse import ndcg_at_k, precision_at_k, propensities, psndcg_at_k, psp_at_k
from largesparse.errors import ParameterError

tasks = st.tuples(st.integers(1, 12), st.integers(5, 15), st.integers(1, 5), st.integers(0, 99))


def draw(n, n_labels, seed):
    """Return an indicator (n, n_labels), and all labels of every row in some order."""
    rng = np.random.default_rng(seed)
    Y = (rng.random((n, n_labels)) < 0.2).astype(int)
    return Y, np.array([rng.permutation(n_labels) for _ in range(n)])


def discounted(gains):
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


@given(tasks)
def test_measures_are_those_of_loops(task):
    n, n_labels, k, seed = task
    Y, labels = draw(n, n_labels, seed)
    p = np.random.default_rng(seed).uniform(0.1, 1, n_labels)
    precision = [sum(Y[i, j] for j in labels[i, :k]) / k for i in range(n)]
    assert precision_at_k(csr_array(Y), labels, k) == pytest.approx(np.mean(precision))
    ndcg = []
    for i in range(n):
        best = discounted([1] * min(k, Y[i].sum()))
        ndcg.append(discounted(Y[i, labels[i, :k]]) / best if best else 0)
    assert ndcg_at_k(Y, labels, k) == pytest.approx(np.mean(ndcg))
    for measure, total in ((psp_at_k, sum), (psndcg_at_k, discounted)):
        found = sum(total(Y[i, j] / p[j] for j in labels[i, :k]) for i in range(n))
        best = sum(total(sorted((Y[i] / p).tolist(), reverse=True)[:k]) for i in range(n))
        assert measure(Y, labels, k, p) == pytest.approx(found / best if best else 0)


def test_ndcg_is_that_of_scikit_learn():
    Y, labels = draw(30, 10, 1)
    Y[:, 0] = 1  # there, a row without a label has another value
    scores = np.argsort(-labels, axis=1)
    ranked = np.argsort(-scores, axis=1, kind="stable")
    assert ndcg_at_k(Y, ranked[:, :5], 5) == pytest.approx(ndcg_score(Y, scores, k=5))


def test_propensities_by_hand():
    Y = np.zeros((100, 2), int)
    Y[:10, 0] = 1
    c = (math.log(100) - 1) * 2.5**0.55
    expected = [1 / (1 + c * math.exp(-0.55 * math.log(n + 1.5))) for n in (10, 0)]
    np.testing.assert_allclose(propensities(Y), expected)


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        ([[0, 1]], 3, "'k' parameter.*Got 3"),
        ([[0, 9]], 2, "must be columns of 'truth', 0 to 4"),
        ([[0.0, 1.0]], 1, "must be numbers of labels"),
        ([[0, 1], [1, 2]], 1, "must be numbers of labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, k, message):
    with pytest.raises(ParameterError, match=message):
        precision_at_k(np.eye(1, 5, dtype=int), labels, k)


def test_propensities_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="'propensity' parameter"):
        psp_at_k(np.eye(2, dtype=int), [[0], [1]], 1, np.ones(3))

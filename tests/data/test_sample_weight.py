"""Weights of samples: a row of weight 0 is as if it were not there."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from helpers import SMALL
from scipy.sparse import csr_array

from largesparse import (
    NetworkConfig,
    SparseMLP,
    SparseMLPClassifier,
    SparseMLPRegressor,
    Trainer,
    TrainingConfig,
)
from largesparse.errors import DataError, ParameterError

classifier = partial(SparseMLPClassifier, max_epochs=20, **SMALL)
regressor = partial(SparseMLPRegressor, max_epochs=20, **SMALL)


@pytest.fixture(scope="module")
def table():
    """Rows of which every fifth is an outlier of weight 0."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 6))
    y = (X[:, 0] + X[:, 1] > 0).astype(int)
    weights = rng.uniform(0.5, 2, 300)
    weights[::5] = 0
    X[::5] = rng.normal(1e6, 1e5, (60, 6))
    return X, y, weights


def same_weights(one, other):
    layers = zip(one.network_.layers, other.network_.layers, strict=True)
    return all(np.array_equal(a.values, b.values) for a, b in layers)


@pytest.mark.parametrize("form", [np.asarray, csr_array])
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    "model",
    [
        classifier(),
        classifier(alpha="auto", recipe="paper"),
        classifier(early_stopping=True, class_weight="balanced"),
        regressor(),
        regressor(early_stopping=True, growth="gradient"),
    ],
    ids=["classifier", "skewness", "balanced", "regressor", "gradient"],
)
def test_rows_of_weight_zero_are_as_if_they_were_not_there(table, model, call, form):
    X, y, weights = table
    if call == "partial_fit" and getattr(model, "class_weight", None):
        pytest.skip("partial_fit does not take balanced weights")
    regression = isinstance(model, SparseMLPRegressor)
    y = np.where(weights > 0, 50 + X[:, 0], 1e9) if regression else y
    first = {"classes": [0, 1]} if call == "partial_fit" and not regression else {}
    kept = np.flatnonzero(weights)
    fits = []
    for rows in (np.arange(len(X)), kept):
        fitted = type(model)(**model.get_params())
        fits.append(
            getattr(fitted, call)(form(X[rows]), y[rows], sample_weight=weights[rows], **first)
        )
    assert same_weights(*fits)
    np.testing.assert_array_equal(fits[0].predict(X[kept]), fits[1].predict(X[kept]))


@pytest.mark.parametrize("backend", ["fused", "scipy"])
@pytest.mark.parametrize("weight", [0, 1e-12])
def test_an_outlier_that_hardly_counts_does_no_harm(table, backend, weight):
    X, y, weights = table
    X = np.where(weights[:, None] > 0, X, 1.0)
    X[0] = 1e6
    weights = np.r_[weight, np.ones(299)]
    model = classifier(backend=backend).fit(X, y, weights)
    assert model.score(X[1:], y[1:], np.any(X[1:] != 1, axis=1)) > 0.95


@pytest.mark.parametrize("kind", [classifier, regressor])
def test_only_ratios_matter_up_to_the_largest_float(table, kind):
    X, y, weights = table
    plain = kind().fit(X, y, weights)
    for factor in (2.0**1020, 2.0**-1000):
        assert same_weights(plain, kind().fit(X, y, weights * factor))
    huge = kind(class_weight={0: 1e30, 1: 1e30}) if kind is classifier else kind()
    assert np.isfinite(huge.fit(X, y, weights * 2.0**1020).loss_curve_).all()


@pytest.mark.parametrize("recipe", ["width", "paper"])
@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("backend", ["fused", "scipy"])
def test_a_step_does_not_see_rows_of_weight_zero(table, recipe, micro_batch, backend):
    """The centring of the output layer neither; the mean over the mini-batch counts them."""
    X, y, weights = table
    X, y, weights = X[:10].astype(np.float32), y[:10].astype(np.int32), np.float32(weights[:10])
    X[weights == 0] = 3  # in range, so that rounding does not hide anything
    config = TrainingConfig(batch_size=10, micro_batch=micro_batch, dropout=0.0, backend=backend)
    steps = []
    for other in (3, -3):
        X[weights == 0] = other
        network = SparseMLP(NetworkConfig((6, 20, 3), epsilon=20, recipe=recipe), progress=False)
        Trainer(network, config).step(X, y, sample_weight=weights)
        steps.append(network.layers)
    for one, two in zip(*steps, strict=True):
        np.testing.assert_allclose(one.values, two.values, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one.bias, two.bias, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [classifier, regressor])
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_weights_that_are_all_zero_are_refused(table, kind, call):
    X, y, _ = table
    first = {"classes": [0, 1]} if (kind, call) == (classifier, "partial_fit") else {}
    model = kind()
    with pytest.raises(ValueError, match=r"sample_weight|[Ss]ample weights"):
        getattr(model, call)(X, y, sample_weight=np.zeros(300), **first)
    assert not hasattr(model, "network_")


def test_a_weight_that_float32_has_not_is_refused_where_it_multiplies_the_gradient(table):
    X, y, _ = table
    with pytest.raises(DataError, match=r"sample_weight has 1e\+300.*Divide"):
        classifier().partial_fit(X, y, classes=[0, 1], sample_weight=np.full(300, 1e300))


@pytest.mark.parametrize("given", [[1, 2, 3], "even", 2.0, {0: -1.0}, {0: "many"}])
def test_a_wrong_class_weight_is_named(table, given):
    X, y, _ = table
    with pytest.raises(ParameterError, match="'class_weight' parameter of SparseMLPClassifier"):
        classifier(class_weight=given).fit(X, y)


def test_class_weights_are_those_of_scikit_learn(table):
    X, y, _ = table
    by_class = classifier(class_weight={0: 3.0}).fit(X, y)
    assert same_weights(by_class, classifier().fit(X, y, np.where(y == 0, 3.0, 1.0)))
    names = np.array(["no", "yes"])[y]
    named = classifier(class_weight={"no": 3.0}).fit(X, names)
    assert same_weights(by_class, named)

"""Fits that begin with logistic or ridge regression, beside scikit-learn's on the same features."""

from __future__ import annotations

import contextlib
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from helpers import backend_or_skip, same
from scipy.sparse import csr_array, hstack
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_info

from largesparse import (
    NetworkConfig,
    SparseMLP,
    SparseMLPClassifier,
    SparseMLPRegressor,
    TrainingConfig,
)
from largesparse.errors import ParameterError
from largesparse.estimators import defaults, linear_start
from largesparse.estimators.defaults import RATES
from largesparse.training.prepared import prepare_

FAST = {"backend": "scipy", "random_state": 0}


def wide(n_classes=3, rows=90, features=200, seed=0):
    X, y = make_classification(
        rows, features, n_informative=12, n_redundant=30, n_classes=n_classes, random_state=seed
    )
    return (3 * X + 5).astype(np.float32), y


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("rows_of_features", [4, 1])  # by the rows' products, and directly
def test_where_nothing_is_left_to_learn_it_is_logistic_regression(
    n_classes, sparse, rows_of_features, monkeypatch
):
    monkeypatch.setattr(linear_start, "DUAL_FACTOR", 100 if rows_of_features == 1 else 1)
    X, y = wide(n_classes)
    if sparse:
        X[X < 6] = 0
    model = SparseMLPClassifier(learning_rate=0.0, **FAST).fit(csr_array(X) if sparse else X, y)
    scaler = StandardScaler().fit(X.astype(np.float64))
    logistic = LogisticRegression(C=1 / (linear_start.PENALTY * len(y)), max_iter=2000, tol=1e-6)
    logistic.fit(scaler.transform(X), y)
    expected = logistic.predict_proba(scaler.transform(X))
    assert np.abs(model.predict_proba(X) - expected).max() < 5e-3
    assert (model.n_iter_ == 1) == (model.loss_curve_[0] < linear_start.LEARNT) == (n_classes > 2)


def test_rows_of_weight_0_are_not_there():
    X, y = wide()
    weights = np.ones(len(y))
    weights[60:] = 0
    wrong = y.copy()
    wrong[60:] = (wrong[60:] + 1) % 3
    one = SparseMLPClassifier(**FAST).fit(X, wrong, sample_weight=weights)
    other = SparseMLPClassifier(**FAST).fit(X[:60], y[:60])
    assert np.allclose(one.predict_proba(X), other.predict_proba(X), atol=1e-4)


def test_ridge_begins_a_regression():
    X, Y = make_regression(60, 150, n_informative=100, n_targets=2, noise=5, random_state=0)
    model = SparseMLPRegressor(learning_rate=0.0, **FAST).fit(X, Y)
    scaler = StandardScaler().fit(X)
    ridge = RidgeCV(150 * linear_start.RIDGE_PENALTIES)
    ridge.fit(scaler.transform(X), (Y - Y.mean(axis=0)) / Y.std(axis=0))
    expected = ridge.predict(scaler.transform(X)) * Y.std(axis=0) + Y.mean(axis=0)
    assert np.allclose(model.predict(X), expected, atol=1e-2 * Y.std())


def test_other_neurons_learn_what_a_linear_map_leaves():
    """Whether two features have the same sign: no linear map tells."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1500, 4)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    options = {"hidden_layer_sizes": (60,), "max_epochs": 40, **FAST}
    model = SparseMLPClassifier(linear_start=True, **options).fit(X[:1000], y[:1000])
    assert model.score(X[1000:], y[1000:]) > 0.9
    assert model.n_iter_ == 40 and model.loss_curve_[-1] < 0.5 * model.loss_curve_[0]


@pytest.mark.parametrize("backend", ["fused", "scipy", "mkl"])
def test_backends_add_the_same_offsets(backend):
    backend_or_skip(backend)
    X, y = wide(rows=120)
    y = np.where(np.random.default_rng(0).random(120) < 0.3, 0, y)  # not all is told by a line
    options = {"dropout": 0.0, "zeta": 0.0, "max_epochs": 3, "batch_size": 16, "random_state": 0}
    options |= {"linear_start": True, "hidden_layer_sizes": (40,)}
    model = SparseMLPClassifier(backend=backend, **options).fit(X, y)
    expected = SparseMLPClassifier(backend="scipy", **options).fit(X, y)
    assert np.allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-5)


def test_validation_rows_are_scored_with_the_map():
    X, y = wide(rows=100)
    model = SparseMLPClassifier(early_stopping=True, validation_fraction=0.3, **FAST).fit(X, y)
    assert model.best_validation_score_ > 0.5  # a third by guessing


def test_callbacks_see_the_whole_network():
    X, y = wide()
    model, seen = SparseMLPClassifier(**FAST), []
    model._callbacks = (lambda trainer, record: seen.append(model.score(X, y)) and None,)
    model.fit(X, y)
    assert seen == [1.0] == [model.score(X, y)]


def test_an_interrupted_fit_leaves_the_whole_network():
    X, y = wide()
    model = SparseMLPClassifier(**FAST)

    def stop(trainer, record):
        raise KeyboardInterrupt

    model._callbacks = (stop,)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert model.score(X, y) == 1.0


def test_threads_make_no_difference():
    X, y = wide(rows=100, features=3000)
    one, two = (
        SparseMLPClassifier(backend="fused", random_state=0, n_jobs=n).fit(X, y) for n in (1, 2)
    )
    assert same(one.network_, two.network_)


def test_it_is_for_more_features_than_rows():
    X, y = wide(rows=300)
    options = {"max_epochs": 2, **FAST}
    plain = SparseMLPClassifier(linear_start=False, **options).fit(X, y)
    assert same(SparseMLPClassifier(**options).fit(X, y).network_, plain.network_)
    going_on = SparseMLPClassifier(warm_start=True, **options).fit(X[:100], y[:100])
    plain = SparseMLPClassifier(linear_start=False, **options).fit(X[:100], y[:100])
    assert same(going_on.network_, plain.network_)


def codes(n=1500, kinds=100, seed=0):
    """Return one-hot codes of three columns, with a year beside them, and classes they tell."""
    rng = np.random.default_rng(seed)
    columns = rng.integers(kinds, size=(n, 3))
    odds = rng.standard_normal((3, kinds))[np.arange(3), columns].sum(axis=1)
    year = csr_array(rng.normal(1990, 5, (n, 1)).astype(np.float32))
    X = hstack([year, OneHotEncoder(dtype=np.float32).fit_transform(columns)], "csr")
    return csr_array(X), (odds + rng.logistic(size=n) > 0).astype(int)


def test_a_pipeline_with_one_hot_codes():
    rng = np.random.default_rng(0)
    columns = rng.integers(40, size=(1500, 2))
    odds = rng.standard_normal((2, 40))[[0, 1], columns].sum(axis=1)
    X, y = np.char.add("kind ", columns.astype(str)), odds + 0.5 * rng.logistic(size=1500) > 0
    models = SparseMLPClassifier((30,), max_epochs=5, **FAST), LogisticRegression()
    ours, logistic = (
        make_pipeline(OneHotEncoder(handle_unknown="ignore"), model).fit(X[:1200], y[:1200])
        for model in models
    )
    assert ours.score(X[1200:], y[1200:]) > logistic.score(X[1200:], y[1200:]) - 0.02 > 0.7
    X[1200:, 1] = "new"
    assert ours.score(X[1200:], y[1200:]) > 0.6


@pytest.mark.parametrize("standardize", [True, "centered"])
def test_codes_of_categories_begin_linearly(standardize):
    X, y = codes()
    options = {"linear_start": True, "learning_rate": 0.0, "standardize": standardize}
    model = SparseMLPClassifier(**options, **FAST).fit(X, y)
    scaling = model.network_.preprocessing
    rows = (X.toarray() - scaling.mean) * scaling.scale
    penalty = linear_start.FEATURE_PENALTY * X.shape[1] / len(y)
    logistic = LogisticRegression(C=1 / (penalty * len(y)), max_iter=2000, tol=1e-8).fit(rows, y)
    expected = logistic.predict_proba(rows)
    assert np.abs(model.predict_proba(X) - expected).max() < 5e-3
    assert np.abs(logistic.coef_).max() > 0.1


@pytest.mark.parametrize("large", [False, True])
def test_validation_rows_tell_whether_codes_begin_linearly(large, monkeypatch):
    monkeypatch.setattr(defaults, "STOPPING_ROWS", 1000 if large else 10_000)
    X, y = codes()
    options = {"hidden_layer_sizes": (30,), "max_epochs": 3} | FAST
    model = SparseMLPClassifier(**options).fit(X, y)
    assert model._began_linearly and model.validation_scores_ is None  # trained on all rows
    whole = SparseMLPClassifier(linear_start=True, early_stopping=False, **options).fit(X, y)
    assert same(model.network_, whole.network_)
    watched = SparseMLPClassifier(early_stopping=True, **options).fit(X, y)
    assert watched._began_linearly and watched.validation_scores_ is not None
    for other, asked in ((X.toarray(), {}), (X, {"warm_start": True}), (X[:900], {})):
        model = SparseMLPClassifier(**asked, **options).fit(other, y[: other.shape[0]])
        assert not model._began_linearly


@pytest.mark.parametrize("large", [False, True])
def test_codes_that_act_together_do_not_begin_linearly(large, monkeypatch):
    monkeypatch.setattr(defaults, "STOPPING_ROWS", 1000 if large else 10_000)
    rng = np.random.default_rng(0)
    columns = rng.integers(30, size=(2000, 2))
    u, v = rng.choice([-1, 1], (2, 30))
    X = csr_array(OneHotEncoder(dtype=np.float32).fit_transform(columns))
    y = (u[columns[:, 0]] * v[columns[:, 1]] > 0).astype(int)
    options = {"hidden_layer_sizes": (60,)} | FAST
    model = SparseMLPClassifier(**options).fit(X, y)
    plain = SparseMLPClassifier(linear_start=False, **options).fit(X, y)
    assert not model._began_linearly and same(model.network_, plain.network_)
    assert model.score(X, y) > 0.9
    assert (model.validation_scores_ is not None) == large


def test_a_start_that_cannot_be_is_refused():
    X, y = wide()
    for options, reason in [
        ({"standardize": False}, "standardize=True"),
        ({"hidden_layer_sizes": (8,)}, "half of a hidden layer"),
        ({"activation": "srelu"}, "'srelu'"),
    ]:
        with pytest.raises(ParameterError, match=f"'linear_start'.*{reason}"):
            SparseMLPClassifier(linear_start=True, **options, **FAST).fit(X, y)
        SparseMLPClassifier(max_epochs=1, **options, **FAST).fit(X, y)  # "auto"
    with pytest.raises(ParameterError, match="must be True, False or 'auto'"):
        SparseMLPClassifier(linear_start="yes", **FAST).fit(X, y)
    for far in (csr_array(X + 1e6), csr_array(X + 200)):
        with pytest.raises(ParameterError, match="means are far larger"):
            SparseMLPClassifier(linear_start=True, **FAST).fit(far, y)


def test_a_saved_model_predicts_the_same(tmp_path):
    X, y = wide()
    model = SparseMLPClassifier(**FAST).fit(X, y)
    model.save(tmp_path / "model")
    loaded = SparseMLPClassifier.load(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert np.isfinite(loaded.partial_fit(X, y).predict_proba(X)).all()


def test_mistakes_found_after_the_start_are_told():
    with pytest.raises(ParameterError, match="'backend'"):
        SparseMLPClassifier(backend="none", random_state=0).fit(*wide())


@pytest.mark.parametrize("as_given", [np.asarray, csr_array])
def test_rows_that_are_all_the_same(as_given):
    X, y = as_given(np.ones((9, 50))), np.arange(9) % 3
    probabilities = SparseMLPClassifier(max_epochs=2, **FAST).fit(X, y).predict_proba(X)
    assert np.allclose(probabilities, 1 / 3, atol=0.05)
    assert np.allclose(SparseMLPRegressor(max_epochs=2, **FAST).fit(X, y).predict(X), 1, atol=0.1)


def test_a_fit_that_goes_on_after_ctrl_c_keeps_what_was_learnt():
    X, y = wide()
    model = SparseMLPClassifier(warm_start=True, linear_start=True, **FAST)

    def stop(trainer, record):
        raise KeyboardInterrupt

    model._callbacks = (stop,)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    before = model.predict_proba(X)
    model._callbacks = ()
    model.set_params(learning_rate=0.0, momentum=0.0, weight_decay=0.0, zeta=0.0, max_epochs=1).fit(
        X, y
    )
    assert np.allclose(model.predict_proba(X), before, atol=1e-5)


def test_a_training_that_starts_again_begins_linearly_too(monkeypatch):
    X, y = wide()
    y = np.random.default_rng(0).permutation(y)
    monkeypatch.setattr(linear_start, "PENALTY", 1.0)  # so that one epoch is not all
    monkeypatch.setitem(RATES, "softmax_cross_entropy", dict.fromkeys(("paper", "width"), 20.0))
    options = {"max_epochs": 3, **FAST}
    retried = SparseMLPClassifier(**options).fit(X, y)
    assert retried.learning_rate_ < 20
    expected = SparseMLPClassifier(learning_rate=retried.learning_rate_, **options).fit(X, y)
    assert same(retried.network_, expected.network_)


def test_fits_in_two_python_threads_leave_the_process_as_it_was(monkeypatch):
    X, y = wide()
    expected = SparseMLPClassifier(**FAST).fit(X, y)
    fit, together = linear_start._logistic, threading.Barrier(2)

    def slow_fit(*arguments):
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.3)  # where both get here, each puts back what the other has set
        return fit(*arguments)

    def state():
        return [pool["num_threads"] for pool in threadpool_info()], warnings.filters[:]

    monkeypatch.setattr(linear_start, "_logistic", slow_fit)
    models = [SparseMLPClassifier(**FAST) for _ in range(2)]
    before = state()
    threads = [threading.Thread(target=model.fit, args=(X, y)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together.broken and state() == before
    assert all(same(model.network_, expected.network_) for model in models)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mean_squared_error"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_table_is_not_copied_in_float64(loss, sparse):
    rng = np.random.default_rng(0)
    X = np.zeros((100, 40_000), dtype=np.float32)
    X[:, : 1000 if sparse else None] = (
        rng.random((100, 1000))[:, :1] if sparse else rng.random(X.shape)
    )
    y = np.arange(100) % 2
    network = SparseMLP(NetworkConfig((40_000, 40, 2), epsilon=1, loss=loss), progress=False)
    y = y if loss.startswith("softmax") else np.eye(2)[y]
    given = csr_array(X) if sparse else X
    config = TrainingConfig(batch_size=10)
    data = prepare_(network, config, given, y, copy_bytes=2**28)
    linear_start.fit_linear(network, data)  # imports
    tracemalloc.start()
    linear_start.fit_linear(network, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes / 3


def test_what_would_take_long_is_not_begun(monkeypatch):
    X, y = wide()
    for name, most, kind, target in [
        ("MOST_PRODUCTS", 3 * X.size, SparseMLPClassifier, y),
        ("RIDGE_ROWS", len(y), SparseMLPRegressor, X[:, 0]),
    ]:
        model = kind(linear_start=True, max_epochs=1, **FAST)
        monkeypatch.setattr(linear_start, name, most)
        model.fit(X, target)
        monkeypatch.setattr(linear_start, name, most - 1)
        with pytest.raises(ParameterError, match="take long"):
            model.fit(X, target)
        model.set_params(linear_start="auto").fit(X, target)
    monkeypatch.setattr(linear_start, "MOST_PRODUCTS", 3 * X.size)
    with pytest.raises(ParameterError, match="take long"):
        SparseMLPClassifier(linear_start=True, **FAST).fit(csr_array(X), y)

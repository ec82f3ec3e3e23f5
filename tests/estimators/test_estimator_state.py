"""What calls of an estimator leave behind: after errors, in further calls, in saved files."""

from __future__ import annotations

import pickle
from functools import partial

import helpers
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

import largesparse
from largesparse import NetworkConfig, Predictor, SparseMLP, SparseMLPClassifier, SparseMLPRegressor
from largesparse.errors import DataError, NumericalError, ParameterError
from largesparse.estimators import base as estimator_base
from largesparse.estimators.defaults import PARTIAL_FACTOR, RATES

SMALL = helpers.SMALL | {"hidden_layer_sizes": (20,)}


classifier = partial(SparseMLPClassifier, max_epochs=3, **SMALL)
regressor = partial(SparseMLPRegressor, max_epochs=3, **SMALL)


@pytest.fixture(scope="module")
def table():
    X = np.random.default_rng(0).standard_normal((200, 5))
    return X, (X[:, 0] > 0).astype(int)


def state(model):
    layers = [
        [layer.values, layer.velocity, layer.values_by_output, layer.bias, layer.bias_velocity]
        for layer in model.network_.layers
    ]
    counts = model.n_iter_, model.n_steps_, list(model.loss_curve_), model.learning_rate_
    return [array.copy() for layer in layers for array in layer], counts


def same_state(one, other):
    return one[1] == other[1] and all(map(np.array_equal, one[0], other[0]))


# Errors


@pytest.mark.parametrize("kind", [classifier, regressor])
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_a_call_that_diverges_leaves_the_model_as_it_was(table, kind, call):
    X, y = table
    model = kind(warm_start=True, batch_size=8).fit(X, y).partial_fit(X, y)
    before, predictions = state(model), model.predict(X)
    model.set_params(learning_rate=1e30)
    with pytest.raises(NumericalError, match="learning_rate"):
        getattr(model, call)(X, y)
    assert same_state(state(model), before)
    np.testing.assert_array_equal(model.predict(X), predictions)
    model.set_params(learning_rate="auto")
    again = kind(warm_start=True, batch_size=8).fit(X, y).partial_fit(X, y)
    assert same_state(state(getattr(model, call)(X, y)), state(getattr(again, call)(X, y)))


@pytest.mark.parametrize("kind", [classifier, regressor])
def test_a_first_fit_that_fails_leaves_no_model(table, kind):
    X, y = table
    for options, error in (
        ({"learning_rate": 1e30}, NumericalError),
        ({"zeta": 2}, ParameterError),
    ):
        model = kind(**options)
        with pytest.raises(error):
            model.fit(X, y)
        with pytest.raises(NotFittedError):
            model.predict(X)
        assert [name for name in vars(model) if name.endswith("_")] == []


def test_a_fit_from_the_start_that_fails_keeps_the_model_before(table):
    X, y = table
    model = classifier().fit(X, y)
    before = model.predict_proba(X)
    with pytest.raises(NumericalError):
        model.set_params(learning_rate=1e30).fit(X[:, :3], y)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    with pytest.raises(DataError, match="not among the 2"):
        model.set_params(warm_start=True).fit(X, y + 1)
    np.testing.assert_array_equal(model.predict_proba(X), before)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("loss, n_out", [("softmax_cross_entropy", 2), ("mean_squared_error", 1)])
def test_outputs_that_are_not_finite_are_refused(loss, n_out, processes):
    network = SparseMLP(NetworkConfig((5, 10, n_out), epsilon=20, loss=loss), progress=False)
    X = np.ones((30, 5), dtype=np.float32)
    X[17] = 1e38
    for layer in network.layers:
        layer.values_by_output *= 100  # the sums of row 17 overflow
    with Predictor(network, processes=processes, threads=1, backend="fused") as predictor:
        predictor.predict(X[:17])
        with pytest.raises(NumericalError, match="row 17 is not finite"):
            predictor.predict(X)
    network.layers[-1].bias[:] = np.nan
    with pytest.raises(NumericalError, match="row 0 is not finite"):
        largesparse.predict(network, X, backend="scipy", threads=1)


def test_an_estimator_refuses_outputs_that_are_not_finite(table):
    X, y = table
    model = classifier().fit(X, y)
    model.network_.layers[0].values_by_output[:] = np.inf
    for method in (model.predict, model.predict_proba, model.predict_log_proba):
        with pytest.raises(NumericalError, match="not finite"):
            method(X)


# Going on


def drawn(monkeypatch):
    """Record what is drawn for epochs."""
    found = []
    stream = largesparse.randomness.stream

    def spy(seed, name, *key, rank=0):
        found.append((name, *key))
        return stream(seed, name, *key, rank=rank)

    for module in (largesparse.training.trainer, largesparse.training.prepared):
        monkeypatch.setattr(module, "stream", spy)
    return found


def test_a_warm_start_draws_what_was_not_drawn_before(table, monkeypatch):
    found = drawn(monkeypatch)
    model = classifier(warm_start=True, early_stopping=True, growth="gradient")
    for _ in range(2):
        model.fit(*table)
    once = [key for key in found if key[0] != "split"]
    assert len(once) == len(set(once))
    assert sorted(key[1] for key in once if key[0] == "shuffle") == list(range(6))
    assert {key[1] for key in once if key[0] == "evolution"} == {1, 2, 4, 5}
    assert found.count(("split",)) == 2  # the same rows are set aside


def test_epochs_are_counted_as_scikit_learn_does(table):
    theirs = MLPClassifier((5,), max_iter=3, warm_start=True, n_iter_no_change=99, solver="sgd")
    ours = classifier(warm_start=True)
    with pytest.warns(match="Maximum iterations"):
        for _ in range(2):
            for model in (theirs, ours):
                model.fit(*table)
    assert ours.n_iter_ == theirs.n_iter_ == 3
    assert len(ours.loss_curve_) == len(theirs.loss_curve_) == 6
    for model in (theirs, ours):
        model.partial_fit(*table)
    assert ours.n_iter_ == theirs.n_iter_ == 1
    assert len(ours.loss_curve_) == len(theirs.loss_curve_) == 7


def test_the_rates_of_fit_and_of_partial_fit_are_apart(table):
    rate = RATES["softmax_cross_entropy"]["width"]
    model = classifier(warm_start=True)
    for call, expected in (("fit", rate), ("partial_fit", rate * PARTIAL_FACTOR)) * 2:
        getattr(model, call)(*table)
        assert model.learning_rate_ == pytest.approx(expected)


def test_a_rate_that_was_lowered_stays_so_in_fit_alone(table, monkeypatch):
    monkeypatch.setitem(RATES["softmax_cross_entropy"], "width", 1e5)
    monkeypatch.setattr(estimator_base, "RETRY_FACTOR", 1e-6)
    model = classifier(warm_start=True).fit(*table)
    assert model.learning_rate_ == pytest.approx(0.1)
    assert model.fit(*table).learning_rate_ == pytest.approx(0.1)


# Saving


CHANGED = {
    "hidden_layer_sizes": [20, 10],
    "epsilon": None,
    "density": np.float64(0.5),
    "alpha": "auto",
    "recipe": "auto",
    "zeta": 0.2,
    "learning_rate": 0.1,
    "batch_size": np.int64(16),
    "max_epochs": 2,
    "early_stopping": np.True_,
    "patience": 7,
    "standardize": False,
    "warm_start": True,
    "random_state": 42,
    "verbose": False,
}


@pytest.mark.parametrize("kind", [classifier, regressor])
def test_all_parameters_are_saved(table, tmp_path, kind):
    X, y = table
    options = CHANGED | ({"class_weight": {0: 1.5, 1: 2}} if kind is classifier else {})
    model = kind(**options).fit(X, y)
    model.save(tmp_path)
    loaded = type(model).load(tmp_path)
    expected = model.get_params() | {"hidden_layer_sizes": (20, 10)}
    assert loaded.get_params() == expected
    assert (loaded.n_iter_, loaded.n_steps_) == (model.n_iter_, model.n_steps_)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert type(model).load(tmp_path).set_params(warm_start=False).fit(X, y).n_iter_ == 2


def test_a_loaded_model_goes_on_to_draw(table, tmp_path, monkeypatch):
    model = classifier(warm_start=True).fit(*table)
    model.save(tmp_path)
    found = drawn(monkeypatch)
    SparseMLPClassifier.load(tmp_path).fit(*table)
    assert sorted(key[1] for key in found if key[0] == "shuffle") == [3, 4, 5]


def test_a_random_state_is_saved_as_it_is(table, tmp_path):
    X, y = table
    model = classifier(random_state=np.random.RandomState(3)).fit(X, y)
    model.save(tmp_path)
    loaded = SparseMLPClassifier.load(tmp_path)
    assert loaded.random_state.randint(10**9) == model.random_state.randint(10**9)
    with pytest.raises(ParameterError, match="'verbose' parameter cannot be saved: it is a Logis"):
        model.set_params(verbose=LogisticRegression()).save(tmp_path)


# Parameters


@pytest.mark.parametrize("sizes", [None, 2.5, "400", {400}, True, (10, None)])
def test_sizes_that_are_none_are_named(table, sizes):
    with pytest.raises(ParameterError, match="'hidden_layer_sizes' parameter of"):
        classifier(hidden_layer_sizes=sizes).fit(*table)


def test_a_validation_part_that_leaves_no_row_is_named(table):
    X, y = table
    for fraction in (0.99, 0.999):
        model = classifier(early_stopping=True, validation_fraction=fraction)
        with pytest.raises(ParameterError, match="'validation_fraction' parameter"):
            model.fit(X[:50], y[:50])


def test_a_pickle_without_the_youngest_attributes_of_a_layer_predicts_and_goes_on():
    X, y = load_digits(return_X_y=True)
    model = SparseMLPClassifier((30,), max_epochs=2, random_state=0, warm_start=True)
    model.fit(X[:200], y[:200])
    expected = model.predict_proba(X[200:300])
    for layer in model.network_.layers:
        for name in ("scale", "running", "candidates", "explored", "kinds"):
            vars(layer).pop(name, None)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X[200:300]), expected)
    again.fit(X[:200], y[:200])

"""The scikit-learn estimators: scikit-learn's own checks, then what they leave open."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from functools import partial

import helpers
import joblib
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_array, csr_array, csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, make_classification, make_regression
from sklearn.metrics import accuracy_score, r2_score, recall_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import largesparse
from largesparse import SparseFeatureSelector, SparseMLPClassifier, SparseMLPRegressor
from largesparse._version import DOCUMENTATION
from largesparse.data.skewness import alpha_from_skewness
from largesparse.errors import CheckpointError, DataError, NumericalError, ParameterError
from largesparse.estimators import base as estimator_base
from largesparse.estimators.defaults import RATES, auto_batch_size, auto_epochs, resolve_jobs
from largesparse.machine.threads import available_threads
from largesparse.model.optimizer import OPTIMIZERS

# The quickest for small networks; where nothing is given, a backend is chosen by what is installed.
SMALL = helpers.SMALL | {"hidden_layer_sizes": (30, 20)}

MINI_BATCHES = "a row of weight 2 is in one mini-batch, and a row given twice is in two"
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": MINI_BATCHES,
    "check_sample_weight_equivalence_on_sparse_data": MINI_BATCHES,
}


@parametrize_with_checks(
    [
        kind((30,), max_epochs=40, n_jobs=1, backend="fused")
        for kind in (SparseMLPClassifier, SparseMLPRegressor)
    ],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_scikit_learn(estimator, check):
    check(estimator)


classifier = partial(SparseMLPClassifier, max_epochs=10, **SMALL)
regressor = partial(SparseMLPRegressor, max_epochs=10, **SMALL)


@pytest.fixture(scope="module")
def two_classes():
    X, y = make_classification(300, 12, n_informative=6, random_state=0)
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def numbers():
    X, y = make_regression(300, 12, n_informative=6, n_targets=2, random_state=0)
    return X.astype(np.float32), 50 + y


def weights_of(estimator):
    return [layer.values for layer in estimator.network_.layers]


def same_weights(one, other):
    return all(map(np.array_equal, weights_of(one), weights_of(other)))


# What it predicts


def test_labels_may_be_strings(two_classes):
    X, y = two_classes
    names = np.array(["no", "yes"], dtype=object)[y]
    named, plain = classifier().fit(X, names), classifier().fit(X, y)
    assert named.classes_.tolist() == ["no", "yes"]
    assert np.array_equal(named.predict(X) == "yes", plain.predict(X) == 1)
    assert named.score(X, names) == accuracy_score(y, plain.predict(X)) > 0.8


def test_probabilities_and_their_logarithms(two_classes):
    X, y = two_classes
    model = classifier().fit(X, y)
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (300, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), probabilities, rtol=1e-5)
    assert np.array_equal(model.predict(X), probabilities.argmax(axis=1))


def test_the_regressor_learns_and_predicts_in_the_units_of_the_targets(numbers):
    X, y = numbers
    model = regressor(max_epochs=60, dropout=0.0).fit(X, y)
    assert model.predict(X).shape == y.shape
    assert 0.8 < model.score(X, y) == pytest.approx(r2_score(y, model.predict(X)))
    np.testing.assert_allclose(model.y_mean_, y.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(model.y_scale_, y.std(axis=0), rtol=1e-5)
    one = regressor().fit(X, y[:, 0])
    assert one.predict(X).shape == (300,)


def test_a_constant_target_is_predicted():
    X = np.arange(20.0).reshape(-1, 1)
    model = regressor(dropout=0.0, max_epochs=50).fit(X, np.full(20, 7.5))
    np.testing.assert_allclose(model.predict(X), 7.5, atol=0.5)


@pytest.mark.parametrize("make", [csr_array, csr_matrix, coo_array])
@pytest.mark.parametrize("model", [classifier(), regressor()], ids=["classifier", "regressor"])
def test_sparse_inputs_give_what_dense_ones_give(two_classes, model, make):
    X, y = two_classes
    X = np.where(X > 0.5, X, 0)
    dense, sparse = clone(model).fit(X, y), clone(model).fit(make(X), y)
    np.testing.assert_allclose(sparse.predict(make(X)), dense.predict(X), atol=1e-4)
    np.testing.assert_allclose(sparse.predict(X), dense.predict(make(X)), atol=1e-4)


# In scikit-learn's tools


def test_pipeline_grid_search_and_clone(two_classes):
    X, y = two_classes
    pipeline = make_pipeline(MinMaxScaler(), classifier(max_epochs=3))
    grid = {"sparsemlpclassifier__hidden_layer_sizes": [(10,), (20, 10)]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    assert search.best_score_ > 0.5
    assert search.best_params_["sparsemlpclassifier__hidden_layer_sizes"] in [(10,), (20, 10)]
    copy = clone(search.best_estimator_[-1])
    assert copy.get_params() == search.best_estimator_[-1].get_params()
    assert not hasattr(copy, "network_")


def test_processes_of_a_grid_search(two_classes):
    X, y = two_classes
    alone = cross_val_score(classifier(max_epochs=3), X, y, cv=2)
    together = cross_val_score(classifier(max_epochs=3, n_jobs=None), X, y, cv=2, n_jobs=2)
    assert np.array_equal(alone, together)


def test_names_of_features(two_classes):
    X, y = two_classes
    table = pd.DataFrame(X, columns=[f"gene {k}" for k in range(12)])
    model = classifier().fit(table, y)
    assert model.feature_names_in_.tolist() == list(table.columns)
    assert np.array_equal(model.predict(table), classifier().fit(X, y).predict(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(table[table.columns[::-1]])


PREDICT = """
import pickle, sys, numpy
with open(sys.argv[1], "rb") as stream:
    models, X, y = pickle.load(stream)
numpy.save(sys.argv[2], [model.predict(X) for model in models])
for model in models:
    model.partial_fit(X, y)
"""


def test_pickled_and_used_in_another_process(two_classes, tmp_path):
    X, y = two_classes
    models = [classifier(backend=None), regressor()]  # MKL's objects cannot be pickled
    models = [model.fit(X, y).partial_fit(X, y) for model in models]
    path, out = tmp_path / "models.pickle", tmp_path / "out.npy"
    path.write_bytes(pickle.dumps((models, X, y)))
    subprocess.run([sys.executable, "-c", PREDICT, path, out], check=True)
    assert np.array_equal(np.load(out), [model.predict(X) for model in models])
    for again, model in zip(pickle.loads(path.read_bytes())[0], models, strict=True):
        assert same_weights(again.partial_fit(X, y), model.partial_fit(X, y))


def test_saved_without_pickles(two_classes, numbers, tmp_path):
    X, y = two_classes
    table = pd.DataFrame(X, columns=[f"gene {k}" for k in range(12)])
    options = {"hidden_layer_sizes": (25, 15), "epsilon": 5, "backend": None}
    model = classifier(**options).fit(table, np.array(["a", "b"])[y])
    model.save(tmp_path / "model")
    loaded = SparseMLPClassifier.load(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(table), model.predict_proba(table))
    assert np.array_equal(loaded.predict(table), model.predict(table))
    assert loaded.feature_names_in_.tolist() == list(table.columns)
    assert (loaded.hidden_layer_sizes, loaded.epsilon) == ((25, 15), 5)
    assert np.array_equal(largesparse.predict(loaded.network_, X), model.predict(table))
    with pytest.raises(ParameterError, match="the other estimator"):
        SparseMLPRegressor.load(tmp_path / "model")
    with pytest.raises(CheckpointError, match="no model"):
        SparseMLPClassifier.load(tmp_path / "nothing")

    X, y = numbers
    model = regressor(backend=None).fit(X, y)
    model.save(tmp_path / "numbers")
    loaded = SparseMLPRegressor.load(tmp_path / "numbers")
    assert np.array_equal(loaded.predict(X), model.predict(X))
    assert not hasattr(loaded, "feature_names_in_")
    loaded.partial_fit(X, y)


# Evolution and pruning


@pytest.mark.parametrize("model", [classifier(), regressor()], ids=["classifier", "regressor"])
def test_pruning_leaves_a_smaller_network_of_the_same_predictions(two_classes, model):
    X, y = two_classes
    model = clone(model).set_params(max_epochs=6, pruning_start=3, pruning_every=2)
    model.set_params(pruning_percentile=20).fit(X, y)  # one pruning: after epoch 4
    assert [layer.n_living for layer in model.network_.layers[:-1]] == [30 - 6, 20 - 4]
    nnz = [sum(counts) for counts in model.history_["nnz"]]
    assert nnz[0] == nnz[4] > nnz[5] == nnz[6]
    before = model.predict(X)
    model.network_ = largesparse.compact(model.network_)
    np.testing.assert_allclose(model.predict(X), before, rtol=1e-4, atol=1e-5)


def topologies(model):
    return [layer.topology.indices.tolist() for layer in model.network_.layers]


def grow_first(layer, state, count, rng):
    cells = np.arange(layer.n_in * layer.n_out)
    return cells[state.is_free(cells)][:count]


def test_a_rule_of_ones_own_is_cloned_pickled_and_saved(two_classes, tmp_path):
    model = clone(classifier(growth=grow_first, drop="soft", max_epochs=3)).fit(*two_classes)
    assert model.growth is grow_first
    assert same_weights(pickle.loads(pickle.dumps(model)), model)
    model.save(tmp_path)
    loaded = SparseMLPClassifier.load(tmp_path)
    assert loaded.growth == f"{__name__}:grow_first" and loaded.drop == "soft"
    assert same_weights(loaded.fit(*two_classes), model)
    model.set_params(growth=lambda *given: grow_first(*given)).fit(*two_classes)
    with pytest.raises(ParameterError, match="'growth' parameter cannot be saved"):
        model.save(tmp_path / "other")


@pytest.mark.parametrize(
    "changed",
    [{"growth": "gradient"}, {"growth": grow_first}, {"drop": "mest"}, {"zeta_decay": 0.0}],
)
def test_how_a_network_evolves_can_be_chosen(two_classes, changed):
    one, other = classifier(epsilon=2), classifier(epsilon=2, **changed)
    for epochs, same in ((1, True), (4, False)):  # nothing evolves after the last epoch
        a, b = (clone(m).set_params(max_epochs=epochs).fit(*two_classes) for m in (one, other))
        assert (topologies(a) == topologies(b)) == same


@pytest.mark.parametrize(
    ("rules", "name", "value"),
    [({"drop": "mest"}, "drop_factor", 50.0), ({"growth": "gradient"}, "growth_candidates", 20.0)],
)
@pytest.mark.parametrize("kind", [classifier, regressor])
def test_rules_have_options(two_classes, tmp_path, kind, rules, name, value):
    X, y = two_classes
    one, other = (kind(epsilon=2, max_epochs=4, **rules, **own) for own in ({}, {name: value}))
    assert topologies(one.fit(X, y)) != topologies(other.fit(X, y))
    other.save(tmp_path)
    assert getattr(type(other).load(tmp_path), name) == value
    with pytest.raises(ParameterError, match=f"'{name}'"):
        clone(other).set_params(**{name: -1.0}).fit(X, y)


@pytest.mark.parametrize("recipe, regrowth", [("width", "zero"), ("paper", "initial")])
def test_values_of_new_connections_are_by_recipe(two_classes, tmp_path, recipe, regrowth):
    kinds = {
        given: classifier(recipe=recipe, regrowth=given).fit(*two_classes)
        for given in (None, "zero", "initial")
    }
    assert same_weights(kinds[None], kinds[regrowth])
    assert not same_weights(kinds["zero"], kinds["initial"])
    kinds["zero"].save(tmp_path)
    assert SparseMLPClassifier.load(tmp_path).regrowth == "zero"


# Reproducibility


def test_the_result_depends_on_random_state_and_not_on_n_jobs(two_classes):
    X, y = two_classes
    one, two = classifier(n_jobs=1).fit(X, y), classifier(n_jobs=2).fit(X, y)
    assert same_weights(one, two)
    assert np.array_equal(one.predict_proba(X), two.predict_proba(X))
    assert not np.array_equal(
        one.predict_proba(X), classifier(random_state=1).fit(X, y).predict_proba(X)
    )
    generator = np.random.RandomState(0)
    drawn = [classifier(random_state=generator).fit(X, y).predict_proba(X) for _ in range(2)]
    assert not np.array_equal(*drawn)


def test_n_jobs_counts_as_in_scikit_learn():
    cores = available_threads()
    assert (resolve_jobs(3), resolve_jobs(-1), resolve_jobs(-cores - 5)) == (3, cores, 1)
    assert resolve_jobs(None) == 1
    with joblib.parallel_config(n_jobs=2):
        assert (resolve_jobs(None), resolve_jobs(3)) == (2, 3)


def test_verbose_prints_lines_where_there_is_no_terminal(two_classes, capsys):
    X, y = two_classes
    classifier(max_epochs=30, verbose=True).fit(X, y)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert re.fullmatch(r"epoch 3 of 30: loss \d+\.\d{4}, \d+\.\d m?s", lines[0])
    assert lines[-1].startswith("epoch 30 of 30: ")
    classifier(max_epochs=3, early_stopping=True, verbose=True).fit(X, y)
    assert "validation score 0." in capsys.readouterr().err
    classifier(max_epochs=3).fit(X, y)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", [SparseMLPClassifier, SparseMLPRegressor, SparseFeatureSelector])
def test_the_html_representation_links_to_the_documentation(kind):
    link = f"{DOCUMENTATION}api/estimators.html#largesparse.{kind.__name__}"
    assert f'href="{link}"' in kind()._repr_html_()


# Weights


def test_rows_of_weight_zero_have_no_gradient(two_classes):
    X, y = two_classes
    weights = np.r_[np.ones(150), np.zeros(150)]
    wrong = np.r_[y[:150], 1 - y[150:]]
    model = classifier(epsilon=5).fit(X, y, weights)
    assert same_weights(model, classifier(epsilon=5).fit(X, wrong, weights))
    assert not same_weights(model, classifier(epsilon=5).fit(X, wrong))


def test_balanced_classes_find_more_of_the_rare_one():
    X, y = make_classification(
        600, 10, n_informative=5, weights=[0.93], flip_y=0.1, class_sep=0.5, random_state=0
    )
    plain, balanced = (classifier(class_weight=weights).fit(X, y) for weights in (None, "balanced"))
    assert recall_score(y, balanced.predict(X)) > recall_score(y, plain.predict(X)) + 0.1
    by_hand = np.where(y == 1, 600 / (2 * (y == 1).sum()), 600 / (2 * (y == 0).sum()))
    assert same_weights(balanced, classifier().fit(X, y, by_hand))


# Training, and going on with it


def test_what_the_attributes_tell(two_classes):
    X, y = two_classes
    model = classifier().fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_) == len(model.history_) - 1 == 10
    assert model.loss_curve_ == model.history_["running_loss"][1:]
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert model.n_steps_ == 10 * -(-300 // auto_batch_size(300))
    assert model.validation_scores_ is None is model.best_validation_score_


@pytest.mark.parametrize("kind", [classifier, regressor])
def test_early_stopping_restores_the_best_weights(two_classes, kind):
    X, y = two_classes
    options = {"early_stopping": True, "validation_fraction": 0.3, "learning_rate": 0.05}
    model = kind(max_epochs=60, patience=5, **options).fit(X, y)
    scores = model.validation_scores_
    assert model.n_iter_ == len(scores) < 60
    best = int(np.argmax(scores))
    assert model.best_validation_score_ == scores[best] > scores[-1]
    assert model.n_iter_ == best + 1 + 5
    order = largesparse.randomness.stream(model._seed, "split").permutation(300)
    rows = order[:90]
    assert model.score(X[rows], y[rows]) == pytest.approx(scores[best], abs=1e-5)


@pytest.mark.parametrize("name", ["nesterov", "adam", "adamw"])
@pytest.mark.parametrize("kind", [classifier, regressor])
def test_other_optimizers_learn_with_what_is_chosen(two_classes, kind, name):
    X, y = two_classes
    adam = {"beta2": 0.99, "adam_epsilon": 1e-6, "step_counts": "global"}
    model = kind(optimizer=name, clip_norm=5.0, **adam).fit(X, y)
    config = model._training_config(300)
    assert (config.optimizer, config.clip_norm) == (name, 5.0)
    assert {field: getattr(config, field) for field in adam} == adam
    share = 1 / (10 * -(-300 // auto_batch_size(300)))
    decay = {"nesterov": share, "adam": 0, "adamw": share / model.learning_rate_}[name]
    assert config.weight_decay == pytest.approx(decay)
    assert model.network_.layers[0].kinds == OPTIMIZERS[name].kinds
    assert model.score(X, y) > (0.8 if kind is classifier else 0.3)
    before = model.n_steps_
    model.partial_fit(X, y)
    assert model.n_steps_ > before


def test_warm_start_goes_on(two_classes):
    X, y = two_classes
    model = classifier(warm_start=True, max_epochs=3).fit(X, y)
    network, loss = model.network_, model.loss_curve_[-1]
    model.fit(X, y)
    assert model.network_ is network
    assert (model.n_iter_, len(model.loss_curve_)) == (3, 6)
    assert model.loss_curve_[-1] < loss
    assert len(model.history_) == 4
    with pytest.raises(DataError, match="not among the 2 known classes"):
        model.fit(X, y + 1)
    with pytest.raises(ParameterError, match="warm_start=False"):
        model.set_params(hidden_layer_sizes=(7,)).fit(X, y)
    model.set_params(warm_start=False).fit(X, y)
    assert model.network_ is not network
    assert same_weights(model, classifier(hidden_layer_sizes=(7,), max_epochs=3).fit(X, y))


def test_partial_fit_learns_by_parts(two_classes):
    X, y = two_classes
    model = classifier(dropout=0.0)
    for epoch in range(20):
        for start in (0, 100, 200):
            rows = slice(start, start + 100)
            model.partial_fit(X[rows], y[rows], classes=[0, 1] if epoch == start == 0 else None)
    assert (model.n_iter_, len(model.loss_curve_)) == (1, 60)
    assert model.score(X, y) > 0.85
    assert model.loss_curve_[-1] < model.loss_curve_[0]


def test_partial_fit_of_the_regressor(numbers):
    X, y = numbers
    model = regressor(dropout=0.0)
    for _ in range(60):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.8
    with pytest.raises(DataError, match="expecting 2"):
        model.partial_fit(X, y[:, 0])


def test_partial_fit_needs_all_classes_first(two_classes):
    X, y = two_classes
    with pytest.raises(ValueError, match="'classes' parameter must be passed on the first call"):
        classifier().partial_fit(X, y)
    model = classifier().partial_fit(X[y == 1], y[y == 1], classes=[0, 1, 2])
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.predict_proba(X).shape == (300, 3)
    with pytest.raises(DataError, match="not among the 3 known classes: 3"):
        model.partial_fit(X, y + 2)
    with pytest.raises(ParameterError, match="Leave it out"):
        model.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ParameterError, match="class_weight"):
        model.set_params(class_weight="balanced").partial_fit(X, y)


# Defaults


def test_defaults_follow_the_number_of_rows():
    assert [auto_batch_size(n) for n in (1, 5, 105, 800, 10**6)] == [1, 5, 8, 32, 128]
    sizes = (1, 105, 10_000, 40_000, 10**6, 10**9)
    assert [auto_epochs(n, 30, watched=False) for n in sizes] == [50, 50, 50, 50, 20, 20]
    assert [auto_epochs(n, 30, watched=True) for n in sizes] == [100, 100, 100, 50, 20, 20]


def test_the_recipe_follows_the_shape_of_the_table(two_classes):
    X, y = two_classes
    assert classifier().fit(X, y).network_.config.recipe == "width"
    few = classifier(max_epochs=1, warm_start=True).fit(X[:10], y[:10])
    assert few.network_.config.recipe == "paper"
    few.fit(X, y).partial_fit(X, y)
    assert classifier(recipe="width").fit(X[:10], y[:10]).network_.config.recipe == "width"
    sparse = classifier(epsilon=0.05, hidden_layer_sizes=(50,)).fit(X[:10], y[:10])
    assert sparse.network_.config.recipe == "width"


def test_early_stopping_is_for_many_rows(two_classes):
    X, y = two_classes
    assert classifier(max_epochs=1).fit(X, y).validation_scores_ is None
    many = np.arange(10_001) % 300
    assert len(classifier(max_epochs=1).fit(X[many], y[many]).validation_scores_) == 1


@pytest.mark.parametrize("load, model", [(load_iris, classifier), (load_diabetes, regressor)])
def test_small_tables_are_learnt(load, model):
    X, y = load(return_X_y=True)
    scores = cross_val_score(model(max_epochs="auto"), X, y, cv=3)
    assert scores.mean() > (0.9 if load is load_iris else 0.4)


def test_a_training_that_diverges_starts_again_at_a_lower_rate(two_classes, monkeypatch, caplog):
    X, y = two_classes
    rate = 1e5
    monkeypatch.setitem(RATES["softmax_cross_entropy"], "width", rate)
    monkeypatch.setattr(estimator_base, "RETRY_FACTOR", 1e-6)
    model = classifier().fit(X, y)
    assert "Starting again with 0.1" in caplog.text
    assert model.learning_rate_ == pytest.approx(0.1)
    again = classifier(learning_rate=rate * 1e-6).fit(X, y)
    assert np.array_equal(model.predict_proba(X), again.predict_proba(X))
    with pytest.raises(NumericalError, match="learning_rate"):
        classifier(learning_rate=rate).fit(X, y)


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_epochs": 0},
        {"batch_size": "many"},
        {"early_stopping": "often"},
        {"early_stopping": True, "validation_fraction": 0.0},
        {"n_jobs": 0},
        {"n_jobs": 1.5},
        {"dropout": 1.0},
        {"zeta": -0.1},
        {"zeta_decay": 1.5},
        {"regrowth": "uniform"},
        {"growth": "fast"},
        {"drop": "slow"},
        {"pruning_start": -1},
        {"pruning_every": 0},
        {"pruning_percentile": 100},
        {"epsilon": -1},
        {"hidden_layer_sizes": (10, 0)},
        {"activation": "tanh"},
        {"random_state": "seed"},
    ],
)
def test_a_wrong_parameter_is_named_when_it_is_used(two_classes, parameters):
    model = classifier(**parameters)
    with pytest.raises(ValueError, match=next(reversed(parameters)).removeprefix("random_s")):
        model.fit(*two_classes)


def test_the_slope_can_follow_the_skewness():
    rng = np.random.default_rng(0)
    X = rng.exponential(size=(60, 4)) ** 0.2
    y = (X[:, 0] > 1).astype(int)
    options = {"max_epochs": 2, "hidden_layer_sizes": (10,), "random_state": 0}
    model = SparseMLPClassifier(alpha="auto", **options).fit(X, y)
    assert model.alpha_ == model.network_.config.alpha == alpha_from_skewness(X)
    given = SparseMLPClassifier(alpha=model.alpha_, **options).fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), given.predict_proba(X))
    model.set_params(warm_start=True).fit(X, y)
    with pytest.raises(ParameterError, match="alpha"):
        SparseMLPClassifier(alpha="most").fit(X, y)

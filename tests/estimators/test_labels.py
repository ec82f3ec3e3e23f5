"""`SparseMLPClassifier` and `Predictor` where rows have any number of labels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array, issparse
from sklearn.metrics import accuracy_score

from largesparse import (
    NetworkConfig,
    Predictor,
    SparseMLP,
    SparseMLPClassifier,
    SparseMLPRegressor,
    Trainer,
    TrainingConfig,
    make_extreme_classification,
    precision_at_k,
    predict_top,
)
from largesparse.errors import DataError, NumericalError, ParameterError
from largesparse.estimators.label_defaults import (
    label_decay,
    label_density,
    label_epochs,
    label_rate,
)

SMALL = {"random_state": 0, "backend": "fused", "n_jobs": 1}


@pytest.fixture(scope="module")
def task():
    return make_extreme_classification(1200, 200, 30, nonzeros=20, labels_per_row=2)


@pytest.fixture(scope="module")
def fitted(task):
    return SparseMLPClassifier((100,), max_epochs=15, **SMALL).fit(task.X_train, task.y_train)


def test_it_learns_more_than_how_frequent_labels_are(task, fitted):
    frequent = np.argsort(-task.y_train.sum(axis=0))[:3]
    always = np.tile(frequent, (task.X_test.shape[0], 1))
    top, _ = fitted.predict_top(task.X_test, 3)
    assert precision_at_k(task.y_test, top, 1) > 0.75 > 1.5 * precision_at_k(task.y_test, always, 1)
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]


def test_predictions_agree_with_probabilities(task, fitted):
    probabilities = fitted.predict_proba(task.X_test)
    assert probabilities.dtype == np.float32
    found = fitted.predict(task.X_test)
    assert issparse(found)
    assert np.array_equal(found.toarray(), probabilities >= 0.5)
    for k in (1, 4, 30):
        labels, scores = fitted.predict_top(task.X_test, k)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(scores, np.take_along_axis(probabilities, labels, axis=1))
        np.testing.assert_array_equal(scores, np.take_along_axis(probabilities, order, axis=1))
    expected = accuracy_score(task.y_test, found)
    assert fitted.score(task.X_test, task.y_test) == expected > 0.1


def test_dense_and_sparse_labels_train_alike(task, fitted):
    dense = SparseMLPClassifier((100,), max_epochs=15, **SMALL)
    dense.fit(task.X_train, task.y_train.toarray().astype(bool))
    found = dense.predict(task.X_test)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.int64
    assert np.array_equal(found, fitted.predict(task.X_test).toarray())
    assert np.array_equal(dense.classes_, np.arange(30))


def test_a_saved_model_predicts_and_trains_as_before(task, fitted, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = SparseMLPClassifier.load(tmp_path / "model")
    found = loaded.predict(task.X_test)
    assert issparse(found)
    assert (found != fitted.predict(task.X_test)).nnz == 0
    assert np.array_equal(loaded.classes_, fitted.classes_)
    loaded.partial_fit(task.X_train, task.y_train)
    with pytest.raises(ParameterError, match="a label a row in one call"):
        loaded.partial_fit(task.X_train, np.arange(task.X_train.shape[0]) % 3)


def test_several_processes_predict_the_same(task, fitted):
    options = {"threads": 1, "batch_size": 50}
    with (
        Predictor(fitted.network_, **options) as alone,
        Predictor(fitted.network_, processes=2, **options) as several,
    ):
        ours, theirs = alone.predict_proba(task.X_test), several.predict_proba(task.X_test)
        assert np.array_equal(ours, theirs)
        assert (alone.predict(task.X_test) != several.predict(task.X_test)).nnz == 0
        tops = alone.predict_top(task.X_test, 3), several.predict_top(task.X_test, 3)
        assert all(map(np.array_equal, *tops))


def test_the_rows_set_aside_are_scored_by_precision_at_1(task):
    model = SparseMLPClassifier((50,), max_epochs=6, early_stopping=True, **SMALL)
    model.fit(task.X_train, task.y_train)
    assert len(model.validation_scores_) == 6
    assert model.best_validation_score_ == max(model.validation_scores_) > 0.3
    trainer = Trainer(model.network_, TrainingConfig(batch_size=100, backend="fused", threads=1))
    _, score = trainer.evaluate(task.X_test, task.y_test)
    assert score == precision_at_k(task.y_test, model.predict_top(task.X_test, 1)[0], 1)


def test_rows_of_weight_zero_do_not_count(task):
    rows = np.arange(600)
    weights = (np.arange(task.X_train.shape[0]) < 600).astype(float)
    model = SparseMLPClassifier((30,), max_epochs=3, **SMALL)
    model.fit(task.X_train, task.y_train, weights)
    found = model.predict_proba(task.X_test)
    model.fit(task.X_train[rows], task.y_train[rows])
    np.testing.assert_allclose(found, model.predict_proba(task.X_test), rtol=1e-5)


def test_a_label_of_weight_zero_is_not_learned(task):
    label = int(np.argmax(task.y_train.sum(axis=0)))
    model = SparseMLPClassifier((30,), max_epochs=4, class_weight={label: 0.0}, **SMALL)
    model.fit(task.X_train, task.y_train)
    share = task.y_train[:, [label]].sum() / task.y_train.shape[0]
    proba = model.predict_proba(task.X_test)[:, label]
    np.testing.assert_allclose(proba, share, atol=0.05)  # as it began, less the decay


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"class_weight": "balanced"}, "must be a dictionary of column to weight"),
        ({"class_weight": {99: 1.0}}, r"in the range \[0, 29\].*columns of y"),
        ({"class_weight": {0: -1.0}}, "class_weight"),
        ({"output_epsilon": 1.0, "output_density": 0.1}, "not both"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(task, parameters, message):
    model = SparseMLPClassifier((10,), max_epochs=1, **SMALL, **parameters)
    with pytest.raises(ParameterError, match=message):
        model.fit(task.X_train, task.y_train)


def test_labels_that_do_not_fit_are_refused(task, fitted):
    with pytest.raises(DataError, match="y has 29 labels, and the network has 30 outputs"):
        fitted.partial_fit(task.X_train, task.y_train[:, :29])
    with pytest.raises(DataError, match="y holds 2, and an indicator of labels"):
        SparseMLPClassifier(**SMALL).fit(task.X_train, 2 * task.y_train)
    with pytest.raises(ParameterError, match="'k' parameter of predict_top"):
        fitted.predict_top(task.X_test, 31)
    regressor = SparseMLP(NetworkConfig((200, 5, 2), loss="mean_squared_error"))
    with pytest.raises(ParameterError, match="regression has no classes"):
        predict_top(regressor, task.X_test, 1)


def test_outputs_that_are_not_finite_are_refused(task, fitted):
    network = SparseMLP(NetworkConfig((200, 5, 3), loss="binary_cross_entropy"))
    network.layers[-1].bias[1] = np.nan
    for ask in ("predict", "predict_proba"):
        with Predictor(network, threads=1) as predictor:
            with pytest.raises(NumericalError, match="for row 0 is not finite"):
                getattr(predictor, ask)(task.X_test)
            with pytest.raises(NumericalError, match="not finite"):
                predictor.predict_top(task.X_test, 2)


def test_the_most_probable_classes_of_one_label_a_row(task):
    y = np.where(task.X_train[:, [0]].toarray()[:, 0] > 0, "a", "b")
    y[:100] = "c"
    model = SparseMLPClassifier((10,), max_epochs=3, **SMALL).fit(task.X_train, y)
    labels, scores = model.predict_top(task.X_test, 3)
    probabilities = model.predict_proba(task.X_test)
    np.testing.assert_allclose(scores, -np.sort(-probabilities, axis=1), rtol=1e-6)
    assert np.array_equal(labels[:, 0], model.predict(task.X_test))


def test_features_that_may_be_negative_are_standardised_one_by_one(task):
    X = task.X_train.toarray() - 1
    model = SparseMLPClassifier((10,), max_epochs=1, **SMALL).fit(X, task.y_train)
    np.testing.assert_allclose(model.network_.preprocessing.mean, X.mean(axis=0), rtol=1e-5)
    model.fit(task.X_train, task.y_train)
    scaling = model.network_.preprocessing
    assert not scaling.mean.any()
    Z = task.X_train.toarray() * scaling.scale
    assert np.mean(Z**2) == pytest.approx(1)
    assert len(set(scaling.scale)) == 1


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (label_epochs(1000), 50),
        (label_epochs(20_000), 25),
        (label_epochs(10**6), 10),
        (label_rate("width", 0.01, 64), 0.7),
        (label_rate("width", 0.04, 128), 0.35),
        (label_rate("width", 0.5, 16), 0.07),
        (label_decay(1000), 1e-3),
        (label_decay(40_000), 1e-4),
        (label_density((1836, 400, 159)), 1.0),
        (label_density((10, 4096, 670_091)), 32 / 4096),
        (label_density((10, 400, 4000)), 0.25),
    ],
)
def test_defaults_by_hand(found, expected):
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("minimum", [1, 3, 40])
def test_every_label_keeps_its_minimum_of_connections(task, minimum):
    config = NetworkConfig(
        (200, 60, 40, 30),
        epsilon=3,
        output_density=0.03,
        output_minimum=minimum,
        loss="binary_cross_entropy",
    )
    network = SparseMLP(config)

    def least():
        return int(np.diff(network.layers[-1].indptr_by_output).min())

    before = network.layers[-1].nnz
    assert least() >= min(minimum, 40)
    training = TrainingConfig(
        epochs=6,
        batch_size=64,
        zeta=0.9,
        evolve_output=True,
        pruning_start=1,
        pruning_every=2,
        pruning_percentile=40,
        backend="fused",
        threads=1,
    )
    first = network.layers[-1].topology.indices.copy()
    Trainer(network, training).fit(task.X_train, task.y_train, progress=False)
    living = network.layers[-2].n_living
    assert living < 40
    assert least() >= min(minimum, living)
    assert network.layers[-1].nnz <= max(before, 30 * living)
    assert not np.array_equal(first, network.layers[-1].topology.indices[: len(first)])
    layer = network.layers[-1]
    assert not network.layers[-2].dead[layer.indices_by_output].any()


def test_the_output_layer_evolves_only_where_it_is_asked_for(task):
    for wanted in (False, True):
        model = SparseMLPClassifier((20,), output_density=0.3, max_epochs=4, **SMALL)
        model.set_params(evolve_output=wanted)
        model.fit(task.X_train, task.y_train)
        config = model.network_.config
        same = SparseMLP(config).layers[-1].topology.indices
        assert np.array_equal(same, model.network_.layers[-1].topology.indices) != wanted


def test_output_epsilon_is_that_of_the_output_layer():
    config = NetworkConfig((100, 50, 40, 30), epsilon=2, output_epsilon=5)
    plain = NetworkConfig((100, 50, 40, 30), epsilon=2)
    assert config.probabilities()[:-1] == plain.probabilities()[:-1]
    assert config.probabilities()[-1] == 5 * (40 + 30) / (40 * 30)


def test_labels_in_csc_are_read(task):
    model = SparseMLPClassifier((10,), max_epochs=1, **SMALL)
    model.fit(task.X_train, task.y_train.tocsc())
    found = model.predict(task.X_test)
    assert isinstance(found, csr_array)


def small_rows(n=40):
    rng = np.random.default_rng(0)
    X = rng.random((n, 12)).astype(np.float32)
    return X, (rng.random((n, 5)) < 0.4).astype(int)


def fit_few(X, Y, sample_weight=None, **options):
    return SparseMLPClassifier((20,), max_epochs=2, **SMALL, **options).fit(X, Y, sample_weight)


DUPLICATES = (np.array([True, True, True]), np.array([1, 1, 2]), np.array([0, 2] + [3] * 39))
LONG = csr_array(small_rows()[1])
LONG.indices, LONG.indptr = LONG.indices.astype(np.int64), LONG.indptr.astype(np.int64)
ZEROS = csr_array(small_rows()[1])
ZEROS.data[:9] = 0


@pytest.mark.parametrize(
    "Y",
    [
        small_rows()[1] * [1, 1, 0, 1, 1],
        np.maximum(small_rows()[1], [0, 0, 1, 0, 0]),
        np.zeros((40, 5), int),
        np.ones((40, 5), int),
        small_rows()[1] * (np.arange(40) < 20)[:, None],
        csr_array(small_rows()[1][:, :1]),
        csr_array(DUPLICATES, shape=(40, 5)),
        ZEROS,
        LONG,
        *(small_rows()[1].astype(dtype) for dtype in (bool, np.uint8, np.float64)),
    ],
    ids=[
        "no_row",
        "every_row",
        "none",
        "all",
        "rows_without",
        "one",
        "duplicates",
        "zeros",
        "int64",
        "bool",
        "u1",
        "f8",
    ],
)
def test_unusual_labels_are_learned_as_they_are(Y):
    X, _ = small_rows()
    model = fit_few(X, Y)
    dense = (Y.toarray() if issparse(Y) else Y) != 0
    if dense.shape[1] > 1:
        twin = fit_few(X, dense)
        np.testing.assert_array_equal(twin.predict_proba(X), model.predict_proba(X))
    found = model.predict(X)
    assert issparse(found) == issparse(Y)
    found = found.toarray() if issparse(found) else found
    assert model.score(X, Y) == np.mean((found == dense).all(axis=1))
    weights = np.arange(40)
    expected = accuracy_score(dense, found, sample_weight=weights)
    assert model.score(X, Y, weights) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 3, 9])
def test_few_rows_are_one_mini_batch(n):
    X, Y = small_rows(n)
    model = fit_few(X, Y, batch_size=64)
    assert model.n_steps_ == 2
    assert model.predict(X).shape == (n, 5)


@pytest.mark.parametrize(
    ("Y", "message"),
    [
        (2 * small_rows()[1], "y holds 2"),
        (csr_array(2 * small_rows()[1]), "y holds 2"),
        (2 * small_rows()[1] - 1, "y holds -1"),
        (small_rows()[1] / 2, r"y holds 0\.5"),
        (small_rows()[1].astype(str), "0 and 1"),
        (csr_array((np.ones(3), *DUPLICATES[1:]), shape=(40, 5)), r"y holds 2\.0"),
    ],
)
def test_what_is_no_indicator_is_refused(Y, message):
    with pytest.raises(DataError, match=message):
        fit_few(small_rows()[0], Y)


def test_partial_fit_and_warm_start_go_on_with_the_same_labels():
    X, Y = small_rows()
    model = SparseMLPClassifier((20,), **SMALL).partial_fit(X[:1], csr_array(Y[:1]))
    model.partial_fit(X, Y, classes=np.arange(5)).partial_fit(X, np.zeros_like(Y))
    assert np.isfinite(model.predict_proba(X)).all()
    for wrong, message in ((Y[:, :4], "y has 4 labels"), (Y[:, 0], "is a label a row in one call")):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(X, wrong)
    warm = fit_few(X, Y, warm_start=True)
    steps = warm.n_steps_
    assert warm.fit(X, csr_array(Y)).n_steps_ == 2 * steps
    with pytest.raises(ParameterError, match="None of the 4 rows"):
        fit_few(X, np.zeros_like(Y), early_stopping=True)


def test_sparse_numbers_are_refused():
    X, Y = small_rows()
    with pytest.raises(DataError, match="use SparseMLPClassifier"):
        SparseMLPRegressor((9,), max_epochs=1).fit(X, csr_array(Y))


def test_weights_of_a_score_are_checked(task, fitted):
    X, y = task.X_test, task.y_test
    weights = np.random.default_rng(0).uniform(size=X.shape[0])
    expected = accuracy_score(y, fitted.predict(X), sample_weight=weights)
    assert fitted.score(X, y, weights) == pytest.approx(expected)
    bad = [np.full(len(weights), np.nan), -weights, 0 * weights, weights[:, None]]
    for each in bad:
        with pytest.raises(ValueError, match="weight"):
            fitted.score(X, y, each)

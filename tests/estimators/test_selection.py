"""Feature selection by input strength, and α from skewness."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array, csr_matrix
from scipy.stats import skew
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier

import largesparse.data.skewness
from largesparse import NetworkConfig, SparseMLP, SparseMLPClassifier, Trainer, TrainingConfig
from largesparse.data.skewness import alpha_from_skewness
from largesparse.errors import DataError, ParameterError
from largesparse.estimators import selection
from largesparse.estimators.selection import SparseFeatureSelector, input_strength


class SmallClassifier(ClassifierMixin, BaseEstimator):
    """The least that the selector asks for: a `network_` after fitting."""

    def __init__(self, epochs=20, weight_decay=2e-3):
        self.epochs = epochs
        self.weight_decay = weight_decay

    def fit(self, X, y):
        X = X.toarray() if hasattr(X, "toarray") else np.asarray(X)
        config = NetworkConfig((X.shape[1], 30, 20, len(np.unique(y))), epsilon=6.0)
        settings = {"epochs": self.epochs, "batch_size": 32, "weight_decay": self.weight_decay}
        settings |= {"learning_rate": 0.05, "dropout": 0.0, "threads": 1, "backend": "scipy"}
        trainer = Trainer(SparseMLP(config, progress=False), TrainingConfig(**settings))
        trainer.fit(X.astype(np.float32), y, progress=False)
        self.network_ = trainer.network
        self.classes_ = trainer.network.classes
        return self


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 20)).astype(np.float32)
    return X, (X[:, 3] + X[:, 11] - X[:, 17] > 0).astype(int)


@pytest.fixture(scope="module")
def fitted(task):
    return SmallClassifier().fit(*task)


def test_strength_is_the_sum_of_absolute_outgoing_weights():
    network = SparseMLP(NetworkConfig((9, 15, 3), epsilon=2.0), progress=False)
    layer = network.layers[0]
    W = np.zeros((9, 15))
    W[layer.topology.rows(), layer.topology.indices] = layer.values
    strength = input_strength(network)
    assert strength.dtype == np.float32
    np.testing.assert_allclose(strength, np.abs(W).sum(axis=1), rtol=1e-6)


def test_strength_along_paths_is_a_product_of_matrices(task):
    network = SparseMLP(NetworkConfig((9, 15, 12, 3), epsilon=2.0), progress=False)
    product = np.eye(9)
    for layer in network.layers:
        W = np.zeros((layer.n_in, layer.n_out))
        W[layer.topology.rows(), layer.topology.indices] = np.abs(layer.values)
        product = product @ W
    found = input_strength(network, paths=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, product.sum(axis=1), rtol=1e-5)


def test_the_informative_features_are_found_after_a_linear_start():
    X = np.random.default_rng(0).normal(size=(60, 150)).astype(np.float32)
    X[:, [3, 11, 17]] = 0.3 * X[:, [3, 11, 17]] + X[:, :1] * [1, 1, -1]
    y = (X[:, 3] + X[:, 11] - X[:, 17] > 0).astype(int)
    X[:, 0] = 0
    classifier = SparseMLPClassifier(hidden_layer_sizes=(40, 40), random_state=0, backend="scipy")
    selector = SparseFeatureSelector(classifier, n_features_to_select=3).fit(X, y)
    assert selector.get_support(indices=True).tolist() == [3, 11, 17]
    assert selector.estimator_.n_iter_ < 20


def test_the_informative_features_are_found(task):
    X, y = task
    selector = SparseFeatureSelector(SmallClassifier(), n_features_to_select=3)
    small = selector.fit_transform(X, y)
    assert selector.get_support(indices=True).tolist() == [3, 11, 17]
    np.testing.assert_array_equal(small, X[:, [3, 11, 17]])
    assert selector.get_feature_names_out().tolist() == ["x3", "x11", "x17"]
    assert selector.inverse_transform(small).shape == X.shape


@pytest.mark.parametrize(("number", "expected"), [(None, 10), (0.25, 5), (7, 7), (99, 20), (1, 1)])
def test_number_and_share(task, fitted, number, expected):
    selector = SparseFeatureSelector(fitted, n_features_to_select=number, prefit=True).fit(*task)
    chosen = selector.get_support()
    assert chosen.sum() == expected
    if expected < 20:
        assert selector.strengths_[chosen].min() >= selector.strengths_[~chosen].max()


def test_threshold(task, fitted):
    limit = float(np.median(input_strength(fitted.network_)))
    selector = SparseFeatureSelector(fitted, threshold=limit, prefit=True).fit(task[0])
    np.testing.assert_array_equal(selector.get_support(), selector.strengths_ >= limit)
    assert selector.estimator_ is fitted


def test_in_a_pipeline_with_names_and_sparse_data(task):
    X, y = task
    selector = SparseFeatureSelector(SmallClassifier(epochs=5), n_features_to_select=4)
    pipeline = make_pipeline(clone(selector), DecisionTreeClassifier(random_state=0)).fit(X, y)
    assert pipeline.score(X, y) > 0.9
    frame = pd.DataFrame(X, columns=[f"f{k}" for k in range(20)])
    names = clone(selector).fit(frame, y).get_feature_names_out()
    assert len(names) == 4 and all(name.startswith("f") for name in names)
    sparse = clone(selector).fit(csr_matrix(X), y)
    assert sparse.transform(csr_matrix(X)).shape == (400, 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_features_to_select": 0},
        {"n_features_to_select": 1.5},
        {"threshold": -1.0},
        {"n_features_to_select": 3, "threshold": 1.0},
        {"estimator": None},
    ],
)
def test_mistakes_are_told(task, fitted, settings):
    options = {"estimator": fitted, "prefit": True} | settings
    with pytest.raises(ParameterError, match=next(iter(settings))):
        SparseFeatureSelector(**options).fit(*task)


def test_another_number_of_features_is_told(task, fitted):
    with pytest.raises(ParameterError, match="20"):
        SparseFeatureSelector(fitted, prefit=True).fit(task[0][:, :5], task[1])


def test_the_default_and_a_sparse_classifier(task, monkeypatch):
    monkeypatch.setattr(selection, "SparseMLPClassifier", SmallClassifier)
    assert isinstance(SparseFeatureSelector().fit(*task).estimator_, SmallClassifier)
    estimator = SparseMLPClassifier(hidden_layer_sizes=(20,), max_epochs=2, backend="scipy")
    selector = SparseFeatureSelector(estimator, n_features_to_select=5)
    assert selector.fit_transform(*task).shape == (400, 5)


def test_a_list_is_a_table(task, fitted):
    X, y = task
    rows = X.tolist()
    selector = SparseFeatureSelector(SmallClassifier(), n_features_to_select=3)
    small = selector.fit(rows, y.tolist()).transform(rows)
    np.testing.assert_array_equal(small, X[:, [3, 11, 17]])
    prefit = SparseFeatureSelector(fitted, n_features_to_select=3, prefit=True).fit(rows)
    assert prefit.get_support(indices=True).tolist() == [3, 11, 17]
    with pytest.raises(ParameterError, match="has 5 features"):
        prefit.fit([row[:5] for row in rows])


# α from skewness


def data(power, n=500, seed=0):
    X = np.random.default_rng(seed).random((n, 7)) ** power
    X[X < 0.2] = 0
    return X


@pytest.mark.parametrize("power", [0.2, 0.5, 1, 1.3, 1.5, 2, 8])
@pytest.mark.parametrize("block", [10, 1 << 20])
def test_alpha_is_the_skewness_within_bounds(power, block, monkeypatch):
    monkeypatch.setattr(largesparse.data.skewness, "BLOCK", block)
    X = data(power)
    expected = min(0.75, max(0.05, skew(X, axis=None)))
    assert alpha_from_skewness(X) == pytest.approx(expected, rel=1e-9)
    assert alpha_from_skewness(csr_array(X)) == pytest.approx(expected, rel=1e-9)
    assert alpha_from_skewness(X.astype(np.float32)) == pytest.approx(expected, rel=1e-5)


def test_alpha_of_small_integers_and_of_large_offsets():
    X = (255 * data(1.4)).astype(np.uint8)
    assert alpha_from_skewness(X) == pytest.approx(np.clip(skew(X, axis=None), 0.05, 0.75))
    assert alpha_from_skewness(1e6 + data(1.4)) == pytest.approx(
        alpha_from_skewness(data(1.4)), rel=1e-6
    )


@pytest.mark.parametrize("X", [np.full((4, 3), 7.3), np.zeros((4, 3)), csr_array((4, 3))])
def test_alpha_of_equal_values(X):
    assert alpha_from_skewness(X) == 0.05


@pytest.mark.parametrize("X", [np.zeros((0, 3)), np.array([[1.0, np.nan]]), [[np.inf, 1.0]]])
def test_data_without_a_skewness_are_refused(X):
    with pytest.raises(DataError):
        alpha_from_skewness(np.asarray(X))


def test_alpha_is_near_the_papers(shared_data, monkeypatch):
    from largesparse import load_dataset

    monkeypatch.setenv("LARGESPARSE_DATA", str(shared_data))
    assert alpha_from_skewness(load_dataset("madelon").X_train) == pytest.approx(0.5, abs=0.05)
    assert alpha_from_skewness(load_dataset("higgs").X_train) == pytest.approx(0.05, abs=0.05)

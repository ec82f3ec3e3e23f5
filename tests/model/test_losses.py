"""Losses, weights of samples, and scores: against definitions and against scikit-learn."""

from __future__ import annotations

import helpers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, r2_score

from largesparse import TrainingConfig
from largesparse.backends.operands import MANY
from largesparse.errors import DataError, ParameterError
from largesparse.model.losses import ScoreSums, mean_squared_error, softmax, softmax_cross_entropy
from largesparse.training import prediction as inference
from largesparse.training.checkpoint import load_model, save_model

sizes = st.integers(1, 7)


@settings(max_examples=30, deadline=None)
@given(n=sizes, batch=sizes, seed=st.integers(0, 99))
def test_squared_error_is_what_it_says(n, batch, seed):
    rng = np.random.default_rng(seed)
    outputs = rng.standard_normal((n, batch), dtype=np.float32)
    targets = rng.standard_normal((batch, n), dtype=np.float32)
    weights = rng.uniform(0, 2, batch).astype(np.float32)
    loss, delta = mean_squared_error(outputs, targets, 10, weights)
    error = outputs.T.astype(float) - targets
    assert loss == pytest.approx((weights * (error**2).mean(axis=1)).sum(), rel=1e-5, abs=1e-9)
    expected = 2 * weights[:, None] * error / (10 * n)
    np.testing.assert_allclose(delta, expected.T, rtol=1e-5, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 7), batch=sizes, seed=st.integers(0, 99))
def test_weighted_cross_entropy(n, batch, seed):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, batch), dtype=np.float32)
    labels = rng.integers(n, size=batch)
    weights = rng.uniform(0.1, 2, batch).astype(np.float32)
    loss, delta = softmax_cross_entropy(logits, labels, 10, weights)
    probabilities = softmax(logits)
    right = probabilities.T[np.arange(batch), labels].astype(float)
    assert loss == pytest.approx(-(weights * np.log(right)).sum(), rel=1e-4)
    expected = (probabilities - np.eye(n)[labels].T) * weights / 10
    np.testing.assert_allclose(delta, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [2, 7, MANY + 3])
@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_smoothed_labels_are_the_cross_entropy_of_a_mixture(n, smoothing):
    rng = np.random.default_rng(n)
    logits = 3 * rng.standard_normal((n, 9), dtype=np.float32)
    labels, weights = rng.integers(n, size=9), rng.uniform(0, 2, 9).astype(np.float32)
    exact = logits.astype(float)
    wanted = (1 - smoothing) * np.eye(n)[labels].T + smoothing / n
    log_probabilities = log_softmax(exact, axis=0)
    loss, delta = softmax_cross_entropy(logits, labels, 10, weights, smoothing)
    expected = -(weights * (wanted * log_probabilities).sum(axis=0)).sum()
    assert loss == pytest.approx(expected, rel=1e-6)
    expected = (np.exp(log_probabilities) - wanted) * weights / 10
    np.testing.assert_allclose(delta, expected, rtol=1e-5, atol=1e-8)


def test_steps_are_by_smoothed_labels_and_evaluation_is_not():
    X, y = regression(n=64, targets=3)
    labels = y.argmax(axis=1).astype(np.int32)
    found = []
    for backend in ("fused", "scipy"):  # a whole step and one by layers
        trainer = make_trainer(3, "softmax_cross_entropy", backend, label_smoothing=0.2)
        plain = make_trainer(3, "softmax_cross_entropy", backend)
        assert trainer.evaluate(X, labels) == plain.evaluate(X, labels)
        found.append([trainer.step(X, labels) for _ in range(4)])
        probabilities = inference.predict_proba(plain.network, X).astype(float)
        mixture = 0.8 * np.eye(3)[labels] + 0.2 / 3
        expected = -(mixture * np.log(probabilities)).sum(axis=1).mean()
        assert found[-1][0] == pytest.approx(expected, rel=1e-5)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("loss", ["mean_squared_error", "binary_cross_entropy"])
def test_only_labels_that_exclude_each_other_are_smoothed(loss):
    with pytest.raises(ParameterError, match=r"'label_smoothing'.*one class.*0.1"):
        make_trainer(2, loss, label_smoothing=0.1)
    with pytest.raises(ParameterError, match="label_smoothing"):
        TrainingConfig(label_smoothing=1.0)


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 2, 50).astype(np.float32)
    y, outputs = rng.standard_normal((2, 50, 3)).astype(np.float32)
    labels = rng.integers(3, size=50)
    for weight in (None, weights):
        r2, accuracy = ScoreSums(), ScoreSums()
        for part in (slice(0, 20), slice(20, 50)):
            some = None if weight is None else weight[part]
            r2.add(outputs[part].T, y[part], some)
            accuracy.add(outputs[part].T, labels[part], some)
        assert r2.score() == pytest.approx(r2_score(y, outputs, sample_weight=weight), rel=1e-5)
        expected = accuracy_score(labels, outputs.argmax(axis=1), sample_weight=weight)
        assert accuracy.score() == pytest.approx(expected, rel=1e-6)


def regression(n=400, targets=1, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 10)).astype(np.float32)
    y = np.tanh(X[:, :targets]) + 0.5 * X[:, targets : 2 * targets]
    return X, y.astype(np.float32)


def make_trainer(n_outputs, loss, backend="fused", **settings):
    given = {"learning_rate": 0.02, "epochs": 30, "batch_size": 32, "dropout": 0.0, "zeta": 0.1}
    given |= {"epsilon": 8, "loss": loss, "backend": backend}
    return helpers.make_trainer((10, 40, n_outputs), **given | settings)


@pytest.mark.parametrize("targets", [1, 3])
def test_numbers_are_learned(targets):
    X, y = regression(targets=targets)
    trainer = make_trainer(targets, "mean_squared_error", schedule="cosine", zeta=0)
    history = trainer.fit(X[:300], y[:300], test=(X[300:], y[300:]), progress=False)
    assert history["test_accuracy"][-1] > 0.6  # R²
    found = inference.predict(trainer.network, X[300:])
    assert found.shape == ((100,) if targets == 1 else (100, 3))
    assert history["test_accuracy"][-1] == pytest.approx(r2_score(y[300:], found), abs=1e-4)


def test_scaled_targets_and_names_are_saved(tmp_path):
    X, y = regression()
    trainer = make_trainer(1, "mean_squared_error", epochs=1)
    trainer.fit(X, y, progress=False)
    network = trainer.network
    plain = inference.predict(network, X)
    network.target_mean = np.array([5], dtype=np.float32)
    network.target_scale = np.array([2], dtype=np.float32)
    network.feature_names = [f"gene {k}" for k in range(10)]
    np.testing.assert_allclose(inference.predict(network, X), 2 * plain + 5, rtol=1e-6)
    save_model(network, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.feature_names == network.feature_names
    np.testing.assert_array_equal(inference.predict(again, X), inference.predict(network, X))
    with pytest.raises(ParameterError, match="regression"):
        inference.predict_proba(again, X)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mean_squared_error"])
def test_a_whole_step_is_the_layers_step_with_weights(loss):
    X, y = regression(n=64, targets=3)
    y = y if loss == "mean_squared_error" else y.argmax(axis=1).astype(np.int32)
    weights = np.random.default_rng(1).uniform(0, 2, 64).astype(np.float32)
    whole, layers = (make_trainer(3, loss, dropout=0.2) for _ in range(2))
    layers.backend = type(layers.backend)()
    layers.backend.has_whole_step = False
    for _ in range(5):
        assert whole.step(X, y, sample_weight=weights) == layers.step(X, y, sample_weight=weights)
    for a, b in zip(whole.network.layers, layers.network.layers, strict=True):
        np.testing.assert_array_equal(a.values, b.values)


@pytest.mark.parametrize("backend", ["fused", "scipy"])
def test_a_sample_of_weight_two_is_a_sample_twice(backend):
    X, y = regression(n=24)
    labels = (y[:, 0] > 0).astype(np.int32)
    weights = np.ones(24, dtype=np.float32)
    weights[:8] = 2
    one, two = (make_trainer(2, "softmax_cross_entropy", backend, weight_decay=0) for _ in range(2))
    twice = np.append(np.arange(24), np.arange(8))
    for _ in range(5):
        one.step(X, labels, sample_weight=weights * np.float32(24 / 32))
        two.step(X[twice], labels[twice])
    for a, b in zip(one.network.layers, two.network.layers, strict=True):
        np.testing.assert_allclose(a.values, b.values, rtol=1e-4, atol=1e-6)


def test_samples_without_weight_do_not_count():
    X, y = regression()
    noise = np.random.default_rng(3).permutation(y[200:])
    labels = np.append(y[:200, 0] > 0, noise[:, 0] > 0)
    weights = np.repeat([1.0, 0.0], 200)
    trainer = make_trainer(2, "softmax_cross_entropy", epochs=20)
    trainer.fit(X, labels, sample_weight=weights, progress=False)
    right = inference.predict(trainer.network, X[200:]) == (y[200:, 0] > 0)
    assert right.mean() > 0.8


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0] * 399, "shape"), ([-1.0] + [1] * 399, "row 0"), ([0.0] * 400, "for all rows")],
)
def test_bad_weights_are_told(weights, message):
    X, y = regression()
    with pytest.raises(DataError, match=message):
        make_trainer(1, "mean_squared_error").fit(X, y, sample_weight=weights)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros((400, 2)), "shape"),
        (["a"] * 400, "numbers"),
        ([np.nan] + [0] * 399, "row 0"),
        (None, "requires y"),
        (np.zeros(399), "399 labels"),
    ],
)
def test_bad_targets_are_told(y, message):
    X, _ = regression()
    with pytest.raises(DataError, match=message):
        make_trainer(1, "mean_squared_error").fit(X, y)


def test_rows_are_augmented():
    X, y = regression(n=64)
    seen = []

    def augment(part, rows, epoch):
        np.testing.assert_array_equal(part, X[rows])
        seen.append((epoch, rows))
        return part * np.float32(0)

    trainer = make_trainer(1, "mean_squared_error", epochs=2, standardize=False, zeta=0)
    before = trainer.network.layers[0].values.copy()
    trainer.fit(X, y, augment=augment, progress=False)
    assert [epoch for epoch, _ in seen] == [0, 0, 1, 1]
    assert sorted(np.concatenate([rows for epoch, rows in seen if epoch])) == list(range(64))
    # With inputs of zero, only decay changes the first layer's weights.
    after = trainer.network.layers[0].values
    np.testing.assert_allclose(after, before * (1 - 2e-4) ** 4, rtol=1e-6)

"""Weights, velocities and gradients stay finite and normal over 10,000 steps of what is unusual."""

from __future__ import annotations

import helpers
import numpy as np
import pytest
from helpers import normal_rows

from largesparse.errors import NumericalError
from largesparse.model.losses import softmax_cross_entropy

STEPS = 10_000
TINY = np.finfo(np.float32).tiny


def task(n_features=12, n_classes=3):
    X = normal_rows(64, n_features)
    return X, X[:, :n_classes].argmax(axis=1).astype(np.int32)


def make_trainer(network=None, **training):
    settings = {"learning_rate": 0.05, "batch_size": 64, "backend": "fused"}
    settings |= {"network": {"epsilon": 4.0, "seed": 1} | (network or {})}
    return helpers.make_trainer((12, 40, 30, 3), **settings | training)


def arrays_of(trainer):
    """Yield everything that a step changes, with its name."""
    for layer in trainer.network.layers:
        for name in ("values", "values_by_output", "bias", "velocity", "bias_velocity"):
            yield f"{name} of layer {layer.number}", getattr(layer, name)
    yield from ((f"gradient {k}", each) for k, each in enumerate(trainer.workspace.gradients))


def train(trainer, X, y):
    """Make the steps, with an evolution now and then; a loss that explodes ends them."""
    try:
        for step in range(STEPS):
            trainer.step(X, y)
            if step % 30 == 0:
                check(trainer)
            if step % 1500 == 1499:
                trainer.epoch += 1
                trainer.evolve()
    except NumericalError as error:
        assert "first in layer" in str(error)
    check(trainer)


def check(trainer):
    for name, array in arrays_of(trainer):
        assert np.isfinite(array).all(), name
        if "velocity" in name:
            assert not np.any((array != 0) & (abs(array) < TINY)), f"{name} has a subnormal"


@pytest.mark.parametrize("rate", [0.5, 5.0, 100.0, 1e6, 1e30])
@pytest.mark.parametrize("backend", ["fused", "scipy"])
def test_a_rate_that_is_too_large(rate, backend):
    X, y = task()
    with np.errstate(all="ignore"):
        train(make_trainer(learning_rate=rate, backend=backend), X, y)


def test_hardly_any_connections():
    train(make_trainer({"epsilon": 0.05}), *task())


@pytest.mark.parametrize("activation", ["relu", "all_relu"])
def test_a_layer_that_dies(activation):
    trainer, (X, y) = make_trainer({"activation": activation}), task()
    for _ in range(100):
        trainer.step(X, y)
    layer = trainer.network.layers[1]
    assert np.all(layer.velocity)  # what becomes of them without a gradient?
    layer.bias[:] = -1e4
    train(trainer, X, y)


def test_features_that_are_constant():
    X, y = task()
    X[:, 3] = 0
    X[:, 4] = 1e6
    X[:, 5] = -1e-30
    train(make_trainer(learning_rate=1e-3), X, y)
    constant = np.full_like(X, 7)
    trainer = make_trainer(epochs=20)
    trainer.fit(constant, y, progress=False)  # standardised: a scale of 0
    check(trainer)


def test_a_class_that_is_absent():
    X, y = task()
    train(make_trainer(), X, np.where(y == 2, 0, y).astype(np.int32))


def test_probabilities_that_would_be_subnormal_are_none():
    logits = np.array([[0.0, 0.0], [-95.0, -60.0], [-200.0, -5.0]], dtype=np.float32)
    loss, delta = softmax_cross_entropy(logits, np.array([1, 0], dtype=np.int32), 2)
    assert loss == pytest.approx(95 + np.log1p(np.exp(-5)))
    p = np.exp(-5) / (1 + np.exp(-5))
    np.testing.assert_allclose(delta, [[0.5, -p / 2], [-0.5, np.exp(-60) / 2], [0, p / 2]], 1e-2)
    assert not np.any((delta != 0) & (abs(delta) < TINY))

"""SReLU and PReLU: values, gradients of everything, training, saving."""

from __future__ import annotations

import numpy as np
import pytest

from largesparse import (
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_model,
)
from largesparse.model.network import dropout_key
from largesparse.training import prediction as inference
from largesparse.training.memory import plan_training

SIZES = (6, 9, 8, 3)


def shape(z, parameters):
    t_left, a_left, t_right, a_right = (row[:, None] for row in parameters)
    left, right = t_left + a_left * (z - t_left), t_right + a_right * (z - t_right)
    return np.where(z <= t_left, left, np.where(z >= t_right, right, z))


def make_trainer(activation, backend="fused", **settings):
    network = SparseMLP(NetworkConfig(SIZES, epsilon=3, activation=activation, alpha=0.3))
    rng = np.random.default_rng(1)
    for layer in network.layers[:-1]:
        layer.bias[:] = rng.normal(0, 0.3, layer.n_out)
        for row, trained in enumerate(layer.config.shape_trained):
            if trained:
                layer.srelu[row] += rng.normal(0, 0.2, layer.n_out).astype(np.float32)
    given = {"batch_size": 24, "standardize": False, "learning_rate": 0.02, "dropout": 0.0}
    given |= {"threads": 1}
    return Trainer(network, TrainingConfig(backend=backend, **given | settings))


def data(n=24):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 6)).astype(np.float32), rng.integers(3, size=n, dtype=np.int32)


def loss_of(parameters, topologies, X, y, keeps):
    """Compute the mean loss in float64, densely. A layer is [values, bias, srelu]."""
    a = X.T.astype(float)
    for k, ((values, bias, srelu), topology) in enumerate(zip(parameters, topologies, strict=True)):
        W = np.zeros((topology.n_in, topology.n_out))
        W[topology.rows(), topology.indices] = values
        a = W.T @ a + bias[:, None]
        if srelu is not None:
            a = shape(a, srelu) * keeps[k]
    a = a - a.max(axis=0)
    return (np.log(np.exp(a).sum(axis=0)) - a[y, np.arange(len(y))]).mean()


@pytest.mark.parametrize("backend", ["fused", "scipy"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("micro_batch", [None, 10])
@pytest.mark.parametrize("activation", ["srelu", "prelu"])
def test_gradients_are_those_of_differences(activation, backend, dropout, micro_batch):
    trainer = make_trainer(activation, backend, dropout=dropout, micro_batch=micro_batch)
    X, y = data()
    loss = trainer.gradient(X, y, np.arange(24))
    layers, workspace = trainer.network.layers, trainer.workspace

    keeps = keeps_of(trainer, X)
    parameters = [
        [
            layer.values.astype(float),
            layer.bias.astype(float),
            None if layer.srelu is None else layer.srelu.astype(float),
        ]
        for layer in layers
    ]
    topologies = [layer.topology for layer in layers]
    exact = loss_of(parameters, topologies, X, y, keeps)
    assert loss == pytest.approx(exact, rel=1e-5)

    rng = np.random.default_rng(2)
    for k, layer in enumerate(layers):
        found = list(workspace.by_layer[k].values())
        for which, (array, gradient) in enumerate(zip(parameters[k], found, strict=False)):
            flat, flat_gradient = array.reshape(-1), gradient.reshape(-1)
            for place in rng.permutation(len(flat))[:25]:
                row = place // layer.n_out
                if which == 2 and not layer.config.shape_trained[row]:
                    continue
                old, step = flat[place], 1e-6
                flat[place] = old + step
                up = loss_of(parameters, topologies, X, y, keeps)
                flat[place] = old - step
                down = loss_of(parameters, topologies, X, y, keeps)
                flat[place] = old
                assert flat_gradient[place] == pytest.approx((up - down) / 2e-6, rel=2e-3, abs=2e-5)


def keeps_of(trainer, X):
    """Return the factors of dropout of every hidden layer, (n_out, samples)."""
    network, config = trainer.network, trainer.config
    whole = Trainer(network, config)
    whole._workspace = type(trainer.workspace)(network.layers, len(X))
    whole.workspace.inputs(len(X))[:] = X.T
    key = dropout_key(config.dropout, config.seed, 0, 0)
    network.forward(whole.workspace, len(X), whole.backend, training=True, dropout=key)
    keeps = []
    for k, layer in enumerate(network.layers[:-1]):
        state = whole.workspace.state(k, len(X))
        bits = np.unpackbits((state[:, 0] | state[:, 1]).view(np.uint8), axis=1, bitorder="little")
        keeps.append(bits[:, : len(X)] / float(key.keep_share))
        assert keeps[-1].shape == (layer.n_out, len(X))
    return keeps


def test_parameters_are_trained_and_stay_where_they_are_fixed():
    X, y = data(240)
    for activation, trained in (("srelu", [0, 1, 2, 3]), ("prelu", [1])):
        trainer = make_trainer(activation, epochs=3)
        before = [layer.srelu.copy() for layer in trainer.network.layers[:-1]]
        trainer.fit(X, y, progress=False)
        for layer, old in zip(trainer.network.layers, before, strict=False):
            changed = [row for row in range(4) if not np.array_equal(layer.srelu[row], old[row])]
            assert changed == trained
        assert trainer.network.layers[-1].srelu is None


@pytest.mark.parametrize("processes", [1, 2])
def test_models_predict_as_saved(tmp_path, processes):
    X, y = data(100)
    trainer = make_trainer("srelu", epochs=2)
    trainer.fit(X, y, progress=False)
    save_model(trainer.network, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    expected = inference.predict_proba(trainer.network, X)
    found = inference.predict_proba(loaded, X, processes=processes)
    np.testing.assert_array_equal(found, expected)


def test_a_resumed_training_is_the_same(tmp_path):
    X, y = data(100)
    whole, half = make_trainer("srelu", epochs=4), make_trainer("srelu", epochs=2, evolve_last=True)
    whole.fit(X, y, progress=False)
    half.fit(X, y, progress=False)
    save_checkpoint(half, tmp_path / "half")
    again = load_checkpoint(tmp_path / "half", epochs=4, evolve_last=False)
    again.fit(X, y, progress=False)
    for a, b in zip(whole.network.layers, again.network.layers, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        if a.srelu is not None:
            np.testing.assert_array_equal(a.srelu, b.srelu)
            np.testing.assert_array_equal(a.srelu_velocity, b.srelu_velocity)


def test_early_stopping_restores_the_shape():
    X, y = data(200)
    trainer = make_trainer("srelu", epochs=8, validation_fraction=0.5, patience=1)
    shapes = []

    def note(trainer, record):
        shapes.append(trainer.network.layers[0].srelu.copy())

    history = trainer.fit(X, y, callbacks=[note], progress=False)
    best = int(np.argmax(history["validation_accuracy"][1:]))
    np.testing.assert_array_equal(trainer.network.layers[0].srelu, shapes[best])


def test_the_plan_counts_the_second_buffer():
    plans = [
        plan_training(NetworkConfig((10, 5000, 2), activation=a), 64) for a in ("relu", "srelu")
    ]
    assert plans[1].activations - plans[0].activations == 4 * 5000 * 64

"""Batch normalisation: gradients, running statistics, folding, pruning, saving."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import backend_or_skip, make_trainer
from scipy.sparse import csr_array
from scipy.special import log_softmax

from largesparse import (
    NetworkConfig,
    Predictor,
    SparseMLP,
    SparseMLPClassifier,
    TrainingConfig,
    compact,
    fold,
    load_checkpoint,
    load_model,
    neuron_importance,
    predict_proba,
    prune_neurons,
    save_model,
)
from largesparse.errors import ParameterError
from largesparse.model.export import to_scipy
from largesparse.model.linear_path import what_is_in_the_way
from largesparse.model.network import dropout_key
from largesparse.model.normalization import BatchShares
from largesparse.model.storage import Storage
from largesparse.model.workspace import Workspace
from largesparse.training.memory import plan_training

SIZES = (6, 9, 8, 3)
ROWS = 24


def trainer_of(backend="fused", *, sizes=SIZES, epsilon=3.0, **options):
    """A trainer of a network whose γ, β and running statistics are not the first ones."""
    given = {"batch_size": ROWS, "standardize": False, "learning_rate": 0.02, "dropout": 0.0}
    network = {"batch_norm": True, "epsilon": epsilon, "alpha": 0.3}
    trainer = make_trainer(sizes, network=network, backend=backend, **given | options)
    rng = np.random.default_rng(1)
    for layer in trainer.network.layers[:-1]:
        layer.bias[:] = rng.normal(0, 0.3, layer.n_out)
        layer.scale += rng.normal(0, 0.2, layer.n_out).astype(np.float32)
        layer.running[:] = rng.uniform(0.2, 0.7, layer.running.shape)
    return trainer


def data(n=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 6)).astype(np.float32), rng.integers(3, size=n, dtype=np.int32)


# The reference: dense, float64, samples in rows


def dense_weights(layer) -> np.ndarray:
    arrays = layer.values.astype(np.float64), layer.topology.indices, layer.topology.indptr
    return csr_array(arrays, shape=(layer.n_in, layer.n_out)).toarray()


def statistics(z, weights):
    """The mean and the biased variance over samples that count by their weights."""
    mean = np.average(z, axis=0, weights=weights)
    return mean, np.average((z - mean) ** 2, axis=0, weights=weights)


def loss_of(parameters, slopes, X, y, weights, keeps, parts, found=None):
    """The mean loss, by micro-batches of the rows in `parts`; `found` receives their statistics."""
    total = 0.0
    for rows in parts:
        a = X[rows].astype(float)
        for k, own in enumerate(parameters):
            z = a @ own["values"]
            if k == len(parameters) - 1:
                break
            if np.count_nonzero(weights[rows]) > 1:
                mean, variance = statistics(z, weights[rows])
            else:
                mean, variance = own["running"][:2] / own["running"][2]
            if found is not None:
                found.append((k, mean, variance))
            z = own["scale"] * (z - mean) / np.sqrt(variance + 1e-5) + own["bias"]
            a = np.where(z > 0, z, slopes[k] * z) * keeps[k][rows]
        z = z + own["bias"]
        total -= weights[rows] @ log_softmax(z, axis=1)[np.arange(len(rows)), y[rows]]
    return total / len(X)


def keeps_of(trainer, X):
    """The factors of dropout of every hidden layer, (samples, n_out)."""
    network, config, batch = trainer.network, trainer.config, len(X)
    workspace = Workspace(network.layers, batch)
    workspace.inputs(batch)[:] = X.T
    key = dropout_key(config.dropout, config.seed, 0, 0)
    network.forward(workspace, batch, trainer.backend, training=True, dropout=key)
    keeps = []
    for k in range(len(network.layers) - 1):
        state = workspace.state(k, batch)
        bits = np.unpackbits((state[:, 0] | state[:, 1]).view(np.uint8), axis=1, bitorder="little")
        keeps.append(bits[:, :batch].T / float(key.keep_share))
    return keeps


WEIGHTS = np.where(np.arange(ROWS) % 5 == 0, 0, 0.2 + np.arange(ROWS) / 12).astype(np.float32)


@pytest.mark.parametrize(
    ("backend", "options", "weights"),
    [
        ("fused", {"dropout": 0.4}, None),
        ("mkl", {"dropout": 0.4, "micro_batch": 10}, WEIGHTS),
        ("scipy", {"micro_batch": 10, "keep_every": 2, "sizes": (6, 9, 8, 7, 8, 3)}, WEIGHTS),
        ("fused", {"micro_batch": 23}, None),  # the last one has one row
        ("fused", {"sparse": True, "dropout": 0.2}, WEIGHTS),
    ],
)
def test_gradients_are_those_of_differences(backend, options, weights):
    sparse = options.pop("sparse", False)
    trainer = trainer_of(backend_or_skip(backend).name, **options)
    X, y = data()
    X *= np.abs(X) > 0.4
    loss = trainer.gradient(csr_array(X) if sparse else X, y, np.arange(ROWS), weights)
    layers, workspace = trainer.network.layers, trainer.workspace
    size = trainer.micro_batch
    parts = [np.arange(start, min(ROWS, start + size)) for start in range(0, ROWS, size)]
    keeps = keeps_of(trainer, X)
    each = np.ones(ROWS) if weights is None else weights.astype(float)
    parameters = [
        {name: array.astype(float) for name, array in layer.parameters.items()}
        | {"values": dense_weights(layer)}
        for layer in layers
    ]
    given = parameters, [layer.slope for layer in layers], X, y, each, keeps, parts
    found = []
    assert loss == pytest.approx(loss_of(*given, found), rel=1e-6)

    def differences(array, place):
        old, values = array[place], []
        for step in (1e-6, -1e-6):
            array[place] = old + step
            values.append(loss_of(*given))
        array[place] = old
        return (values[0] - values[1]) / 2e-6

    for k, layer in enumerate(layers):
        gradients = workspace.by_layer[k]
        for name in {"values", "bias", "scale"} & gradients.keys():
            array, places = parameters[k][name], [(j,) for j in range(layer.n_out)]
            if name == "values":
                places = list(zip(layer.topology.rows(), layer.topology.indices, strict=True))
            expected = np.array([differences(array, place) for place in places])
            bound = 1e-5 if len(layers) == 3 else 3e-5  # rounding errors grow with the depth
            bound *= max(np.abs(expected).max(), 0.1)
            np.testing.assert_allclose(gradients[name], expected, rtol=1e-5, atol=bound)
        if layer.config.normalised:
            own = [(mean, variance) for place, mean, variance in found if place == k]
            check_statistics(gradients["running"], layer.running, own, each, parts)


def check_statistics(found, running, own, each, parts):
    """Compare with the mean over micro-batches of means and unbiased variances."""
    expected = np.zeros_like(running, dtype=float)
    for (mean, variance), rows in zip(own, parts, strict=True):
        p = each[rows] / each[rows].sum()
        single = len(rows) == 1
        unbiased = variance if single else variance / (1 - (p**2).sum())
        of_part = running if single else np.stack([mean, unbiased, np.ones_like(mean)])
        expected += len(rows) / ROWS * of_part
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_shares_of_samples():
    shares, unbias = BatchShares.of(None, 4)
    np.testing.assert_array_equal(shares, 0.25)
    assert unbias == pytest.approx(4 / 3)  # as n / (n - 1)
    np.testing.assert_allclose(BatchShares.of(np.float32([1, 0, 3]), 3).shares, [0.25, 0, 0.75])
    for alone in ([2.0], [0.0, 3.0], [1.0, 1e-20], [0.0, 0.0]):
        assert BatchShares.of(np.float32(alone), len(alone)).unbias == 0


def test_samples_without_weight_are_as_if_not_there():
    X, y = data()
    weights = np.repeat(np.float32([1, 0]), [16, 8])
    some, all_ = trainer_of(dropout=0.0), trainer_of(dropout=0.0)
    for _ in range(3):
        some.step(X[:16], y[:16])
        all_.step(X, y, sample_weight=weights * np.float32(24 / 16))
    for a, b in zip(some.network.layers, all_.network.layers, strict=True):
        for name, array in a.parameters.items():
            np.testing.assert_allclose(b.parameters[name], array, rtol=1e-4, atol=1e-6)


def test_running_statistics_are_means_without_a_bias():
    trainer = make_trainer((6, 9, 3), network={"batch_norm": True}, batch_size=ROWS, epsilon=3)
    layer, mean, variance, total = trainer.network.layers[0], 0.0, 0.0, 0.0
    assert not layer.running.any()
    for step in range(5):
        X, y = data(seed=step)
        z = X.astype(float) @ dense_weights(layer)
        trainer.step(X, y)
        mean, variance = 0.9 * mean + 0.1 * z.mean(axis=0), 0.9 * variance + 0.1 * z.var(0, ddof=1)
        total = 0.9 * total + 0.1
    folded = fold(trainer.network).layers[0]
    gain = layer.scale / np.sqrt(variance / total + 1e-5)
    np.testing.assert_allclose(dense_weights(folded), dense_weights(layer) * gain, rtol=1e-4)
    shift = layer.bias - gain * mean / total
    np.testing.assert_allclose(folded.bias, shift, rtol=1e-4, atol=1e-5)


def test_constant_neurons_put_out_their_shift():
    trainer = trainer_of(epsilon=0.3)
    X, y = data()
    lonely = np.diff(trainer.network.layers[0].topology.indptr_by_output) == 0
    assert lonely.any()
    trainer.gradient(X, y, np.arange(ROWS))
    layer = trainer.network.layers[0]
    out = trainer.workspace.activations(0, ROWS)[lonely]
    np.testing.assert_allclose(out, np.repeat(layer.activate(layer.bias)[lonely, None], ROWS, 1))
    same = np.repeat(X[:1], ROWS, axis=0)
    assert np.isfinite(trainer.step(same, y))
    assert all(np.isfinite(a).all() for a in layer.parameters.values())


def trained(**options):
    X, y = data(100)
    options = {"epochs": 3, "dropout": 0.2} | options
    trainer = trainer_of(**options)
    trainer.fit(X, y, progress=False)
    return trainer, X, y


def test_everything_predicts_by_folded_weights(tmp_path):
    trainer, X, y = trained()
    network = trainer.network
    expected = predict_proba(network, X)
    with Predictor(network, processes=2) as predictor:
        np.testing.assert_array_equal(predictor.predict_proba(X), expected)
    folded = fold(network)
    assert not folded.config.batch_norm and fold(folded) is folded
    np.testing.assert_array_equal(predict_proba(folded, X), expected)
    np.testing.assert_allclose(predict_proba(network, csr_array(X)), expected, rtol=1e-5)
    a = X
    for W, layer in zip(to_scipy(network), folded.layers, strict=True):
        z = a @ W + layer.bias
        a = layer.activate(z)
    np.testing.assert_allclose(np.exp(log_softmax(z, axis=1)), expected, rtol=1e-4)
    right = expected.argmax(axis=1) == y
    assert trainer.evaluate(X, y)[1] == pytest.approx(right.mean())
    save_model(network, tmp_path / "model")
    again = load_model(tmp_path / "model")
    np.testing.assert_array_equal(predict_proba(again, X), expected)
    for layer, other in zip(network.layers, again.layers, strict=True):
        assert layer.parameters.keys() == other.parameters.keys()
        for name, array in layer.parameters.items():
            np.testing.assert_array_equal(other.parameters[name], array)


def test_measuring_does_not_move_the_statistics():
    trainer, X, y = trained()
    before = [layer.running.copy() for layer in trainer.network.layers[:-1]]
    trainer.evaluate(X, y)
    trainer.gradient(X, y, np.arange(50), plain=True)
    trainer.network.forward(trainer.workspace, 10, trainer.backend)
    for layer, running in zip(trainer.network.layers, before, strict=False):
        np.testing.assert_array_equal(layer.running, running)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_resumed_training_is_the_same(tmp_path, threads):
    options = {"growth": "gradient", "pruning_start": 1, "pruning_every": 2, "micro_batch": 8}
    X, y = data(100)
    whole, _, _ = trained(**options, epochs=4)

    def stop(trainer, record):
        return record.epoch == 2

    half = trainer_of(**options, epochs=4, dropout=0.2, threads=threads)
    half.fit(X, y, progress=False, checkpoint=tmp_path / "half", callbacks=[stop])
    again = load_checkpoint(tmp_path / "half")
    again.fit(X, y, progress=False)
    for a, b in zip(whole.network.layers, again.network.layers, strict=True):
        for name, array in a.arrays(True).items():
            np.testing.assert_array_equal(b.arrays(True)[name], array, err_msg=name)


def test_pruned_neurons_put_out_their_shift_and_leave_no_trace():
    trainer, X, _ = trained(sizes=(6, 20, 15, 3))
    network = trainer.network
    importance = [neuron_importance(layer) for layer in network.layers[:-1]]
    before = fold(network).layers
    for found, layer in zip(importance, before, strict=False):
        np.testing.assert_allclose(found, np.abs(dense_weights(layer)).sum(axis=0), rtol=1e-5)
    shifts = [layer.bias.copy() for layer in network.layers]
    prune_neurons(network, 30)
    a = (
        (X - network.preprocessing.mean) * network.preprocessing.scale
        if (network.preprocessing)
        else X
    )
    for k, layer in enumerate(before):
        z = a @ dense_weights(layer) + layer.bias
        a = layer.activate(z.astype(np.float32))
        dead = network.layers[k].dead
        if dead is not None:
            assert dead.sum() == [6, 5][k]
            a[:, dead] = layer.activate(shifts[k])[dead]
    expected = np.exp(log_softmax(z, axis=1))
    np.testing.assert_allclose(predict_proba(network, X), expected, rtol=1e-4)
    smaller = compact(network)
    assert smaller.config.layer_sizes == (6, 14, 10, 3)
    np.testing.assert_allclose(predict_proba(smaller, X), expected, rtol=1e-4)
    y = np.arange(len(X), dtype=np.int32) % 3
    for each in (network, smaller):
        other = type(trainer)(each, trainer.config)
        other.step(X, y)
    assert not network.layers[0].running[:2, network.layers[0].dead].any()


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"'batch_norm'.*srelu"):
        NetworkConfig((3, 4, 2), batch_norm=True, activation="srelu")
    with pytest.raises(ParameterError, match=r"'batch_norm'.*True or False.*'yes'"):
        NetworkConfig((3, 4, 2), batch_norm="yes")
    with pytest.raises(ParameterError, match=r"'activation_dtype'.*batch normalisation"):
        trainer_of("fused", activation_dtype="bfloat16")
    with pytest.raises(ParameterError, match=r"'batch_norm'.*'storage'"):
        SparseMLP(NetworkConfig((3, 4, 2), batch_norm=True), storage=Storage(tmp_path))
    network = trainer_of().network
    assert "batch normalisation" in what_is_in_the_way(network, 1)


def test_the_plan_counts_what_it_takes():
    plain, normalised, averaged = (
        plan_training(
            NetworkConfig((10, 5000, 2), batch_norm=norm),
            64,
            moments=TrainingConfig(average_decay=decay).moments,
        )
        for norm, decay in ((False, 0.0), (True, 0.0), (False, 0.5))
    )
    assert normalised.activations - plain.activations == 4 * 5000 * 64
    assert normalised.model - plain.model == 2 * 4 * 4 * 5000
    network = SparseMLP(NetworkConfig((10, 5000, 2), batch_norm=True))
    found = network.nbytes - SparseMLP(NetworkConfig((10, 5000, 2))).nbytes
    assert normalised.model - plain.model == found
    assert averaged.model - plain.model >= 4 * network.connections


def test_estimators_have_it_too(tmp_path):
    X, y = data(200)
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    options = {"hidden_layer_sizes": (30,), "max_epochs": 15, "random_state": 0}
    options |= {"batch_norm": True, "label_smoothing": 0.05, "average_decay": 0.9}
    model = SparseMLPClassifier(**options).fit(X, y)
    assert model.network_.config.batch_norm and model.score(X, y) > 0.8
    model.save(tmp_path / "model")
    again = SparseMLPClassifier.load(tmp_path / "model")
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    again.partial_fit(X, y)
    assert TrainingConfig().average_decay == 0

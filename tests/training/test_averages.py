"""The moving average of weights: its values through evolution and pruning, and where it counts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import make_trainer
from scipy.sparse import csr_array

from largesparse import (
    Trainer,
    TrainingConfig,
    compact,
    fold,
    load_checkpoint,
    load_model,
    predict_proba,
    prune_neurons,
    save_model,
)
from largesparse.errors import ParameterError
from largesparse.model.storage import Storage

DECAY = 0.8


def data(n=120):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 12)).astype(np.float32)
    return X, (X[:, :3].argmax(axis=1)).astype(np.int32)


def trainer_of(**options) -> Trainer:
    given = {"batch_size": 20, "epochs": 3, "learning_rate": 0.05, "average_decay": DECAY}
    given |= {"epsilon": 4, "backend": "fused"}
    return make_trainer((12, 30, 20, 3), **given | options)


def cells(layer) -> list[tuple[int, int]]:
    return list(zip(layer.topology.rows().tolist(), layer.topology.indices.tolist(), strict=True))


@pytest.mark.parametrize("options", [{}, {"backend": "scipy", "micro_batch": 7}, {"sparse": True}])
def test_it_is_the_mean_with_weights_that_fall(options):
    """In closed form, by cell: (1 - d) Σ d^(t - i) w_i / (1 - d^t), from a connection's birth."""
    sparse = options.pop("sparse", False)
    trainer = trainer_of(**options)
    X, y = data()
    given = csr_array(np.where(np.abs(X) < 1, 0, X)) if sparse else X
    lives = [{} for _ in trainer.network.layers]  # cell -> what it began with, birth, weights
    biases = []
    for step in range(12):
        if step == 5:
            trainer.epoch += 1
            old = [cells(layer) for layer in trainer.network.layers]
            maps = trainer.evolve()  # a cell may lose a connection and get another one
            for known, gone, slots in zip(lives, old, maps, strict=False):
                for cell in np.array(gone)[slots < 0].tolist():
                    del known[tuple(cell)]
        for layer, known in zip(trainer.network.layers, lives, strict=True):
            now = dict(zip(cells(layer), layer.values.tolist(), strict=True))
            for cell, value in now.items():
                known.setdefault(cell, (value, step, []))
        trainer.step(given, y, np.arange(step * 10, step * 10 + 10))
        for layer, known in zip(trainer.network.layers, lives, strict=True):
            for cell, value in zip(cells(layer), layer.values.tolist(), strict=True):
                known[cell][2].append(value)
        biases.append(trainer.network.layers[0].bias.copy())

    total = 1 - DECAY**12
    for layer, known in zip(trainer.network.layers, lives, strict=True):
        expected = []
        for cell in cells(layer):
            first, birth, weights = known[cell]
            assert birth in (0, 5)
            early = DECAY ** len(weights) * (1 - DECAY**birth)  # what it has of its first weight
            late = [(1 - DECAY) * DECAY ** (11 - birth - i) for i in range(len(weights))]
            expected.append((early * first + np.dot(late, weights)) / total)
        np.testing.assert_allclose(layer.average, expected, rtol=1e-5, atol=1e-7)
    factors = (1 - DECAY) * DECAY ** np.arange(11, -1, -1) / total
    found = trainer.network.layers[0].moments["average"]["bias"]
    np.testing.assert_allclose(found, factors @ biases, rtol=1e-5, atol=1e-8)


def test_weights_of_absent_inputs_are_averaged_at_every_update():
    rng = np.random.default_rng(0)
    X = np.where(rng.random((100, 400)) < 0.004, rng.standard_normal((100, 400)), 0)
    X, y = X.astype(np.float32), np.arange(100) % 3
    found = []
    for given in (csr_array(X), X):
        options = {"epsilon": 4, "zeta": 0.0, "weight_decay": 0.01, "standardize": False}
        trainer = make_trainer(
            (400, 30, 3), batch_size=4, epochs=2, average_decay=DECAY, backend="fused", **options
        )
        trainer.fit(given, y, progress=False)
        found.append(trainer.network.layers[0].values)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def averaged(trainer) -> Trainer:
    """A trainer of a network that has the averages as its weights."""
    norm = trainer.network.config.batch_norm
    other = trainer_of(average_decay=0.0, batch_norm=norm)
    for layer, own in zip(other.network.layers, trainer.network.layers, strict=True):
        layer.restore_(own.arrays(True) | own.moments["average"])
    return other


def test_it_is_what_is_evaluated_predicted_and_saved(tmp_path):
    trainer = trainer_of(dropout=0.1)
    X, y = data()
    for start in range(0, 120, 20):
        trainer.step(X, y, np.arange(start, start + 20))
    network, twin = trainer.network, averaged(trainer)
    raw = [layer.values.copy() for layer in network.layers]
    assert trainer.evaluate(X, y) == twin.evaluate(X, y)
    expected = predict_proba(twin.network, X)
    np.testing.assert_array_equal(predict_proba(network, X), expected)
    np.testing.assert_array_equal(predict_proba(network, X, processes=2), expected)
    np.testing.assert_allclose(predict_proba(network, csr_array(X)), expected, rtol=1e-5)
    save_model(network, tmp_path / "model")
    np.testing.assert_array_equal(predict_proba(load_model(tmp_path / "model"), X), expected)
    assert fold(twin.network) is twin.network
    for layer, values in zip(network.layers, raw, strict=True):
        np.testing.assert_array_equal(layer.values, values)
    trainer.step(X, y)  # goes on by the weights


def test_the_network_has_it_in_the_end(tmp_path):
    X, y = data()
    weights = []
    trainer = trainer_of(pruning_start=1, pruning_every=2)
    trainer.fit(X, y, checkpoint=tmp_path / "all", progress=False, callbacks=[
        lambda trainer, record: weights.append(averaged(trainer).network.layers[1].values)
    ])  # fmt: skip
    for layer in trainer.network.layers:
        assert layer.kinds == ("velocity",) and not layer.velocity.any()
    np.testing.assert_array_equal(trainer.network.layers[1].values, weights[-1])
    expected = predict_proba(trainer.network, X)
    for again in (load_model(tmp_path / "all"), load_checkpoint(tmp_path / "all").network):
        np.testing.assert_array_equal(predict_proba(again, X), expected)
        assert "average" not in again.layers[0].kinds
    trainer.config = TrainingConfig(**trainer.config.as_dict() | {"epochs": 4})
    trainer.fit(X, y, progress=False)  # averages begin anew


def test_a_resumed_training_is_the_same(tmp_path):
    X, y = data()
    options = {"epochs": 4, "pruning_start": 1, "pruning_every": 2, "batch_norm": True}
    whole = trainer_of(**options)
    whole.fit(X, y, progress=False)

    def stop(trainer, record):
        return record.epoch == 2

    half = trainer_of(**options)
    half.fit(X, y, checkpoint=tmp_path / "half", callbacks=[stop], progress=False)
    again = load_checkpoint(tmp_path / "half", threads=2)
    assert "average" in again.network.layers[0].kinds
    again.fit(X, y, progress=False)
    for a, b in zip(whole.network.layers, again.network.layers, strict=True):
        for name, array in a.arrays(True).items():
            np.testing.assert_array_equal(b.arrays(True)[name], array, err_msg=name)
    without = load_checkpoint(tmp_path / "half", average_decay=0.0)
    assert "average" not in without.network.layers[0].kinds


def test_early_stopping_keeps_the_average():
    X, y = data(200)
    trainer = trainer_of(epochs=6, validation_fraction=0.5, patience=1)
    values = []

    def note(trainer, record):  # before the epoch's evolution there are no callbacks
        if trainer.best is not None and trainer.best.epoch == record.epoch:
            values.append([arrays["values"] for arrays in trainer.best.layers])

    trainer.fit(X, y, callbacks=[note], progress=False)
    rows = np.arange(len(y))
    assert trainer.best.score == max(trainer.history["validation_accuracy"][1:])
    for layer, expected in zip(trainer.network.layers, values[-1], strict=True):
        np.testing.assert_array_equal(layer.values, expected)
    assert trainer.evaluate(X, y, rows)[1] > 0


@pytest.mark.parametrize("batch_norm", [False, True])
def test_pruning_moves_what_averages_put_out(batch_norm):
    trainer = trainer_of(batch_norm=batch_norm)
    X, y = data()
    for start in range(0, 120, 20):
        trainer.step(X, y, np.arange(start, start + 20))
    twin = averaged(trainer)
    dying = [np.arange(layer.n_out) % 4 == 0 for layer in trainer.network.layers[:-1]]
    from largesparse.model.importance import kill_

    kill_(twin.network, dying)
    kill_(trainer.network, dying)
    expected = predict_proba(twin.network, X)
    np.testing.assert_allclose(predict_proba(trainer.network, X), expected, rtol=1e-5)
    np.testing.assert_allclose(predict_proba(compact(trainer.network), X), expected, rtol=1e-5)
    prune_neurons(trainer.network, 10)
    trainer.step(X, y)


def test_what_it_does_not_go_with_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="average_decay"):
        TrainingConfig(average_decay=1.0)
    network = trainer_of().network
    network.storage = Storage(tmp_path)
    with pytest.raises(ParameterError, match=r"'average_decay'.*'storage'"):
        Trainer(network, TrainingConfig(average_decay=0.5))


def test_an_average_that_begins_later_forgets_what_was_before(tmp_path):
    X, y = data()
    trainer = trainer_of(average_decay=0.0)
    trainer.fit(X, y, checkpoint=tmp_path / "run", progress=False)
    again = load_checkpoint(tmp_path / "run", average_decay=0.999, epochs=4)
    start = [layer.values.copy() for layer in again.network.layers]
    again.step(X, y, np.arange(20))
    for layer, before in zip(again.network.layers, start, strict=True):
        np.testing.assert_allclose(layer.moments["average"]["values"], layer.values, rtol=1e-6)
        assert not np.array_equal(layer.values, before)
    assert again.state.average_since == again.step_count - 1 > 0

"""The sequential trainer: what it learns, which rows it takes, history, evolution, refusals."""

from __future__ import annotations

import dataclasses
import json
import re
import tracemalloc
import warnings

import helpers
import numpy as np
import pytest
from helpers import copies_of, same
from scipy.sparse import csr_array, csr_matrix
from sklearn.datasets import load_digits, make_classification
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig, predict, predict_proba
from largesparse.backends import BACKENDS, get_backend
from largesparse.errors import (
    BackendError,
    DataError,
    LargeSparseError,
    NumericalError,
    ParameterError,
)
from largesparse.machine.output import LogLines
from largesparse.model import workspace
from largesparse.training.prepared import prepare_
from largesparse.training.warming import warm_up


def task(n_samples=100, n_features=10, n_classes=2, seed=0):
    X, y = make_classification(
        n_samples, n_features, n_informative=5, n_classes=n_classes, random_state=seed
    )
    return X.astype(np.float32), y


def make_trainer(layer_sizes=(10, 24, 16, 2), **options):
    settings = {
        "epsilon": 3.0,
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 0.05,
        "dropout": 0.0,
    }
    return helpers.make_trainer(layer_sizes, **settings | options)


class SpyTrainer(Trainer):
    """Notes the rows of every step with their epoch, and the loss."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.batches = []
        self.losses = []

    def step(self, X, y, rows=None, **options):
        self.batches.append((self.epoch, np.array(rows)))
        self.losses.append(super().step(X, y, rows, **options))
        return self.losses[-1]

    def rows_of(self, epoch):
        return np.concatenate([rows for number, rows in self.batches if number == epoch])


def usable(name):
    try:
        return get_backend(name).name
    except BackendError as error:
        pytest.skip(str(error))


def assert_clear(error):
    """One sentence or two that a user can act on."""
    message = str(error)
    assert 20 < len(message) < 400
    assert "\n" not in message
    assert message.endswith((".", "?"))


# Learning


@pytest.mark.parametrize("backend", BACKENDS)
def test_learns_digits(backend):
    X, y = load_digits(return_X_y=True)
    trainer = make_trainer(
        (64, 100, 50, 10), epsilon=8, epochs=8, dropout=0.1, backend=usable(backend)
    )
    history = trainer.fit(X[:1300], y[:1300], test=(X[1300:], y[1300:]), progress=False)
    losses = history["loss"]
    assert all(later < losses[0] for later in losses[1:])
    assert losses[-1] < 0.3 * losses[0]
    assert history["test_accuracy"][0] < 0.3
    assert history["test_accuracy"][-1] > 0.85
    assert history.best_test_accuracy == max(history["test_accuracy"][1:])


@pytest.mark.parametrize(
    ("recipe", "rate", "sizes"),
    [
        ("paper", 0.05, (20, 60, 60, 2)),
        ("width", 0.2, (20, 60, 60, 2)),
        ("width", 0.5, (20, 2)),
        ("paper", 0.05, (20, 60, 2)),
    ],
)
def test_learns_a_classification(recipe, rate, sizes):
    X, y = task(900, 20)
    trainer = make_trainer(
        sizes, epsilon=5, epochs=10, learning_rate=rate, network={"recipe": recipe}
    )
    history = trainer.fit(X[:600], y[:600], test=(X[600:], y[600:]), progress=False)
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert history["test_accuracy"][-1] > 0.7  # chance is 0.5; three standard errors are 0.09


def dense_sgd(trainer, X, targets, batches, rates):
    """Train dense float64 copies of the weight matrices by eq. 1, and return them."""
    config = trainer.config
    weights = [
        csr_array((layer.values, layer.topology.indices, layer.topology.indptr)).toarray()
        for layer in trainer.network.layers
    ]
    weights = [weight.astype(np.float64) for weight in weights]
    masks = [weight != 0 for weight in weights]
    biases = [layer.bias.astype(np.float64) for layer in trainer.network.layers]
    velocities = [np.zeros_like(array) for array in weights + biases]
    slopes = [-0.6, 0.6]  # All-ReLU: layer 2 is even, layer 3 odd
    for rows, rate in zip(batches, rates, strict=True):
        activations, products = [X[rows]], []
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            z = activations[-1] @ weight + bias
            products.append(z)
            activations.append(np.where(z > 0, z, slopes[k] * z) if k < 2 else z)
        exponentials = np.exp(activations[-1] - activations[-1].max(axis=1, keepdims=True))
        delta = exponentials / exponentials.sum(axis=1, keepdims=True)
        delta[np.arange(len(rows)), targets[rows]] -= 1
        delta /= len(rows)
        gradients = [None] * 6
        for k in (2, 1, 0):
            gradients[k] = activations[k].T @ delta * masks[k]
            gradients[3 + k] = delta.sum(axis=0)
            if k:
                delta = delta @ weights[k].T
                delta *= np.where(products[k - 1] > 0, 1, slopes[k - 1])
        for array, velocity, gradient in zip(weights + biases, velocities, gradients, strict=True):
            velocity *= config.momentum
            velocity -= rate * gradient
            array += velocity - config.weight_decay * array
    return weights, biases


def test_a_training_equals_dense_numpy():
    X, y = task(90, 10, 3)
    trainer = make_trainer((10, 24, 16, 3), trainer=SpyTrainer, zeta=0.0, weight_decay=0.01)
    start = make_trainer((10, 24, 16, 3), weight_decay=0.01)
    trainer.fit(X, y, progress=False)
    batches = [rows for _, rows in trainer.batches]
    scaled = StandardScaler().fit_transform(X.astype(np.float64))
    weights, biases = dense_sgd(start, scaled, y, batches, [0.05] * len(batches))
    for layer, weight, bias in zip(trainer.network.layers, weights, biases, strict=True):
        topology = layer.topology
        ours = csr_array((layer.values, topology.indices, topology.indptr), weight.shape)
        np.testing.assert_allclose(ours.toarray(), weight, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.bias, bias, rtol=1e-4, atol=1e-5)
        by_output = (layer.values_by_output, topology.indices_by_output, topology.indptr_by_output)
        np.testing.assert_array_equal(
            csr_array(by_output, weight.T.shape).toarray().T, ours.toarray()
        )


def test_the_schedule_sees_fractions_of_epochs(monkeypatch):
    X, y = task(100)
    trainer = make_trainer(epochs=4, batch_size=40, schedule="cosine", warmup_epochs=2.0)
    rates = []
    update = SparseMLP.update_

    def spy(network, workspace, optimizer, rate, **options):
        rates.append(rate)
        update(network, workspace, optimizer, rate, **options)

    monkeypatch.setattr(SparseMLP, "update_", spy)
    trainer.fit(X, y, progress=False)
    progress = np.add.outer(np.arange(4), [0.0, 0.4, 0.8]).ravel()
    expected = 0.05 * np.minimum(1, progress / 2) * (1 + np.cos(np.pi * progress / 4)) / 2
    np.testing.assert_allclose(rates, expected, atol=1e-12)


# Which rows, and in which order


@pytest.mark.parametrize(
    ("n", "batch", "sizes"), [(100, 32, [32, 32, 32, 4]), (97, 97, [97]), (33, 32, [32, 1])]
)
def test_every_row_is_used_once_an_epoch(n, batch, sizes):
    X, y = task(n)
    trainer = make_trainer(trainer=SpyTrainer, batch_size=batch)
    history = trainer.fit(X, y, progress=False)
    assert [len(rows) for epoch, rows in trainer.batches if epoch == 1] == sizes
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(trainer.rows_of(epoch)), np.arange(n))
    assert trainer.step_count == 3 * len(sizes)
    weighted = np.dot(sizes, trainer.losses[: len(sizes)]) / n
    assert history.epochs[1].running_loss == pytest.approx(weighted)


def test_micro_batches_cut_every_mini_batch(monkeypatch):
    X, y = task(100)
    loaded = []
    load_batch = workspace.load_batch

    def spy(X, rows, preprocessing, *, out):
        loaded.append(np.array(rows))
        load_batch(X, rows, preprocessing, out=out)

    trainer = make_trainer(micro_batch=15)
    monkeypatch.setattr(workspace, "load_batch", spy)
    rows = np.random.default_rng(0).permutation(100)[:32]
    trainer.step(X, y.astype(np.int32), rows)
    assert [len(part) for part in loaded] == [15, 15, 2]
    np.testing.assert_array_equal(np.concatenate(loaded), rows)


def rows_in_order(**settings):
    X, y = task(64)
    trainer = make_trainer(trainer=SpyTrainer, **settings)
    trainer.fit(X, y, progress=False)
    return [trainer.rows_of(epoch) for epoch in range(2)]


def test_shuffling_depends_on_seed_and_epoch_alone():
    order = rows_in_order(seed=3)
    assert not np.array_equal(order[0], order[1])
    assert not np.array_equal(order[0], np.arange(64))
    assert not np.array_equal(order[0], rows_in_order(seed=4)[0])
    for other in (
        {"learning_rate": 0.5, "dropout": 0.5, "zeta": 0.0},
        {"batch_size": 7, "micro_batch": 3, "epochs": 2},
        {"layer_sizes": (10, 5, 2), "network": {"seed": 9}, "threads": 2},
    ):
        assert same(order, rows_in_order(seed=3, **other))


def test_the_loss_is_over_a_fixed_set_of_training_rows(monkeypatch):
    X, y = task(1500)
    trainer = make_trainer(trainer=SpyTrainer, epochs=2, batch_size=500)
    evaluated = []
    sum_scores = Trainer.sum_scores

    def spy(self, X, y, rows, *weights):
        evaluated.append(rows)
        return sum_scores(self, X, y, rows, *weights)

    monkeypatch.setattr(Trainer, "sum_scores", spy)
    history = trainer.fit(X, y, progress=False)
    assert len(evaluated) == 3
    assert len(np.unique(evaluated[0])) == len(evaluated[0]) == 1024
    assert same(evaluated[:1] * 2, evaluated[1:])
    assert history["test_accuracy"] == [None] * 3
    rows = evaluated[0]
    assert np.isin(rows, trainer.rows_of(0)).all()
    expected = log_loss(y[rows], predict_proba(trainer.network, X[rows]))
    assert history["loss"][-1] == pytest.approx(expected, rel=1e-4)


# The history


def test_history_has_an_entry_before_training_and_one_an_epoch():
    X, y = task(130)
    trainer = make_trainer(epochs=4)
    before = predict_proba(trainer.network, StandardScaler().fit_transform(X[:100]))
    history = trainer.fit(X[:100], y[:100], test=(X[100:], y[100:]), progress=False)
    assert history is trainer.history
    assert len(history) == 5
    assert [record.epoch for record in history] == [0, 1, 2, 3, 4]
    assert history["loss"][0] == pytest.approx(log_loss(y[:100], before), rel=1e-4)
    assert history["train_accuracy"][0] == np.mean(before.argmax(axis=1) == y[:100])
    assert history["train_accuracy"][-1] == np.mean(predict(trainer.network, X[:100]) == y[:100])
    assert history["test_accuracy"][-1] == np.mean(predict(trainer.network, X[100:]) == y[100:])
    assert history["nnz"] == [[layer.nnz for layer in trainer.network.layers]] * 5
    assert history["running_loss"][0] is history["epoch_s"][0] is history["evolution_s"][0] is None
    for name in ("epoch_s", "running_loss", "inference_s"):
        assert all(0 < value < 100 for value in history[name][1:])
    assert all(0 < value < 100 for value in history["evolution_s"][1:4])
    assert history["evolution_s"][4] is None
    assert history["validation_accuracy"] == [None] * 5
    frame = history.to_frame()
    assert frame.index.tolist() == [0, 1, 2, 3, 4]
    assert frame["loss"].tolist() == history["loss"]
    again = type(history).from_list(json.loads(json.dumps(history.to_list())))
    assert again == history


def test_a_training_that_is_complete_is_not_continued():
    X, y = task()
    trainer = make_trainer()
    trainer.fit(X, y, progress=False)
    before = copies_of(trainer.network)
    assert len(trainer.fit(X, y, progress=False)) == 4
    assert same(before, copies_of(trainer.network))


def test_evaluation_changes_nothing():
    X, y = task()
    trainer = make_trainer(micro_batch=13, dropout=0.5)
    before = copies_of(trainer.network)
    loss, accuracy = trainer.evaluate(X, y)
    assert same(before, copies_of(trainer.network))
    assert (loss, accuracy) == trainer.evaluate(X, y)
    probabilities = predict_proba(trainer.network, X)
    assert loss == pytest.approx(log_loss(y, probabilities), rel=1e-5)
    assert accuracy == np.mean(probabilities.argmax(axis=1) == y)
    assert trainer.evaluate(X, y, np.array([5]))[1] == float(probabilities[5].argmax() == y[5])


def test_progress_is_shown_when_asked_for(capsys):
    X, y = task()
    make_trainer().fit(X, y, progress=False)
    assert capsys.readouterr() == ("", "")
    make_trainer().fit(X, y, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "300/300" in shown.err


def test_logs_have_a_line_now_and_then(monkeypatch, capsys):
    X, y = task()
    monkeypatch.setattr(LogLines, "SECONDS", 0)
    (trainer := make_trainer()).fit(X, y)
    predict(trainer.network, X)
    *_, last, predicted = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"training: 300 of 300 samples, 0 minutes, about 0 left, loss \S+", last)
    assert re.match(r"prediction: (\d+) of \1 rows", predicted)


# Evolution


def cells(layer):
    return set(layer.topology.rows().astype(np.int64) * layer.n_out + layer.topology.indices)


def fit_with_topologies(**settings):
    """Train, and return the trainer and every hidden layer's cells before and after each epoch."""
    X, y = task()
    trainer = make_trainer(**settings)
    layers = trainer.network.layers
    seen = [[cells(layer) for layer in layers]]
    trainer.fit(
        X,
        y,
        progress=False,
        callbacks=[lambda trainer, record: seen.append([cells(layer) for layer in layers])],
    )
    return trainer, seen


@pytest.mark.parametrize(
    ("settings", "evolved"),
    [
        ({"epochs": 4}, [1, 2, 3]),
        ({"epochs": 4, "evolve_last": True}, [1, 2, 3, 4]),
        ({"epochs": 1}, []),
        ({"epochs": 5, "evolution_interval": 2}, [2, 4]),
        ({"epochs": 4, "evolution_interval": 2}, [2]),
        ({"epochs": 4, "evolution_interval": 2, "evolve_last": True}, [2, 4]),
        ({"epochs": 4, "zeta": 0.0, "evolve_last": True}, []),
    ],
)
def test_when_the_topology_evolves(settings, evolved):
    trainer, seen = fit_with_topologies(**settings)
    timed = [r.epoch for r in trainer.history if r.evolution_s is not None]
    assert timed == evolved
    for epoch in range(1, settings["epochs"] + 1):
        for k, (before, after) in enumerate(zip(seen[epoch - 1], seen[epoch], strict=True)):
            hidden = k < len(seen[0]) - 1
            assert (before != after) == (hidden and epoch in evolved)
            assert len(before) == len(after)
    assert len({tuple(nnz) for nnz in trainer.history["nnz"]}) == 1


def test_zeta_decays_from_one_evolution_to_the_next(monkeypatch):
    X, y = task()
    trainer = make_trainer(epochs=6, zeta=0.4, zeta_decay=0.5, evolution_interval=2, epsilon=5)
    expected, found = [], []
    evolve = Trainer.evolve

    def spy(self, data, **_):
        zeta = 0.4 * 0.5 ** len(found)
        expected.append(
            [
                int(zeta * np.sum(layer.values >= 0)) + int(zeta * np.sum(layer.values < 0))
                for layer in self.network.layers[:-1]
            ]
        )
        maps = evolve(self, data)
        found.append([int(np.sum(slots == -1)) for slots in maps])
        return maps

    monkeypatch.setattr(Trainer, "evolve", spy)
    trainer.fit(X, y, progress=False)
    assert len(found) == 2
    assert found == expected
    assert sum(found[0]) > 1.5 * sum(found[1]) > 0


# Callbacks


def test_callbacks_are_called_after_every_epoch():
    X, y = task()
    trainer = make_trainer()
    calls = []

    def callback(trainer_, record):
        assert trainer_ is trainer
        assert record is trainer.history.epochs[-1]
        assert trainer.epoch == record.epoch
        calls.append(record.epoch)

    trainer.fit(X, y, callbacks=[callback, callback], progress=False)
    assert calls == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("answer", [True, np.bool_(True), 1])
def test_a_callback_can_end_the_training(answer):
    X, y = task()
    trainer = make_trainer(epochs=9)
    calls = []
    stop = [
        lambda trainer, record: answer if record.epoch == 2 else None,
        lambda trainer, record: calls.append(record.epoch),
    ]
    history = trainer.fit(X, y, callbacks=stop, progress=False)
    assert len(history) == 3
    assert calls == [1, 2]
    assert len(trainer.fit(X, y, progress=False)) == 10  # and it can go on


def test_a_callback_that_fails_is_heard():
    def fail(trainer, record):
        raise RuntimeError("a bug of the user's")

    with pytest.raises(RuntimeError, match="a bug of the user's"):
        make_trainer().fit(*task(), callbacks=[fail], progress=False)


# Early stopping


def test_validation_rows_are_never_trained_on():
    X, y = task(203)
    trainer = make_trainer(trainer=SpyTrainer, validation_fraction=0.25, epochs=4)
    trainer.fit(X, y, progress=False)
    used = np.unique(trainer.rows_of(0))
    assert len(used) == 203 - 51  # rounded up
    for epoch in range(4):
        np.testing.assert_array_equal(np.sort(trainer.rows_of(epoch)), used)
    scaler = StandardScaler().fit(X[used].astype(np.float64))
    np.testing.assert_allclose(trainer.network.preprocessing.mean, scaler.mean_, rtol=1e-4)
    np.testing.assert_allclose(trainer.network.preprocessing.scale, 1 / scaler.scale_, rtol=1e-4)

    other = make_trainer(trainer=SpyTrainer, validation_fraction=0.25, seed=1)
    other.fit(X, y, progress=False)
    assert not np.array_equal(np.unique(other.rows_of(0)), used)


def test_validation_accuracy_is_that_of_the_rows_left_out():
    X, y = task(203)
    trainer = make_trainer(trainer=SpyTrainer, validation_fraction=0.25, epochs=1)
    history = trainer.fit(X, y, progress=False)
    used = trainer.rows_of(0)
    left = np.setdiff1d(np.arange(203), used)
    assert history["train_accuracy"][1] == np.mean(predict(trainer.network, X[used]) == y[used])
    assert history["validation_accuracy"][1] == np.mean(
        predict(trainer.network, X[left]) == y[left]
    )


@pytest.mark.parametrize("patience", [1, 3])
def test_stops_when_patience_is_over(patience):
    X, y = task()
    trainer = make_trainer(
        epochs=20,
        learning_rate=0.0,  # nothing changes, so the first epoch stays the best
        weight_decay=0.0,
        zeta=0.0,
        validation_fraction=0.2,
        patience=patience,
    )
    assert len(trainer.fit(X, y, progress=False)) == 1 + 1 + patience


@pytest.mark.parametrize("patience", [4, None])
def test_the_weights_of_the_best_epoch_come_back(patience):
    X, y = task(150, seed=2)
    trainer = make_trainer(
        trainer=SpyTrainer,
        epochs=15,
        learning_rate=0.3,  # unsteady
        zeta=0.0,
        validation_fraction=0.3,
        patience=patience,
        network={"activation": "relu"},
    )
    seen = {}
    history = trainer.fit(
        X,
        y,
        progress=False,
        callbacks=[
            lambda trainer, record: seen.update(
                {record.epoch: [layer.values.copy() for layer in trainer.network.layers]}
            )
        ],
    )
    accuracies = history["validation_accuracy"][1:]
    best = 1 + int(np.argmax(accuracies))
    assert best < history.epochs[-1].epoch
    assert history.epochs[-1].epoch == (15 if patience is None else best + patience)
    assert same(seen[best], [layer.values for layer in trainer.network.layers])
    assert not same(seen[history.epochs[-1].epoch], seen[best])


def test_the_best_weights_come_back_with_their_topology():
    X, y = task(150, seed=2)
    trainer = make_trainer(
        trainer=SpyTrainer,
        epochs=15,
        learning_rate=0.3,
        validation_fraction=0.3,
        patience=4,
        network={"activation": "relu"},
    )
    history = trainer.fit(X, y, progress=False)
    left = np.setdiff1d(np.arange(150), trainer.rows_of(0))
    best = max(history["validation_accuracy"][1:])
    assert best > history["validation_accuracy"][-1]
    assert np.mean(predict(trainer.network, X[left]) == y[left]) == best
    layer = trainer.network.layers[0]
    again = csr_array((layer.values, layer.topology.indices, layer.topology.indptr), (10, 24))
    by_output = csr_array(
        (layer.values_by_output, layer.indices_by_output, layer.indptr_by_output), (24, 10)
    )
    np.testing.assert_array_equal(again.toarray(), by_output.toarray().T)


def test_a_second_fit_leaves_the_best_weights_alone():
    X, y = task(150, seed=2)
    options = {"learning_rate": 0.3, "validation_fraction": 0.3, "network": {"activation": "relu"}}
    trainer = make_trainer(epochs=15, **options)
    trainer.fit(X, y, progress=False, callbacks=[lambda trainer, record: record.epoch == 8])
    assert trainer.best.epoch < 8
    best = trainer.state.best = dataclasses.replace(trainer.best, score=2.0)  # nothing is better
    kept, found = [arrays["values"].copy() for arrays in best.layers], copies_of(trainer.network)
    history = trainer.fit(X, y, progress=False)
    assert len(history) == 16 and trainer.best is best
    assert same(kept, [arrays["values"] for arrays in best.layers])
    assert same(found, copies_of(trainer.network))


def test_a_score_that_says_nothing_is_refused():
    X, y = task(20)
    trainer = make_trainer(epochs=2, batch_size=4, validation_fraction=0.05)
    with pytest.raises(ParameterError, match=r"'validation_fraction'.* at least 2 rows.* leaves 1"):
        trainer.fit(X, y, progress=False)
    trainer = make_trainer(epochs=2, batch_size=4, validation_fraction=0.2)
    weights = np.zeros(20)
    weights[:5] = 1  # rows of weight 0 are not set aside
    with pytest.raises(ParameterError, match=r"weight above 0 to watch\. It leaves 1\."):
        trainer.fit(X, y, sample_weight=weights, progress=False)
    weights[:10] = 1
    trainer.fit(X, y, sample_weight=weights, progress=False)


def test_targets_of_which_all_that_are_watched_are_the_same_are_refused():
    X, y = task(20)
    network = {"loss": "mean_squared_error"}
    trainer = make_trainer(
        (10, 24, 1), epochs=2, batch_size=4, validation_fraction=0.2, network=network
    )
    rows = prepare_(trainer.network, trainer.config, X, y).validation_rows
    targets = np.arange(20.0)
    targets[rows] = 3
    with pytest.raises(ParameterError, match=r"All 4 rows .* the same targets"):
        trainer.fit(X, targets, progress=False)


def test_a_validation_part_that_overflows_is_told():
    X, y = task(20)
    trainer = make_trainer(
        (10, 24, 1),
        epochs=2,
        learning_rate=0.0,  # the training itself is well
        batch_size=4,
        validation_fraction=0.2,
        standardize=False,
        network={"loss": "mean_squared_error"},
    )
    rows = prepare_(trainer.network, trainer.config, X, y).validation_rows
    X[rows] = 1e38
    with pytest.raises(NumericalError, match="The loss became"):
        trainer.fit(X, np.arange(20.0), progress=False)


def test_without_loss_rows_no_row_is_evaluated_and_the_weights_are_the_same():
    X, y = task(40)
    plain, quick = make_trainer(epochs=3), make_trainer(epochs=3, loss_rows=0)
    expected = plain.fit(X, y, progress=False)
    quick.evaluate = None  # whoever calls it fails
    found = quick.fit(X, y, progress=False)
    assert found["loss"] == found["train_accuracy"] == [None] * 4
    assert found["running_loss"] == expected["running_loss"]
    assert same(plain.network, quick.network)


def test_without_an_evaluation_before_it_a_training_is_the_same():
    X, y = task(40)
    plain, later = make_trainer(epochs=2), make_trainer(epochs=2, evaluate_first=False)
    expected, found = (each.fit(X, y, test=(X, y), progress=False) for each in (plain, later))
    names = ("loss", "train_accuracy", "test_accuracy", "inference_s")
    assert [found[name][0] for name in names] == [None] * 4
    for name in names[:3]:
        assert found[name][1:] == expected[name][1:] and None not in found[name][1:]
    assert found["active_neurons"] == expected["active_neurons"]
    assert found["nnz"] == expected["nnz"]
    assert same(plain.network, later.network)


def test_weights_that_the_last_update_makes_infinite_are_told_without_loss_rows():
    X, y = task(20)
    options = {"loss_rows": 0, "learning_rate": 1e38, "batch_size": 20, "epochs": 1}
    trainer = make_trainer(**options, network={"loss": "mean_squared_error"}, layer_sizes=(10, 1))
    with pytest.raises(NumericalError, match="The loss became nan at step 1"):
        trainer.fit(X, np.where(y, 1e3, -1e3), progress=False)


def test_the_loss_is_over_rows_that_count():
    X, y = task(40)
    weights = np.r_[np.zeros(30), np.ones(10)]
    trainer = make_trainer(batch_size=4, loss_rows=5)
    data = prepare_(trainer.network, trainer.config, X, y, sample_weight=weights)
    assert len(data.loss_rows) == 5 and min(data.loss_rows) >= 30


# Equal results


@pytest.mark.parametrize("micro_batch", [1, 13, 31, 500])
def test_micro_batches_give_the_whole_batch(micro_batch):
    X, y = task(320)
    results = []
    for size in (None, micro_batch):
        trainer = make_trainer(
            epochs=2, dropout=0.3, zeta=0.0, micro_batch=size, batch_size=32, weight_decay=1e-3
        )
        history = trainer.fit(X, y, test=(X, y), progress=False)
        results.append((history, copies_of(trainer.network)))
    (whole, expected), (micro, found) = results
    assert trainer.workspace.micro_batch == min(micro_batch, 32)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)
    for name in ("loss", "test_accuracy"):
        np.testing.assert_allclose(micro[name], whole[name], rtol=1e-4)
    np.testing.assert_allclose(micro["running_loss"][1:], whole["running_loss"][1:], rtol=1e-4)


def trained_state(seed=0, threads=1, backend="scipy", **settings):
    """50 steps with four evolutions; layers wide enough that backends split them over threads."""
    X, y = task(160, 64, 4)
    trainer = make_trainer(
        (64, 20_000, 300, 4),
        epsilon=1.0,
        epochs=5,
        batch_size=16,
        dropout=0.2,
        learning_rate=0.5,
        threads=threads,
        backend=backend,
        seed=seed,
        network={"recipe": "width"},
        **settings,
    )
    trainer.fit(X, y, progress=False)
    assert trainer.step_count == 50
    return copies_of(trainer.network)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_number_of_threads_does_not_matter(backend):
    one = trained_state(backend=usable(backend))
    assert same(one, trained_state(backend=backend, threads=2))


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    one = trained_state(seed=5)
    assert same(one, trained_state(seed=5, micro_batch=16))
    other = trained_state(seed=6)
    assert not any(np.array_equal(a, b) for a, b in zip(one[5::10], other[5::10], strict=True))


def fit_state(X, y, **settings):
    trainer = make_trainer((X.shape[1], 24, 16, 2), **settings)
    history = trainer.fit(X, y, progress=False)
    return history, copies_of(trainer.network)


@pytest.mark.parametrize("make_sparse", [csr_array, csr_matrix])
@pytest.mark.parametrize("standardize", [True, False])
def test_csr_input_equals_dense_input(make_sparse, standardize):
    X, y = task(100, 12)
    X[np.abs(X) < 0.7] = 0
    sparse = make_sparse(X)
    if make_sparse is csr_matrix:
        sparse.indices = sparse.indices.astype(np.int64)
        sparse.indptr = sparse.indptr.astype(np.int64)
    (dense_history, dense), (sparse_history, other) = (
        fit_state(data, y, standardize=standardize, zeta=0.0) for data in (X, sparse)
    )
    if standardize:  # the statistics are summed in another order
        for one, two in zip(dense, other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)
    else:
        assert same(dense, other)
        assert dense_history["loss"] == sparse_history["loss"]


def test_sparse_input_is_not_densified():
    rng = np.random.default_rng(0)
    n, features = 400, 100_000  # 160 MB dense; 6.4 MB a batch
    columns = rng.integers(features, size=(n, 20))
    y = np.arange(n) % 2
    columns[:, 0] = y
    indptr = np.arange(0, 20 * n + 1, 20)
    X = csr_array((np.ones(20 * n, np.float32), columns.ravel(), indptr), (n, features))
    X.sum_duplicates()
    trainer = make_trainer((features, 50, 2), epsilon=0.5, epochs=1, batch_size=16)
    tracemalloc.start()
    try:
        trainer.fit(X, y, test=(X, y), progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * n * features / 3


@pytest.mark.parametrize("constant", [7.0, -3e8])
def test_constant_features_are_safe(constant):
    X, y = task()
    X[:, 3] = 0
    history, expected = fit_state(X, y)
    X[:, 3] = constant
    other, found = fit_state(X, y)
    assert np.isfinite(history["loss"]).all()
    assert same(expected, found)
    assert other["loss"] == history["loss"]


def test_standardisation_is_that_of_scikit_learn():
    X, y = task()
    X = X * np.logspace(-3, 3, 10, dtype=np.float32) + 5
    trainer = make_trainer(zeta=0.0)
    trainer.fit(X, y, progress=False)
    scaled = StandardScaler().fit_transform(X.astype(np.float64))
    plain = make_trainer(zeta=0.0, standardize=False)
    plain.fit(scaled, y, progress=False)
    assert plain.network.preprocessing is None
    np.testing.assert_allclose(
        predict_proba(trainer.network, X), predict_proba(plain.network, scaled), atol=1e-3
    )
    scaler = StandardScaler().fit(X.astype(np.float64))
    np.testing.assert_allclose(trainer.network.preprocessing.mean, scaler.mean_, rtol=1e-5)


def test_without_standardisation_the_inputs_are_taken_as_they_are():
    X, y = task()
    shifted = fit_state(X + 1, y, standardize=False)[1]
    assert not same(shifted, fit_state(X, y, standardize=False)[1])
    for one, other in zip(
        fit_state(X + 1, y, zeta=0.0)[1], fit_state(X, y, zeta=0.0)[1], strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    "names",
    [
        np.array(["anchovy", "bee", "cod"]),
        np.array(["anchovy", "bee", "cod"], dtype=object),
        np.array([1, 5, 9]),
        np.array([-4, 0, 2**40]),
        np.array([1.0, 5.0, 9.0]),
        np.array([b"a", b"b", b"c"]),
        np.array([1, 5, 9], dtype=np.uint8),
    ],
)
def test_labels_may_be_strings_or_have_gaps(names):
    X, y = task(120, 10, 3)
    plain = make_trainer((10, 24, 16, 3))
    plain.fit(X, y, progress=False)
    named = make_trainer((10, 24, 16, 3))
    history = named.fit(X, names[y], test=(X, names[y]), progress=False)
    assert same(copies_of(plain.network), copies_of(named.network))
    np.testing.assert_array_equal(named.network.classes, names)
    found = predict(named.network, X)
    np.testing.assert_array_equal(found, names[predict(plain.network, X)])
    assert history["test_accuracy"][-1] == np.mean(found == names[y])


def test_a_test_part_may_lack_a_class():
    X, y = task(120, 10, 3)
    trainer = make_trainer((10, 24, 16, 3))
    history = trainer.fit(X, y, test=(X[y == 2], y[y == 2]), progress=False)
    assert history["test_accuracy"][-1] == np.mean(predict(trainer.network, X[y == 2]) == 2)


@pytest.mark.parametrize("dtype", ["f8", "i4", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_inputs_of_other_types_and_layouts(dtype, order):
    X, y = task(64)
    X = np.abs(X * 3).astype(dtype)
    expected = fit_state(np.ascontiguousarray(X, dtype=np.float32), y, epochs=1)[1]
    given = np.repeat(X, 2, axis=1)[:, ::2] if order == "strided" else np.array(X, order=order)
    found = fit_state(given, y, epochs=1)[1]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["f2", ">f4", ">i4", "longdouble"])
def test_inputs_of_types_that_numba_does_not_know(dtype):
    X, y = task(64)
    X = X.astype(np.float16)
    try:
        found = fit_state(X.astype(dtype), y, epochs=1)[1]
    except DataError as error:
        assert_clear(error)
    else:
        kind = {"longdouble": np.float64, ">i4": np.int32}.get(dtype, np.float32)
        assert same(found, fit_state(X.astype(kind), y, epochs=1)[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_warming_up_compiles_and_leaves_the_threads_alone(backend, capsys):
    import numba

    before = numba.get_num_threads()
    warm_up(usable(backend), threads=1)
    assert numba.get_num_threads() == before
    assert capsys.readouterr().out == ""


# What goes wrong


def test_an_exploding_loss_is_told_with_its_step():
    X, y = task()
    trainer = make_trainer(learning_rate=1e30, zeta=0.0, batch_size=20)
    with pytest.raises(NumericalError, match="learning_rate") as caught:
        trainer.fit(X, y, progress=False)
    assert_clear(caught.value)
    assert f"step {trainer.step_count + 1} " in str(caught.value)
    assert "epoch 1, first in layer " in str(caught.value)
    assert 1 <= trainer.step_count < 5


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize(
    "training",
    [
        {"backend": "scipy"},
        {"backend": "fused"},  # a whole step is one call
        {"backend": "fused", "micro_batch": 10},
        {"backend": "fused", "activation_dtype": "bfloat16"},
    ],
)
def test_the_layer_is_told_where_a_loss_overflows(number, training):
    X, y = task()
    config = NetworkConfig((X.shape[1], 30, 20, len(np.unique(y))), epsilon=5.0, seed=1)
    trainer = Trainer(SparseMLP(config, progress=False), TrainingConfig(batch_size=20, **training))
    layer = trainer.network.layers[number - 2]
    assert layer.number == number
    layer.values[:] = layer.values_by_output[:] = 3e38
    with np.errstate(all="ignore"), pytest.raises(NumericalError, match=rf"in layer {number}\)"):
        trainer.step(X, y.astype(np.int32), np.arange(20))


def test_no_layer_is_told_where_activations_are_computed_twice():
    X, y = task()
    config = NetworkConfig((X.shape[1], 30, 20, 30, 20, len(np.unique(y))), epsilon=5.0, seed=1)
    training = TrainingConfig(batch_size=20, keep_every=2, backend="scipy")
    trainer = Trainer(SparseMLP(config, progress=False), training)
    trainer.network.layers[0].values_by_output[:] = 3e38
    with np.errstate(all="ignore"), pytest.raises(NumericalError, match=r"\(epoch 1\)"):
        trainer.step(X, y.astype(np.int32), np.arange(20))


def test_a_step_that_fails_leaves_the_weights():
    X, y = task()
    X = X.astype(np.float64)
    trainer = make_trainer(standardize=False, micro_batch=10)
    trainer.step(X, y.astype(np.int32), np.arange(32))
    before = copies_of(trainer.network)
    X[25] = np.inf  # in a later micro-batch
    with pytest.raises(NumericalError, match="step 2 "), np.errstate(invalid="ignore"):
        trainer.step(X, y.astype(np.int32), np.arange(32))
    assert same(before, copies_of(trainer.network))
    assert trainer.step_count == 1


def test_a_loss_that_explodes_in_the_last_step_is_told(tmp_path):
    X, y = task()
    trainer = make_trainer(learning_rate=1e30, epochs=1, batch_size=100)
    with pytest.raises(NumericalError):
        trainer.fit(X, y, progress=False)


def test_infinite_differences_of_logits_are_told_without_warnings():
    X, y = task()
    trainer = make_trainer()
    trainer.network.layers[-1].bias[:] = -3e38, 3e38  # their difference overflows float32
    with pytest.raises(NumericalError), warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.step(X, y.astype(np.int32))


def test_a_learning_rate_beyond_float32_is_told_without_warnings():
    X, y = task()
    with pytest.raises((NumericalError, ParameterError)), warnings.catch_warnings():
        warnings.simplefilter("error")
        make_trainer(learning_rate=1e39).fit(X, y, progress=False)


def nan_at(X, value=np.nan):
    X = X.copy()
    X[7, 3] = value
    return X


REFUSED = {
    "NaN": lambda X, y: (nan_at(X), y),
    "infinity": lambda X, y: (nan_at(X, -np.inf), y),
    "too large": lambda X, y: (nan_at(X.astype(np.float64), 1e39), y),
    "NaN in CSR": lambda X, y: (csr_array(nan_at(X)), y),
    "too few features": lambda X, y: (X[:, :9], y),
    "too many features": lambda X, y: (np.hstack([X, X]), y),
    "CSR of other width": lambda X, y: (csr_array(X[:, :9]), y),
    "one dimension": lambda X, y: (X[:, 0], y),
    "three dimensions": lambda X, y: (X[:, :, None], y),
    "no rows": lambda X, y: (X[:0], y[:0]),
    "no labels": lambda X, y: (X, y[:0]),
    "no y": lambda X, y: (X, None),
    "strings in X": lambda X, y: (X.astype(str), y),
    "complex X": lambda X, y: (X.astype(complex), y),
    "y too short": lambda X, y: (X, y[:-1]),
    "y too long": lambda X, y: (X[:-1], y),
    "one class": lambda X, y: (X, np.zeros_like(y)),
    "more classes than outputs": lambda X, y: (X, np.arange(len(y)) % 3),
    "one-hot": lambda X, y: (X, np.eye(2)[y]),
    "NaN label": lambda X, y: (X, np.where(np.arange(len(y)) == 3, np.nan, y)),
    "continuous labels": lambda X, y: (X, y + 0.5),
    "fewer rows than a batch": lambda X, y: (X[:31], y[:31]),
}


def assert_untouched(trainer, before):
    assert same(before, copies_of(trainer.network))
    assert trainer.network.classes is None
    assert trainer.network.preprocessing is None
    assert trainer.epoch == trainer.step_count == len(trainer.history) == 0


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_is_refused_and_changes_nothing(case, tmp_path):
    trainer = make_trainer()
    before = copies_of(trainer.network)
    X, y = REFUSED[case](*task())
    with pytest.raises(LargeSparseError) as caught:
        trainer.fit(X, y, progress=False, checkpoint=tmp_path / "checkpoint")
    assert isinstance(caught.value, (DataError, ParameterError))
    assert_clear(caught.value)
    assert_untouched(trainer, before)
    assert list(tmp_path.iterdir()) == []


REFUSED_TESTS = {
    "unknown label": lambda X, y: (X, y + 1),
    "labels of another type": lambda X, y: (X, np.array(["a", "b"])[y]),
    "NaN": lambda X, y: (nan_at(X), y),
    "other features": lambda X, y: (X[:, :9], y),
    "lengths": lambda X, y: (X, y[:-1]),
    "empty": lambda X, y: (X[:0], y[:0]),
}


@pytest.mark.parametrize("case", REFUSED_TESTS)
def test_a_bad_test_part_is_refused_before_training(case):
    trainer = make_trainer()
    before = copies_of(trainer.network)
    X, y = task()
    with pytest.raises(DataError) as caught:
        trainer.fit(X, y, test=REFUSED_TESTS[case](X, y), progress=False)
    assert_clear(caught.value)
    assert_untouched(trainer, before)


def test_messages_name_what_came_and_what_is_expected():
    X, y = task()
    for case, words in {
        "NaN": ("NaN", "row 7", "column 3"),
        "too few features": ("9 features", "10"),
        "more classes than outputs": ("3 classes", "2 outputs", "layer_sizes"),
        "fewer rows than a batch": ("'batch_size'", "31", "32"),
        "y too short": ("100", "99"),
        "one class": ("one class",),
    }.items():
        with pytest.raises(LargeSparseError) as caught:
            make_trainer().fit(*REFUSED[case](X, y), progress=False)
        for word in words:
            assert word in str(caught.value), case


def test_labels_that_a_trained_network_does_not_know_are_refused():
    X, y = task()
    trainer = make_trainer()
    trainer.fit(X, np.array(["a", "b"])[y], progress=False)
    before = copies_of(trainer.network)
    for labels in (np.array(["a", "c"])[y], y):
        again = Trainer(trainer.network, trainer.config)
        with pytest.raises(DataError, match="not among the 2 known classes"):
            again.fit(X, labels, progress=False)
    assert same(before, copies_of(trainer.network))
    assert trainer.network.classes.tolist() == ["a", "b"]


def test_a_validation_part_that_leaves_too_few_rows_is_refused():
    X, y = task(40)
    for fraction in (0.5, 0.999):
        trainer = make_trainer(validation_fraction=fraction)
        before = copies_of(trainer.network)
        with pytest.raises(ParameterError, match=r"'validation_fraction'.*'batch_size'") as caught:
            trainer.fit(X, y, progress=False)
        assert_clear(caught.value)
        assert_untouched(trainer, before)


NAN = float("nan")
BAD_SETTINGS = [
    *[("epochs", value) for value in (0, -1, 2.0, "3", None, True)],
    *[("batch_size", value) for value in (0, 1.5)],
    *[("micro_batch", value) for value in (0, -1, 1.5)],
    *[("learning_rate", value) for value in (-0.1, NAN, float("inf"), "0.1")],
    *[("momentum", value) for value in (1, -0.1, NAN)],
    *[("weight_decay", value) for value in (-1e-9, 2, NAN)],
    *[("dropout", value) for value in (1, -0.1, NAN)],
    *[("zeta", value) for value in (1, -0.1, NAN)],
    *[("zeta_decay", value) for value in (1.1, -0.1)],
    *[("evolution_interval", value) for value in (0, 0.5)],
    *[("validation_fraction", value) for value in (1, -0.1)],
    *[("patience", value) for value in (0, 1)],  # and without a validation part
    *[("seed", value) for value in (-1, 2**64, 0.5)],
    *[("schedule", value) for value in ("nonsense", None)],
    ("warmup_epochs", -1),
    ("decay_every", 0),
    ("decay_factor", 0),
    ("decay_factor", 1.5),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_bad_settings_of_a_training_are_refused(name, value):
    with pytest.raises(ParameterError) as caught:
        TrainingConfig(**{name: value})
    assert_clear(caught.value)
    assert f"'{name}'" in str(caught.value)
    if (name, value) != ("patience", 1):
        assert f"Got {value!r} instead." in str(caught.value)


BAD_NETWORKS = [
    ("layer_sizes", ()),
    ("layer_sizes", (5,)),
    ("layer_sizes", (5, 0, 2)),
    ("layer_sizes", (5, -3, 2)),
    ("layer_sizes", (5, 2.5, 2)),
    ("layer_sizes", (5, 4, 1)),
    ("layer_sizes", (5, 2**31, 2)),
    ("epsilon", 0),
    ("epsilon", -1),
    ("epsilon", NAN),
    ("density", 0),
    ("density", 1.5),
    ("alpha", -1),
    ("alpha", NAN),
    ("activation", "gelu"),
    ("initializer", "zeros"),
    ("recipe", "cake"),
    ("seed", -1),
]


@pytest.mark.parametrize(("name", "value"), BAD_NETWORKS)
def test_bad_settings_of_a_network_are_refused(name, value):
    with pytest.raises(ParameterError) as caught:
        NetworkConfig(**{"layer_sizes": (5, 4, 2)} | {name: value})
    assert_clear(caught.value)
    assert f"'{name}" in str(caught.value)


def test_layer_sizes_that_are_no_sequence_are_refused():
    with pytest.raises(ParameterError):
        NetworkConfig(100)


def test_epsilon_and_density_exclude_each_other():
    with pytest.raises(ParameterError, match="not both"):
        NetworkConfig((5, 4, 2), epsilon=1, density=0.5)


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="batchsize"):
        TrainingConfig(batchsize=3)


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("threads", "2"), ("backend", "cuda")])
def test_threads_and_backends_that_do_not_exist_are_refused(name, value):
    with pytest.raises(ParameterError) as caught:
        make_trainer(**{name: value})
    assert_clear(caught.value)
    assert f"'{name}'" in str(caught.value)

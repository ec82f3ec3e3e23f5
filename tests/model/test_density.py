"""Connections by one global density, over time, and between layers."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from helpers import dense_gradients, make_network, make_trainer, normal_rows, pattern, same
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from largesparse import (
    NetworkConfig,
    SparseMLP,
    SparseMLPClassifier,
    Trainer,
    TrainingConfig,
    compact,
    load_checkpoint,
)
from largesparse.data.batches import is_sparse
from largesparse.errors import ParameterError
from largesparse.model.config import DISTRIBUTION
from largesparse.model.density import (
    Shrinking,
    count_weakest,
    hidden_connections,
    plan_changes,
    share_growth,
    solve_epsilon,
)
from largesparse.model.evolution import Change, evolve
from largesparse.model.rules import Rules
from largesparse.model.storage import Storage
from largesparse.training.memory import plan_training
from largesparse.training.prepared import prepare_

SIZES = (12, 40, 30, 3)
SHAPES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=6)


def rows(n=120, seed=0):
    X = normal_rows(n, SIZES[0], seed)
    return X, X[:, :3].argmax(axis=1)


# One global density


@given(shapes=SHAPES, density=st.floats(1e-6, 1))
def test_epsilon_is_where_bisection_finds_it(shapes, density):
    wanted = density * sum(a * b for a, b in shapes)

    def total(epsilon):
        return sum(min(a * b, epsilon * (a + b)) for a, b in shapes)

    low, high = 0.0, 3001.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) < wanted else (low, middle)
    epsilon = solve_epsilon(shapes, density)
    assert total(epsilon) == pytest.approx(wanted, rel=1e-12)
    if density < 1 - 1e-9:
        assert epsilon == pytest.approx(high, rel=1e-9)


def test_a_global_density_is_that_of_all_layers_together():
    config = NetworkConfig((784, 1000, 1000, 10), density=0.05, distribution="erdos_renyi")
    cells = [784_000, 1_000_000, 10_000]
    p = config.probabilities()
    assert p[2] == 1 > p[0] > p[1]  # the output layer is full, and counts
    assert np.dot(p, cells) == pytest.approx(0.05 * sum(cells))
    assert p[0] * cells[0] / 1784 == pytest.approx(p[1] * cells[1] / 2000)
    apart = dataclasses.replace(config, output_density=0.5).probabilities()
    assert apart[2] == 0.5
    assert np.dot(apart[:2], cells[:2]) == pytest.approx(0.05 * sum(cells[:2]))
    by_layer = dataclasses.replace(config, distribution="uniform").probabilities()
    assert by_layer == [0.05] * 3
    assert NetworkConfig((5, 4, 3), density=1.0, distribution="erdos_renyi").probabilities() == (
        [1.0] * 2
    )
    assert set(DISTRIBUTION) == {"uniform", "erdos_renyi"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distribution": "erk", "density": 0.1}, "must be one of .*erdos_renyi"),
        ({"distribution": "erdos_renyi"}, "Give 'density'"),
        ({"distribution": "erdos_renyi", "density": 1.5}, "'density'.*1.5"),
        (
            {"distribution": "erdos_renyi", "density": 0.01, "epsilon": 20.0},
            r"either 'epsilon' or 'density'.*Got 20\.0 and 0\.01",
        ),
        ({"start_factor": 0.5}, r"'start_factor'.*\[1, inf\)"),
        ({"start_factor": 4, "layer_sizes": (12, 3)}, "'start_factor'.*there are none. Got 4"),
    ],
)
def test_impossible_densities_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        NetworkConfig(**{"layer_sizes": SIZES} | options)
    assert NetworkConfig((12, 3), start_factor=1).start_factor == 1


# Over time


def test_a_network_begins_with_the_factor_and_its_output_layer_without():
    config = NetworkConfig(SIZES, density=0.1, start_factor=4)
    assert config.probabilities() == [0.4, 0.4, 0.1]
    assert config.final_probabilities() == [0.1] * 3
    assert dataclasses.replace(config, start_factor=20).probabilities() == [1.0, 1.0, 0.1]
    assert hidden_connections(config) == [48, 120]
    whole, end = (
        plan_training(c, 8) for c in (config, dataclasses.replace(config, start_factor=1))
    )
    assert whole.model > 2 * end.model and whole.gradients > 2 * end.gradients


def test_the_targets_are_those_of_the_cubic_schedule():
    network = make_network((100, 100, 2), density=0.1, start_factor=4)
    training = TrainingConfig(epochs=12, shrink_start=2, shrink_end=6)
    shrinking = Shrinking.of(network, training)
    assert shrinking == (2, 6)
    found = [shrinking.targets(network.config, epoch) for epoch in range(8)]
    assert found[:3] == [[]] * 3
    # 1000 + 3000·(1 - t)³ with t = 1/4, 1/2, 3/4, 1, 1
    assert found[3:] == [[2266], [1375], [1047], [1000], [1000]]


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"epochs": 10}, 5),
        ({"epochs": 7}, 4),
        ({"epochs": 2}, 1),
        ({"epochs": 10, "evolution_interval": 4}, 8),
        ({"epochs": 10, "evolution_interval": 4, "shrink_end": 3}, 4),
        ({"epochs": 6, "shrink_start": 4}, 5),
    ],
)
def test_it_ends_at_an_evolution_before_the_last_epoch(options, end):
    network = make_network(density=0.1, start_factor=2)
    assert Shrinking.of(network, TrainingConfig(**options)).end == end
    assert Shrinking.of(make_network(density=0.1), TrainingConfig(**options)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1}, r"last such is that after epoch 0\. Change the number of epochs"),
        ({"epochs": 5, "shrink_end": 5}, r"epoch 4\. Change 'shrink_end' \(5\) or the number of"),
        ({"epochs": 5, "evolution_interval": 5}, "Change the number of epochs"),
        ({"epochs": 9, "shrink_start": 3, "shrink_end": 2}, r"after epoch 3 \('shrink_start'\)"),
    ],
)
def test_a_training_too_short_to_shrink_is_refused(options, message):
    trainer = make_trainer(SIZES, density=0.1, start_factor=2, batch_size=32, **options)
    with pytest.raises(ParameterError, match=message):
        trainer.fit(*rows(), progress=False)


@pytest.mark.parametrize("drop", ["set", "magnitude", "soft", "mest"])
@pytest.mark.parametrize("zeta", [0.0, 0.3])
def test_every_epoch_has_the_connections_of_the_schedule(drop, zeta):
    options = {"density": 0.1, "start_factor": 4, "batch_size": 32, "backend": "fused"}
    options |= {"zeta": zeta, "epochs": 7, "shrink_end": 5, "drop": drop}
    trainer = make_trainer(SIZES, **options)
    first, before = trainer.network.layer_connections, [pattern(x) for x in trainer.network.layers]
    trainer.fit(*rows(), progress=False)
    config, nnz = trainer.network.config, trainer.history["nnz"]
    shrinking = Shrinking(0, 5)
    assert nnz[0] == nnz[1] == first  # the first evolution is after epoch 1
    for epoch in range(1, 7):
        wanted = shrinking.targets(config, epoch)
        assert nnz[epoch + 1] == [*map(min, first, wanted), first[2]]
    assert nnz[6] == nnz[7] == [48, 120, first[2]]
    now = [pattern(layer) for layer in trainer.network.layers]
    inside = [not (cells & ~then).any() for cells, then in zip(now, before, strict=True)]
    assert inside == ([True] * 3 if zeta == 0 else [False, False, True])
    assert trainer.workspace.gradients[0].shape == (48,)


@settings(max_examples=30)
@given(zeta=st.sampled_from([0.0, 0.2, 0.5]), target=st.integers(1, 200), seed=st.integers(0, 99))
def test_a_change_equals_the_definition(zeta, target, seed):
    layer = make_network((20, 30, 2), density=0.3, seed=seed).layers[0]
    target = min(target, layer.nnz)
    going = layer.nnz - target + math.floor(zeta * target)
    layer.velocity[:] = np.random.default_rng(seed).standard_normal(layer.nnz)
    before, values, velocity = pattern(layer), np.abs(layer.values), layer.velocity.copy()
    weakest = np.argsort(values, kind="stable")[:going]
    rows_, columns = layer.topology.rows(), layer.topology.indices
    rules = Rules.of("magnitude")
    change = Change(going, target)
    slot_map = evolve(layer, zeta, np.random.default_rng(seed), rules=rules, change=change)
    assert layer.nnz == target == len(layer.velocity) == len(layer.values_by_output)
    assert sorted(np.flatnonzero(slot_map == -1)) == sorted(weakest)
    stays = slot_map >= 0
    np.testing.assert_array_equal(np.abs(layer.values[slot_map[stays]]), values[stays])
    np.testing.assert_array_equal(layer.velocity[slot_map[stays]], velocity[stays])
    grown = pattern(layer)
    grown[rows_[stays], columns[stays]] = False
    assert np.count_nonzero(grown) == math.floor(zeta * target) == target - np.count_nonzero(stays)
    assert before.sum() - going + grown.sum() == target


def test_a_rule_that_lets_too_many_stay_is_helped():
    layer = make_network((20, 30, 2), density=0.3).layers[0]
    keep_all = Rules.of(lambda layer, state, count, rng: np.ones(layer.nnz, dtype=bool))
    weakest = np.argsort(np.abs(layer.values), kind="stable")[: layer.nnz - 50]
    change = Change(layer.nnz - 40, 50)
    slot_map = evolve(layer, 0.2, np.random.default_rng(0), rules=keep_all, change=change)
    assert layer.nnz == 50
    assert sorted(np.flatnonzero(slot_map == -1)) == sorted(weakest)


def test_few_nonzeros_shrink_as_dense_rows_do():
    X, y = rows(200)
    X[np.random.default_rng(1).random(X.shape) < 0.97] = 0
    assert is_sparse(csr_array(X), None)
    options = {"density": 0.1, "start_factor": 3, "batch_size": 20, "backend": "fused"}
    options |= {"epochs": 4, "drop": "magnitude", "standardize": False}
    dense, sparse = (make_trainer(SIZES, **options) for _ in range(2))
    dense.fit(X, y, progress=False)
    sparse.fit(csr_array(X), y, progress=False)
    assert sparse.history["nnz"] == dense.history["nnz"]
    assert sparse.history["loss"] == pytest.approx(dense.history["loss"], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("redistribute", [False, True])
def test_it_goes_on_to_the_same_bits(tmp_path, redistribute, optimizer):
    options = {"density": 0.1, "start_factor": 3, "batch_size": 32, "backend": "fused"}
    options |= {"optimizer": optimizer}
    options |= {"epochs": 5, "redistribute": redistribute, "drop": "magnitude"}
    X, y = rows()
    whole = make_trainer(SIZES, **options)
    whole.fit(X, y, progress=False)
    stopped = make_trainer(SIZES, **options)
    stop = [lambda trainer, record: record.epoch == 2]
    stopped.fit(X, y, callbacks=stop, checkpoint=tmp_path / "c", progress=False)
    resumed = load_checkpoint(tmp_path / "c", threads=2)
    assert sum(resumed.network.layer_connections) > sum(whole.network.layer_connections)
    resumed.fit(X, y, progress=False)
    assert same(resumed.network, whole.network)
    assert resumed.history["explored"] == whole.history["explored"]
    assert sum(whole.network.layer_connections[:2]) == 48 + 120
    for layer, other in zip(whole.network.layers, resumed.network.layers, strict=True):
        for kind, moments in layer.moments.items():
            assert len(moments["values"]) == layer.nnz
            np.testing.assert_array_equal(moments["values"], other.moments[kind]["values"])


def test_the_best_epoch_is_one_of_the_wanted_density():
    options = {"density": 0.1, "start_factor": 4, "batch_size": 16, "epochs": 12}
    options |= {"validation_fraction": 0.3, "patience": 1, "shrink_end": 4}
    options |= {"learning_rate": 0.0, "zeta": 0.0}
    trainer = make_trainer(SIZES, **options)
    trainer.fit(*rows(), progress=False)
    # Without learning the patience is over at once, but not before the network is small.
    assert trainer.epoch == 6 and trainer.best.epoch == 5
    assert trainer.network.layer_connections[:2] == [48, 120]
    assert trainer.shrinking is None and trainer.is_over


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_the_patience_goes_on_where_it_stopped(tmp_path, stop):
    """Also where the checkpoint is of the evolution that takes the last surplus, after epoch 4."""
    options = {"density": 0.1, "start_factor": 4, "batch_size": 32, "epochs": 12, "shrink_end": 4}
    options |= {"validation_fraction": 0.3, "patience": 2, "learning_rate": 0.0}
    whole, stopped = (make_trainer(SIZES, **options) for _ in range(2))
    X, y = rows()
    over = []
    note = [lambda trainer, record: over.append(trainer.is_over)]
    whole.fit(X, y, callbacks=note, progress=False)
    assert (whole.epoch, whole.best.epoch) == (7, 5)
    assert over == [False] * 6 + [True]
    ends = [lambda trainer, record: record.epoch == stop]
    stopped.fit(X, y, callbacks=ends, checkpoint=tmp_path, progress=False)
    resumed = load_checkpoint(tmp_path)
    assert not resumed.is_over
    resumed.fit(X, y, progress=False)
    assert (resumed.epoch, resumed.best.epoch) == (7, 5)
    assert same(resumed.network, whole.network)


@pytest.mark.parametrize(("epochs", "enough", "interval"), [(3, 5, 1), (4, 5, 1), (6, 7, 3)])
def test_a_surplus_that_nothing_would_take_away_is_refused(tmp_path, epochs, enough, interval):
    options = {"density": 0.1, "start_factor": 4, "batch_size": 32, "epochs": 9, "shrink_end": 6}
    stop = [lambda trainer, record: record.epoch == 3]
    trainer = make_trainer(SIZES, evolution_interval=interval, **options)
    trainer.fit(*rows(), callbacks=stop, checkpoint=tmp_path, progress=False)
    with pytest.raises(ParameterError, match=rf"After 3 epochs .* of {epochs} epochs .* none"):
        load_checkpoint(tmp_path, epochs=epochs, shrink_end=None)
    resumed = load_checkpoint(tmp_path, epochs=enough, shrink_end=None)
    resumed.fit(*rows(), progress=False)
    assert resumed.network.layer_connections[:2] == [48, 120]


def test_a_resumed_training_may_shrink_sooner(tmp_path):
    options = {"density": 0.1, "start_factor": 4, "batch_size": 32, "epochs": 9, "shrink_end": 7}
    options |= {"validation_fraction": 0.3}
    X, y = rows()
    stop = [lambda trainer, record: record.epoch == 3]
    make_trainer(SIZES, **options).fit(X, y, callbacks=stop, checkpoint=tmp_path, progress=False)
    resumed = load_checkpoint(tmp_path, shrink_end=2)
    resumed.fit(X, y, progress=False)
    assert resumed.network.layer_connections[:2] == [48, 120]
    assert resumed.best.epoch > 4  # the first evolution that comes is that after epoch 4


def test_importance_pruning_may_take_more():
    options = {"density": 0.2, "start_factor": 2, "batch_size": 32, "epochs": 6}
    options |= {"pruning_start": 1, "pruning_every": 1, "pruning_percentile": 30.0}
    trainer = make_trainer(SIZES, **options)
    trainer.fit(*rows(), progress=False)
    first, second = trainer.network.layer_connections[:2]
    assert first <= 96 and second < 240
    assert trainer.network.layers[0].dead.any()
    small = compact(trainer.network)
    assert small.config.start_factor == 1
    again = Trainer(small, TrainingConfig(epochs=1, batch_size=32, backend="scipy", threads=1))
    again.fit(*rows(), progress=False)
    assert small.connections == trainer.network.connections


def test_a_network_that_is_small_goes_on_as_it_is():
    trainer = make_trainer(SIZES, density=0.1, start_factor=2, batch_size=32, epochs=2)
    trainer.fit(*rows(), progress=False)
    config = dataclasses.replace(trainer.config, epochs=1)
    Trainer(trainer.network, config).fit(*rows(), progress=False)
    assert trainer.network.layer_connections[:2] == [48, 120]


# Between layers


@given(
    count=st.integers(0, 500),
    layers=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=6),
)
def test_growth_is_shared_in_proportion(count, layers):
    survivors, room = zip(*layers, strict=True)
    found = share_growth(count, survivors, room)
    assert sum(found) == min(count, sum(room))
    assert all(0 <= given <= most for given, most in zip(found, room, strict=True))
    free = [k for k in range(len(room)) if found[k] < room[k]]
    for i, k in itertools.combinations(free, 2):  # not capped: proportional, but for rounding
        if survivors[i] and survivors[k]:
            assert found[i] / survivors[i] == pytest.approx(
                found[k] / survivors[k], abs=len(room) * (1 / survivors[i] + 1 / survivors[k])
            )


@pytest.mark.parametrize("count", [0, 1, 100, 400, 10_000])
def test_one_threshold_counts_the_weakest_of_all_layers(count):
    layers = make_network((30, 40, 20, 2), density=0.4).layers
    for layer, scale in zip(layers, (1.0, 0.2, 3.0), strict=True):
        layer.values *= np.float32(scale)
    layers[0].values[:50] = layers[1].values[:50] = 0.125  # ties
    found = count_weakest(layers, count)
    values = np.abs(np.concatenate([layer.values for layer in layers]))
    owner = np.repeat(range(3), [layer.nnz for layer in layers])
    expected = np.bincount(owner[np.argsort(values, kind="stable")[:count]], minlength=3)
    least = [layer.nnz - 1 for layer in layers]
    assert found == np.minimum(expected, least).tolist()


def test_connections_move_between_layers():
    network = make_network((30, 40, 20, 2), density=0.3)
    network.layers[1].values *= np.float32(0.1)
    layers = network.layers[:-1]
    there = [layer.nnz for layer in layers]
    assert plan_changes(layers, 0.3) is None
    changes = plan_changes(layers, 0.3, redistribute=True)
    assert sum(change.going for change in changes) == math.floor(0.3 * sum(there))
    assert sum(change.target for change in changes) == sum(there)
    assert changes[0].target > there[0] and changes[1].target < there[1]
    for layer, change in zip(layers, changes, strict=True):
        rng = np.random.default_rng(layer.number)
        evolve(layer, 0.3, rng, rules=Rules.of("magnitude"), change=change)
        assert layer.nnz == change.target


def test_others_than_the_first_hidden_layers_keep_their_number():
    network = make_network((30, 40, 20, 2), density=0.3)
    layers, there = network.layers, network.layer_connections
    layers[0].config = dataclasses.replace(layers[0].config, frozen=True)
    for layer, factor in zip(layers, (1e-3, 1, 1e-3), strict=True):
        layer.values *= np.float32(factor)  # those that stay would lose all to one threshold
    changes = plan_changes(layers, 0.3, redistribute=True, hidden=2)
    assert changes == [Change(math.floor(0.3 * n), n) for n in there]
    layers[0].config = dataclasses.replace(layers[0].config, frozen=False)
    changes = plan_changes(layers, 0.3, redistribute=True, hidden=2)
    assert changes[2] == Change(math.floor(0.3 * there[2]), there[2])
    assert changes[0].target < there[0] and changes[1].going == 0
    assert sum(change.target for change in changes) == sum(there)


@pytest.mark.parametrize("drop", ["set", "magnitude"])
@pytest.mark.parametrize(
    "network",
    [
        {"output_minimum": 5},
        {"output_minimum": 2, "start_factor": 4},
        {"output_density": 0.6, "start_factor": 4},
    ],
)
def test_an_output_layer_that_evolves_takes_no_part(network, drop):
    """However many connections it must keep: the total is that of the configuration."""
    options = {"batch_size": 64, "epochs": 10, "redistribute": True, "evolve_output": True}
    options |= {"validation_fraction": 0.2, "patience": 20, "learning_rate": 0.1}
    trainer = make_trainer(SIZES, density=0.1, drop=drop, **network, **options)
    first = trainer.network.layer_connections
    trainer.fit(*rows(), progress=False)
    nnz = trainer.history["nnz"]
    wanted = hidden_connections(trainer.network.config)
    assert {each[2] for each in nnz} == {first[2]}
    totals = [sum(each[:2]) for each in nnz]
    assert totals[-1] == (sum(wanted) if "start_factor" in network else sum(first[:2]))
    assert totals == sorted(totals, reverse=True)
    assert trainer.best is not None and trainer.shrinking is None
    assert len({each[0] for each in nnz}) > 1  # hidden layers do exchange


@pytest.mark.parametrize("wrong", ["no", 2, None])
def test_redistribution_is_true_or_false(wrong):
    with pytest.raises(ParameterError, match=f"'redistribute'.*True or False. Got {wrong!r}"):
        TrainingConfig(redistribute=wrong)


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_a_layer_that_has_grown_has_the_right_gradients(growth):
    options = {"density": 0.2, "batch_size": 16, "epochs": 6, "backend": "fused", "zeta": 0.4}
    options |= {"redistribute": True, "growth": growth, "drop": "magnitude", "dropout": 0.0}
    options |= {"standardize": False, "activation": "relu", "evolve_last": True}
    trainer = make_trainer(SIZES, **options)
    first = trainer.network.layer_connections
    trainer.network.layers[1].values *= np.float32(0.01)
    X, y = rows()
    history = trainer.fit(X, y, progress=False)
    now = trainer.network.layer_connections
    assert now[0] > first[0] and sum(now[:2]) == sum(first[:2]) and now[2] == first[2]
    assert {sum(nnz) for nnz in history["nnz"]} == {sum(first)}
    trainer.gradient(X, y, np.arange(16), plain=True)
    expected = dense_gradients(trainer.network, X[:16], y[:16])
    for layer, gradient, all_cells in zip(
        trainer.network.layers, trainer.workspace.gradients, expected, strict=True
    ):
        cells = all_cells[layer.topology.rows(), layer.topology.indices]
        np.testing.assert_allclose(gradient, cells, rtol=1e-4, atol=1e-6)


def test_room_is_refused_where_there_is_none(tmp_path):
    network = SparseMLP(NetworkConfig(SIZES, density=0.2), storage=Storage(tmp_path))
    config = TrainingConfig(epochs=2, batch_size=16, redistribute=True)
    with pytest.raises(ParameterError, match=r"'redistribute'.*'storage'"):
        prepare_(network, config, *rows())


# The estimators


def test_an_estimator_ends_with_the_density():
    X, y = rows(200)
    options = {"density": 0.1, "distribution": "erdos_renyi", "start_factor": 3, "max_epochs": 4}
    options |= {"random_state": 0, "backend": "fused", "early_stopping": True, "patience": 1}
    model = SparseMLPClassifier((40, 30), **options).fit(X, y)
    config = model.network_.config
    assert model.network_.layer_connections[:2] == hidden_connections(config)
    assert model.network_.config.start_factor == 3
    shrinking = Shrinking(0, 2)  # half of the epochs
    assert model.history_.epochs[2].nnz[:2] == shrinking.targets(config, 1)
    scores = model.history_["validation_accuracy"]
    assert model.best_validation_score_ == max(scores[3:])
    with pytest.raises(ParameterError, match=r"'start_factor'.*partial_fit"):
        small = SparseMLPClassifier((9,), density=0.1, start_factor=2, random_state=0)
        small.partial_fit(X, y, classes=[0, 1, 2])

"""Importance Pruning: who dies, that the function stays, and that the dead stay dead.

The reference is a dense forward pass in float64 in which the incoming weights of neurons are set
to zero; it knows nothing of dead neurons or of biases that move.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import dense, same
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import chi2

from largesparse import (
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    compact,
    load_checkpoint,
    load_model,
    neuron_importance,
    predict_proba,
    prune_neurons,
    save_checkpoint,
    save_model,
)
from largesparse.backends import get_backend
from largesparse.errors import CheckpointError, ParameterError
from largesparse.machine.threads import kernel_threads
from largesparse.model.evolution import evolve, remove_connections
from largesparse.model.rule_state import RuleState
from largesparse.model.topology import Topology
from largesparse.model.workspace import Workspace

PERCENTILES = (5, 10, 15, 20, 25)  # of Table 6


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for one another cost more than such small layers."""
    with kernel_threads(1):
        yield


def make_network(sizes=(12, 30, 20, 3), seed=0, epsilon=4.0, **options):
    """A network with random biases and velocities."""
    network = SparseMLP(NetworkConfig(sizes, epsilon=epsilon, seed=seed, **options), progress=False)
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        layer.bias[:] = rng.standard_normal(layer.n_out)
        layer.velocity[:] = rng.standard_normal(layer.nnz)
        layer.bias_velocity[:] = rng.standard_normal(layer.n_out)
        if layer.srelu is not None:
            layer.srelu += 0.3 * rng.standard_normal(layer.srelu.shape).astype(np.float32)
            layer.srelu[2] = layer.srelu[0] + 0.5
    return network


def activation(layer):
    """f of a layer, on float64 (batch, n_out)."""
    if layer.srelu is None:
        return lambda z, slope=layer.slope: np.where(z > 0, z, slope * z)
    t_left, a_left, t_right, a_right = layer.srelu.astype(np.float64)
    return lambda z: np.select(
        [z <= t_left, z >= t_right],
        [t_left + a_left * (z - t_left), t_right + a_right * (z - t_right)],
        z,
    )


def dense_forward(weights, biases, activations, X):
    """Logits (batch, n_classes)."""
    for W, b, f in zip(weights, biases, activations, strict=True):
        X = f(X @ W + b)
    return X


def snapshot(network):
    layers = network.layers
    return (
        [dense(layer) for layer in layers],
        [layer.bias.astype(np.float64) for layer in layers],
        [activation(layer) for layer in layers],
    )


def logits(network, X):
    workspace = Workspace(network.layers, len(X), training=False)
    workspace.inputs(len(X))[:] = X.T
    return network.forward(workspace, len(X), get_backend("scipy")).T.copy()


def dead_of(layer):
    return np.zeros(layer.n_out, dtype=bool) if layer.dead is None else layer.dead


def check_dead(network):
    """The dead have no connections and no bias, and something is alive in every layer."""
    below = np.zeros(network.layers[0].n_in, dtype=bool)
    for layer in network.layers:
        dead = dead_of(layer)
        W = np.zeros((layer.n_in, layer.n_out), dtype=bool)
        W[layer.topology.rows(), layer.topology.indices] = True
        assert not W[:, dead].any() and not W[below].any()
        assert not layer.bias[dead].any() and not layer.bias_velocity[dead].any()
        assert layer.n_living == layer.n_out - dead.sum() > 0
        np.testing.assert_array_equal(layer.living(), np.flatnonzero(~dead))
        below = dead
    assert not below.any()  # the output neurons


def test_importance_is_the_sum_of_absolute_incoming_weights():
    for layer in make_network().layers:
        importance = neuron_importance(layer)
        assert importance.dtype == np.float32 and importance.shape == (layer.n_out,)
        np.testing.assert_allclose(importance, np.abs(dense(layer)).sum(axis=0), rtol=1e-6)


@settings(max_examples=60)
@given(
    hidden=st.lists(st.integers(1, 25), min_size=1, max_size=4),
    percentile=st.one_of(st.sampled_from(PERCENTILES), st.floats(0, 99)),
    epsilon=st.floats(0.5, 20),
    activation=st.sampled_from(["all_relu", "relu", "leaky_relu", "srelu"]),
    seed=st.integers(0, 99),
)
def test_the_function_is_that_without_the_incoming_weights(
    hidden, percentile, epsilon, activation, seed
):
    network = make_network((7, *hidden, 2), seed, epsilon, activation=activation)
    X = np.random.default_rng(seed).standard_normal((9, 7)).astype(np.float32)
    for _ in range(2):  # the second time some are dead already
        weights, biases, activations = snapshot(network)
        before = [dead_of(layer).copy() for layer in network.layers]
        prune_neurons(network, percentile)
        check_dead(network)
        for k, layer in enumerate(network.layers):
            weights[k][:, dead_of(layer)] = 0
            assert dead_of(layer)[before[k]].all()
        expected = dense_forward(weights, biases, activations, X.astype(np.float64))
        scale = 1 + np.abs(expected).max()
        np.testing.assert_allclose(logits(network, X) / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("percentile", PERCENTILES)
def test_those_below_the_percentile_of_the_living_die(percentile):
    network = make_network((12, 101, 57, 3), epsilon=6.0)
    for _ in range(3):
        expected = []
        for layer in network.layers[:-1]:
            importance = np.abs(dense(layer)).sum(axis=0)
            dead = dead_of(layer)
            limit = np.percentile(importance[~dead], percentile)
            expected.append(dead | (importance < limit))
        prune_neurons(network, percentile)
        for layer, dead in zip(network.layers, expected, strict=False):
            np.testing.assert_array_equal(layer.dead, dead)


def test_many_neurons_without_connections_do_not_stop_the_pruning():
    network = make_network((40, 200, 2), epsilon=0.5)
    assert np.mean(neuron_importance(network.layers[0]) == 0) > 0.2
    prune_neurons(network, 10)
    assert network.layers[0].n_living == 200 - math.ceil(0.1 * 199)
    assert not neuron_importance(network.layers[0])[network.layers[0].dead].any()


def test_a_normalised_layer_without_connections_can_be_pruned():
    network = SparseMLP(NetworkConfig((3, 4, 2), epsilon=3, batch_norm=True), progress=False)
    layer = network.layers[0]
    remove_connections(layer, np.zeros(layer.nnz, dtype=bool))
    assert neuron_importance(layer).tolist() == [0] * 4
    prune_neurons(network, 50)
    assert layer.dead is not None and layer.dead.sum() == 2


def test_a_threshold_in_place_of_a_percentile():
    network = make_network()
    importance = [np.abs(dense(layer)).sum(axis=0) for layer in network.layers]
    limit = float(np.median(importance[0]))
    prune_neurons(network, threshold=limit)
    for layer, values in zip(network.layers[:-1], importance, strict=False):
        np.testing.assert_array_equal(dead_of(layer), values < limit)
    prune_neurons(network, threshold=1e9)
    for layer, values in zip(network.layers[:-1], importance, strict=False):
        assert layer.n_living == 1
        assert values[layer.living()[0]] == values.max() or layer.number > 2
    check_dead(network)


@pytest.mark.parametrize(
    "arguments", [{}, {"percentile": 5, "threshold": 1.0}, {"percentile": 100}, {"threshold": -1}]
)
def test_mistakes_are_told(arguments):
    with pytest.raises(ParameterError, match=r"percentile|threshold"):
        prune_neurons(make_network(), **arguments)


@pytest.mark.parametrize(
    "setting", [{"pruning_start": -1}, {"pruning_every": 0}, {"pruning_percentile": 100}]
)
def test_bad_settings_are_refused(setting):
    with pytest.raises(ParameterError, match=next(iter(setting))):
        TrainingConfig(**setting)


def test_slot_maps_lead_to_the_same_cells():
    network = make_network()
    before = [
        (layer.topology.rows(), layer.topology.indices, layer.values, layer.velocity)
        for layer in network.layers
    ]
    maps = prune_neurons(network, 20)
    for layer, arrays, slot_map in zip(network.layers, before, maps, strict=True):
        assert slot_map.dtype == np.int32 and np.count_nonzero(slot_map >= 0) == layer.nnz
        kept = slot_map >= 0
        after = layer.topology.rows(), layer.topology.indices, layer.values, layer.velocity
        for old, new in zip(arrays, after, strict=True):
            np.testing.assert_array_equal(old[kept], new[slot_map[kept]])


@settings(max_examples=40)
@given(
    hidden=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    epsilon=st.floats(0.5, 30),
    percentile=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_the_dead_stay_dead_and_the_budget_is_kept(hidden, epsilon, percentile, seed):
    network = make_network((9, *hidden, 2), seed, epsilon)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        prune_neurons(network, percentile)
        dead_inputs = None
        for layer in network.layers[:-1]:
            nnz = layer.nnz
            evolve(layer, 0.3, rng, state=RuleState(layer, 0.3, dead_inputs=dead_inputs))
            assert layer.nnz == nnz
            dead_inputs = layer.dead
        check_dead(network)


def test_growth_among_the_living_is_uniform():
    network = make_network((8, 9, 7, 2), epsilon=1.0)
    layer, below = network.layers[1], np.arange(9) < 4
    layer.dead = np.arange(7) % 3 == 0
    cells = np.zeros((9, 7))
    cells[np.ix_(~below, ~layer.dead)] = np.eye(5, 4)
    pattern = csr_array(cells)
    indptr, indices = pattern.indptr.astype(np.int32), pattern.indices.astype(np.int32)
    topology = Topology.from_input_order(9, 7, indptr, indices)
    counts = np.zeros((9, 7))
    draws = 1000
    for seed in range(draws):
        layer.replace(
            topology, np.arange(1, 5, dtype=np.float32), {"velocity": np.zeros(4, np.float32)}
        )
        state = RuleState(layer, 0.5, dead_inputs=below)
        evolve(layer, 0.5, np.random.default_rng(seed), state=state)
        counts[layer.topology.rows(), layer.topology.indices] += 1
    weakest = np.zeros((9, 7), dtype=bool)
    rows, columns = np.nonzero(cells)
    kept = np.zeros((9, 7), dtype=bool)
    kept[rows[2:], columns[2:]] = True
    free = np.zeros((9, 7), dtype=bool)
    free[np.ix_(~below, ~layer.dead)] = True
    free &= ~kept
    weakest[rows[:2], columns[:2]] = True
    assert free.sum() == 18 and free[weakest].all()
    assert not counts[~free & ~kept].any()
    expected = 2 * draws / 18
    statistic = ((counts[free] - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, 17) > 1e-4


def task(rows=96):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 12)).astype(np.float32)
    return X, (X[:, 0] + X[:, 1] > 0).astype(int) + (X[:, 2] > 0.5)


def make_trainer(backend="scipy", **training):
    settings = {
        "epochs": 6,
        "batch_size": 32,
        "learning_rate": 0.02,
        "dropout": 0.2,
        "pruning_start": 2,
        "pruning_every": 2,
        "pruning_percentile": 20,
        "threads": 1,
        "backend": backend,
        "seed": 5,
    }
    return Trainer(make_network(), TrainingConfig(**(settings | training)))


@pytest.mark.parametrize("backend", ["scipy", "fused"])
def test_training_prunes_on_schedule(backend):
    trainer = make_trainer(backend)
    history = trainer.fit(*task(), progress=False)
    check_dead(trainer.network)
    nnz = np.array(history["nnz"])
    fell = (np.diff(nnz.sum(axis=1)) < 0).tolist()
    assert fell == [False, False, True, False, True, False]  # after the epochs 2 and 4
    pruned = [record.epoch for record in history if record.pruning_s is not None]
    assert pruned == [2, 4]
    living = [30, 20]
    for _ in range(2):
        living = [n - math.ceil(0.2 * (n - 1)) for n in living]
    assert [layer.n_living for layer in trainer.network.layers] == [*living, 3]
    assert trainer.network.parameters == trainer.network.connections + sum(living) + 3


def test_training_without_evolution_prunes_too():
    trainer = make_trainer(zeta=0.0)
    trainer.fit(*task(), progress=False)
    check_dead(trainer.network)
    assert trainer.network.layers[0].n_living < 30


def test_a_schedule_ends_near_a_fifth():
    network = make_network((50, 400, 300, 2), epsilon=10.0)
    start = sum(layer.nnz for layer in network.layers[:-1])
    for _ in range(15):
        prune_neurons(network, 5)
    assert 0.1 < sum(layer.nnz for layer in network.layers[:-1]) / start < 0.45


@pytest.mark.parametrize("backend", ["scipy", "fused"])
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_resuming_gives_the_same_bits(tmp_path, backend, cut):
    whole = make_trainer(backend)
    whole.fit(*task(), progress=False)
    part = make_trainer(backend)
    stop = [lambda trainer, record: trainer.epoch == cut]
    part.fit(*task(), checkpoint=tmp_path / "c", progress=False, callbacks=stop)
    resumed = load_checkpoint(tmp_path / "c")
    assert same(part.network, resumed.network)
    resumed.fit(*task(), progress=False)
    assert same(whole.network, resumed.network)
    assert whole.history["loss"] == resumed.history["loss"]


def test_prolonging_prunes_after_what_was_the_last_epoch(tmp_path):
    whole = make_trainer(epochs=6)
    whole.fit(*task(), progress=False)
    make_trainer(epochs=4).fit(*task(), checkpoint=tmp_path / "c", progress=False)
    resumed = load_checkpoint(tmp_path / "c", epochs=6)
    resumed.fit(*task(), progress=False)
    assert same(whole.network, resumed.network)


def test_a_saved_model_keeps_its_dead(tmp_path):
    network = make_network()
    prune_neurons(network, 25)
    save_model(network, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    X, _ = task()
    np.testing.assert_array_equal(logits(network, X), logits(loaded, X))
    for one, other in zip(network.layers, loaded.layers, strict=True):
        np.testing.assert_array_equal(dead_of(one), dead_of(other))
    assert loaded.layers[-1].dead is None


@pytest.mark.parametrize("place", ["to", "from", "all", "outputs"])
def test_a_file_whose_dead_are_connected_is_refused(tmp_path, place):
    network = make_network()
    layer = network.layers[-1 if place == "outputs" else 0]
    dead = np.zeros(layer.n_out, dtype=bool)
    busy = np.flatnonzero(np.diff(layer.indptr_by_output))
    idle = np.flatnonzero(np.diff(layer.indptr_by_output) == 0)
    if place == "to":
        dead[busy[0]] = True
    elif place == "from":
        layer.replace(*empty(layer))
        dead[idle if len(idle) else 0] = True
        dead[np.flatnonzero(np.diff(network.layers[1].topology.indptr))[0]] = True
    else:
        layer.replace(*empty(layer))
        dead[:] = True
    layer.dead = dead
    save_model(network, tmp_path / "m")
    with pytest.raises(CheckpointError, match="dead"):
        load_model(tmp_path / "m")


def empty(layer):
    none = np.empty(0, dtype=np.int32)
    pointers = np.zeros(layer.n_in + 1, dtype=np.int32)
    topology = Topology.from_input_order(layer.n_in, layer.n_out, pointers, none)
    return topology, np.empty(0, np.float32), {"velocity": np.empty(0, np.float32)}


def test_early_stopping_restores_the_best_with_its_dead():
    trainer = make_trainer(validation_fraction=0.25, patience=6, epochs=8)
    trainer.fit(*task(128), progress=False)
    check_dead(trainer.network)
    for layer, best in zip(trainer.network.layers, trainer.best.layers, strict=True):
        assert np.array_equal(layer.values, best["values"]) and layer.dead is best.get("dead")
    X, y = task(128)
    trainer.step(X, y.astype(np.int32))  # the buffers fit again
    check_dead(trainer.network)


@pytest.mark.parametrize("backend", ["scipy", "fused"])
def test_training_goes_on_after_pruning_by_hand(backend):
    X, y = task()
    trainer = make_trainer(backend, pruning_start=None)
    trainer.fit(X, y, progress=False)
    prune_neurons(trainer.network, 30)
    before = trainer.network.layers[0].values.copy()
    for _ in range(3):
        trainer.step(X, y.astype(np.int32))
    check_dead(trainer.network)
    assert not np.array_equal(before, trainer.network.layers[0].values)


@settings(max_examples=25)
@given(
    hidden=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    percentile=st.integers(0, 70),
    options=st.fixed_dictionaries(
        {
            "recipe": st.sampled_from(["paper", "width"]),
            "activation": st.sampled_from(["all_relu", "srelu"]),
        }
    ),
    seed=st.integers(0, 99),
)
def test_a_compact_network_has_the_same_outputs(hidden, percentile, options, seed):
    network = make_network((12, *hidden, 3), seed, **options)
    network.classes = np.array(["a", "b", "c"])
    prune_neurons(network, percentile)
    small = compact(network)
    living = [layer.n_living for layer in network.layers]
    assert small.config.layer_sizes == (12, *living) and small.classes.tolist() == ["a", "b", "c"]
    assert small.connections == network.connections and small.parameters == network.parameters
    assert all(layer.dead is None for layer in small.layers)
    X, _ = task()
    expected = logits(network, X)
    np.testing.assert_allclose(logits(small, X), expected, atol=1e-5 * (1 + abs(expected).max()))
    for one, other in zip(network.layers, small.layers, strict=True):
        assert other.slope == one.slope
        np.testing.assert_array_equal(other.velocity, one.velocity)
        assert not np.shares_memory(other.values, one.values)


def test_a_compact_network_can_be_saved_predicted_with_and_trained(tmp_path):
    X, y = task()
    trainer = make_trainer()
    trainer.fit(X, y, progress=False)
    small = compact(trainer.network)
    save_model(small, tmp_path / "m")
    assert small.nbytes < trainer.network.nbytes
    expected = predict_proba(trainer.network, X, backend="scipy")
    found = predict_proba(load_model(tmp_path / "m"), X, backend="scipy")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = Trainer(small, TrainingConfig(epochs=2, batch_size=32, backend="scipy", threads=1))
    again.fit(X, y, progress=False)
    save_checkpoint(again, tmp_path / "c")

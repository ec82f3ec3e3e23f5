"""Linear paths: what a network computes is its own sum and the map's, to float32's rounding."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import dense, make_network, normal_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse import NetworkConfig, SparseMLP, prune_neurons
from largesparse.model.evolution import remove_connections
from largesparse.model.linear_path import install_, reserve_, what_is_in_the_way


def outputs(network, X):
    """Logits in float64, by dense matrices."""
    for layer in network.layers:
        Z = X @ dense(layer).astype(np.float64) + layer.bias
        X = np.where(Z > 0, Z, layer.slope * Z)
    return X


@settings(max_examples=40, deadline=None)
@given(
    depth=st.integers(1, 3),
    n_outputs=st.integers(2, 5),
    activation=st.sampled_from(["all_relu", "relu", "leaky_relu", "linear"]),
    alpha=st.sampled_from([0.0, 0.1, 0.6, 2.0]),
    seed=st.integers(0, 99),
)
def test_a_network_computes_its_own_and_the_map(depth, n_outputs, activation, alpha, seed):
    sizes = (9, *(30, 24, 40)[:depth], n_outputs)
    config = NetworkConfig(sizes, epsilon=3, activation=activation, alpha=alpha, seed=seed)
    network = SparseMLP(config, progress=False)
    rng = np.random.default_rng(seed)
    n_maps = 1 if n_outputs == 2 else n_outputs
    assert what_is_in_the_way(network, n_maps) is None
    reserve_(network, n_maps)
    X = normal_rows(6, 9, seed).astype(np.float64)
    assert not np.ptp(outputs(network, X), axis=0).any()  # what others send begins at 0
    for layer in network.layers:  # as if it had been trained
        layer.values[:] = 0.3 * rng.standard_normal(layer.nnz)
        layer.refresh()
    before = outputs(network, X)
    weights, bias = rng.standard_normal((9, n_maps)), rng.standard_normal(n_maps)
    weights[rng.random(weights.shape) < 0.3] = 0
    install_(network, weights, bias)
    added = X @ weights + bias
    if n_outputs == 2:
        added = np.hstack([-added / 2, added / 2])
    assert np.allclose(outputs(network, X), before + added, atol=1e-4, rtol=1e-4)
    assert all(layer.dead is None for layer in network.layers)
    assert np.array_equal(
        network.layers[0].topology.rows(), np.sort(network.layers[0].topology.rows())
    )


@pytest.mark.parametrize("size", [None, 0.0, 1e-42])
def test_a_first_layer_of_no_size_carries_the_map(size):
    network = make_network((10, 40, 3))
    reserve_(network, 3)
    first = network.layers[0]
    if size is None:
        remove_connections(first, np.zeros(first.nnz, dtype=bool))
    else:
        first.values[:] = size
        first.refresh()
    X = normal_rows(6, 10, 0).astype(np.float64)
    weights = np.random.default_rng(0).standard_normal((10, 3))
    install_(network, weights, np.zeros(3))
    assert np.allclose(outputs(network, X), X @ weights, atol=1e-4)


def test_neurons_that_are_pruned_meanwhile_stay_dead():
    network = make_network((10, 40, 30, 3))
    reserve_(network, 3)
    prune_neurons(network, 20)
    dead = [layer.dead.copy() for layer in network.layers[:-1]]
    install_(network, np.ones((10, 3)), np.zeros(3))
    for layer, before in zip(network.layers[:-1], dead, strict=True):
        assert before[-6:].all() and not layer.dead[-6:].any()
        assert np.array_equal(layer.dead[:-6], before[:-6])


@pytest.mark.parametrize(
    ("sizes", "options", "obstacle"),
    [
        ((10, 11, 3), {}, "more than half of a hidden layer"),
        ((10, 3), {}, "needs a hidden layer"),
        ((10, 40, 3), {"activation": "srelu"}, "'srelu'"),
        ((10, 40, 30, 3), {"alpha": 1.0}, "even functions"),
        ((10, 40, 30, 3), {"alpha": 0.9999999}, "even functions"),
    ],
)
def test_what_is_in_the_way_is_told(sizes, options, obstacle):
    network = SparseMLP(NetworkConfig(sizes, epsilon=3, **options), progress=False)
    assert obstacle in what_is_in_the_way(network, 3)

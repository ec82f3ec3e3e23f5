"""Neurons on a path from an input to an output, beside dense reachability."""

from __future__ import annotations

import numpy as np
from helpers import pattern
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig, active_neurons
from largesparse.model.importance import prune_neurons
from largesparse.model.storage import Storage

SIZES = st.lists(st.integers(1, 12), min_size=2, max_size=6)


def by_brute_force(network):
    """Count by the number of paths through every neuron, from products of dense matrices."""
    cells = [pattern(layer).astype(float) for layer in network.layers]
    counts = []
    for k in range(1, len(cells)):
        above = np.linalg.multi_dot([np.ones((1, len(cells[0]))), *cells[:k]])
        below = np.linalg.multi_dot([*cells[k:], np.ones((cells[-1].shape[1], 1))])
        counts.append(int(np.count_nonzero(above.ravel() * below.ravel())))
    return counts


@settings(max_examples=150, deadline=None)
@given(
    sizes=SIZES,
    density=st.floats(0.02, 1),
    seed=st.integers(0, 2**32),
    coverage=st.sampled_from(["random", "full"]),
)
def test_active_neurons_are_those_on_paths(sizes, density, seed, coverage):
    config = NetworkConfig((*sizes, 2), density=density, seed=seed, coverage=coverage)
    network = SparseMLP(config, progress=False)
    assert active_neurons(network) == by_brute_force(network)


def test_wide_layers_and_long_rows():
    """Rows in several blocks, and an output row that is longer than a block."""
    network = SparseMLP(NetworkConfig((50, 9_000, 9_000, 2), epsilon=0.6), progress=False)
    found = active_neurons(network)
    assert found == by_brute_force(network)
    assert all(0 < count < 9_000 for count in found)


def test_deep_layers_are_those_of_a_branching_process():
    """In the middle of many wide layers both sides survive with s = 1 - exp(-2 ε s)."""
    network = SparseMLP(NetworkConfig((4000, *[4000] * 15, 4000), epsilon=1), progress=False)
    survival = 0.5
    for _ in range(200):
        survival = 1 - np.exp(-2 * survival)
    middle = active_neurons(network)[7]
    assert abs(middle / 4000 - survival**2) < 0.03


def test_dead_neurons_are_not_active():
    network = SparseMLP(NetworkConfig((30, 40, 30, 2), epsilon=20), progress=False)
    assert active_neurons(network) == [40, 30]
    prune_neurons(network, 20)
    assert active_neurons(network) == [layer.n_living for layer in network.layers[:-1]] == [32, 24]


def test_a_network_in_files_is_counted_too(tmp_path):
    config = NetworkConfig((30, 40, 30, 2), epsilon=1)
    stored = SparseMLP(config, progress=False, storage=Storage(tmp_path))
    assert active_neurons(stored) == active_neurons(SparseMLP(config, progress=False))


def test_a_network_without_hidden_layers_has_none():
    assert active_neurons(SparseMLP(NetworkConfig((5, 2), density=1.0), progress=False)) == []


def test_every_epoch_has_a_count():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 20)).astype(np.float32)
    y = np.arange(60) % 2
    network = SparseMLP(NetworkConfig((20, 60, 60, 2), epsilon=1, seed=3), progress=False)
    first = sum(by_brute_force(network))
    settings = {"backend": "scipy", "threads": 1, "epochs": 2, "batch_size": 32}
    history = Trainer(network, TrainingConfig(**settings)).fit(X, y, progress=False)
    # The last epoch does not evolve, so the network still is what was counted.
    assert history["active_neurons"][0] == first
    assert history["active_neurons"][2] == sum(by_brute_force(network)) != first

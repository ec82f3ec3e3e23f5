"""Evolution that leaves every neuron its last connection: `keep_active`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_evolution import WEIGHTS, cells_of, check_topology, connections, layer_of, pruned

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.errors import ParameterError
from largesparse.model.evolution import evolve
from largesparse.model.importance import active_neurons
from largesparse.model.rule_state import RuleState
from largesparse.model.rules import DROPS, Rules


def kept_by_definition(weights, gone, *, inputs):
    """What goes when neurons of a side that would lose all keep their strongest."""
    gone = set(gone)
    for side in (1, 0) if inputs else (1,):
        for neuron in {cell[side] for cell in weights}:
            own = sorted(cell for cell in weights if cell[side] == neuron)
            if all(cell in gone for cell in own):
                gone.discard(max(own, key=lambda cell: abs(weights[cell])))  # of equals the first
    return gone


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    zeta=st.sampled_from([0.1, 0.3, 0.6, 0.9, 0.999]),
    inputs=st.booleans(),
    data=st.data(),
)
def test_what_goes_equals_the_definition(shape, zeta, inputs, data):
    size = shape[0] * shape[1]
    flags = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    layer = layer_of(np.reshape(flags, shape), seed=1)
    drawn = st.lists(st.sampled_from(WEIGHTS), min_size=layer.nnz, max_size=layer.nnz)
    layer.values[:] = data.draw(drawn)
    layer.refresh()
    before, cells = connections(layer), cells_of(layer)
    rules = Rules.of(keep_active=True)
    state = RuleState(layer, zeta, inputs_are_neurons=inputs)
    slot_map = evolve(layer, zeta, np.random.default_rng(0), rules=rules, state=state)
    weights = {cell: weight for cell, (weight, *_) in before.items()}
    expected = kept_by_definition(weights, pruned(weights, zeta), inputs=inputs)
    assert {cells[k] for k in np.flatnonzero(slot_map == -1)} == expected
    assert layer.nnz == len(before)  # as many grow as go
    check_topology(layer)


@pytest.mark.parametrize("drop", [*DROPS])
def test_no_rule_makes_a_neuron_idle(drop):
    config = NetworkConfig((30, 200, 200, 200, 2), epsilon=1, coverage="full", recipe="width")
    X = np.random.default_rng(0).standard_normal((64, 30)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)
    counts = {}
    for keep_active in (False, True):
        settings = {"epochs": 3, "batch_size": 32, "zeta": 0.6, "drop": drop, "threads": 1}
        training = TrainingConfig(keep_active=keep_active, dropout=0, **settings)
        trainer = Trainer(SparseMLP(config), training)
        trainer.fit(X, y, progress=False)
        counts[keep_active] = trainer.history["active_neurons"]
    first = counts[True][0]
    assert all(count >= first for count in counts[True])
    assert counts[False][-1] < 0.8 * first  # or there was nothing to keep


def test_features_may_lose_all_and_inputs_that_are_neurons_may_not():
    cells = np.zeros((3, 4))
    cells[0, :], cells[1, 0] = 1, 1
    for number in (2, 3):
        layer = layer_of(cells, values=[4, 3, 2, 1, 0.1])  # of input 0, then of input 1
        layer.number = number
        rules = Rules.of(keep_active=True)
        slot_map = evolve(layer, 0.21, np.random.default_rng(0), rules=rules)
        assert np.flatnonzero(slot_map < 0).tolist() == ([4] if number == 2 else [])


def test_what_is_not_true_or_false_is_refused():
    with pytest.raises(ParameterError, match=r"'keep_active'.*'yes'"):
        TrainingConfig(keep_active="yes")


def test_at_epsilon_1_all_neurons_stay_active():
    config = NetworkConfig((40, 300, 300, 300, 300, 2), epsilon=1, coverage="full", recipe="width")
    network = SparseMLP(config)
    rng = np.random.default_rng(0)
    begun = sum(active_neurons(network))
    rules = Rules.of(keep_active=True)
    for _ in range(4):
        for layer in network.layers[:-1]:
            evolve(layer, 0.3, rng, rules=rules)
    assert sum(active_neurons(network)) >= begun >= 0.97 * network.neurons

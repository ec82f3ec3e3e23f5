"""Given topologies: what a network begins with, and what trainings leave of it."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pandas as pd
import pytest
from helpers import arrays_of, dense, make_network, normal_rows, pattern, same
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array, coo_matrix, csr_array, random_array

from largesparse import (
    GivenTopology,
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    compact,
    importance_table,
    load_checkpoint,
    load_model,
    prune_neurons,
    receptive_fields,
    save_model,
)
from largesparse.errors import CheckpointError, DataError, ParameterError
from largesparse.model.evolution import evolve
from largesparse.model.export import to_scipy
from largesparse.model.rule_state import RuleState
from largesparse.model.storage import Storage
from largesparse.training.memory import plan_training

SIZES = (12, 30, 20, 3)
MASK = np.random.default_rng(3).random((12, 30)) < 0.4
MASK[4] = False  # an input without a connection


def make(topology, sizes=SIZES, *, names=None, storage=None, **options) -> SparseMLP:
    config = NetworkConfig(sizes, **{"epsilon": 4} | options)
    return SparseMLP(
        config, progress=False, topology=topology, feature_names=names, storage=storage
    )


def train(network: SparseMLP, epochs: int = 3, folder=None, **options) -> Trainer:
    settings = {"epochs": epochs, "batch_size": 8, "learning_rate": 0.05, "zeta": 0.4}
    settings |= {"backend": "scipy", "threads": 1}
    trainer = Trainer(network, TrainingConfig(**settings | options))
    trainer.fit(normal_rows(40, 12), np.arange(40) % 3, checkpoint=folder, progress=False)
    return trainer


@pytest.mark.parametrize(
    "form", ["csr", "csc", "coo", "bsr", "dia", "dok", "lil", "array", "matrix"]
)
def test_a_pattern_in_any_form_is_the_layer_s(form):
    kinds = {"array": lambda: MASK, "matrix": lambda: coo_matrix(MASK)}
    found = kinds.get(form, lambda: csr_array(MASK).asformat(form))()
    network = make(found)
    assert np.array_equal(pattern(network.layers[0]), MASK)
    assert same(network, make(MASK))
    assert network.layers[0].config.frozen and not network.layers[1].config.frozen
    # the other layers, and the values of this one, are what they are without it
    assert same(arrays_of(network)[-6:], arrays_of(make_network(SIZES, epsilon=4))[-6:])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 1), st.integers(0, 99))
def test_weights_are_initial_weights(n_in, n_out, density, seed):
    rng = np.random.default_rng(seed)
    matrix = random_array((n_in, n_out), density=density, rng=rng, format="coo")
    matrix.data[::3] = 0  # stored
    if not matrix.nnz:
        return
    order = rng.permutation(matrix.nnz)
    i, j = matrix.coords
    shuffled = coo_array((matrix.data[order], (i[order], j[order])), shape=matrix.shape)
    layer = make(GivenTopology(shuffled, weights=True), (n_in, n_out, 2)).layers[0]
    expected = np.zeros((n_in, n_out), bool)
    expected[i, j] = True
    assert np.array_equal(pattern(layer), expected)
    np.testing.assert_array_equal(dense(layer), matrix.toarray().astype(np.float32))
    without = matrix.toarray() != 0  # a pattern alone: a zero is no connection
    if without.any():
        assert np.array_equal(pattern(make(shuffled, (n_in, n_out, 2)).layers[0]), without)


def test_doubled_cells_are_one_connection_or_an_error_where_there_are_weights():
    doubled = coo_array(([1.0, -1.0, 2.0], ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    layer = make(doubled, (2, 2, 2)).layers[0]
    assert pattern(layer).tolist() == [[False, True], [True, False]]
    with pytest.raises(DataError, match=r"1 connections .* twice, such as that from 0 to 1"):
        make(GivenTopology(doubled, weights=True), (2, 2, 2))
    edges = ["a", "a", "b"], ["s", "s", "t"]
    assert make(GivenTopology.from_edges(*edges), (2, 2, 2), names=["a", "b"]).layers[0].nnz == 2
    with pytest.raises(DataError, match="from 'a' to 's'"):
        GivenTopology.from_edges(*edges, [1, 2, 3])


def test_edges_are_found_by_names_in_any_order_and_a_chain_by_those_below():
    columns = ["g3", "g0", "unused", "g1"]
    first = GivenTopology.from_edges(["g0", "g1", "g1", "g3"], ["A", "A", "B", "B"])
    second = GivenTopology.from_edges(["B", "A"], ["all", "some"], [0.5, -2.0])
    network = make([first, second], (4, 2, 2, 3), names=columns)
    assert pattern(network.layers[0]).astype(int).tolist() == [[0, 1], [1, 0], [0, 0], [1, 1]]
    np.testing.assert_array_equal(dense(network.layers[1]), [[0, -2], [0.5, 0]])
    assert network.neuron_names == {2: ["A", "B"], 3: ["all", "some"]}
    by_number = make({3: second, 2: first}, (4, 2, 2, 3), names=columns)
    assert same(network, by_number)
    named = GivenTopology(np.eye(2)[::-1], input_names=["y", "x"], output_names=["p", "q"])
    assert (
        pattern(make(named, (2, 2, 2), names=["x", "y"]).layers[0]).tolist() == np.eye(2).tolist()
    )
    positions = GivenTopology.from_edges([2, "0"], ["A", "B"])
    assert pattern(make(positions, (3, 2, 2)).layers[0])[[2, 0], [0, 1]].all()


def test_a_data_frame_is_a_matrix_with_names():
    frame = pd.DataFrame([[0, 1], [1, 0], [1, 1]], index=["x", "y", "z"], columns=["p", "q"])
    network = make(frame, (3, 2, 2), names=["z", "x", "y"])
    assert pattern(network.layers[0]).astype(int).tolist() == [[1, 1], [0, 1], [1, 0]]
    assert network.neuron_names == {2: ["p", "q"]}


def test_a_callable_is_given_sizes_and_a_generator_of_the_seed():
    def drawn(n_in, n_out, rng):
        return rng.random((n_in, n_out)) < 0.3

    networks = [make(drawn, seed=seed) for seed in (1, 1, 2)]
    assert same(*networks[:2])
    assert not np.array_equal(pattern(networks[0].layers[0]), pattern(networks[2].layers[0]))
    with pytest.raises(ParameterError, match="must return"):
        make(lambda n_in, n_out, rng: "no")
    with pytest.raises(ParameterError, match=r"has the shape \(30, 12\).* transposed"):
        make(lambda n_in, n_out, rng: np.ones((n_out, n_in)))


@pytest.mark.parametrize(
    ("topology", "told"),
    [
        (MASK.T, r"has the shape \(30, 12\), .* 12 inputs to 30 neurons. It may be transposed"),
        (MASK[:, 1:], r"has the shape \(12, 29\)"),
        (np.zeros((12, 30)), "at least 1 connection. Got 0"),
        (np.full((12, 30), np.nan), "not finite"),
        (GivenTopology(np.full((12, 30), 1e300), weights=True), "not finite in float32"),
        (MASK.astype(complex), "of numbers or booleans. Got complex128"),
        (np.ones(3), r"Got float64 of shape \(3,\)"),
        (7, "Got int instead"),
        ([[0, 1]], "Got list instead"),
        ({1: MASK}, "an integer in the range"),
        ({5: MASK}, "gives layer 5 of a network that has 4 layers"),
        (
            [None, None, GivenTopology.from_edges(["a"], ["b"])],
            "gives the output layer by the names",
        ),
        (GivenTopology.from_edges(["a"], ["b"]), "names its inputs, such as 'a'"),
        (
            GivenTopology.from_edges(["1", "12"], ["b", "b"]),
            "such as '12', and the inputs, 0 to 11",
        ),
        (GivenTopology(MASK, candidates=csr_array(~MASK)), "connections of layer 2 are not among"),
    ],
)
def test_what_does_not_fit_is_refused(topology, told):
    with pytest.raises((ParameterError, DataError), match=told):
        make(topology)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "needs 'connections' or 'candidates'"),
        ({"connections": MASK, "evolution": "never"}, "must be one of"),
        ({"connections": MASK, "evolution": "free", "candidates": MASK}, "goes with evolution"),
        ({"connections": MASK, "evolution": "within", "weights": True}, "Leave their weights out"),
        ({"candidates": MASK, "share": 0}, r"'share' .* \(0, 1\]"),
        ({"connections": MASK, "output_names": ["a"]}, "has 1 output_names for a matrix"),
        ({"connections": np.ones((2, 2)), "input_names": ["a", "a"]}, "have 'a' twice"),
    ],
)
def test_parameters_out_of_range_are_refused(options, told):
    with pytest.raises((ParameterError, DataError), match=told):
        GivenTopology(**options)


def test_unknown_and_doubled_names_are_told():
    edges = GivenTopology.from_edges(["TP35", "x", "BRCA1"], ["s", "s", "t"])
    with pytest.raises(DataError, match=r"2 of 3 inputs .* the table .*'TP35', 'x'.* its 'TP53'"):
        make(edges, (2, 2, 2), names=["BRCA1", "TP53"])
    with pytest.raises(DataError, match="'BRCA1' twice"):
        make(GivenTopology.from_edges(["BRCA1"], ["s"]), (2, 1, 2), names=["BRCA1", "BRCA1"])
    upper = GivenTopology.from_edges(["s", "r"], ["u", "u"])
    with pytest.raises(
        DataError, match="layer 3 has 1 of 2 inputs that layer 2 does not have: 'r'"
    ):
        lower = GivenTopology.from_edges(["a", "b"], ["s", "t"])
        make([lower, upper], (2, 2, 1, 2), names=["a", "b"])


def test_inputs_without_a_connection_are_told(caplog):
    edges = GivenTopology.from_edges(["b"], ["s"])
    make(edges, (3, 1, 2), names=["a", "b", "c"])
    assert (
        "2 of the 3 inputs of layer 2 have no connection by its topology: 'a', 'c'" in caplog.text
    )


@pytest.mark.parametrize("options", [{}, {"growth": "gradient"}, {"drop": "magnitude"}])
def test_a_frozen_layer_trains_and_keeps_its_pattern_to_the_bit(options):
    network = make(MASK)
    before = copy.deepcopy(network.layers[0])
    train(network, **options)
    layer = network.layers[0]
    for name in ("indptr", "indices"):
        assert np.array_equal(getattr(layer.topology, name), getattr(before.topology, name))
    assert not np.allclose(layer.values, before.values)
    assert not np.array_equal(pattern(network.layers[1]), pattern(make(MASK).layers[1]))
    free = make(GivenTopology(MASK, "free"))
    train(free, **options)
    assert free.layers[0].nnz == MASK.sum() and (pattern(free.layers[0]) & ~MASK).any()


@settings(max_examples=40, deadline=None)
@given(
    *(st.integers(2, 12), st.integers(2, 12), st.floats(0.05, 1), st.floats(0.1, 1)),
    *(st.floats(0, 0.95), st.integers(0, 999)),
)
def test_connections_grow_within_the_candidates(n_in, n_out, density, share, zeta, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((n_in, n_out)) < density
    mask[0, 0] = True
    topology = GivenTopology(mask, "within", share=share)
    layer = make(topology, (n_in, n_out, 2), seed=seed).layers[0]
    assert layer.nnz == max(1, round(share * mask.sum()))
    assert not (pattern(layer) & ~mask).any()
    dead = rng.random(n_in) < 0.3
    kept = ~dead[layer.topology.rows()]
    if not kept.any():
        return
    from largesparse.model.evolution import remove_connections

    remove_connections(layer, kept)
    nnz = layer.nnz
    evolve(layer, zeta, rng, state=RuleState(layer, zeta, dead_inputs=dead))
    assert layer.nnz == nnz
    assert not (pattern(layer) & ~mask).any() and not pattern(layer)[dead].any()


def test_growth_within_candidates_is_uniform():
    mask = np.zeros((4, 5), bool)
    mask[[0, 0, 1, 2, 3, 3], [1, 4, 0, 2, 0, 3]] = True
    start = np.zeros((4, 5))
    start[0, 1], start[3, 3] = 1.0, 2.0
    counts = np.zeros((4, 5))
    for seed in range(600):
        topology = GivenTopology(csr_array(start), candidates=mask, weights=True)
        layer = make(topology, (4, 5, 2)).layers[0]
        evolve(layer, 0.5, np.random.default_rng(seed))
        counts += pattern(layer)
    assert counts[3, 3] == 600  # the stronger one stays
    counts[3, 3] = 0
    np.testing.assert_array_equal(counts > 0, mask & (counts > 0))
    free = counts[mask & (start != 2)]  # the cell of the weaker one is free again, as any other
    assert free.sum() == 600 and np.all(np.abs(free - 120) < 4.5 * np.sqrt(120 * 0.8))


@pytest.mark.parametrize("rule", ["gradient", "topology", "reconnect"])
def test_every_rule_stays_within_the_candidates(rule):
    network = make(GivenTopology(MASK, "within"))
    before = pattern(network.layers[0])
    train(network, growth=rule)
    found = pattern(network.layers[0])
    assert not (found & ~MASK).any() and (found & ~before).any()


def test_a_rule_of_one_s_own_stays_within_the_candidates():
    def first_cells(layer, state, count, rng):
        return np.arange(count)

    mask = MASK.copy()
    mask[0] = False
    with pytest.raises(ParameterError, match="that are no candidates"):
        train(make(GivenTopology(mask, "within")), growth=first_cells)
    layer = make(GivenTopology(mask, "within")).layers[0]
    state = RuleState(layer, 0.3, keep=np.ones(layer.nnz, bool))
    free = mask & ~pattern(layer)
    assert state.n_free == free.sum()
    cells = state.draw(state.n_free, np.random.default_rng(0))
    assert np.array_equal(cells, np.flatnonzero(free))
    assert np.array_equal(state.is_free(np.arange(360)), free.ravel())


def test_pruning_takes_the_connections_of_the_dead_and_no_others():
    names = [f"set {k}" for k in range(30)]
    topology = GivenTopology(MASK, output_names=names)
    network = train(make(topology), pruning_start=1, pruning_every=1, pruning_percentile=20).network
    layer = network.layers[0]
    assert layer.dead.any()
    assert np.array_equal(pattern(layer), MASK & ~layer.dead)
    table = importance_table(network)
    assert table["name"].tolist() == [names[k] for k in table["neuron"]]
    assert np.array_equal(np.sort(table["neuron"][table["pruned"]]), np.flatnonzero(layer.dead))
    expected = np.abs(dense(layer)).sum(axis=0)[table["neuron"]]
    np.testing.assert_allclose(table["importance"], expected, rtol=1e-6)
    assert table["importance"].is_monotonic_decreasing
    assert table["connections"].tolist() == pattern(layer).sum(axis=0)[table["neuron"]].tolist()

    small = compact(network)
    assert small.neuron_names[2] == [n for n, d in zip(names, layer.dead, strict=True) if not d]
    assert np.array_equal(pattern(small.layers[0]), MASK[:, ~layer.dead])
    assert small.config.given[0].connections == small.layers[0].nnz
    trained = pattern(train(small).network.layers[0])
    assert np.array_equal(trained, MASK[:, ~layer.dead])


def test_compaction_keeps_the_candidates_that_are_left():
    second = np.random.default_rng(1).random((30, 20)) < 0.5
    network = make([GivenTopology(MASK, "within"), GivenTopology(second, "within")])
    train(network)
    prune_neurons(network, 25)
    small = compact(network)
    lower, upper = (~layer.dead for layer in network.layers[:2])
    for layer, mask in zip(small.layers, (MASK[:, lower], second[lower][:, upper]), strict=False):
        candidates = csr_array(
            (
                np.ones(layer.candidates.nnz, bool),
                layer.candidates.indices,
                layer.candidates.indptr,
            ),
            shape=mask.shape,
        )
        assert np.array_equal(candidates.toarray(), mask)
        assert small.config.given[layer.number - 2].candidates == mask.sum()
    train(small)
    assert not (pattern(small.layers[1]) & ~second[lower][:, upper]).any()


def test_candidates_and_names_are_saved_and_training_resumes_to_the_same_bits(tmp_path):
    names = [f"g{k}" for k in range(12)]
    topology = GivenTopology(MASK, "within", input_names=names, output_names=range(30))
    options = {"dropout": 0.2, "validation_fraction": 0.2}
    whole = train(make(topology, names=names), 4, **options).network
    train(make(topology, names=names), 2, folder=tmp_path / "run", **options)
    trainer = load_checkpoint(tmp_path / "run", epochs=4)
    trainer.fit(normal_rows(40, 12), np.arange(40) % 3, progress=False)
    assert same(whole, trainer.network)
    save_model(whole, tmp_path / "model")
    for folder in ("model", "run"):  # the latter has the best epoch's weights
        found = load_model(tmp_path / folder)
        layer = found.layers[0]
        assert np.array_equal(layer.candidates.cells(), np.flatnonzero(MASK))
        assert found.neuron_names == {2: list(map(str, range(30)))}
        assert found.config.given == whole.config.given
    assert same(load_model(tmp_path / "model"), compact(whole))
    assert np.array_equal(to_scipy(whole)[0].toarray() != 0, pattern(whole.layers[0]))


def test_a_file_with_a_connection_outside_the_candidates_is_damaged(tmp_path):
    network = make(GivenTopology(MASK, "within"))
    network.layers[0].candidates = make(~MASK).layers[0].topology
    network.config = dataclasses.replace(
        network.config,
        given=(dataclasses.replace(network.config.given[0], candidates=int((~MASK).sum())),),
    )
    save_model(network, tmp_path / "model")
    with pytest.raises(CheckpointError, match="a connection is no candidate"):
        load_model(tmp_path / "model")


def test_layers_in_files_train_to_the_same_bits(tmp_path):
    topology = [GivenTopology(MASK, "within"), np.eye(30, 20)]
    one = train(make(topology)).network
    other = train(make(topology, storage=Storage(tmp_path))).network
    assert same(one, other)


def test_what_cannot_go_with_a_given_topology_is_refused():
    network = make(MASK)
    with pytest.raises(ParameterError, match="Pass them as 'topology'"):
        SparseMLP(network.config, progress=False)
    with pytest.raises(ParameterError, match="'output_minimum'"):
        make([None, None, np.ones((20, 3))], output_minimum=2)
    again = SparseMLP(network.config, progress=False, topology=MASK)
    assert same(network, again)


def test_plans_count_what_is_given():
    sparse = NetworkConfig((200, 3000, 10), epsilon=2)
    mask = random_array((200, 3000), density=0.5, rng=np.random.default_rng(0)) != 0
    network = make(GivenTopology(mask, "within", share=0.2), sparse.layer_sizes, epsilon=2)
    plan = plan_training(network.config, 1)
    arrays = sum(layer.nbytes for layer in network.layers)
    assert abs(plan.model - arrays) < 0.02 * arrays
    assert plan.passing >= 36 * network.layers[0].nnz + 8 * mask.nnz


def test_they_are_copied_and_pickled():
    topology = GivenTopology(MASK, "within", output_names=range(30))
    for found in (copy.deepcopy(topology), pickle.loads(pickle.dumps(topology))):
        assert same(make(topology), make(found))
    assert repr(topology) == "GivenTopology(12 x 30, within)"
    layer = make(topology).layers[0].copy()
    evolve(layer, 0.5, np.random.default_rng(0))
    assert not (pattern(layer) & ~MASK).any()


@settings(max_examples=30, deadline=None)
@given(*(st.integers(1, 9) for _ in range(3)), st.integers(1, 4))
def test_receptive_fields_are_squares_of_the_image(height, width, size, stride):
    found = receptive_fields(height, width, size, stride).toarray()
    places = [(y, x) for y in range(0, height, stride) for x in range(0, width, stride)]
    assert found.shape == (height * width, len(places))
    for field, (y, x) in zip(found.T.reshape(-1, height, width), places, strict=True):
        expected = np.zeros((height, width), bool)
        top, left = y - size // 2, x - size // 2
        expected[max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = True
        assert np.array_equal(field, expected)

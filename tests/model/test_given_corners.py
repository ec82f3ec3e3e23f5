"""Given topologies that are damaged, ambiguous or large, and how they are told."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from helpers import pattern
from scipy.sparse import bsr_array, coo_array, csr_array

from largesparse import (
    GivenTopology,
    NetworkConfig,
    SparseMLP,
    load_model,
    receptive_fields,
    save_model,
)
from largesparse.errors import DataError, ParameterError
from largesparse.model.growth import reconnect
from largesparse.model.rule_state import RuleState
from largesparse.model.start import given_topologies
from largesparse.model.topology import Topology

ONES = np.ones((3, 2), bool)
FRAME = pd.DataFrame([[0, 1], [1, 0], [1, 1]], index=["x", "y", "z"], columns=["p", "q"])


def make(topology, sizes=(3, 2, 2), *, names=None) -> SparseMLP:
    config = NetworkConfig(sizes, epsilon=4)
    return SparseMLP(config, progress=False, topology=topology, feature_names=names)


def a_topology(indptr, indices) -> Topology:
    return Topology(3, 2, np.array(indptr, np.int32), np.array(indices, np.int32))


@pytest.mark.parametrize(
    ("topology", "told"),
    [
        (lambda: GivenTopology.from_edges(["1", "01"], ["a", "b"]), "such as '01', and the"),
        (lambda: GivenTopology.from_edges(["1", "9" * 5000], ["a", "b"]), "have no names"),
        (lambda: GivenTopology(candidates=ONES, weights=True), "'weights' .* goes with"),
        (lambda: GivenTopology(ONES, candidates=ONES, share=0.2), "'share' .* Leave it out"),
        (lambda: GivenTopology(ONES, share=0.2), "'share' .* Leave it out"),
        (lambda: GivenTopology.from_edges(["a"], ["b"], ["x"]), "must be numbers: could not"),
        (lambda: GivenTopology.from_edges(["a"], ["b"], [None]), "not finite"),
        (lambda: GivenTopology(ONES, output_names=5), "list of names. Got 5"),
        (lambda: GivenTopology(ONES, output_names="pq"), "list of names. Got 'pq'"),
        (lambda: GivenTopology("x.csv", evolution="within"), "GivenTopology.read reads"),
        (lambda: lambda n_in, n_out: ONES, r"n_in, n_out and a generator, .* too many positional"),
        (lambda: GivenTopology(lambda *_: ONES, output_names=["abc"]), "has 1 'output_names'"),
        (lambda: GivenTopology(lambda *_: ONES, input_names=["0", "2"]), r"the 2 inputs that it"),
        (lambda: a_topology([0, 1, 1, 2], [0, 2]), r"damaged: .*outside \[0, 2\)"),
        (lambda: a_topology([0, 2, 2, 2], [1, 0]), "damaged: .*do not ascend"),
        (lambda: a_topology([0, 2, 2], [0, 1]), "damaged: .*for 3 rows"),
        (lambda: a_topology([0, 0, 0, 0], []), "Got 0 instead"),
        (lambda: Topology(3, 2, np.array([0, 1, 1, 1]), np.array([0])), "are not int32"),
        (lambda: GivenTopology(FRAME, candidates=FRAME.iloc[::-1]), "the same rows and columns"),
    ],
)
def test_what_is_wrong_is_told(topology, told):
    with pytest.raises((ParameterError, DataError), match=told):
        make(topology())


def test_a_doubled_column_is_told_whichever_it_is_and_others_do_not_matter(tmp_path):
    edges = GivenTopology.from_edges(["c", "d"], ["s", "t"])
    with pytest.raises(DataError, match="has 'c' twice"):
        make(edges, (6, 2, 2), names=list("aabccd"))
    network = make(edges, (4, 2, 2), names=list("aacd"))
    save_model(network, tmp_path / "model")
    found = given_topologies(load_model(tmp_path / "model"))[2]
    again = make(found, (4, 2, 2), names=list("aacd"))
    assert np.array_equal(pattern(again.layers[0]), pattern(network.layers[0]))


@pytest.mark.parametrize("names", [["a"], "abc", [1, 2, 3], 5])
def test_names_of_inputs_are_checked(names):
    with pytest.raises(ParameterError, match="must be 3 strings"):
        make(None, names=names)
    assert make(None, names=np.array(["a", "b", "c"])).feature_names == ["a", "b", "c"]


def test_frames_matrices_and_blocks():
    expected = FRAME.to_numpy() == 1
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix(FRAME.to_numpy())
    forms = [
        matrix,
        FRAME.astype("boolean"),
        FRAME.astype(pd.SparseDtype(np.int64, 0)),
        GivenTopology(candidates=FRAME, share=1.0),
        FRAME * 1e300,
    ]
    for form in forms:
        network = make(form, names=["x", "y", "z"])
        assert np.array_equal(pattern(network.layers[0]), expected)
    assert make(forms[3], names=list("xyz")).neuron_names == {2: ["p", "q"]}
    wide = pd.DataFrame.sparse.from_spmatrix(coo_array(([1], ([0], [0])), shape=(2, 20_000)))
    assert GivenTopology(wide).connections.nnz == 1
    blocks = bsr_array(csr_array(np.eye(4)), blocksize=(2, 2))
    assert make(GivenTopology(blocks, weights=True), (4, 4, 2)).layers[0].nnz == 4


def test_inputs_of_a_callable_by_names():
    topology = GivenTopology(lambda n_in, n_out, rng: np.eye(n_in, n_out), input_names=["z", "x"])
    found = pattern(make(topology, names=["x", "y", "z"]).layers[0])
    assert found.astype(int).tolist() == [[0, 1], [0, 0], [1, 0]]


@pytest.mark.parametrize("is_turned", [False, True])
def test_lonely_neurons_are_reconnected_within_the_candidates(is_turned):
    mask = np.zeros((40, 30), bool)
    mask[np.arange(40), np.arange(40) % 30] = True  # one candidate for each input
    first = mask & (np.arange(40) < 3)[:, None]
    mask[:3] = first[0] = True  # other free cells are those of inputs that are connected
    if is_turned:
        mask, first = mask.T, first.T
    layer = make(GivenTopology(first, candidates=mask), (*mask.shape, 2)).layers[0]
    keep = np.ones(layer.nnz, bool)
    grown = reconnect(layer, RuleState(layer, 0.3, keep=keep), 40, np.random.default_rng(0))
    after = first.copy()
    after.ravel()[grown] = True
    assert (after.sum(axis=int(not is_turned)) > 0).all()
    assert mask.ravel()[grown].all() and len(grown) == 40


def test_receptive_fields_take_what_they_return():
    tracemalloc.start()
    found = receptive_fields(1, 8000, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (8000, 8000) and found.nnz == 5 * 8000 - 6 and peak < 2e7
    assert receptive_fields(2, 3, 10**9).nnz == 36


def test_a_file_is_named_where_its_connections_cannot_be(tmp_path):
    path = tmp_path / "edges.csv"
    path.write_text("a,s,1\nb,s,2\na,s,3\n")
    with pytest.raises(DataError, match=r"edges.csv: .*from 'a' to 's'"):
        GivenTopology.read(path)
    path.write_text("a,s,1\n")
    with pytest.raises(ParameterError, match=r"edges.csv: .*third column"):
        GivenTopology.read(path, evolution="within")

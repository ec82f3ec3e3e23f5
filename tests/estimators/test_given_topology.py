"""Estimators whose layers have a given topology."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from helpers import pattern, same
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from largesparse import GivenTopology, SparseMLPClassifier, SparseMLPRegressor
from largesparse.errors import DataError, ParameterError

QUICK = {"max_epochs": 2, "random_state": 0, "n_jobs": 1, "backend": "fused"}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 8))
y = (X[:, 0] + X[:, 1] > 0).astype(int)
MASK = RNG.random((8, 5)) < 0.5
MASK[0] = True


def test_sizes_follow_from_the_topology():
    model = SparseMLPClassifier(topology=MASK, **QUICK).fit(X, y)
    assert model.network_.config.layer_sizes == (8, 5, 400, 2)
    assert np.array_equal(pattern(model.network_.layers[0]), MASK)
    chain = [MASK, None, np.ones((400, 3))]
    model = SparseMLPClassifier(topology=chain, **QUICK).fit(X, y)
    assert model.network_.config.layer_sizes == (8, 5, 400, 3, 2)
    model = SparseMLPClassifier(7, topology=lambda n_in, n_out, rng: np.eye(n_in, n_out), **QUICK)
    assert model.fit(X, y).network_.layers[0].nnz == 7
    with pytest.raises(ParameterError, match="from 8 inputs to 6 neurons"):
        SparseMLPClassifier((6,), topology=MASK, **QUICK).fit(X, y)
    output = SparseMLPClassifier((5,), topology={3: np.eye(5, 2)}, **QUICK).fit(X, y)
    assert pattern(output.network_.layers[1]).tolist() == (np.eye(5, 2) == 1).tolist()


def test_inputs_are_found_by_the_columns_of_a_frame():
    names = list("abcdefgh")
    i, j = np.nonzero(MASK[::-1])
    edges = GivenTopology.from_edges(np.array(names[::-1])[i], [f"s{k}" for k in j])
    order = [int(name[1:]) for name in edges.output_names]
    frame = pd.DataFrame(X, columns=names)
    model = SparseMLPClassifier(topology=edges, **QUICK).fit(frame, y)
    assert np.array_equal(pattern(model.network_.layers[0]), MASK[:, order])
    assert model.network_.neuron_names[2] == list(edges.output_names)
    assert model.network_.feature_names == names


@pytest.mark.parametrize("evolution", ["frozen", "within"])
def test_they_are_cloned_pickled_searched_saved_and_go_on(tmp_path, evolution):
    names = [f"s{k}" for k in range(5)]
    topology = GivenTopology(csr_array(MASK), evolution, output_names=names)
    model = SparseMLPClassifier((5,), topology=topology, **QUICK).fit(X, y)
    for other in (clone(model).fit(X, y), pickle.loads(pickle.dumps(model))):
        assert same(model.network_, other.network_)
    grid = {"topology": [topology, None], "dropout": [0.0, 0.1]}
    search = GridSearchCV(SparseMLPClassifier((5,), **QUICK), grid, cv=2).fit(X, y)
    assert len(search.cv_results_["params"]) == 4

    model.save(tmp_path / "model")
    loaded = SparseMLPClassifier.load(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))
    loaded.set_params(warm_start=True).fit(X, y).partial_fit(X, y)
    found = pattern(loaded.network_.layers[0])
    assert found.sum() == pattern(model.network_.layers[0]).sum()
    assert not (found & ~MASK).any() and (evolution == "within" or (found == MASK).all())
    with pytest.raises(ParameterError, match="were changed since the network"):
        loaded.set_params(topology=GivenTopology(MASK, "free")).fit(X, y)
    assert loaded.network_.neuron_names == {2: names}


def test_a_linear_start_does_without():
    wide = RNG.standard_normal((20, 30))
    labels = np.arange(20) % 2
    options = QUICK | {"topology": np.eye(30, 9)}
    model = SparseMLPClassifier((9,), **options).fit(wide, labels)
    assert not model._began_linearly
    assert pattern(model.network_.layers[0]).sum() == 9
    with pytest.raises(ParameterError, match="topology of a layer is given"):
        SparseMLPClassifier((9,), linear_start=True, **options).fit(wide, labels)


def test_numbers_and_several_labels_a_row():
    found = SparseMLPRegressor((5,), topology=MASK, **QUICK).fit(X, X[:, :2])
    assert np.array_equal(pattern(found.network_.layers[0]), MASK)
    labels = np.stack([y, 1 - y, X[:, 2] > 0], axis=1).astype(int)
    options = QUICK | {"topology": {2: MASK, 3: np.ones((5, 3))}}
    model = SparseMLPClassifier((5,), evolve_output=True, **options).fit(X, labels)
    assert model.network_.layers[1].nnz == 15 and model.network_.config.output_minimum == 0


def test_a_last_layer_that_may_be_the_output_layer_is_asked_about():
    for topology in ({4: np.ones((400, 2))}, {4: lambda *_: 0}, [MASK, np.ones((5, 2))]):
        with pytest.raises(ParameterError, match="may be the output layer"):
            SparseMLPClassifier(topology=topology, **QUICK).fit(X, y)
    model = SparseMLPClassifier((5,), topology=[MASK, np.ones((5, 2))], **QUICK).fit(X, y)
    assert model.network_.config.layer_sizes == (8, 5, 2)


@pytest.mark.parametrize("weights", [False, True])
def test_training_does_not_go_on_with_another_topology(weights):
    matrix = MASK * RNG.standard_normal(MASK.shape)
    topology = GivenTopology(matrix, weights=weights)
    model = SparseMLPClassifier((5,), topology=topology, **QUICK).fit(X, y)
    model.set_params(topology=GivenTopology(matrix.copy(), weights=weights)).partial_fit(X, y)
    other = matrix.copy()
    if weights:
        other[0, 0] += 1
    else:
        other[0, :2] = 0, 1
        other[1] = other[1][::-1]
    for again in (model.set_params(warm_start=True).fit, model.partial_fit):
        model.set_params(topology=GivenTopology(other, weights=weights))
        with pytest.raises(ParameterError, match="were changed since the network"):
            again(X, y)


def test_a_topology_is_resolved_once():
    rng, calls = np.random.default_rng(0), []

    def drawn(n_in, n_out, _):
        calls.append(0)
        return rng.random((n_in, n_out)) < 0.5

    model = SparseMLPClassifier((5,), topology=drawn, warm_start=True, **QUICK).fit(X, y)
    assert model.network_.config.given[0].connections == model.network_.layers[0].nnz
    pickle.loads(pickle.dumps(model.network_))
    model.fit(X, y).partial_fit(X, y)
    assert len(calls) == 1
    automatic = SparseMLPClassifier(topology=MASK, warm_start=True, **QUICK).fit(X, y)
    automatic.fit(X, y)


def test_a_saved_model_with_doubled_columns_is_loaded(tmp_path):
    edges = GivenTopology.from_edges(["c", "d"], ["s", "t"])
    model = SparseMLPClassifier((2,), topology=edges, **QUICK)
    model._column_names = list("aacdefgh")
    model.fit(X, y).save(tmp_path / "model")
    loaded = SparseMLPClassifier.load(tmp_path / "model")
    layers = [each.network_.layers[0] for each in (loaded, model)]
    assert np.array_equal(*(layer.values for layer in layers))


@pytest.mark.parametrize("evolution", ["frozen", "within"])
def test_a_loaded_topology_asks_for_the_columns_that_it_has(tmp_path, evolution):
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    edges = GivenTopology.from_edges(list("hcch"), list("sstt"), evolution=evolution)
    model = SparseMLPClassifier((2,), topology=edges, **QUICK).fit(frame, y)
    model.save(tmp_path / "model")
    loaded = SparseMLPClassifier.load(tmp_path / "model")
    loaded.partial_fit(frame, y)
    again = clone(loaded).fit(frame[["h", "a", "c"]], y).network_.layers[0]
    candidates = again.topology if evolution == "frozen" else again.candidates
    assert candidates.cells().tolist() == [0, 1, 4, 5]
    with pytest.raises(DataError, match="have no names"):
        clone(loaded).fit(X[:, :2], y)

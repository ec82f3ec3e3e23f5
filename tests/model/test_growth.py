"""Growth by the gradient: where connections grow, beside a dense computation of every gradient."""

from __future__ import annotations

import helpers
import numpy as np
import pytest
from helpers import arrays_of, dense_gradients, pattern
from hypothesis import given, settings
from hypothesis import strategies as st

from largesparse import TrainingConfig, load_checkpoint
from largesparse.errors import ParameterError
from largesparse.machine.threads import kernel_threads
from largesparse.model.cells import score_cells
from largesparse.model.growth import grow_by_gradient
from largesparse.model.layer import LayerConfig, SparseLayer
from largesparse.model.ranking import survivors
from largesparse.model.rule_state import RuleState
from largesparse.model.topology import erdos_renyi
from largesparse.randomness import stream
from largesparse.training.prepared import prepare_


@pytest.fixture(autouse=True)
def one_thread():
    with kernel_threads(1):
        yield


def task(rows=60):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 10)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)


def make_trainer(backend="scipy", **training):
    options = {"epochs": 4, "batch_size": 20, "growth": "gradient", "backend": backend, "seed": 2}
    options |= {"epsilon": 3.0, "network": {"seed": 1}}
    return helpers.make_trainer((10, 14, 12, 3), **options | training)


@settings(max_examples=40)
@given(
    n_in=st.integers(1, 20),
    n_out=st.integers(1, 20),
    batch=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_scores_are_gradients_of_cells(n_in, n_out, batch, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_in, batch)).astype(np.float32)
    delta = rng.standard_normal((n_out, batch)).astype(np.float32)
    positions = np.flatnonzero(rng.random(n_in * n_out) < 0.4)
    expected = (X @ delta.T).ravel()[positions]
    scores = score_cells(positions, n_in, X, delta)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4)


@settings(max_examples=60)
@given(
    n_in=st.integers(2, 20),
    n_out=st.integers(2, 20),
    density=st.floats(0.05, 1),
    candidates=st.one_of(st.just(1e6), st.floats(1, 10)),
    seed=st.integers(0, 99),
)
def test_cells_are_free_distinct_and_the_best(n_in, n_out, density, candidates, seed):
    rng = np.random.default_rng(seed)
    topology = erdos_renyi(n_in, n_out, density, np.random.SeedSequence(seed))
    values = rng.standard_normal(topology.nnz).astype(np.float32)
    keep = survivors(values, 0.5)
    count = int(np.count_nonzero(~keep))
    X = rng.standard_normal((n_in, 8)).astype(np.float32)
    delta = rng.standard_normal((n_out, 8)).astype(np.float32)
    parameters = {"values": values, "bias": np.zeros(n_out, dtype=np.float32)}
    layer = SparseLayer(2, topology, parameters, LayerConfig(0.0))
    state = RuleState(layer, 0.5, keep=keep, X=X, delta=delta, candidates=candidates)
    positions = grow_by_gradient(layer, state, count, np.random.default_rng(seed))
    kept = np.zeros(n_in * n_out, dtype=bool)
    kept[topology.rows()[keep].astype(int) * n_out + topology.indices[keep]] = True
    assert len(positions) == count and np.all(np.diff(positions) > 0) and not kept[positions].any()
    if candidates == 1e6:  # all free cells are candidates
        scores = np.abs((X.astype(np.float64) @ delta.T).ravel())
        best = np.sort(scores[~kept])[::-1][:count]
        np.testing.assert_allclose(np.sort(scores[positions])[::-1], best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["scipy", "fused"])
def test_a_network_grows_where_the_gradient_is_largest(backend):
    X, y = task()
    trainer = make_trainer(backend, growth_candidates=1e6, dropout=0.4, batch_size=60)
    data = prepare_(trainer.network, trainer.config, X, y)
    trainer.epoch = 1
    rng = stream(2, "growth", 1)
    rows = np.sort(rng.choice(60, 60, replace=False))
    standardized = (X[rows] - X.mean(axis=0)) / X.std(axis=0)
    gradients = dense_gradients(trainer.network, standardized, y[rows])
    before = [pattern(layer) for layer in trainer.network.layers]
    kept = []
    for layer in trainer.network.layers:
        cells = np.zeros_like(before[len(kept)])
        keep = survivors(layer.values, 0.3)
        cells[layer.topology.rows()[keep], layer.topology.indices[keep]] = True
        kept.append(cells)
    nnz = [layer.nnz for layer in trainer.network.layers]
    trainer.evolve(data)
    assert [layer.nnz for layer in trainer.network.layers] == nnz
    for k, layer in enumerate(trainer.network.layers[:-1]):
        grown = pattern(layer) & ~kept[k]
        scores = np.abs(gradients[k])
        best = np.sort(scores[~kept[k]])[::-1][: grown.sum()]
        np.testing.assert_allclose(np.sort(scores[grown])[::-1], best, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(pattern(trainer.network.layers[-1]), before[-1])


def test_a_training_is_a_function_of_its_seed_and_resumes(tmp_path):
    X, y = task()
    runs = []
    for epochs in (4, 4, 2):
        trainer = make_trainer(epochs=epochs, pruning_start=1, pruning_every=1)
        trainer.fit(X, y, checkpoint=tmp_path / str(len(runs)), progress=False)
        runs.append(arrays_of(trainer.network))
    resumed = load_checkpoint(tmp_path / "2", epochs=4)
    resumed.fit(X, y, progress=False)
    for one, other, third in zip(runs[0], runs[1], arrays_of(resumed.network), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, third)
    below = None
    for layer in resumed.network.layers:
        if layer.dead is not None:
            assert not pattern(layer)[:, layer.dead].any()
        if below is not None:
            assert not pattern(layer)[below].any()
        below = layer.dead


def test_bad_settings_are_refused():
    with pytest.raises(ParameterError, match="growth"):
        TrainingConfig(growth="largest")
    with pytest.raises(ParameterError, match="growth_candidates"):
        TrainingConfig(growth_candidates=0.5)
    with pytest.raises(ParameterError, match="data"):
        make_trainer().evolve()

"""The fused backend: tiles, parts and whole steps give what their parts give.

Its products and gradients are compared with dense NumPy in test_backends and test_gradients.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers import make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import fused_kernels, get_backend, kernels
from largesparse.backends.fused import FusedBackend
from largesparse.backends.operands import (
    NO_DROPOUT,
    PREFETCH_BYTES,
    Connections,
    Dropout,
    read_only,
)
from largesparse.data.batches import load_batch
from largesparse.errors import NumericalError
from largesparse.model.evolution import evolve
from largesparse.training.whole_step import WholeStep

fused = get_backend("fused")


def trainer_of(sizes, *, seed=0, **options):
    given = {"epsilon": 5, "batch_size": 40, "epochs": 3, "learning_rate": 0.05, "backend": "fused"}
    return make_trainer(sizes, network={"seed": seed}, **given | options)


def data_of(rows, features, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, features), dtype=np.float32)
    return X, rng.integers(classes, size=rows).astype(np.int32)


def arrays_of(trainer) -> list[np.ndarray]:
    names = ("values", "velocity", "values_by_output", "bias", "bias_velocity")
    return [getattr(layer, name) for layer in trainer.network.layers for name in names]


def assert_equal_weights(one, other):
    for actual, expected in zip(arrays_of(one), arrays_of(other), strict=True):
        np.testing.assert_array_equal(actual, expected)


def assert_close_weights(one, other):
    """Of a step in one call and by layers, in which the compiler may add in another order."""
    for actual, expected in zip(arrays_of(one), arrays_of(other), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def step_by_layers(monkeypatch):
    """Return a function that makes a trainer compute its steps layer by layer."""

    def change(trainer):
        trainer.backend = FusedBackend()
        trainer.backend.has_whole_step = False
        return trainer

    return change


# Tiles of columns


@settings(max_examples=40, derandomize=True)
@given(
    batch=st.integers(1, 300), rows=st.integers(1, 40), n=st.integers(1, 40), seed=st.integers(0, 9)
)
def test_every_batch_is_covered_by_tiles(batch, rows, n, seed):
    rng = np.random.default_rng(seed)
    A = random_array((rows, n), density=0.3, random_state=rng, dtype=np.float32, format="csr")
    X = rng.standard_normal((n, batch), dtype=np.float32)
    guard = np.full((rows + 2, batch), 7, dtype=np.float32)  # rows before and after are not touched
    indptr, indices = A.indptr.astype(np.int32), A.indices.astype(np.int32)
    fused.spmm(indptr, indices, A.data, X, out=guard[1:-1])
    np.testing.assert_allclose(guard[1:-1], A.toarray() @ X, rtol=1e-4, atol=1e-5)
    assert np.all(guard[[0, -1]] == 7)

    delta = rng.standard_normal((n, batch), dtype=np.float32)
    inputs = rng.standard_normal((rows, batch), dtype=np.float32)
    sums = np.full(A.nnz + 2, 7, dtype=np.float32)
    kernels.sddmm(indptr, indices, inputs, delta, sums[1:-1], False)
    expected = (inputs.astype(np.float64) @ delta.T.astype(np.float64))[A.tocoo().coords]
    np.testing.assert_allclose(sums[1:-1], expected, rtol=1e-4, atol=1e-4)
    kernels.sddmm(indptr, indices, inputs, delta, sums[1:-1], True)
    np.testing.assert_allclose(sums[1:-1], 2 * expected, rtol=1e-4, atol=1e-4)
    assert np.all(sums[[0, -1]] == 7)


# Long rows in parts, and prefetching


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n", [1, fused_kernels.PART, 3 * fused_kernels.PART + 1, 20_000])
def test_rows_in_parts_equal_rows(n, threads):
    rng = np.random.default_rng(n)
    cells = rng.standard_normal((3, n), dtype=np.float32) * (rng.random((3, n)) < 0.9)
    cells[1] = 0  # a row without connections
    A = csr_array(cells)
    X = rng.standard_normal((n, 45), dtype=np.float32)
    bias = rng.standard_normal(3, dtype=np.float32)
    rows = A.indptr.astype(np.int32), A.indices.astype(np.int32), A.data
    constant = Connections(*map(read_only, rows)), read_only(bias)
    results = []
    for kernel in (fused_kernels.forward_by_parts, fused_kernels.forward_by_rows):
        out, state = np.empty((3, 45), np.float32), np.empty((3, 2, 2), np.uint32)
        with fused.threads(threads):
            kernel(*constant, X, np.float32(-0.5), NO_DROPOUT, out, state)
        results.append((out, state))
    z = A.astype(np.float64) @ X + bias[:, None]
    expected = np.where(z > 0, z, -0.5 * z)
    for out, _ in results:
        np.testing.assert_allclose(out, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_prefetching_does_not_change_results():
    batch, n = 1024, 5
    far = PREFETCH_BYTES // (4 * batch) + 1  # rows that are prefetched; as few as are used are not
    rng = np.random.default_rng(0)
    A = csr_array(rng.standard_normal((40, n), dtype=np.float32) * (rng.random((40, n)) < 0.5))
    near = rng.standard_normal((n, batch), dtype=np.float32)
    places = np.sort(rng.choice(far, n, replace=False)).astype(np.int32)
    X = np.zeros((far, batch), dtype=np.float32)
    X[places] = near
    bias, indptr = np.zeros(40, np.float32), A.indptr.astype(np.int32)
    results = []
    for indices, gathered in ((A.indices.astype(np.int32), near), (places[A.indices], X)):
        out, gradient = np.empty((40, batch), np.float32), np.empty(A.nnz, np.float32)
        rows = Connections(indptr, indices, A.data)
        fused.forward(rows, bias, gathered, slope=0.5, out=out)
        kernels.sddmm(indptr, indices, out, gathered, gradient, False)
        results.append((out, gradient))
    for prefetched, plain in zip(*results, strict=True):
        np.testing.assert_array_equal(prefetched, plain)


# Whole steps


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("recipe", ["paper", "width"])
@pytest.mark.parametrize("hidden", [(), (150,), (2000, 70, 1500)])
def test_a_whole_step_equals_its_layers(step_by_layers, hidden, recipe, threads):
    X, y = data_of(110, 60)
    whole = trainer_of((60, *hidden, 3), recipe=recipe, threads=threads)
    layers = step_by_layers(trainer_of((60, *hidden, 3), recipe=recipe))
    for trainer in (whole, layers):
        trainer.fit(X, y, progress=False)
    assert whole._compiled_step is not None and layers._compiled_step is None
    for name in ("loss", "running_loss"):
        assert whole.history[name][1:] == pytest.approx(layers.history[name][1:], rel=1e-5)
    assert_close_weights(whole, layers)


@pytest.mark.parametrize("recipe", ["paper", "width"])
def test_a_gradient_in_one_call_equals_its_layers(step_by_layers, recipe):
    X, y = data_of(110, 60)
    whole = trainer_of((60, 70, 50, 3), recipe=recipe, batch_size=110)
    layers = step_by_layers(trainer_of((60, 70, 50, 3), recipe=recipe, batch_size=110))
    before = [array.copy() for array in arrays_of(whole)]
    for rows in (np.arange(110), np.arange(20)):
        assert whole.gradient(X, y, rows) == pytest.approx(layers.gradient(X, y, rows), rel=1e-6)
        assert whole._compiled_step is not None and layers._compiled_step is None
        pairs = zip(whole.workspace.arrays(), layers.workspace.arrays(), strict=True)
        for actual, expected in pairs:
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)
    for actual, expected in zip(arrays_of(whole), before, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_step_is_made_anew_where_an_array_was_replaced(step_by_layers):
    X, y = data_of(40, 30)
    whole, layers = trainer_of((30, 50, 3)), step_by_layers(trainer_of((30, 50, 3)))
    for trainer in (whole, layers):
        trainer.step(X, y)
        evolve(trainer.network.layers[0], 0.3, np.random.default_rng(0))
        trainer.workspace.resize_(trainer.network.layer_connections)
        trainer.step(X, y)
        trainer.network.layers[1].bias = trainer.network.layers[1].bias + 1
        trainer.step(X, y)
        trainer.step(X[:7], y[:7])
        trainer.step(X, y)
    assert_close_weights(whole, layers)


def test_a_step_knows_what_it_was_made_for():
    trainer = trainer_of((30, 50, 3))
    network, workspace = trainer.network, trainer.workspace
    step = WholeStep(network, workspace, 40, trainer.backend)
    assert step.fits(network, workspace, 40)
    assert not step.fits(network, workspace, 39)
    assert not step.fits(network, trainer_of((30, 50, 3)).workspace, 40)
    assert not step.fits(trainer_of((30, 50, 3)).network, workspace, 40)
    layer = network.layers[0]
    for name in ("values", "velocity", "values_by_output", "bias", "bias_velocity"):
        array = getattr(layer, name)
        setattr(layer, name, array.copy())
        assert not step.fits(network, workspace, 40)
        setattr(layer, name, array)
    assert step.fits(network, workspace, 40)


def test_micro_batches_are_computed_by_layers():
    X, y = data_of(40, 30)
    trainer = trainer_of((30, 50, 3), micro_batch=16)
    trainer.step(X, y)
    assert trainer._compiled_step is None


def test_a_loss_that_is_not_finite_leaves_the_weights():
    X, y = data_of(40, 30)
    trainer = trainer_of((30, 50, 3))
    before = [array.copy() for array in arrays_of(trainer)]
    X[3, 4] = np.nan
    with pytest.raises(NumericalError, match=r"nan at step 1 \(epoch 1, first in layer 2\)"):
        trainer.step(X, y)
    for actual, expected in zip(arrays_of(trainer), before, strict=True):
        np.testing.assert_array_equal(actual, expected)


# Beside another backend


@pytest.mark.parametrize("recipe", ["paper", "width"])
def test_fifty_steps_equal_those_of_scipy(recipe):
    X, y = data_of(320, 50)
    ours, scipy = (
        trainer_of((50, 120, 80, 3), recipe=recipe, backend=name, dropout=0.0)
        for name in ("fused", "scipy")
    )
    for step in range(50):
        rows = np.arange(40) + 40 * (step % 8)
        for trainer in (ours, scipy):
            trainer.step(X, y, rows)
    for actual, expected in zip(arrays_of(ours), arrays_of(scipy), strict=True):
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_dropout_is_that_of_the_shared_kernels():
    rng = np.random.default_rng(0)
    A = csr_array(rng.standard_normal((70, 9), dtype=np.float32))
    X = rng.standard_normal((9, 130), dtype=np.float32)
    bias = np.zeros(70, np.float32)
    key = Dropout(40_000, 2**40 + 3, 17, 3, 24)
    rows = Connections(A.indptr.astype(np.int32), A.indices.astype(np.int32), A.data)
    states = []
    for name in ("fused", "scipy"):
        out, state = np.empty((70, 130), np.float32), np.empty((70, 2, 5), np.uint32)
        backend = get_backend(name)
        backend.forward(rows, bias, X, slope=0.25, out=out, state=state, dropout=key)
        states.append((state, out))
    np.testing.assert_array_equal(states[0][0], states[1][0])
    np.testing.assert_allclose(states[0][1], states[1][1], rtol=1e-4, atol=1e-5)


def test_prediction_stores_nothing():
    trainer = trainer_of((30, 50, 3))
    X, _ = data_of(40, 30)
    network, workspace = trainer.network, trainer.workspace
    load_batch(X, np.arange(40), None, out=workspace.inputs(40))
    workspace.state(0, 40)[:] = 12345
    network.forward(workspace, 40, fused)
    assert np.all(workspace.state(0, 40) == 12345)


# Centred gradients


def test_centred_gradients_of_micro_batches_equal_the_whole():
    X, y = data_of(40, 30)
    whole, parts = (trainer_of((30, 50, 3), recipe="width", micro_batch=m) for m in (40, 7))
    for trainer in (whole, parts):
        trainer.gradient(X, y, np.arange(40))
    for name in ("gradients", "bias_gradients"):
        pairs = zip(getattr(parts.workspace, name), getattr(whole.workspace, name), strict=True)
        for actual, expected in pairs:
            assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_centred_step_is_that_of_inputs_with_a_mean_of_zero():
    """Adding a constant to an input and moving the bias against it changes no step."""
    X, y = data_of(60, 20)
    plain, shifted = (
        trainer_of((20, 3), recipe="width", epsilon=20, standardize=False, weight_decay=0.0)
        for _ in range(2)
    )
    offset = np.float32(3)
    layer = shifted.network.layers[0]
    moved = csr_array((layer.values, layer.topology.indices, layer.topology.indptr))
    layer.bias -= offset * np.asarray(moved.sum(axis=0)).ravel()
    for _ in range(5):
        plain.step(X, y, np.arange(40))
        shifted.step(X + offset, y, np.arange(40))
    np.testing.assert_allclose(
        shifted.network.layers[0].values, plain.network.layers[0].values, atol=1e-5
    )


# Loading


@settings(max_examples=40, derandomize=True)
@given(features=st.integers(1, 70), batch=st.integers(1, 70), seed=st.integers(0, 9))
def test_a_batch_is_the_rows_transposed(features, batch, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((80, features), dtype=np.float32)
    rows = rng.integers(80, size=batch)
    guard = np.full((features + 2, batch), 7, dtype=np.float32)
    load_batch(X, rows, None, out=guard[1:-1])
    np.testing.assert_array_equal(guard[1:-1], X[rows].T)
    assert np.all(guard[[0, -1]] == 7)
    columns = np.asfortranarray(X)
    load_batch(columns, rows, None, out=guard[1:-1])
    np.testing.assert_array_equal(guard[1:-1], X[rows].T)


def test_every_seed_of_64_bits_trains():
    X = np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32)
    config = NetworkConfig((8, 40, 40, 2), epsilon=5)
    values = []
    for backend in ("fused", "scipy"):
        training = TrainingConfig(
            batch_size=32, dropout=0.5, seed=2**64 - 1, backend=backend, threads=1
        )
        trainer = Trainer(SparseMLP(config, progress=False), training)
        trainer.step(X, np.arange(64, dtype=np.int32) % 2, np.arange(32))
        values.append(trainer.network.layers[0].values)
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-7)

"""Activations that are kept in bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import normal_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import random_array

from largesparse import NetworkConfig, Predictor, SparseMLP, Trainer, TrainingConfig
from largesparse.backends import get_backend, kernels
from largesparse.backends.operands import NO_DROPOUT, Connections, Derivative
from largesparse.errors import ParameterError
from largesparse.model.workspace import Workspace
from largesparse.training.memory import BFLOAT16_WIDE as WIDE
from largesparse.training.memory import plan_training, useful_dtype

fused = get_backend("fused")


def widened(half: np.ndarray) -> np.ndarray:
    return (half.astype(np.uint32) << 16).view(np.float32)


def rounded(full: np.ndarray) -> np.ndarray:
    """Round to the nearest bfloat16, ties to even, with integers of any size."""
    bits = full.view(np.uint32).astype(np.int64)
    upper, rest = bits >> 16, bits & 0xFFFF
    up = (rest > 0x8000) | ((rest == 0x8000) & (upper % 2 == 1))
    return (upper + up).astype(np.uint16)


def activations(rng, shape, half):
    full = rng.standard_normal(shape, dtype=np.float32)
    return rounded(full) if half else full


def as_float(array):
    return widened(array) if array.dtype == np.uint16 else array


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    batch=st.integers(1, 140),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    halves=st.sampled_from([(True, True), (False, True), (True, False)]),
    accumulate=st.booleans(),
    seed=st.integers(0, 9),
)
def test_it_is_float32_that_is_rounded_when_it_is_stored(batch, sizes, halves, accumulate, seed):
    """What is computed is what float32 kernels make of the same numbers.

    To the bit, but for gradients: the compiler may add in another order.
    """
    rng = np.random.default_rng(seed)
    n_in, n_out = sizes
    A = random_array(sizes, density=0.3, random_state=rng, dtype=np.float32, format="csr")
    W = A.T.tocsr()
    orders = [
        Connections(a.indptr.astype(np.int32), a.indices.astype(np.int32), a.data) for a in (W, A)
    ]
    bias = rng.standard_normal(n_out, dtype=np.float32)
    words = -(-batch // 32)
    half_in, half_out = halves

    X = activations(rng, (n_in, batch), half_in)
    results = []
    for inputs, dtype in ((X, np.uint16 if half_out else np.float32), (as_float(X), np.float32)):
        guard = np.full((n_out + 2, batch), 7, dtype=dtype)
        state = np.zeros((n_out, 2, words), dtype=np.uint32)
        dropout = NO_DROPOUT._replace(keep_below=40_000, seed=seed, layer=2)
        out = guard[1:-1]
        fused.forward(orders[0], bias, inputs, slope=-0.6, out=out, state=state, dropout=dropout)
        assert np.all(guard[[0, -1]] == 7)
        results.append((out, state))
    (out, state), (full, other_state) = results
    np.testing.assert_array_equal(state, other_state)
    np.testing.assert_array_equal(out, rounded(full) if half_out else full)

    delta = activations(rng, (n_out, batch), half_out)
    state_in = rng.integers(0, 2**32, (n_in, 2, words), dtype=np.uint32)
    state_in[:, 1] &= ~state_in[:, 0]
    results = []
    for inputs, gradient_out in ((X, delta), (as_float(X), as_float(delta))):
        found = np.full(len(A.data), 2, dtype=np.float32)
        below = np.full((n_in + 2, batch), 7, dtype=inputs.dtype)
        bias_gradient = np.full(n_in, 3, dtype=np.float32)
        fused.backward(
            orders[1],
            inputs,
            gradient_out,
            Derivative(np.float32(0.6), np.float32(0.7), state_in),
            out_gradient=found,
            out_delta=below[1:-1],
            out_bias_gradient=bias_gradient,
            accumulate=accumulate,
        )
        assert np.all(below[[0, -1]] == 7)
        results.append((found, bias_gradient, below[1:-1]))
    for found, expected in zip(results[0][:2], results[1][:2], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
    below, full = results[0][2], results[1][2]
    np.testing.assert_array_equal(below, rounded(full) if half_in else full)

    sums = [np.zeros(n_in, dtype=np.float32) for _ in range(2)]
    for array, out in zip((X, as_float(X)), sums, strict=True):
        kernels.sum_rows(array, out, False)
    np.testing.assert_array_equal(*sums)


@pytest.mark.parametrize("value", [1.0, 1 + 2**-8, 1 + 3 * 2**-8, 3.3e38, 1e-40])
@pytest.mark.parametrize("sign", [1, -1])
def test_ties_round_to_even(value, sign):
    passed = pass_through(np.float32(sign * value))
    assert passed == rounded(np.array([sign * value], dtype=np.float32))[0]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_so(value):
    np.testing.assert_equal(widened(np.array([pass_through(np.float32(value))]))[0], value)


def pass_through(value):
    """Return a number after it went through a layer of one connection of weight 1."""
    one, zero = np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.float32)
    indptr, indices = np.array([0, 1], dtype=np.int32), np.zeros(1, dtype=np.int32)
    out = np.zeros((1, 1), dtype=np.uint16)
    connections = Connections(indptr, indices, one)
    fused.forward(connections, zero, np.full((1, 1), value), slope=1.0, out=out)
    return out[0, 0]


def task():
    X = normal_rows(400, 20)
    return X, (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(np.int32)


def trained(activation_dtype, **training):
    defaults = {"epochs": 8, "batch_size": 40, "micro_batch": 24, "dropout": 0.1, "threads": 1}
    defaults |= {"learning_rate": 0.1, "backend": "fused", "activation_dtype": activation_dtype}
    config = NetworkConfig((20, 60, 50, 60, 40, 2), epsilon=6, recipe="width")
    trainer = Trainer(SparseMLP(config, progress=False), TrainingConfig(**defaults | training))
    trainer.fit(*task(), progress=False)
    return trainer


def test_training_is_close_to_that_in_float32():
    full, half = trained("float32"), trained("bfloat16")
    losses = np.array([trainer.history["loss"] for trainer in (full, half)])
    assert losses[0, -1] < 0.7 * losses[0, 0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.03)
    assert half.history["loss"] != full.history["loss"]


@pytest.mark.parametrize(
    "options", [{"threads": 2}, {"keep_every": 2}, {"growth": "gradient", "threads": 2}]
)
def test_threads_and_what_is_kept_do_not_matter(options):
    growth = options.get("growth", "random")
    one, other = (
        trained("bfloat16", growth=growth, epochs=2),
        trained("bfloat16", epochs=2, **options),
    )
    assert one.history["loss"] == other.history["loss"]
    for layer, same in zip(one.network.layers, other.network.layers, strict=True):
        np.testing.assert_array_equal(layer.values, same.values)


def test_prediction():
    network, X = trained("float32", epochs=2).network, task()[0]
    with Predictor(network, backend="fused") as full:
        expected = full.predict_proba(X)
    for processes in (1, 2):
        with Predictor(
            network, backend="fused", activation_dtype="bfloat16", processes=processes, threads=1
        ) as half:
            found = half.predict_proba(X)
        np.testing.assert_allclose(found, expected, atol=0.02)
        assert np.any(found != expected)


def test_the_plan_is_what_the_workspace_takes():
    config = NetworkConfig((30, 400, 300, 200, 3), epsilon=5)
    network = SparseMLP(config, progress=False)
    for micro_batch, keep_every in ((1, 1), (33, 1), (33, 2)):
        setting = {"keep_every": keep_every, "activation_dtype": "bfloat16"}
        workspace = Workspace(network.layers, micro_batch, **setting)
        buffers = [*workspace._activations, *workspace._states, *workspace._deltas]
        taken = {array.ctypes.data: array.nbytes for array in [*buffers, workspace._inputs]}
        assert plan_training(config, micro_batch, **setting).activations == sum(taken.values())


def test_very_wide_layers_take_it_by_default_where_the_backend_does():
    wide = NetworkConfig((100, WIDE, 2), epsilon=1)
    assert useful_dtype(wide, "fused") == "bfloat16"
    assert useful_dtype(wide, "scipy") == "float32"
    assert useful_dtype(NetworkConfig((100, WIDE - 1, 2), epsilon=1), "fused") == "float32"
    shaped = NetworkConfig((100, WIDE, 2), epsilon=1, activation="srelu")
    assert useful_dtype(shaped, "fused") == "float32"


def test_what_cannot_take_it_is_refused():
    with pytest.raises(ParameterError, match=r"activation_dtype.*one of \['bfloat16', 'float32'\]"):
        TrainingConfig(activation_dtype="float16")
    settings = TrainingConfig(activation_dtype="bfloat16", backend="scipy")
    network = SparseMLP(NetworkConfig((5, 4, 2), epsilon=9), progress=False)
    with pytest.raises(ParameterError, match="backend 'scipy', or the backend 'fused'"):
        Trainer(network, settings)
    with pytest.raises(ParameterError, match="backend 'scipy'"):
        Predictor(network, activation_dtype="bfloat16", backend="scipy")
    with pytest.raises(ParameterError, match="one of"):
        Predictor(network, activation_dtype="half")
    shaped = SparseMLP(NetworkConfig((5, 4, 2), epsilon=9, activation="prelu"), progress=False)
    with pytest.raises(ParameterError, match=r"shape is trained \(prelu\)"):
        Trainer(shaped, TrainingConfig(activation_dtype="bfloat16", backend="fused"))

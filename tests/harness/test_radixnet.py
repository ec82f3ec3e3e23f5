"""Networks of RadiX-Net's shape, and the challenge's inference beside a dense computation."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from largesparse.errors import ParameterError
from largesparse.harness.radixnet import FAN_IN, WEIGHT, generated_inputs, infer, radix_net
from largesparse.machine.exit_codes import run_command


def dense_rows(network, X):
    """Which rows are not zero at the end, by dense products of float64."""
    Y = X.toarray().astype(np.float64)
    for layer in network.layers:
        shape = network.neurons, network.neurons
        W = csr_array((layer.values, layer.indices, layer.indptr), shape=shape).toarray()
        Y = np.clip(Y @ W.T + network.bias, 0, 32)
    return np.flatnonzero(Y.any(axis=1))


@pytest.mark.parametrize("neurons", [1024, 4096, 32768])
def test_every_neuron_has_32_inputs_and_32_outputs(neurons):
    network = radix_net(neurons, 5, bias=-0.3)
    assert network.connections == 5 * FAN_IN * neurons
    for layer in network.layers:
        assert np.all(np.diff(layer.indptr) == FAN_IN)
        assert np.all(np.bincount(layer.indices, minlength=neurons) == FAN_IN)
        rows = layer.indices.reshape(neurons, FAN_IN)
        assert np.all(np.diff(rows, axis=1) > 0)
        assert np.all(layer.values == np.float32(WEIGHT))


@pytest.mark.parametrize(("neurons", "n_layers"), [(1024, 2), (4096, 3), (65536, 4)])
def test_every_input_reaches_every_neuron_by_equally_many_paths(neurons, n_layers):
    paths = np.zeros((neurons, 2), dtype=np.int64)
    paths[[5, neurons - 1], [0, 1]] = 1  # from two of the inputs
    for layer in radix_net(neurons, n_layers).layers:
        ones = np.ones(len(layer.indices), dtype=np.int64)
        paths = csr_array((ones, layer.indices, layer.indptr), shape=(neurons, neurons)) @ paths
    assert np.all(paths == FAN_IN**n_layers // neurons)


@pytest.mark.parametrize("bias", [-0.3, -0.1, -0.02])
def test_the_rows_are_those_of_a_dense_computation(bias):
    network = radix_net(1024, 9, bias=bias)
    X = generated_inputs(1024, 300, seed=1)
    expected = dense_rows(network, X)
    assert 0 < len(expected) < 300 or bias == -0.02
    found = infer(network, X, batch_size=64, threads=1)
    np.testing.assert_array_equal(found.rows, expected)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(0, 70),
    n_layers=st.integers(1, 12),
    batch_size=st.integers(1, 80),
    block=st.sampled_from([1, 20_000, 2**26]),
    seed=st.integers(0, 9),
)
def test_batches_and_blocks_do_not_matter(rows, n_layers, batch_size, block, seed):
    network = radix_net(1024, n_layers)
    X = generated_inputs(1024, rows, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("largesparse.harness.radixnet.BLOCK_FLOATS", block)
        found = infer(network, X, batch_size=batch_size, threads=1)
    np.testing.assert_array_equal(found.rows, dense_rows(network, X))
    assert found.edges <= rows * network.connections


def test_rows_that_have_become_zero_are_not_computed():
    network = radix_net(1024, 100)
    X = csr_array((50, 1024), dtype=np.float32)
    found = infer(network, X, threads=1)
    assert len(found.rows) == 0
    assert found.edges == 2 * FAN_IN * 1024 * 50  # nothing after the second layer


def test_inputs_are_as_dense_as_the_challenges():
    X = generated_inputs(4096, 2000)
    assert set(X.data) == {1}
    assert X.has_canonical_format
    assert 0.07 < X.nnz / np.prod(X.shape) < 0.13
    again = generated_inputs(4096, 2000)
    assert (again != X).nnz == 0 and (generated_inputs(4096, 2000, seed=1) != X).nnz > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000, 1), "neurons"),
        ((1536, 1), "power of two"),
        ((2048, 1), "bias"),
        ((1024, 0), "n_layers"),
    ],
)
def test_sizes_that_are_refused(arguments, message):
    with pytest.raises(ParameterError, match=message):
        radix_net(*arguments)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="2048"):
        infer(radix_net(1024, 1), csr_array((3, 2048), dtype=np.float32))


def test_the_tool_prints_a_line_a_network(capsys, monkeypatch):
    tool, ladders = (importlib.import_module(name) for name in ("measure", "measuring.ladders"))
    arguments = ["graph_challenge", "--rows", "80", "--layers", "3", "5", "--repeats", "1"]
    arguments += ["--threads", "1"]
    tool.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].split()[:2] == ["1024", "3"]

    monkeypatch.setattr(ladders, "scipy_rows", lambda *_: np.arange(3))
    assert run_command(lambda: tool.main(arguments)) == 2
    assert "differ" in capsys.readouterr().err

"""Erdős–Rényi topologies: their distribution, their two orders, and what is refused."""

from __future__ import annotations

import itertools
import logging
import math
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.stats import binom, chi2

from largesparse import NetworkConfig, SparseMLP
from largesparse.backends import operands
from largesparse.backends.kernels import momentum_update_reorder
from largesparse.backends.operands import SGD
from largesparse.errors import MemoryPlanError, ParameterError
from largesparse.model import topology
from largesparse.model.topology import (
    Topology,
    check_count,
    connection_probability,
    erdos_renyi,
)

ARRAYS = ("indptr", "indices", "indptr_by_output", "indices_by_output", "to_output_order")
UNLIKELY = 1e-4  # p-value below which a statistical test with a fixed seed fails


def sample(n_in, n_out, probability, seed=0, **options) -> Topology:
    return erdos_renyi(n_in, n_out, probability, np.random.SeedSequence(seed), **options)


def mask(pattern: Topology) -> np.ndarray:
    """The cells of a topology as a dense boolean matrix, from its input order."""
    ones = np.ones(pattern.nnz, dtype=bool)
    shape = (pattern.n_in, pattern.n_out)
    return csr_matrix((ones, pattern.indices, pattern.indptr), shape=shape).toarray()


def binomial_p_value(counts: np.ndarray, n: int, p: float) -> float:
    """Chi-square p-value of counts being Binomial(n, p), over bins that expect at least 10."""
    edges = [-1]
    for value in range(n + 1):
        if len(counts) * (binom.cdf(value, n, p) - binom.cdf(edges[-1], n, p)) >= 10:
            edges.append(value)
    edges[-1] = n
    expected = len(counts) * np.diff(binom.cdf(edges, n, p))
    observed = [np.sum((counts > a) & (counts <= b)) for a, b in itertools.pairwise(edges)]
    assert len(expected) > 2
    return chi2.sf(np.sum((observed - expected) ** 2 / expected), len(expected) - 1)


def check_structure(pattern: Topology) -> None:
    """The two orders hold the same cells, sorted and distinct, as SciPy's conversion gives them."""
    n_in, n_out, nnz = pattern.n_in, pattern.n_out, pattern.nnz
    for name in ARRAYS:
        assert getattr(pattern, name).dtype == np.int32
    assert pattern.indptr.shape == (n_in + 1,) and pattern.indptr_by_output.shape == (n_out + 1,)
    assert pattern.indptr[0] == 0 and pattern.indptr[-1] == nnz
    assert np.all(np.diff(pattern.indptr) >= 0)
    assert np.all((pattern.indices >= 0) & (pattern.indices < n_out))
    for i in range(n_in):
        row = pattern.indices[pattern.indptr[i] : pattern.indptr[i + 1]]
        assert np.all(np.diff(row) > 0)  # ascending, no duplicates

    values = np.arange(1, nnz + 1, dtype=np.float32)
    by_scipy = csr_matrix((values, pattern.indices, pattern.indptr), shape=(n_in, n_out)).tocsc()
    np.testing.assert_array_equal(pattern.indptr_by_output, by_scipy.indptr)
    np.testing.assert_array_equal(pattern.indices_by_output, by_scipy.indices)
    moved = np.full(nnz, np.nan, dtype=np.float32)
    moved[pattern.to_output_order] = values
    np.testing.assert_array_equal(moved, by_scipy.data)


# How many connections, and where


@pytest.mark.parametrize("n_in, n_out", [(1000, 1000), (784, 300), (50, 20_000), (20_000, 50)])
@pytest.mark.parametrize("epsilon", [0.1, 1, 20])
def test_number_of_connections_is_that_of_the_formula(n_in, n_out, epsilon):
    p = min(1.0, epsilon * (n_in + n_out) / (n_in * n_out))
    pattern = sample(n_in, n_out, connection_probability(n_in, n_out, epsilon=epsilon), seed=1)
    deviation = math.sqrt(n_in * n_out * p * (1 - p))
    assert abs(pattern.nnz - n_in * n_out * p) <= 4 * deviation
    assert pattern.density == pattern.nnz / (n_in * n_out)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.6])
def test_number_of_connections_varies_as_a_binomial(p):
    counts = np.array([sample(31, 40, p, seed).nnz for seed in range(300)])
    squares = np.sum((counts - 1240 * p) ** 2) / (1240 * p * (1 - p))
    assert UNLIKELY < chi2.cdf(squares, len(counts)) < 1 - UNLIKELY


@pytest.mark.parametrize("block", [topology.BLOCK_CONNECTIONS, 1000, 3])
@pytest.mark.parametrize(
    "n_in, n_out, p", [(3000, 2000, 0.003), (1500, 1200, 0.02), (900, 40, 0.5)]
)
def test_degrees_are_binomial(monkeypatch, block, n_in, n_out, p):
    monkeypatch.setattr(topology, "BLOCK_CONNECTIONS", block)
    pattern = sample(n_in, n_out, p, seed=2)
    assert binomial_p_value(np.diff(pattern.indptr), n_out, p) > UNLIKELY
    if n_out > 100:
        assert binomial_p_value(np.diff(pattern.indptr_by_output), n_in, p) > UNLIKELY


@pytest.mark.parametrize("block", [topology.BLOCK_CONNECTIONS, 5, 1])
@pytest.mark.parametrize("p", [0.15, 0.5, 0.9])
def test_cells_are_uniform_and_independent(monkeypatch, block, p):
    monkeypatch.setattr(topology, "BLOCK_CONNECTIONS", block)
    repeats = 1200
    cells = np.array([mask(sample(5, 7, p, seed)).ravel() for seed in range(repeats)])
    scores = (cells - p) / math.sqrt(p * (1 - p))
    each = scores.sum(axis=0) / math.sqrt(repeats)  # standard normal, for every cell
    assert chi2.sf(np.sum(each**2), len(each)) > UNLIKELY
    pairs = (scores.T @ scores / math.sqrt(repeats))[np.triu_indices(35, k=1)]
    assert chi2.sf(np.sum(pairs**2), len(pairs)) > UNLIKELY


@pytest.mark.parametrize("n_in, n_out", [(1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("p", [0.001, 0.3, 0.8])
def test_one_row_or_one_column(n_in, n_out, p):
    pattern = sample(n_in, n_out, p, seed=3)
    check_structure(pattern)
    assert abs(pattern.nnz - 20_000 * p) <= 4 * math.sqrt(20_000 * p * (1 - p))
    position = np.flatnonzero(mask(pattern)).mean()  # uniform over the line
    assert abs(position - 10_000) <= 4 * 20_000 / math.sqrt(12 * pattern.nnz)


def test_a_single_cell():
    found = [sample(1, 1, 0.3, seed).nnz for seed in range(500)]
    assert set(found) == {0, 1}
    assert abs(sum(found) - 150) <= 4 * math.sqrt(500 * 0.3 * 0.7)


# The two orders


@settings(max_examples=40)
@given(
    n_in=st.integers(1, 40),
    n_out=st.integers(1, 40),
    p=st.one_of(st.floats(1e-6, 1), st.just(1.0)),
    block=st.sampled_from([1, 2, 17, 100, 1 << 20]),
    seed=st.integers(0, 2**32),
)
def test_structure(n_in, n_out, p, block, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topology, "BLOCK_CONNECTIONS", block)
        check_structure(sample(n_in, n_out, p, seed))


def test_structure_of_a_large_layer():
    pattern = sample(5000, 3000, 0.01, seed=4)
    check_structure(pattern)
    rows, _ = mask(pattern).nonzero()
    np.testing.assert_array_equal(pattern.rows(), rows)
    assert pattern.rows().dtype == np.int32
    assert pattern.nbytes == sum(getattr(pattern, name).nbytes for name in ARRAYS)


@given(seed=st.integers(0, 2**32), density=st.sampled_from([0, 0.05, 0.5, 1]))
@settings(max_examples=20)
def test_from_input_order_of_any_pattern(seed, density):
    rng = np.random.default_rng(seed)
    n_in, n_out = rng.integers(1, 20, size=2)
    pattern = csr_matrix(rng.random((n_in, n_out)) < density)
    arrays = pattern.indptr.astype(np.int32), pattern.indices.astype(np.int32)
    check_structure(Topology.from_input_order(int(n_in), int(n_out), *arrays))


def test_weights_in_output_order_are_the_transpose():
    network = SparseMLP(NetworkConfig((70, 50, 3), epsilon=5), progress=False)
    for layer in network.layers:
        pattern = layer.topology
        arrays = (layer.values, pattern.indices, pattern.indptr)
        transpose = csr_matrix(arrays, shape=(layer.n_in, layer.n_out)).T.tocsr()
        np.testing.assert_array_equal(layer.values_by_output, transpose.data)
        out = np.full(layer.nnz, np.nan, dtype=np.float32)
        still = np.zeros_like(layer.values)
        nothing = SGD(*np.zeros(3, dtype=np.float32))
        places = pattern.to_output_order
        momentum_update_reorder(layer.values, still, still, nothing, places, out)
        np.testing.assert_array_equal(out, transpose.data)


# Full density


@pytest.mark.parametrize("n_in, n_out, epsilon", [(784, 10, 20), (2, 2, 1), (3, 5, 1e300)])
def test_a_layer_whose_epsilon_gives_more_is_full(n_in, n_out, epsilon, caplog):
    p = connection_probability(n_in, n_out, epsilon=epsilon)
    assert p == 1
    with caplog.at_level(logging.INFO, logger="largesparse"):
        pattern = sample(n_in, n_out, p)
    assert f"{n_in} x {n_out}" in caplog.text and "fully connected" in caplog.text
    assert mask(pattern).all() and pattern.nnz == n_in * n_out and pattern.density == 1
    check_structure(pattern)


def test_no_note_below_full_density(caplog):
    with caplog.at_level(logging.INFO, logger="largesparse"):
        sample(30, 30, 0.99)
    assert not caplog.records


# What the result depends on


@pytest.mark.parametrize("block", [topology.BLOCK_CONNECTIONS, 1000, 50])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_the_result(monkeypatch, block, threads):
    monkeypatch.setattr(topology, "BLOCK_CONNECTIONS", block)
    one, several = (sample(300, 250, 0.1, seed=5, threads=count) for count in (1, threads))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(several, name))


def test_seeds_give_different_topologies_and_the_same_seed_the_same():
    first, again, other = (mask(sample(60, 60, 0.1, seed)) for seed in (6, 6, 7))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_a_seed_sequence_can_be_used_twice():
    seed = np.random.SeedSequence(8)
    first, again = (erdos_renyi(60, 60, 0.1, seed) for _ in range(2))
    np.testing.assert_array_equal(mask(first), mask(again))


def test_blocks_and_layers_of_a_network_differ(monkeypatch):
    monkeypatch.setattr(topology, "BLOCK_CONNECTIONS", 500)  # 10 rows a block
    cells = mask(sample(20, 100, 0.5, seed=9))
    assert np.any(cells[:10] != cells[10:])
    first, second, _ = SparseMLP(NetworkConfig((80, 80, 80, 2), epsilon=5), progress=False).layers
    assert np.any(mask(first.topology) != mask(second.topology))


# Memory


def traced_peak(function) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_of_the_order_of_the_rows_not_of_the_cells():
    n = 5_000_000
    sample(10, 10, 0.5)  # compiles
    found = []
    peak = traced_peak(lambda: found.append(sample(n, n, 1000 / n**2, seed=10)))
    (pattern,) = found
    assert abs(pattern.nnz - 1000) <= 4 * math.sqrt(1000)
    assert peak <= 40 * n  # 25 million million cells
    rows, columns = pattern.rows() / n, pattern.indices / n
    assert abs(rows.mean() - 0.5) < 0.04 and abs(columns.mean() - 0.5) < 0.04


def test_memory_is_of_the_order_of_the_connections():
    sample(10, 10, 0.5)  # compiles
    peak = traced_peak(lambda: sample(20_000, 20_000, 400_000 / 20_000**2, seed=11))
    assert peak <= 60 * 400_000  # 400 million cells


# Bad input


@pytest.mark.parametrize(
    "n_in, n_out, epsilon, expected",
    [(1000, 1000, 10, 0.02), (784, 10, 20, 1.0), (100, 400, 2, 0.025), (1, 50, 0.1, 0.102)],
)
def test_connection_probability_by_hand(n_in, n_out, epsilon, expected):
    assert connection_probability(n_in, n_out, epsilon=epsilon) == pytest.approx(expected)


@given(n_in=st.integers(1, 10**9), n_out=st.integers(1, 10**9), epsilon=st.floats(1e-3, 1e6))
@settings(max_examples=30)
def test_connection_probability_is_that_of_the_formula(n_in, n_out, epsilon):
    p = connection_probability(n_in, n_out, epsilon=epsilon)
    assert p == pytest.approx(min(1, epsilon * (1 / n_in + 1 / n_out)))


def test_density_is_the_probability():
    assert connection_probability(30, 40, density=0.25) == 0.25
    assert connection_probability(30, 40, density=1) == 1


@pytest.mark.parametrize("value", [0, -1, -0.0, math.nan, math.inf, -math.inf, "1", True])
@pytest.mark.parametrize("name", ["epsilon", "density"])
def test_bad_epsilon_and_density(name, value):
    with pytest.raises(ParameterError, match=rf"'{name}' parameter of a layer must be .* Got "):
        connection_probability(10, 10, **{name: value})


def test_density_above_one():
    with pytest.raises(ParameterError, match=r"'density' .* range \(0, 1\]\. Got 1\.01 instead"):
        connection_probability(10, 10, density=1.01)


@pytest.mark.parametrize("arguments", [{}, {"epsilon": 1, "density": 0.5}])
def test_either_epsilon_or_density(arguments):
    with pytest.raises(ParameterError, match=r"either 'epsilon' or 'density'"):
        connection_probability(10, 10, **arguments)


@pytest.mark.parametrize("n", [0, -3, 2.0, 2**31, math.nan, None])
def test_bad_sizes(n):
    with pytest.raises(ParameterError, match=r"'n_in' parameter of a layer must be an integer"):
        connection_probability(n, 10, epsilon=1)
    with pytest.raises(ParameterError, match=r"'n_out' parameter of a layer must be an integer"):
        connection_probability(10, n, epsilon=1)


@pytest.mark.parametrize("p", [0, -0.5, 1.5, math.nan])
def test_bad_probability(p):
    with pytest.raises(ParameterError, match=r"'probability' parameter of erdos_renyi"):
        sample(10, 10, p)


@pytest.mark.parametrize("p", [1.0, 0.3])
def test_more_connections_than_memory_holds(p, monkeypatch):
    monkeypatch.setattr(topology, "free_memory", lambda: 2**34)
    with pytest.raises(MemoryPlanError, match=r"100000 x 100000 .* 16.0 GiB are available") as told:
        sample(100_000, 100_000, p)
    assert "An epsilon of at most 3500, or" in str(told.value)  # 24 bytes each


@settings(max_examples=50, deadline=None)
@given(st.integers(40, 400), st.integers(40, 400), st.floats(0.5, 30))
def test_what_a_refusal_of_too_many_connections_names_would_do(n_in, n_out, epsilon):
    def most_of(epsilon):
        """Return the connections that a layer will hardly have more of."""
        return math.ceil(epsilon * (n_in + n_out) + 6 * math.sqrt(epsilon * (n_in + n_out)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operands, "MOST_INT32", 2000)
        expected = math.ceil(epsilon * (n_in + n_out))
        try:
            check_count(n_in, n_out, expected, "a test")
            assert expected <= 2000
        except ParameterError as error:
            assert expected > 2000
            least = float(re.search(r"epsilon of at most ([\d.]+)", str(error))[1])
            layers = int(re.search(r"or (\d+) layers", str(error))[1])
            check_count(n_in, n_out, most_of(least), "a test")
            assert 0.85 * least * (n_in + n_out) < 2000 < 1.6 * layers * least * (n_in + n_out)
            assert expected <= layers * 2000


def test_sizes_may_be_numpy_integers():
    n = np.int32(100_000)  # n² is more than int32 holds
    assert connection_probability(n, n, epsilon=1) == pytest.approx(2e-5)
    plain, numpys = sample(100_000, 100_000, 2e-5), sample(n, n, 2e-5)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(plain, name), getattr(numpys, name))


@pytest.mark.parametrize("p", [1e-15, 1e-18, 1e-19, 1e-30, 1e-310])
def test_probabilities_near_zero_give_no_connections(p):
    for seed in range(20):
        assert sample(10, 10, p, seed).nnz == 0

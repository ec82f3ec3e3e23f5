"""Parallel counting on patterns gives what sorting, SciPy and NumPy give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from largesparse.backends import pattern_kernels
from largesparse.machine.threads import kernel_threads
from largesparse.model import ranking
from largesparse.model.evolution import evolve
from largesparse.model.initializers import uniform
from largesparse.model.layer import LayerConfig, SparseLayer
from largesparse.model.ranking import survivors
from largesparse.model.topology import Topology, erdos_renyi
from largesparse.randomness import seed_sequence, stream

MANY = pattern_kernels.BLOCK + 12_345  # connections, more than one block of them


def of_scipy(topology) -> list[np.ndarray]:
    """The output order of a topology, by SciPy's transposition."""
    shape = topology.n_in, topology.n_out
    pattern = csr_array((np.arange(topology.nnz), topology.indices, topology.indptr), shape=shape)
    columns = pattern.tocsc()
    columns.sort_indices()
    places = np.empty(topology.nnz, dtype=np.int64)
    places[columns.data] = np.arange(topology.nnz)
    return [columns.indptr, columns.indices, places]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "n_in, n_out, density",
    [(1, 1, 1.0), (40, 50_000, 0.2), (50_000, 40, 0.2), (30_000, 70_000, 2e-4), (700, 600, 1.0)],
)
def test_the_output_order_is_that_of_scipy(n_in, n_out, density, threads):
    with kernel_threads(threads):
        topology = erdos_renyi(n_in, n_out, density, seed_sequence(1, "topology", 0))
    found = topology.indptr_by_output, topology.indices_by_output, topology.to_output_order
    for actual, expected in zip(found, of_scipy(topology), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_rows_and_outputs_without_connections():
    indptr = np.array([0, 0, 0, 2, 2], dtype=np.int32)
    indices = np.array([5, 40_000], dtype=np.int32)
    topology = Topology.from_input_order(4, 40_001, indptr, indices)
    assert topology.indptr_by_output.tolist() == [0] * 6 + [1] * 39_995 + [2]
    assert topology.indices_by_output.tolist() == [2, 2]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("zeta", [0, 1e-7, 0.3, 0.999])
@pytest.mark.parametrize("step", [None, 0.05, 1.0])  # rounding makes ties
def test_counting_selects_what_sorting_does(monkeypatch, step, zeta, threads):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(MANY, dtype=np.float32)
    if step:
        values = (np.round(values / step) * step).astype(np.float32)
    values[::17], values[1::19] = 0.0, -0.0
    values[3::23] *= np.float32(1e-42)  # subnormal
    assert len(values) > ranking.FEW
    with kernel_threads(threads):
        counted = survivors(values, zeta)
    monkeypatch.setattr(ranking, "FEW", len(values))
    np.testing.assert_array_equal(counted, survivors(values, zeta))
    negative = values < 0
    for sign in (negative, ~negative):
        assert np.count_nonzero(sign & ~counted) == int(zeta * np.count_nonzero(sign))


@pytest.mark.parametrize("value", [2.5, -2.5, 0.0])
def test_counting_where_all_values_are_equal(value):
    keep = survivors(np.full(MANY, value, dtype=np.float32), 0.25)
    gone = MANY // 4
    assert not keep[:gone].any() and keep[gone:].all()  # of equal ones, the first


@settings(max_examples=30, derandomize=True)
@given(
    count=st.integers(0, 30_000), upper=st.sampled_from([1, 7, 2**20, 2**62]), seed=st.integers(0)
)
def test_cells_are_sorted(count, upper, seed):
    cells = np.random.default_rng(seed).integers(upper, size=count)
    np.testing.assert_array_equal(pattern_kernels.sort_cells(cells, upper), np.sort(cells))


@pytest.mark.parametrize("regrowth", [None, uniform(1.0)])
def test_evolution_of_many_connections(regrowth):
    def evolved(threads):
        with kernel_threads(threads):
            topology = erdos_renyi(9_000, 11_000, 0.003, seed_sequence(0, "topology", 0))
            values = uniform(1.0)(stream(0, "values", 0), topology.nnz)
            bias = np.zeros(11_000, dtype=np.float32)
            layer = SparseLayer(
                2, topology, {"values": values, "bias": bias}, LayerConfig(0.6, regrowth=regrowth)
            )
            layer.velocity[:] = values * 3
            old = layer.topology, values.copy()
            return layer, evolve(layer, 0.3, stream(0, "evolution", 0)), *old

    layer, slots, old, old_values = evolved(1)
    assert old.nnz > ranking.FEW
    kept = slots >= 0
    keys = [t.rows().astype(np.int64) * t.n_out + t.indices for t in (old, layer.topology)]
    assert layer.nnz == old.nnz
    assert np.all(np.diff(keys[1]) > 0)  # sorted, without duplicates
    np.testing.assert_array_equal(keys[1][slots[kept]], keys[0][kept])
    np.testing.assert_array_equal(layer.values[slots[kept]], old_values[kept])
    np.testing.assert_array_equal(layer.velocity[slots[kept]], 3 * old_values[kept])
    new = np.ones(layer.nnz, dtype=bool)
    new[slots[kept]] = False
    assert np.count_nonzero(new) == np.count_nonzero(~kept)
    assert not layer.velocity[new].any()
    assert layer.values[new].any() == (regrowth is not None)
    np.testing.assert_array_equal(
        layer.values_by_output[layer.topology.to_output_order], layer.values
    )

    other, other_slots, *_ = evolved(3)
    np.testing.assert_array_equal(other_slots, slots)
    np.testing.assert_array_equal(other.values, layer.values)
    np.testing.assert_array_equal(other.topology.to_output_order, layer.topology.to_output_order)

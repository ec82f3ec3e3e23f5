"""Topologies that leave no neuron without connections: what moves, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from test_topology import ARRAYS, check_structure, mask, sample, traced_peak

from largesparse import NetworkConfig, SparseMLP, active_neurons, load_model, save_model
from largesparse.errors import ParameterError
from largesparse.model import topology
from largesparse.model.topology import covering


def degrees(pattern):
    return np.diff(pattern.indptr), np.diff(pattern.indptr_by_output)


@settings(max_examples=150, deadline=None)
@given(
    n_in=st.integers(1, 40),
    n_out=st.integers(1, 40),
    mean=st.floats(0.1, 4),
    block=st.sampled_from([1, 17, 1 << 20]),
    seed=st.integers(0, 2**32),
)
def test_as_many_neurons_as_possible_are_covered(n_in, n_out, mean, block, seed):
    p = min(1.0, mean * max(n_in, n_out) / (n_in * n_out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topology, "BLOCK_CONNECTIONS", block)
        plain, full = (sample(n_in, n_out, p, seed, cover=cover) for cover in (False, True))
    check_structure(full)
    assert full.nnz == plain.nnz
    for before, after in zip(degrees(plain), degrees(full), strict=True):
        assert np.count_nonzero(after) == min(full.nnz, len(after))
        assert np.all(after[before == 0] <= 1)  # none gets more than it needs
        given_away = np.maximum(before - after, 0)
        assert given_away.sum() == np.count_nonzero(after[before == 0])
        assert np.all(after[before > 0] <= before[before > 0])
        assert np.all(after[before > 0] >= 1)
    # What moves is at most one connection for every neuron that had none.
    empty = sum(np.count_nonzero(before == 0) for before in degrees(plain))
    assert np.count_nonzero(mask(plain) & ~mask(full)) <= empty


def test_a_covered_topology_is_left_as_it_is():
    plain, full = (sample(200, 300, 0.2, seed=3, cover=cover) for cover in (False, True))
    assert min(d.min() for d in degrees(plain)) > 0
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(plain, name), getattr(full, name))


@pytest.mark.parametrize("block", [topology.BLOCK_CONNECTIONS, 500])
def test_threads_do_not_change_the_result(monkeypatch, block):
    monkeypatch.setattr(topology, "BLOCK_CONNECTIONS", block)
    one, several = (sample(2000, 1500, 0.001, cover=True, threads=count) for count in (1, 3))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(several, name))
    other = sample(2000, 1500, 0.001, seed=1, cover=True)
    assert not np.array_equal(one.indices[:1000], other.indices[:1000])


def test_cells_stay_exchangeable():
    """Over many seeds all cells are connections equally often."""
    repeats = 3000
    counts = sum(mask(sample(6, 6, 0.25, seed, cover=True)).astype(int) for seed in range(repeats))
    share = counts.mean() / repeats
    scores = (counts - counts.mean()) / np.sqrt(repeats * share * (1 - share))
    assert np.sum(scores**2) < chi2.isf(1e-4, 35)


def test_the_connections_of_a_row_move_equally_often():
    indptr = np.repeat(np.arange(0, 2001, 2), 2)[:-1].astype(np.int32)  # rows of 2, 0, 2, 0, ...
    indices = np.tile(np.arange(2, dtype=np.int32), 1000)
    columns = covering(2000, 2, indptr, indices, np.random.default_rng(0)).indices
    assert len(columns) == 2000
    assert abs(np.mean(columns[::2] == 0) - 0.5) < 4 / np.sqrt(4 * 1000)


def test_moved_connections_have_no_direction():
    """Neither end of a moved connection tells the other."""
    plain, full = (sample(4000, 4000, 2 / 4000, seed=5, cover=cover) for cover in (False, True))
    new_rows, new_columns = (mask(full) & ~mask(plain)).nonzero()
    assert len(new_rows) > 500
    assert abs(np.corrcoef(new_rows, new_columns)[0, 1]) < 4 / np.sqrt(len(new_rows))
    for side in (new_rows, new_columns):
        assert abs(side.mean() / 4000 - 0.5) < 4 / np.sqrt(12 * len(side))


@pytest.mark.parametrize("sizes", [(300, 400, 400, 400, 2), (3000, 400, 20, 400, 2)])
def test_all_neurons_of_a_covered_network_are_active(sizes):
    plain = SparseMLP(NetworkConfig(sizes, epsilon=1.1, seed=2), progress=False)
    full = SparseMLP(NetworkConfig(sizes, epsilon=1.1, seed=2, coverage="full"), progress=False)
    assert full.layer_connections == plain.layer_connections
    assert active_neurons(full) == list(sizes[1:-1]) > active_neurons(plain)


def test_fewer_connections_than_neurons_cover_what_they_can():
    full = sample(1000, 700, 1e-3, seed=1, cover=True)
    assert full.nnz < 1000
    inputs, outputs = degrees(full)
    assert inputs.max() == 1
    assert np.count_nonzero(outputs) == min(full.nnz, 700)


def test_memory_is_of_the_order_of_the_connections():
    n = 1_000_000
    sample(10, 10, 0.5, cover=True)  # compiles
    peak = traced_peak(lambda: sample(n, n, 2 / n, seed=11, cover=True))
    assert peak <= 36 * 2 * n  # what the memory plan has for an evolution


def test_the_setting_is_saved_and_models_without_it_are_read(tmp_path):
    config = NetworkConfig((30, 40, 2), epsilon=1, coverage="full")
    save_model(SparseMLP(config, progress=False), tmp_path / "model")
    assert load_model(tmp_path / "model").config == config
    older = config.as_dict()
    del older["coverage"]
    assert NetworkConfig(**older).coverage == "random"


def test_other_coverages_are_refused():
    with pytest.raises(ParameterError, match=r"'coverage' .* must be one of \['full', 'random'\]"):
        NetworkConfig((3, 2), coverage="most")

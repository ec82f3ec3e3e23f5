"""SET evolution: what is pruned, where it regrows, and what survives.

The reference is the definition, over dictionaries of cells (i, j); it knows nothing of slots.
"""

from __future__ import annotations

import copy
import math
from itertools import chain, combinations

import numpy as np
import pytest
from helpers import make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.stats import chi2, kstest, norm, uniform

from largesparse import NetworkConfig, SparseMLP
from largesparse.backends import get_backend
from largesparse.errors import ParameterError
from largesparse.model.evolution import evolve
from largesparse.model.layer import LayerConfig, SparseLayer
from largesparse.model.topology import Topology

UNLIKELY = 1e-4  # p-value below which a statistical test with a fixed seed fails

# Ties of every kind, exact zeros of both signs, and values that float32 orders narrowly.
WEIGHTS = [0.0, -0.0, 0.5, -0.5, 0.25, -0.25, 1.0, -1.0, 1e-45, -1e-45, 1 + 2**-23, 3.0, -3.0]


def layer_of(cells: np.ndarray, values=None, *, regrowth=None, seed=0) -> SparseLayer:
    """A layer with a connection where the matrix `cells` is true."""
    pattern = csr_matrix(cells.astype(bool))
    topology = Topology.from_input_order(
        *cells.shape, pattern.indptr.astype(np.int32), pattern.indices.astype(np.int32)
    )
    rng = np.random.default_rng(seed)
    if values is None:
        values = rng.standard_normal(topology.nnz)
    bias = rng.standard_normal(cells.shape[1]).astype(np.float32)
    parameters = {"values": np.array(values, dtype=np.float32), "bias": bias}
    layer = SparseLayer(2, topology, parameters, LayerConfig(0.0, regrowth=regrowth))
    layer.velocity[:] = rng.standard_normal(topology.nnz)
    layer.keep_moments_(("velocity", "square", "updates"))
    layer.square[:] = rng.random(topology.nnz)
    layer.updates[:] = rng.integers(1, 2**16, topology.nnz)
    return layer


def random_layer(n_in, n_out, density, seed=0, **options) -> SparseLayer:
    cells = np.random.default_rng(seed).random((n_in, n_out)) < density
    return layer_of(cells, seed=seed, **options)


def cells_of(layer) -> list[tuple[int, int]]:
    """The cell of every connection, in input order."""
    indptr, indices = layer.topology.indptr, layer.topology.indices
    return [(i, int(j)) for i in range(layer.n_in) for j in indices[indptr[i] : indptr[i + 1]]]


def connections(layer) -> dict[tuple[int, int], tuple[float, ...]]:
    """cell -> (weight, velocity and the other moments)"""
    arrays = [layer.values, *(moments["values"] for moments in layer.moments.values())]
    numbers = zip(*(array.tolist() for array in arrays), strict=True)
    return dict(zip(cells_of(layer), numbers, strict=True))


def pruned(weights: dict[tuple[int, int], float], zeta: float) -> set[tuple[int, int]]:
    """The cells that the definition removes: by sign, the closest to zero, then by position."""
    gone = set()
    for negative in (False, True):
        group = sorted((abs(w), cell) for cell, w in weights.items() if (w < 0) == negative)
        gone |= {cell for _, cell in group[: math.floor(zeta * len(group))]}
    return gone


def check_topology(layer) -> None:
    """Sorted, distinct, int32, and both orders hold the same weights."""
    pattern = layer.topology
    for name in ("indptr", "indices", "indptr_by_output", "indices_by_output", "to_output_order"):
        assert getattr(pattern, name).dtype == np.int32
    cells = cells_of(layer)
    assert cells == sorted(set(cells)) and len(cells) == len(pattern.indices)
    arrays = (np.arange(1, layer.nnz + 1), pattern.indices, pattern.indptr)
    by_output = csr_matrix(arrays, shape=(layer.n_in, layer.n_out)).tocsc()
    np.testing.assert_array_equal(pattern.indptr_by_output, by_output.indptr)
    np.testing.assert_array_equal(pattern.indices_by_output, by_output.indices)
    np.testing.assert_array_equal(layer.values_by_output, layer.values[by_output.data - 1])
    assert layer.values.dtype == layer.velocity.dtype == layer.values_by_output.dtype == np.float32


def evolve_and_check(layer, zeta, seed=0) -> np.ndarray:
    """Evolve, compare with the definition, and return the slot map."""
    before, cells = connections(layer), cells_of(layer)
    bias = layer.bias.copy()
    slot_map = evolve(layer, zeta, np.random.default_rng(seed))
    after, new_cells = connections(layer), cells_of(layer)
    check_topology(layer)

    assert len(after) == len(before)
    assert slot_map.dtype == np.int32 and slot_map.shape == (len(before),)
    gone = pruned({cell: weight for cell, (weight, *_) in before.items()}, zeta)
    assert {cells[k] for k in np.flatnonzero(slot_map == -1)} == gone
    assert np.all(slot_map >= -1)
    for k in np.flatnonzero(slot_map >= 0):
        assert new_cells[slot_map[k]] == cells[k]
        assert after[cells[k]] == before[cells[k]]  # weight and velocity, to the bit
    grown = set(after) - (set(before) - gone)
    assert len(grown) == len(gone)
    assert set(slot_map[slot_map >= 0]) == {
        k for k, cell in enumerate(new_cells) if cell not in grown
    }
    for cell in grown:
        weight, *moments = after[cell]
        assert not any(moments)  # those of a new connection begin
        if layer.config.regrowth is None:
            assert weight == 0
        else:
            assert weight != 0
    np.testing.assert_array_equal(layer.bias, bias)
    return slot_map


def random_values(rng, size):
    return rng.uniform(1, 2, size).astype(np.float32)


# What is pruned and what survives


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    density=st.sampled_from([0, 0.1, 0.4, 0.5, 0.7, 0.95, 1]),
    zeta=st.sampled_from([0.01, 0.1, 0.25, 0.3, 0.5, 0.9, 0.999]),
    grow_random=st.booleans(),
    data=st.data(),
)
def test_equals_the_definition(shape, density, zeta, grow_random, data):
    seed = data.draw(st.integers(0, 2**32))
    cells = np.random.default_rng(seed).random(shape) < density
    size = int(cells.sum())
    some = st.lists(st.sampled_from(WEIGHTS), min_size=size, max_size=size)
    layer = layer_of(cells, data.draw(some), regrowth=random_values if grow_random else None)
    evolve_and_check(layer, zeta, seed)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.8, 0.999])
def test_a_larger_layer_equals_the_definition(density):
    layer = random_layer(70, 90, density, regrowth=random_values)
    for seed in range(3):  # a layer that evolved before evolves again
        evolve_and_check(layer, 0.3, seed)


def test_counts_by_hand():
    positive, negative = [0.0, -0.0, 5.0, 3.0, 0.1, 0.2, 4.0], [-2.0, -0.3, -1.0, -9.0]
    values = [*positive, *negative]  # ⌊0.3·7⌋ = 2 zeros, ⌊0.3·4⌋ = 1
    layer = layer_of(np.ones((1, 11)), values)
    slot_map = evolve(layer, 0.3, np.random.default_rng(0))
    assert np.flatnonzero(slot_map == -1).tolist() == [0, 1, 8]


@pytest.mark.parametrize("value, expected", [(0.5, [0, 1, 2]), (-0.5, [0, 1, 2]), (0.0, [0, 1, 2])])
def test_ties_fall_by_position(value, expected):
    layer = layer_of(np.eye(10), [value] * 10)
    slot_map = evolve(layer, 0.3, np.random.default_rng(0))
    assert np.flatnonzero(slot_map == -1).tolist() == expected


def test_ties_at_the_threshold_fall_by_position_after_the_smaller():
    values = [2, 1, 1, 0.5, 1, 3, 1, 3, 3, 3]
    slot_map = evolve(layer_of(np.eye(10), values), 0.3, np.random.default_rng(0))
    assert np.flatnonzero(slot_map == -1).tolist() == [1, 2, 3]


def test_too_few_of_a_sign_lose_none():
    layer = layer_of(np.eye(6), [1, 2, 3, -1, -2, -3])  # ⌊0.3·3⌋ = 0
    before = connections(layer)
    slot_map = evolve(layer, 0.3, np.random.default_rng(0))
    np.testing.assert_array_equal(slot_map, np.arange(6))
    assert connections(layer) == before


def test_one_sign_only_loses_its_share():
    layer = layer_of(np.eye(20), np.arange(-20, 0))
    slot_map = evolve_and_check(layer, 0.3)
    assert np.flatnonzero(slot_map == -1).tolist() == list(range(14, 20))


def test_zeta_zero_changes_nothing():
    layer = random_layer(20, 30, 0.2, regrowth=random_values)
    before, topology = connections(layer), layer.topology
    slot_map = evolve(layer, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(slot_map, np.arange(layer.nnz))
    assert slot_map.dtype == np.int32
    assert connections(layer) == before and layer.topology is topology


@pytest.mark.parametrize("zeta", [-0.1, 1, 1.5, math.nan, math.inf, "0.3", None, True])
def test_bad_zeta(zeta):
    layer = random_layer(10, 10, 0.5)
    before = connections(layer)
    with pytest.raises(ParameterError, match=r"'zeta' parameter of evolution .* \[0, 1\)\. Got "):
        evolve(layer, zeta, np.random.default_rng(0))
    assert connections(layer) == before


# Layers with little room


@pytest.mark.parametrize("free", [0, 1, 2, 40])
@pytest.mark.parametrize("zeta", [0.1, 0.5, 0.999])
def test_near_dense_layers_terminate(free, zeta):
    cells = np.ones(9 * 11, dtype=bool)
    cells[np.random.default_rng(1).choice(99, free, replace=False)] = False
    layer = layer_of(cells.reshape(9, 11), regrowth=random_values)
    for seed in range(3):
        evolve_and_check(layer, zeta, seed)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.6, 0.95, 1])
@pytest.mark.parametrize("zeta", [0.001, 0.3, 0.99])
def test_few_positions_are_drawn_for_a_connection(density, zeta):
    class CountingGenerator(np.random.Generator):
        drawn = 0

        def integers(self, *arguments, size=None, **options):
            self.drawn += size
            assert self.drawn <= 8 * layer.nnz  # where most cells are taken, trying never ends
            return super().integers(*arguments, size=size, **options)

    layer = random_layer(150, 200, density)
    evolve(layer, zeta, CountingGenerator(np.random.PCG64(0)))
    check_topology(layer)


def test_a_regrown_connection_is_a_new_one():
    layer = layer_of(np.ones((8, 8)))
    before = connections(layer)
    slot_map = evolve(layer, 0.5, np.random.default_rng(0))
    after = connections(layer)
    assert set(after) == set(before)  # full: what goes comes back where it was
    gone = [cell for cell, slot in zip(before, slot_map, strict=True) if slot == -1]
    assert len(gone) >= 31 and not any(any(after[cell]) for cell in gone)
    assert np.all(layer.velocity[[cell not in gone for cell in before]] != 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 4)])
@pytest.mark.parametrize("nnz", ["none", "half", "all"])
def test_small_shapes(shape, nnz):
    cells = np.zeros(shape[0] * shape[1], dtype=bool)
    cells[: {"none": 0, "half": len(cells) // 2, "all": len(cells)}[nnz]] = True
    layer = layer_of(cells.reshape(shape))
    for seed in range(3):
        evolve_and_check(layer, 0.9, seed)


# Where connections grow


def grown_in_repeats(layer, zeta, repeats) -> tuple[list[tuple[int, int]], list[list]]:
    """The cells free after the removal, and the cells that grew in every repeat."""
    weights = {cell: weight for cell, (weight, *_) in connections(layer).items()}
    kept = set(weights) - pruned(weights, zeta)
    free = [cell for cell in np.ndindex(layer.n_in, layer.n_out) if cell not in kept]
    rng = np.random.default_rng(5)
    grown = []
    with get_backend("scipy").threads(1):  # so small a layer is quicker without others
        for _ in range(repeats):
            evolved = copy.copy(layer)
            evolved.values_by_output = layer.values_by_output.copy()
            evolve(evolved, zeta, rng)
            grown.append([cell for cell in cells_of(evolved) if cell not in kept])
    return free, grown


# At 20 of 48 connections positions are drawn and tried; above a half, free cells are enumerated.
@pytest.mark.parametrize("nnz, zeta", [(20, 0.5), (24, 0.9), (4, 0.5), (25, 0.5), (44, 0.4)])
def test_every_free_cell_is_as_likely(nnz, zeta):
    cells = np.random.default_rng(nnz).permutation(48).reshape(6, 8) < nnz
    free, grown = grown_in_repeats(layer_of(cells), zeta, repeats=4000)
    counts = dict.fromkeys(free, 0)
    for cell in chain.from_iterable(grown):
        counts[cell] += 1
    p = len(grown[0]) / len(free)
    assert 0 < p < 1
    squares = sum((count - 4000 * p) ** 2 for count in counts.values()) / (4000 * p * (1 - p))
    squares *= (len(free) - 1) / len(free)  # the cells of one repeat are drawn without replacement
    assert UNLIKELY < chi2.cdf(squares, len(free) - 1) < 1 - UNLIKELY


@pytest.mark.parametrize("nnz", [8, 9])  # of 16 cells: tried, enumerated
def test_every_pair_of_free_cells_is_as_likely(nnz):
    cells = np.random.default_rng(nnz).permutation(16).reshape(4, 4) < nnz
    layer = layer_of(cells, np.arange(1, nnz + 1))
    free, grown = grown_in_repeats(layer, 2.5 / nnz, repeats=5000)
    counts = dict.fromkeys(combinations(free, 2), 0)
    for pair in grown:
        counts[tuple(pair)] += 1
    expected = 5000 / len(counts)
    squares = sum((count - expected) ** 2 / expected for count in counts.values())
    assert UNLIKELY < chi2.cdf(squares, len(counts) - 1) < 1 - UNLIKELY


def test_growth_is_uniform_over_a_large_layer():
    rng = np.random.default_rng(2)
    n = 2000
    cells = csr_matrix(
        (np.ones(20_000), (rng.integers(n, size=20_000), rng.integers(n, size=20_000))), (n, n)
    )
    cells.sum_duplicates()
    layer = layer_of(cells)
    slot_map = evolve(layer, 0.9, np.random.default_rng(3))
    check_topology(layer)
    new = np.setdiff1d(np.arange(layer.nnz), slot_map)
    rows, columns = layer.topology.rows()[new], layer.topology.indices[new]
    counts = np.histogram2d(rows, columns, bins=10, range=[[0, n], [0, n]])[0]
    expected = len(new) / 100
    assert chi2.sf(np.sum((counts - expected) ** 2 / expected), 99) > UNLIKELY
    assert abs(np.mean(columns % 2) - 0.5) < 4 * 0.5 / math.sqrt(len(new))


# New values, by recipe


@pytest.mark.parametrize(
    "initializer, distribution",
    [
        ("he_uniform", uniform(-math.sqrt(6 / 60), 2 * math.sqrt(6 / 60))),
        ("xavier", uniform(-math.sqrt(6 / 360), 2 * math.sqrt(6 / 360))),
        ("normal", norm(0, 0.1)),
    ],
)
def test_paper_recipe_draws_new_values_from_the_initial_distribution(initializer, distribution):
    config = NetworkConfig((60, 300, 2), epsilon=20, initializer=initializer)
    layer = SparseMLP(config, progress=False).layers[0]
    slot_map = evolve(layer, 0.8, np.random.default_rng(0))
    new = np.setdiff1d(np.arange(layer.nnz), slot_map)
    assert len(new) > 4000
    assert kstest(layer.values[new], distribution.cdf).pvalue > UNLIKELY
    assert not layer.velocity[new].any()


def test_width_recipe_adds_connections_at_zero():
    config = NetworkConfig((120, 150, 2), epsilon=5, recipe="width")
    layer = SparseMLP(config, progress=False).layers[0]
    assert layer.values.all()
    slot_map = evolve(layer, 0.3, np.random.default_rng(0))
    new = np.setdiff1d(np.arange(layer.nnz), slot_map)
    assert len(new) == np.sum(slot_map == -1) > 0
    assert not layer.values[new].any() and not layer.velocity[new].any()


# What the result depends on


@pytest.mark.parametrize("density", [0.05, 0.8])
def test_threads_do_not_change_the_result(density):
    results = []
    for threads in (1, 2, 3):
        layer = random_layer(100, 120, density, regrowth=random_values)
        with get_backend("scipy").threads(threads):
            slot_map = evolve(layer, 0.3, np.random.default_rng(7))
        results.append((slot_map.tolist(), connections(layer)))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("density", [0.05, 0.8])
def test_the_generator_decides_where_connections_grow(density):
    same, again, other = (random_layer(30, 30, density) for _ in range(3))
    for layer, seed in ((same, 0), (again, 0), (other, 1)):
        evolve(layer, 0.3, np.random.default_rng(seed))
    assert connections(same) == connections(again)
    assert set(connections(same)) != set(connections(other))


# The trainer's evolution


def trainer_of(sizes=(12, 20, 16, 3), **options):
    return make_trainer(sizes, epsilon=2, batch_size=8, **options)


def data_of(n_features=12, n_classes=3, rows=24):
    X = np.random.default_rng(0).standard_normal((rows, n_features)).astype(np.float32)
    return X, np.arange(rows) % n_classes


def test_the_output_layer_does_not_evolve():
    trainer = trainer_of()
    trainer.epoch = 1
    before = [connections(layer) for layer in trainer.network.layers]
    maps = trainer.evolve()
    after = [connections(layer) for layer in trainer.network.layers]
    assert len(maps) == 2
    assert set(before[0]) != set(after[0]) and set(before[1]) != set(after[1])
    assert before[2] == after[2]


def test_slot_maps_of_the_trainer_lead_from_old_to_new():
    trainer = trainer_of()
    trainer.epoch = 1
    layers = trainer.network.layers[:-1]
    before = [(cells_of(layer), connections(layer)) for layer in layers]
    for layer, (cells, old), slot_map in zip(layers, before, trainer.evolve(), strict=True):
        kept = slot_map >= 0
        assert (
            0
            < np.sum(~kept)
            == len(pruned({cell: weight for cell, (weight, *_) in old.items()}, 0.3))
        )
        new_cells = cells_of(layer)
        for k in np.flatnonzero(kept):
            assert new_cells[slot_map[k]] == cells[k]


def test_layers_and_epochs_evolve_by_streams_of_their_own():
    trainer = trainer_of((20, 20, 20, 3), zeta=0.5)
    grown = []
    for epoch in (1, 2):
        trainer.epoch = epoch
        for layer in trainer.network.layers[:2]:  # the same start for every evolution
            same = layer_of(np.eye(20), np.ones(20))
            layer.replace(same.topology, same.values, {"velocity": same.velocity})
        trainer.evolve()
        grown += [tuple(cells_of(layer)) for layer in trainer.network.layers[:2]]
    assert len(set(grown)) == 4


def test_zeta_zero_is_static_training():
    trainer = trainer_of(epochs=3, zeta=0.0, learning_rate=0.05)
    before = [set(connections(layer)) for layer in trainer.network.layers]
    trainer.fit(*data_of(), progress=False)
    assert [set(connections(layer)) for layer in trainer.network.layers] == before


def test_training_keeps_the_number_of_connections():
    trainer = trainer_of(epochs=4, zeta=0.5, learning_rate=0.05)
    nnz = [layer.nnz for layer in trainer.network.layers]
    history = trainer.fit(*data_of(), progress=False)
    assert [layer.nnz for layer in trainer.network.layers] == nnz
    assert all(record.nnz == nnz for record in history.epochs)


def test_evolution_before_the_first_epoch_replaces_zeta():
    trainer = trainer_of(zeta=0.4, zeta_decay=0.5)
    count = len(pruned({c: w for c, (w, _) in connections(trainer.network.layers[0]).items()}, 0.4))
    assert np.sum(trainer.evolve()[0] == -1) == count

"""The mean of replicas and its pruning, beside dense matrices of NumPy."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largesparse.errors import ParameterError
from largesparse.machine.threads import kernel_threads
from largesparse.model.initializers import uniform
from largesparse.model.topology import Topology, erdos_renyi
from largesparse.parallel.wasap import averaging
from largesparse.parallel.wasap.averaging import average_frozen, average_layers, mean_nnz
from largesparse.randomness import seed_sequence

# Sums that cancel, ties of both signs, zeros of both signs, subnormals and neighbours.
WEIGHTS = [0.0, -0.0, 0.5, -0.5, 0.25, -0.25, 1.0, -1.0, 1e-45, 1 + 2**-23, 3.0, 1e30]


def layer_of(cells, weights, bias=None, dead=None, srelu=None) -> dict[str, np.ndarray]:
    """A layer with a connection of the weight where `cells`, bool (n_in, n_out), is true."""
    n_out = cells.shape[1]
    indptr = np.concatenate([[0], np.cumsum(cells.sum(axis=1))]).astype(np.int32)
    indices = np.nonzero(cells)[1].astype(np.int32)
    values = np.asarray(weights, dtype=np.float32)[cells]
    if bias is None:
        bias = np.zeros(n_out, dtype=np.float32)
    arrays = {"indptr": indptr, "indices": indices, "values": values, "bias": bias}
    optional = {"dead": dead, "srelu": srelu}
    return arrays | {name: array for name, array in optional.items() if array is not None}


def dense_mean(replicas) -> tuple[np.ndarray, np.ndarray]:
    """The cells that remain of the mean and its weights; `replicas` are (cells, weights)."""
    union = np.any([cells for cells, _ in replicas], axis=0)
    total = np.zeros(union.shape)
    for cells, weights in replicas:
        total += np.where(cells, weights, 0)
    mean = (total / len(replicas)).astype(np.float32)
    mean_count = Fraction(sum(int(cells.sum()) for cells, _ in replicas), len(replicas))
    wanted = math.floor(mean_count + Fraction(1, 2))
    positions = sorted(
        (tuple(map(int, cell)) for cell in np.argwhere(union)),
        key=lambda cell: (abs(mean[cell]), cell),
    )
    remaining = np.zeros(union.shape, dtype=bool)
    for cell in positions[len(positions) - wanted :]:
        remaining[cell] = True
    return remaining, mean


def assert_same_layer(actual, expected) -> None:
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@st.composite
def dense_replicas(draw):
    """(cells, weights) of up to 15 replicas, of different density; some rows are empty."""
    n_in, n_out = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    replicas = []
    for _ in range(draw(st.integers(1, 15))):
        density = draw(st.sampled_from([0, 0.1, 0.5, 1]))
        cells = rng.random((n_in, n_out)) < density
        cells[rng.random(n_in) < 0.2] = False
        if draw(st.booleans()):
            weights = rng.choice(np.array(WEIGHTS, dtype=np.float32), (n_in, n_out))
        else:
            weights = rng.standard_normal((n_in, n_out), dtype=np.float32)
        replicas.append((cells, weights))
    return replicas


@given(dense_replicas(), st.integers(1, 3))
def test_the_mean_is_that_of_dense_matrices(replicas, block_rows):
    remaining, mean = dense_mean(replicas)
    layers = [layer_of(*replica) for replica in replicas]
    with pytest.MonkeyPatch.context() as patch:  # small blocks, so that ties cross them
        patch.setattr(averaging, "BLOCK_CONNECTIONS", block_rows * 10)
        averaged = average_layers(remaining.shape[1], layers)
    assert_same_layer(averaged, layer_of(remaining, mean))


def test_a_replica_alone_is_copied_to_the_last_bit():
    cells = np.array([[True, False, True], [False, False, False]])
    weights = [[-0.0, 5, 1e-45], [0, 0, 0]]
    bias = np.array([0.1, -0.0, 3], dtype=np.float32)
    dead = np.array([False, True, False])
    srelu = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
    replica = layer_of(cells, weights, bias, dead, srelu)
    averaged = average_layers(3, [replica])
    assert_same_layer(averaged, replica)
    np.testing.assert_array_equal(np.signbit(averaged["values"]), [True, False])
    for name, array in averaged.items():
        assert not np.shares_memory(array, replica[name])


def test_ties_fall_by_position_and_zeros_are_connections():
    everywhere = np.ones((2, 2), dtype=bool)
    left, right = everywhere.copy(), everywhere.copy()
    left[:, 1] = False
    right[:, 0] = False
    # The mean over the union is 1, -1, 1, 0; two of four connections remain.
    layers = [
        layer_of(left, [[2, 9], [2, 9]]),
        layer_of(right, [[9, -2], [9, 0]]),
    ]
    averaged = average_layers(2, layers)
    assert averaged["indptr"].tolist() == [0, 1, 2]
    assert averaged["indices"].tolist() == [1, 0]
    assert averaged["values"].tolist() == [-1, 1]

    # What cancels out, and what is zero in all replicas, stays where nothing need go.
    opposite = [layer_of(left, [[1, 0], [0, 0]]), layer_of(left, [[-1, 0], [0, 0]])]
    averaged = average_layers(2, opposite)
    assert averaged["indices"].tolist() == [0, 0]
    assert averaged["values"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "counts, expected",
    [([3], 3), ([3, 4], 4), ([1, 0, 0], 0), ([1, 1, 0], 1), ([2**31 - 1] * 15, 2**31 - 1)],
)
def test_half_a_connection_is_rounded_up(counts, expected):
    assert mean_nnz(counts) == expected


def test_biases_activations_and_the_dead():
    rng = np.random.default_rng(0)
    n_out = 6
    biases = rng.standard_normal((5, n_out), dtype=np.float32)
    shapes = rng.standard_normal((5, 4, n_out), dtype=np.float32)
    dead = rng.random((5, n_out)) < 0.8
    dead[:, 2] = True
    none = np.zeros((3, n_out), dtype=bool)
    layers = [layer_of(none, none, *own) for own in zip(biases, dead, shapes, strict=True)]
    averaged = average_layers(n_out, layers)
    np.testing.assert_allclose(averaged["bias"], biases.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(averaged["srelu"], shapes.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_array_equal(averaged["dead"], dead.all(axis=0))
    assert averaged["bias"].dtype == averaged["srelu"].dtype == np.float32
    assert averaged["values"].size == 0
    assert "dead" not in average_layers(
        n_out, [*layers, layer_of(none, none, biases[0], srelu=shapes[0])]
    )
    np.testing.assert_array_equal(layers[0]["dead"], dead[0])  # untouched


def sampled_replica(seed: int, n_in: int, n_out: int, density: float) -> dict[str, np.ndarray]:
    """A replica; many of its weights tie."""
    topology = erdos_renyi(n_in, n_out, density, seed_sequence(seed, "topology", 0))
    values = uniform(1.0)(np.random.default_rng(seed), topology.nnz)
    values = np.round(values, 1).astype(np.float32)
    bias = np.zeros(n_out, dtype=np.float32)
    names = "indptr", "indices", "values", "bias"
    return dict(zip(names, (topology.indptr, topology.indices, values, bias), strict=True))


@pytest.mark.parametrize("n_in, n_out, density", [(5, 200_000, 0.4), (300_000, 2, 0.5)])
def test_the_number_of_threads_does_not_matter(n_in, n_out, density):
    layers = [sampled_replica(seed, n_in, n_out, density) for seed in range(3)]
    results = []
    for threads in (1, 2):
        with kernel_threads(threads):
            results.append(average_layers(n_out, layers))
    assert_same_layer(results[0], results[1])
    # By sorting cells and magnitudes.
    cells = [
        np.repeat(np.arange(n_in), np.diff(each["indptr"])) * n_out + each["indices"]
        for each in layers
    ]
    union, places = np.unique(np.concatenate(cells), return_inverse=True)
    sums = np.bincount(places, weights=np.concatenate([each["values"] for each in layers]))
    mean = (sums / 3).astype(np.float32)
    order = np.argsort(np.abs(mean), kind="stable")
    kept = np.sort(order[len(union) - round(sum(map(len, cells)) / 3) :])
    averaged = results[0]
    rows = np.repeat(np.arange(n_in), np.diff(averaged["indptr"]))
    np.testing.assert_array_equal(rows * n_out + averaged["indices"], union[kept])
    np.testing.assert_array_equal(averaged["values"], mean[kept])


def test_replicas_must_be_of_one_layer():
    cells = np.ones((2, 3), dtype=bool)
    good = layer_of(cells, np.ones((2, 3)))
    with pytest.raises(ParameterError, match=r"'replicas' parameter .* not be empty"):
        average_layers(3, [])
    with pytest.raises(ParameterError, match=r"'indptr' array of replica 1 .*\(3,\).*\(4,\)"):
        average_layers(3, [good, layer_of(np.ones((3, 3), dtype=bool), np.ones((3, 3)))])
    with pytest.raises(ParameterError, match=r"'bias' array of replica 0 .*\(4,\).*\(3,\)"):
        average_layers(4, [good])
    shape = np.ones((4, 3), dtype=np.float32)
    for one, other in product([good, good | {"srelu": shape}], repeat=2):
        if ("srelu" in one) != ("srelu" in other):
            with pytest.raises(ParameterError, match="'srelu' array of replica 1"):
                average_layers(3, [one, other])


def test_a_frozen_layer_loses_the_connections_of_those_dead_in_all_replicas_alone():
    pattern = np.ones((3, 4), dtype=bool)
    pattern[2, 3] = False
    topology = Topology.from_cells(3, 4, np.flatnonzero(pattern))
    weights = np.arange(1.0, 13).reshape(3, 4)
    dead = np.array([[True, False, False, True], [False, True, False, True]])
    dead_inputs = np.array([[True, False, True], [False, True, True]])
    cells = [pattern & ~i[:, None] & ~j for i, j in zip(dead_inputs, dead, strict=True)]
    layers = [layer_of(each, weights, dead=own) for each, own in zip(cells, dead, strict=True)]
    mean = average_frozen(topology, layers, dead_inputs.all(axis=0))
    expected = pattern & ~dead.all(axis=0) & ~dead_inputs.all(axis=0)[:, None]
    found = Topology(3, 4, mean["indptr"], mean["indices"])
    assert np.array_equal(found.cells(), np.flatnonzero(expected))
    total = (cells[0].astype(int) + cells[1]) * weights / 2
    np.testing.assert_array_equal(mean["values"], total[expected])
    assert mean["values"][0] > 0 and total[0, 1] == 0  # the two killed either end of that one
    assert mean["dead"].tolist() == [False, False, False, True]
    assert mean["indptr"].tolist() == [0, 3, 6, 6]

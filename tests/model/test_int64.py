"""Layers of more connections than int32 counts: int64 counters, at a small size by a lower limit.

What is computed is the same to the bit; what has no such counters refuses such layers.
"""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from largesparse import (
    GivenTopology,
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    load_model,
    predict_proba,
    save_model,
)
from largesparse.backends import choice, get_backend, operands
from largesparse.backends.operands import NO_STATE, Connections, Derivative, count_dtype
from largesparse.errors import BackendError, CheckpointError, ParameterError
from largesparse.model.topology import Topology, erdos_renyi
from largesparse.parallel.comm.nodes import Nodes
from largesparse.parallel.plan import Workload, choose_parallel_plan
from largesparse.training.layer_terms import INT64, layer_terms

LIMIT = 1000
CONFIG = NetworkConfig((60, 90, 80, 5), epsilon=9.0, coverage="full", seed=3)  # about 1300, 1500
TRAINING = TrainingConfig(
    epochs=4,
    batch_size=32,
    dropout=0.2,
    learning_rate=0.05,
    pruning_start=1,
    pruning_every=2,
    pruning_percentile=10.0,
)


@pytest.fixture
def low(monkeypatch):
    """A limit that small layers exceed."""
    monkeypatch.setattr(operands, "MOST_INT32", LIMIT)


def rows(n_features=60):
    X = np.random.default_rng(0).standard_normal((150, n_features), dtype=np.float32)
    return X, X[:, :5].argmax(axis=1)


def assert_same_layers(expected: SparseMLP, found: SparseMLP) -> None:
    for layer, other in zip(expected.layers, found.layers, strict=True):
        mine, theirs = layer.arrays(True), other.arrays(True)
        assert mine.keys() == theirs.keys()
        for name, array in mine.items():
            np.testing.assert_array_equal(array, theirs[name], f"{name} of layer {layer.number}")


def assert_counted(topology: Topology) -> None:
    counts = count_dtype(topology.nnz)
    dtypes = [array.dtype for array in topology.arrays]
    assert dtypes == [counts, np.int32, counts, np.int32, counts]


def test_the_limit_is_what_int32_counts():
    assert count_dtype(2**31 - 1) is np.int32 and count_dtype(2**31) is np.int64


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.05, 1), st.booleans(), st.integers(0, 9))
def test_both_orders_are_those_of_int32(n_in, n_out, probability, cover, seed):
    def drawn(limit):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(operands, "MOST_INT32", limit)
            own = np.random.SeedSequence(seed)
            found = erdos_renyi(n_in, n_out, probability, own, cover=cover)
            assert_counted(found)
            again = Topology.from_cells(n_in, n_out, found.cells())
            assert_counted(again)
            return found, again

    few, many = drawn(LIMIT), drawn(2**31 - 1)
    for found, expected in zip(few, many, strict=True):
        for array, other in zip(found.arrays, expected.arrays, strict=True):
            np.testing.assert_array_equal(array, other)


def test_the_plan_has_the_bytes_of_the_arrays(monkeypatch):
    config = NetworkConfig((20, 60, 30, 2), density=1.0)
    few, small = layer_terms(config), SparseMLP(config, progress=False)
    monkeypatch.setattr(operands, "MOST_INT32", LIMIT)
    many, large = layer_terms(config), SparseMLP(config, progress=False)
    for k, (layer, other) in enumerate(zip(large.layers, small.layers, strict=True)):
        assert layer.topology.is_int64 == (layer.nnz > LIMIT) == (k < 2)
        layer.topology.output_order, other.topology.output_order  # noqa: B018
        assert many[k].model - few[k].model == layer.nbytes - other.nbytes
        assert many[k].passing - few[k].passing == INT64 * layer.nnz * layer.topology.is_int64


def test_files_have_int64_and_releases_without_it_refuse_them(low, monkeypatch, tmp_path):
    network = SparseMLP(CONFIG, progress=False)
    save_model(network, tmp_path)
    found = load_model(tmp_path)
    assert_same_layers(network, found)
    assert [layer.topology.is_int64 for layer in found.layers] == [True, True, False]
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"indptr is int64 \(61,\), not int32"):
        load_model(tmp_path)


def test_a_topology_may_be_given(low):
    matrix = csr_array(np.random.default_rng(0).random((60, 90)) < 0.5)
    network = SparseMLP(CONFIG, topology=GivenTopology(matrix, "within"), progress=False)
    layer = network.layers[0]
    assert layer.nnz > LIMIT and layer.candidates.nnz == matrix.nnz
    assert_counted(layer.candidates)
    assert_counted(layer.topology)
    again = SparseMLP(CONFIG, topology=layer.topology, progress=False)
    np.testing.assert_array_equal(again.layers[0].topology.indptr, layer.topology.indptr)


def test_mkl_is_refused_and_not_chosen(low, monkeypatch):
    monkeypatch.setattr(choice, "stored_choices", lambda: {"extreme": "mkl", "small": "mkl"})
    monkeypatch.delenv("LARGESPARSE_BACKEND", raising=False)
    assert choice.choose_backend("auto", connections=LIMIT).name == "mkl"
    chosen = choice.choose_backend("auto", connections=LIMIT + 1)
    assert chosen.name == "fused" and "int32" in chosen.reason
    network = SparseMLP(CONFIG, progress=False)
    assert Trainer(network, TRAINING).backend.name == "fused"
    for refused in (
        lambda: Trainer(network, TrainingConfig(epochs=1, batch_size=8, backend="mkl")),
        lambda: predict_proba(network, rows()[0], backend="mkl"),
    ):
        with pytest.raises(BackendError, match="connections int32 counts, at most 2147483647"):
            refused()


def test_the_mkl_backend_itself_takes_no_int64(low):
    mkl = pytest.importorskip("largesparse.backends.mkl")
    try:
        backend = mkl.load()
    except BackendError as error:
        pytest.skip(str(error))
    layer = SparseMLP(CONFIG, progress=False).layers[0]
    with pytest.raises(BackendError, match="int32"):
        backend.matrix(layer.by_input, (60, 90))
    with pytest.raises(BackendError, match="int32"):
        backend.spmm(*layer.by_output, np.ones((60, 4), np.float32), out=np.ones((90, 4), "f"))


def test_ranks_that_share_all_layers_refuse_them(low):
    nodes = Nodes([0, 0], [2], ["here"])
    with pytest.raises(
        ParameterError, match=r"60 x 90 .* at most 1000 a layer, which int32 counts"
    ):
        choose_parallel_plan(CONFIG, 32, nodes, available=2**40, **vars(Workload()))


# ------------------------------------------------------------- what compiles kernels once more
@pytest.mark.long
@pytest.mark.parametrize(("backend", "threads"), [("fused", 1), ("fused", 2), ("scipy", 2)])
def test_a_training_its_checkpoint_and_its_predictions_are_those_of_int32(
    backend, threads, monkeypatch, tmp_path
):
    X, y = rows()
    config = TrainingConfig(**TRAINING.as_dict() | {"backend": backend, "threads": threads})

    def train(folder):
        trainer = Trainer(SparseMLP(CONFIG, progress=False), config)
        stop = [lambda trainer, record: record.epoch == 2]
        trainer.fit(X, y, callbacks=stop, checkpoint=folder, progress=False)
        again = load_checkpoint(folder)
        again.fit(X, y, progress=False)
        return again.network, predict_proba(again.network, X, backend=backend, threads=threads)

    expected, outputs = train(tmp_path / "int32")
    monkeypatch.setattr(operands, "MOST_INT32", LIMIT)
    found, others = train(tmp_path / "int64")
    assert found.layers[1].topology.is_int64
    for layer in found.layers:
        assert_counted(layer.topology)
    assert_same_layers(expected, found)
    np.testing.assert_array_equal(outputs, others)


@pytest.mark.long
@settings(max_examples=10, deadline=None)
@given(
    hidden=st.lists(st.integers(2, 50), min_size=1, max_size=3),
    sparse=st.booleans(),
    growth=st.sampled_from(["random", "gradient", "topology"]),
    limit=st.integers(1, 400),  # layers that are pruned change their counters
)
def test_any_shape_trains_to_the_bits_of_int32(hidden, sparse, growth, limit):
    n_features = 2000 if sparse else 40
    X, y = rows(n_features)
    if sparse:  # so few that weights of absent inputs are updated later
        X[np.random.default_rng(1).random(X.shape) < 0.999] = 0
        X = csr_array(X)
    settings = {"epochs": 2, "growth": growth, "standardize": not sparse, "backend": "fused"}
    config = TrainingConfig(**TRAINING.as_dict() | settings | {"evolve_last": True})

    def train():
        network = SparseMLP(NetworkConfig((n_features, *hidden, 5), epsilon=6.0), progress=False)
        Trainer(network, config).fit(X, y, progress=False)
        return network

    expected = train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operands, "MOST_INT32", limit)
        found = train()
        for layer in found.layers:
            assert_counted(layer.topology)
    assert_same_layers(expected, found)


BEYOND = 2**32 + 2**20  # a place that neither int32 nor uint32 has
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which not every Python names


def reserved(dtype, count=BEYOND + 2**20):
    """An array of zeros of which memory has only what is written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    try:
        mapped = mmap.mmap(-1, count * np.dtype(dtype).itemsize, flags=flags)
    except (OSError, OverflowError) as error:
        pytest.skip(f"no room for addresses: {error}")
    return np.frombuffer(mapped, dtype)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="addresses without memory are Linux's")
def test_places_beyond_32_bits_are_those_that_are_read_and_written():
    """Of a CSR matrix the rows that are computed lie behind 2**32 others, which nothing reads."""
    from largesparse.backends.fused_kernels import forward_by_parts, forward_by_rows
    from largesparse.backends.kernels import sddmm
    from largesparse.backends.many_outputs import backward_parts
    from largesparse.backends.operands import SparseBatch
    from largesparse.backends.pattern_kernels import reorder
    from largesparse.backends.sparse_input_kernels import add_sddmm, multiply

    rng = np.random.default_rng(0)
    small = csr_array((rng.random((40, 30)) < 0.3) * rng.random((40, 30), dtype=np.float32))
    indptr = small.indptr.astype(np.int64) + BEYOND
    part = slice(BEYOND, BEYOND + small.nnz)
    indices, values, gradient = (reserved(kind) for kind in (np.int32, np.float32, np.float32))
    indices[part], values[part] = small.indices, small.data
    X, D = rng.random((40, 12), dtype=np.float32), rng.random((30, 12), dtype=np.float32)
    near = Connections(small.indptr.astype(np.int32), small.indices.astype(np.int32), small.data)
    far = Connections(indptr, indices, values)

    def forward(kernel, connections):
        out = np.empty((40, 12), np.float32)
        bias = np.zeros(40, np.float32)
        kernel(connections, bias, D, np.float32(1), operands.NO_DROPOUT, out, NO_STATE)
        return out

    for kernel in (forward_by_rows, forward_by_parts):
        np.testing.assert_array_equal(forward(kernel, far), forward(kernel, near))
    expected = np.zeros(small.nnz, np.float32)
    sddmm(near.indptr, near.indices, X, D, expected, False)
    sddmm(indptr, indices, X, D, gradient, False)
    np.testing.assert_array_equal(gradient[part], expected)

    below = Derivative(np.float32(1), np.float32(1), NO_STATE)
    results = []
    for connections, out in ((near, np.zeros(small.nnz, np.float32)), (far, gradient)):
        rest = np.empty((40, 12), np.float32), np.empty(40, np.float32)
        names = ("out_gradient", "out_delta", "out_bias_gradient")
        given = dict(zip(names, (out, *rest), strict=True))
        get_backend("fused").backward(connections, X, D, below, **given, accumulate=False)
        sums = np.empty((2, 40, 12), np.float32)
        backward_parts(connections, X, D, sums, out, True)
        batch = SparseBatch(
            np.array([[0, 40]]), np.arange(40, dtype=np.int32), X[:, 0].copy(), X[:0, 0]
        )
        add_sddmm(batch, connections.indptr, connections.indices, D[:, :1].T.copy(), out)
        product = np.empty((30, 1), np.float32)
        multiply(batch, connections, product)
        results.append([*rest, sums, product, out[part] if out is gradient else out])
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, theirs)

    places = np.arange(small.nnz)[::-1] + BEYOND
    reorder(small.data, places, gradient)
    np.testing.assert_array_equal(gradient[part], small.data[::-1])

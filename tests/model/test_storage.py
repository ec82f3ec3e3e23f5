"""Networks whose arrays lie in files."""

from __future__ import annotations

import gc
import os
import shutil

import numpy as np
import pytest
from helpers import arrays_of, normal_rows
from scipy.sparse import csr_array

from largesparse import (
    NetworkConfig,
    SparseMLP,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    load_model,
    prune_neurons,
)
from largesparse.errors import MemoryPlanError, ParameterError
from largesparse.model.storage import Storage, StoredLayer


def network_of(storage=None, **options) -> SparseMLP:
    config = NetworkConfig((12, 50, 40, 30, 2), epsilon=3, **options)
    return SparseMLP(config, progress=False, storage=storage)


def assert_equal(network: SparseMLP, other: SparseMLP) -> None:
    for array, twin in zip(arrays_of(network), arrays_of(other), strict=True):
        np.testing.assert_array_equal(array, twin)


def data_of(rows=60) -> tuple[np.ndarray, np.ndarray]:
    X = normal_rows(rows, 12)
    return X, (X[:, 0] > 0).astype(np.int32)


@pytest.mark.parametrize("backend", ["scipy", "fused"])
@pytest.mark.parametrize("keep_every", [1, 2])
def test_training_is_the_same_in_files(tmp_path, backend, keep_every):
    networks = network_of(), network_of(Storage(tmp_path))
    for network in networks:
        config = TrainingConfig(
            epochs=3, batch_size=20, micro_batch=10, keep_every=keep_every, backend=backend
        )
        Trainer(network, config).fit(*data_of(), test=data_of(30), progress=False)
    assert_equal(*networks)
    assert all(isinstance(layer, StoredLayer) for layer in networks[1].layers)


def test_arrays_and_their_changes_lie_in_files(tmp_path):
    storage = Storage(tmp_path)
    network = network_of(storage)
    trainer = Trainer(network, TrainingConfig(batch_size=20, backend="scipy"))
    trainer.fit(*data_of(), progress=False)
    prune_neurons(network, 40)
    workspace = trainer.workspace
    arrays = [array for array in arrays_of(network) if array.dtype != bool]  # not who is dead
    stored = [*arrays, *workspace.arrays(), workspace.activations(1, 20)]
    stored += [workspace.state(1, 20), workspace.delta(1, 20)]
    for array in stored:
        assert array.size == 0 or array.ctypes.data in storage._maps
    assert storage.nbytes >= sum(array.nbytes for array in arrays_of(network))


def test_the_files_have_no_names_and_go_with_the_network(tmp_path):
    network = network_of(Storage(tmp_path))
    assert list(tmp_path.iterdir()) == []
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    del network
    gc.collect()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) < before


def test_a_checkpoint_goes_on_in_files(tmp_path):
    config = TrainingConfig(epochs=2, batch_size=20, backend="scipy")
    plain = Trainer(network_of(), config)
    plain.fit(*data_of(), progress=False)
    first = Trainer(network_of(Storage(tmp_path)), config)
    stop = lambda trainer, record: True  # noqa: E731
    first.fit(*data_of(), checkpoint=tmp_path / "saved", callbacks=[stop], progress=False)
    again = load_checkpoint(tmp_path / "saved", storage=Storage(tmp_path))
    again.fit(*data_of(), progress=False)
    assert all(isinstance(layer, StoredLayer) for layer in again.network.layers)
    assert_equal(again.network, plain.network)


def test_early_stopping_keeps_the_best_weights_with_their_topology_in_files(tmp_path):
    """The layers' own topology changes in place then, and loses connections by pruning."""
    config = TrainingConfig(
        epochs=10,
        batch_size=20,
        learning_rate=0.05,
        validation_fraction=0.3,
        pruning_start=6,
        pruning_every=1,
        pruning_percentile=20,
        seed=2,
        backend="scipy",
        threads=1,
    )
    trainers = [Trainer(network_of(s), config) for s in (None, Storage(tmp_path))]
    for trainer, name in zip(trainers, ("plain", "stored"), strict=True):
        trainer.fit(*data_of(), checkpoint=tmp_path / name, progress=False)
    plain, stored = trainers
    assert 1 < plain.best.epoch == stored.best.epoch < 6 and plain.history.epochs[-1].nnz != [
        len(arrays["values"]) for arrays in plain.best.layers
    ]
    assert_equal(plain.network, stored.network)
    assert all(isinstance(layer, StoredLayer) for layer in stored.network.layers)
    assert_equal(load_model(tmp_path / "stored"), plain.network)
    storage = Storage(tmp_path)
    again = load_checkpoint(tmp_path / "stored", storage=storage)  # with room for fewer connections
    assert_equal(again.network, plain.network)
    assert all(best["values"].ctypes.data in storage._maps for best in again.best.layers)


def test_a_file_goes_with_its_array(tmp_path):
    storage = Storage(tmp_path)
    kept, gone = storage.zeros(3), storage.zeros(1000)
    assert storage.nbytes == 4012
    del gone
    gc.collect()
    assert storage.nbytes == 12 == kept.nbytes


def test_the_next_layer_is_expected(tmp_path, monkeypatch):
    storage, expected = Storage(tmp_path), []
    network = network_of(storage)
    monkeypatch.setattr(
        storage, "expect", lambda *arrays: expected.extend(a.ctypes.data for a in arrays)
    )
    trainer = Trainer(network, TrainingConfig(batch_size=20, backend="scipy", threads=1))
    trainer.step(*data_of(20))
    for k, layer in enumerate(network.layers):
        forward = [layer.values_by_output, layer.indices_by_output]
        backward = [layer.values, layer.topology.indices]
        update = [layer.velocity, trainer.workspace.gradients[k]]
        wanted = (update if k else []) + (forward if k else [])
        wanted += backward if k < len(network.layers) - 1 else []
        for array in wanted:
            assert array.ctypes.data in expected


def test_a_full_disk_is_told(tmp_path):
    with pytest.raises(MemoryPlanError, match=r"cannot be stored in .* no space left"):
        Storage(tmp_path).zeros(shutil.disk_usage(tmp_path).free)  # floats


@pytest.mark.parametrize("folder", ["missing", "a-file"])
def test_a_folder_that_is_none_is_refused(tmp_path, folder):
    (tmp_path / "a-file").touch()
    with pytest.raises(ParameterError, match="'storage'"):
        Storage(tmp_path / folder)


def test_sparse_inputs_have_no_dense_ones_in_files(tmp_path):
    storage = Storage(tmp_path)
    config = NetworkConfig((100_000, 20, 2), density=0.001)
    X = csr_array(([1.0, 2, 3, 4], ([0, 1, 2, 3], [5, 77_777, 3, 99_999])), shape=(4, 100_000))
    y = np.array([0, 1, 0, 1])
    found = []
    for network in (SparseMLP(config), SparseMLP(config, storage=storage)):
        settings = TrainingConfig(batch_size=4, standardize=False, backend="fused", threads=1)
        trainer = Trainer(network, settings)
        trainer.step(X, y)
        found.append(network)
    assert_equal(*found)
    assert storage.nbytes < 4 * 4 * 100_000
    trainer.step(X.toarray(), y)
    assert storage.nbytes > 4 * 4 * 100_000

"""Prediction in batches and in worker processes, and the arrays that processes share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.dispatcher import Dispatcher
from scipy.sparse import coo_array, csr_array, csr_matrix
from scipy.special import softmax
from sklearn.datasets import make_classification

from largesparse import (
    NetworkConfig,
    Predictor,
    SparseMLP,
    Standardizer,
    Trainer,
    TrainingConfig,
    load_model,
    predict,
    predict_proba,
    save_model,
)
from largesparse.backends import BACKENDS, get_backend
from largesparse.data.checks import check_X
from largesparse.errors import BackendError, DataError, MemoryPlanError, ParameterError, WorkerError
from largesparse.machine import mapped_memory
from largesparse.training import prediction as inference

N = 103  # no multiple of a batch size below
NAMES = np.array(["ant", "bee", "cow"])
HANG = 60  # seconds after which a call counts as hanging

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process")


@pytest.fixture(scope="module")
def data():
    X, y = make_classification(
        N, 15, n_informative=8, n_classes=3, n_clusters_per_class=1, random_state=0
    )
    X[np.abs(X) < 0.5] = 0
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def network(data):
    X, y = data
    network = SparseMLP(NetworkConfig((15, 40, 30, 3), epsilon=4), progress=False)
    settings = TrainingConfig(epochs=6, batch_size=16, learning_rate=0.05, dropout=0.2, threads=1)
    Trainer(network, settings).fit(X, NAMES[y], progress=False)
    return network


@pytest.fixture(scope="module", params=BACKENDS)
def workers(request, network):
    """A predictor with two worker processes."""
    try:
        get_backend(request.param)
    except BackendError as error:
        pytest.skip(str(error))
    with Predictor(network, processes=2, batch_size=10, backend=request.param) as predictor:
        predictor.backend_name = request.param
        yield predictor


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders of this test alone in the place of the shared memory and of the temporary files."""
    shared, temporary = tmp_path / "shm", tmp_path / "tmp"
    shared.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(mapped_memory, "SHARED_FOLDER", shared)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def left():
        return [p for folder in (shared, temporary) for p in folder.glob("largesparse-*")]

    left.shared, left.temporary = shared, temporary
    return left


def dense_probabilities(network, X):
    """Equations of the paper in float64, on dense matrices."""
    scaling = network.preprocessing
    A = (np.asarray(X, dtype=np.float64) - scaling.mean) * scaling.scale
    for k, layer in enumerate(network.layers):
        pattern = (layer.values, layer.topology.indices, layer.topology.indptr)
        Z = A @ csr_array(pattern, shape=(layer.n_in, layer.n_out)).toarray() + layer.bias
        A = np.where(Z > 0, Z, (-0.6, 0.6, 1)[k] * Z)
    return softmax(A, axis=1)


def children():
    return set(multiprocessing.active_children())


def within(seconds, function):
    """Return what the function returns or raises, if it comes back in time."""
    result = []

    def call():
        try:
            result.append(function())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "the call hangs"
    return result[0]


# In one process


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64, 102, 103, 104, 5000, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_row_is_predicted(network, data, batch_size, backend):
    X, _ = data
    options = {"batch_size": batch_size, "threads": 1, "backend": backend}
    try:
        probabilities = predict_proba(network, X, **options)
    except BackendError as error:
        pytest.skip(str(error))
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (N, 3)
    np.testing.assert_allclose(probabilities, dense_probabilities(network, X), atol=2e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities >= 0).all()
    labels = predict(network, X, **options)
    np.testing.assert_array_equal(labels, NAMES[probabilities.argmax(axis=1)])


@settings(max_examples=25)
@given(st.integers(1, N), st.integers(1, 40), st.integers(1, 2))
def test_a_row_does_not_depend_on_its_batch(network, data, rows, batch_size, threads):
    X, _ = data
    expected = dense_probabilities(network, X[:rows])
    options = {"batch_size": batch_size, "threads": threads, "backend": "scipy"}
    np.testing.assert_allclose(predict_proba(network, X[:rows], **options), expected, atol=2e-5)


def test_the_network_is_better_than_chance(network, data):
    X, y = data
    assert np.mean(predict(network, X) == NAMES[y]) > 0.6


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_number_of_threads_does_not_matter(backend):
    network = SparseMLP(NetworkConfig((50, 30_000, 500, 3), epsilon=1), progress=False)
    X = np.random.default_rng(0).standard_normal((40, 50), dtype=np.float32)
    try:
        one = predict_proba(network, X, threads=1, backend=backend)
    except BackendError as error:
        pytest.skip(str(error))
    np.testing.assert_array_equal(one, predict_proba(network, X, threads=2, backend=backend))


def test_extreme_logits_give_probabilities(data):
    network = SparseMLP(NetworkConfig((15, 20, 2), epsilon=3), progress=False)
    network.layers[-1].bias[:] = 1e30, -1e30
    probabilities = predict_proba(network, data[0])
    np.testing.assert_array_equal(probabilities, np.tile([1, 0], (N, 1)))


def test_a_network_without_classes_predicts_indices(data):
    network = SparseMLP(NetworkConfig((15, 20, 4), epsilon=3), progress=False)
    labels = predict(network, data[0])
    assert labels.dtype.kind == "i"
    np.testing.assert_array_equal(labels, predict_proba(network, data[0]).argmax(axis=1))


def test_a_saved_model_predicts_the_same(network, data, tmp_path):
    save_model(network, tmp_path / "model")
    with Predictor(load_model(tmp_path / "model")) as predictor:
        np.testing.assert_array_equal(
            predictor.predict_proba(data[0]), predict_proba(network, data[0])
        )
        assert predictor.predict(data[0]).dtype == NAMES.dtype


@pytest.mark.parametrize("activation", ["all_relu", "srelu"])
@pytest.mark.parametrize("backend", ["fused", "scipy"])
def test_a_mapped_model_predicts_by_the_same_kernels(data, tmp_path, backend, activation):
    """What cannot be written is another type to a compiler."""
    options = {"batch_size": 10, "threads": 1, "backend": backend}
    network = SparseMLP(NetworkConfig((15, 20, 3), epsilon=3, activation=activation))
    network.preprocessing = Standardizer.fit(data[0])
    joblib.dump(network, tmp_path / "model")
    mapped = joblib.load(tmp_path / "model", mmap_mode="r")
    assert not mapped.layers[0].values_by_output.flags.writeable
    for X in (data[0], data[0].astype(float), csr_array(data[0])):
        expected = predict_proba(network, X, **options)
        compiled = signatures()
        np.testing.assert_array_equal(predict_proba(mapped, X, **options), expected)
        assert signatures() == compiled


def signatures():
    """Of all kernels that this process has compiled or loaded."""
    modules = [m for name, m in sys.modules.items() if name.startswith("largesparse.backends.")]
    found = {k for m in modules for k in vars(m).values() if isinstance(k, Dispatcher)}
    return {(k, signature) for k in found for signature in k.signatures}


# In several processes


KINDS = {
    "dense": lambda X, folder: X,
    "float64": lambda X, folder: X.astype(np.float64),
    "Fortran order": lambda X, folder: np.asfortranarray(X),
    "strided": lambda X, folder: np.repeat(X, 2, axis=1)[:, ::2],
    "list": lambda X, folder: X.tolist(),
    "CSR array": lambda X, folder: csr_array(X),
    "CSR matrix": lambda X, folder: csr_matrix(X),
    "CSC": lambda X, folder: csr_array(X).tocsc(),
    "COO with duplicates": lambda X, folder: doubled(csr_array(X / 2).tocoo()),
    "memory map": lambda X, folder: saved(X, folder),
    "rows of a memory map": lambda X, folder: saved(np.vstack([X, X]), folder)[N:],
    "columns of a memory map": lambda X, folder: saved(np.hstack([X, X]), folder)[:, 15:],
    "transposed memory map": lambda X, folder: saved(X.T, folder).T,
    "one row": lambda X, folder: X[:1],
    "no more rows than a batch": lambda X, folder: X[:10],
    "one row more than a batch": lambda X, folder: X[:11],
    "all zero": lambda X, folder: csr_array((7, 15), dtype=np.float32),
}


def doubled(coo):
    """Every entry twice."""
    rows, columns = (np.concatenate([index, index]) for index in coo.coords)
    return coo_array((np.concatenate([coo.data, coo.data]), (rows, columns)), shape=coo.shape)


def saved(X, folder):
    np.save(folder / "X.npy", X)
    return np.load(folder / "X.npy", mmap_mode="r")


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_predict_as_one(workers, network, data, tmp_path, kind):
    X = KINDS[kind](data[0], tmp_path)
    options = {"batch_size": 10, "threads": 1, "backend": workers.backend_name}
    probabilities = workers.predict_proba(X)
    np.testing.assert_array_equal(probabilities, predict_proba(network, X, **options))
    np.testing.assert_array_equal(workers.predict(X), predict(network, X, **options))
    dense = X.toarray() if hasattr(X, "toarray") else np.asarray(X)
    np.testing.assert_allclose(probabilities, dense_probabilities(network, dense), atol=2e-5)


def test_bad_input_is_refused_and_the_workers_stay(workers, network, data):
    X = data[0]
    nan = X.copy()
    nan[5, 5] = np.nan
    for bad in (X[:, :9], X[:0], nan, X[0], X.astype(str), csr_array(nan)):
        with pytest.raises(DataError):
            workers.predict(bad)
        with pytest.raises(DataError):
            predict(network, bad)
    assert len(workers.predict(X)) == N


def test_a_network_without_preprocessing_or_classes_in_two_processes(data, places):
    network = SparseMLP(NetworkConfig((15, 40, 4), epsilon=2), progress=False)
    before = children()
    with Predictor(network, processes=2, batch_size=9, threads=1, backend="scipy") as predictor:
        assert len(children() - before) == 2
        assert places() == []  # deleted as soon as the workers have it mapped
        found = predictor.predict_proba(data[0])
        assert places() == []
    assert children() == before
    assert_closed(predictor, data[0])
    expected = predict_proba(network, data[0], batch_size=9, threads=1, backend="scipy")
    np.testing.assert_array_equal(found, expected)
    assert not list(places.shared.iterdir()) and not list(places.temporary.iterdir())


def assert_closed(predictor, X):
    with pytest.raises(ParameterError, match=r"The predictor is closed: make a new one\."):
        predictor.predict(X)
    predictor.close()  # once more is no error


def test_a_closed_predictor_is_told(network, data):
    with Predictor(network) as predictor:
        assert len(predictor.predict(data[0])) == N
    assert_closed(predictor, data[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("processes", 0),
        ("processes", 2.0),
        ("processes", 5000),
        ("threads", 0),
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("backend", "cuda"),
    ],
)
def test_bad_settings_are_refused(network, data, name, value):
    before = children()
    with pytest.raises(ParameterError, match=f"'{name}'") as caught:
        predict(network, data[0], **{name: value})
    assert f"Got {value!r} instead." in str(caught.value)
    assert children() == before


# Workers that die


@needs_signals
def test_a_worker_that_dies_at_work_is_told(network, data, places, monkeypatch):
    before = children()
    predictor = Predictor(network, processes=2, batch_size=1, threads=1, backend="scipy")
    victim = next(iter(children() - before))
    delete, wait = mapped_memory.SharedFiles.delete, inference.wait

    def delete_and_stop(files):  # it has the data, and gets no further
        delete(files)
        os.kill(victim.pid, signal.SIGSTOP)

    def kill_and_wait(connections):
        os.kill(victim.pid, signal.SIGKILL)
        return wait(connections)

    monkeypatch.setattr(mapped_memory.SharedFiles, "delete", delete_and_stop)
    monkeypatch.setattr(inference, "wait", kill_and_wait)
    error = within(HANG, lambda: predictor.predict(data[0]))
    assert isinstance(error, WorkerError)
    assert "exit code -9" in str(error)
    assert "Use fewer processes or a smaller batch_size." in str(error)
    assert children() == before
    assert places() == []
    assert_closed(predictor, data[0])


@needs_signals
def test_a_worker_that_died_between_two_predictions_is_told(network, data, places):
    before = children()
    with Predictor(network, processes=2, threads=1, backend="scipy") as predictor:
        victim = next(iter(children() - before))
        victim.kill()
        victim.join()
        error = within(HANG, lambda: predictor.predict(data[0]))
    assert children() == before
    assert places() == []
    assert isinstance(error, WorkerError)


def test_a_worker_that_fails_is_told(network, data, places, monkeypatch):
    before = children()
    predictor = Predictor(network, processes=2, threads=1, backend="scipy")
    missing = mapped_memory.SharedArray(str(places.shared / "none"), "<f4", (N, 15))
    monkeypatch.setattr(mapped_memory.SharedFiles, "share", lambda files, array: missing)
    error = within(HANG, lambda: predictor.predict(data[0]))
    assert isinstance(error, WorkerError)
    assert "FileNotFoundError" in str(error)
    assert children() == before
    assert_closed(predictor, data[0])


def test_a_worker_that_cannot_start_is_told(network, places, monkeypatch):
    before = children()
    monkeypatch.setattr(
        mapped_memory.SharedFiles,
        "share",
        lambda files, array: mapped_memory.SharedArray(
            str(places.shared / "none"), array.dtype.str, array.shape
        ),
    )
    error = within(HANG, lambda: Predictor(network, processes=2, threads=1, backend="scipy"))
    assert isinstance(error, WorkerError)
    assert children() == before
    assert places() == []


def test_an_interruption_ends_the_workers(network, data, places, monkeypatch):
    before = children()
    predictor = Predictor(network, processes=2, threads=1, backend="scipy")

    def interrupt(connections):
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predictor.predict(data[0])
    assert children() == before
    assert places() == []


# Shared arrays


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(5, 7), (0, 7), (1,), (300, 400)])
def test_a_shared_array_is_what_it_was(places, dtype, shape):
    array = np.random.default_rng(0).integers(2, size=shape).astype(dtype)
    files = mapped_memory.SharedFiles()
    shared = files.share(array)
    again = shared.open()
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)
    assert len(places()) == 1
    assert places()[0].parent == places.shared
    files.delete()
    assert places() == []
    np.testing.assert_array_equal(again, array)  # what is mapped stays


def test_arrays_go_to_the_disk_where_shared_memory_is_too_small(places, monkeypatch):
    usage = mapped_memory.shutil.disk_usage(places.shared)
    full = {places.shared}
    monkeypatch.setattr(
        mapped_memory.shutil,
        "disk_usage",
        lambda place: usage._replace(free=1000) if place in full else usage,
    )
    files = mapped_memory.SharedFiles()
    shared = files.share(np.arange(1000.0))
    assert places()[0].parent == places.temporary
    np.testing.assert_array_equal(shared.open(), np.arange(1000.0))
    files.delete()

    full.add(places.temporary)
    files = mapped_memory.SharedFiles()
    with pytest.raises(MemoryPlanError, match="8000 bytes") as caught:
        files.share(np.arange(1000.0))
    assert "processes=1" in str(caught.value)
    assert places() == []


def test_each_array_goes_where_there_is_room_for_it(places, monkeypatch):
    """The first may fit into what shared memory there is, and the second not."""
    usage = mapped_memory.shutil.disk_usage(places.shared)
    free = {places.shared: 2 * 2**20, places.temporary: 2**30}
    monkeypatch.setattr(
        mapped_memory.shutil, "disk_usage", lambda place: usage._replace(free=free[place])
    )
    files = mapped_memory.SharedFiles()
    small, large = np.arange(1000.0), np.arange(2.0**17)
    shared = [files.share(array) for array in (small, large, small)]
    folders = [Path(each.path).parents[1] for each in shared]
    assert folders == [places.shared, places.temporary, places.shared]
    for each, array in zip(shared, (small, large, small), strict=True):
        np.testing.assert_array_equal(each.open(), array)
    free[places.temporary] = 2**20
    with pytest.raises(MemoryPlanError, match=f"{places.temporary} has {2**20} bytes free"):
        files.share(large)
    files.delete()
    assert places() == []


@pytest.mark.parametrize(
    "part",
    [
        lambda X: X,
        lambda X: X[20:],
        lambda X: X[20:30],
        lambda X: X[:, 3:],
        lambda X: X[::2],
        lambda X: X[::-1],
        lambda X: X.T,
        lambda X: X[[3, 1, 2]],
        lambda X: X * 2,
        lambda X: X[20:][5:].view(np.int32),
    ],
)
def test_parts_of_a_memory_map_are_shared_as_they_are(places, data, tmp_path, part):
    X = part(saved(data[0], tmp_path))
    files = mapped_memory.SharedFiles()
    np.testing.assert_array_equal(files.share(X).open(), X)
    files.delete()


def test_rows_of_a_memory_map_are_not_copied(places, data, tmp_path):
    files = mapped_memory.SharedFiles()
    assert files.share(saved(data[0], tmp_path)[20:30]).path == str(tmp_path / "X.npy")
    assert places() == []


def test_memory_mapped_inputs_are_not_copied(places, data, tmp_path):
    files = mapped_memory.SharedFiles()
    files.share(check_X(saved(data[0], tmp_path), 15))
    left = places()
    files.delete()
    assert left == []


def test_changes_of_a_copy_on_write_map_are_shared(places, data, tmp_path):
    np.save(tmp_path / "X.npy", data[0])
    X = np.load(tmp_path / "X.npy", mmap_mode="c")
    X += 1
    files = mapped_memory.SharedFiles()
    shared = files.share(X).open()
    files.delete()
    np.testing.assert_array_equal(shared, X)

"""Saved models and checkpoints: the format, resuming to the same bits, damage, atomic writing."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import helpers
import numpy as np
import pytest
import safetensors.numpy
from helpers import copies_of, same
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.datasets import make_classification

import largesparse
from largesparse import (
    NetworkConfig,
    Predictor,
    SparseMLP,
    Trainer,
    TrainingConfig,
    backends,
    load_checkpoint,
    load_model,
    predict,
    predict_proba,
    save_checkpoint,
    save_model,
)
from largesparse.errors import BackendError, CheckpointError, LargeSparseError, ParameterError
from largesparse.model.topology import Topology
from largesparse.training import checkpoint as checkpoint_module
from largesparse.training import resumed_settings

NAMES = np.array(["Ångström", "bee", "c d"])


def task(n_samples=96, n_features=12):
    X, y = make_classification(
        n_samples, n_features, n_informative=6, n_classes=3, n_clusters_per_class=1, random_state=0
    )
    return X.astype(np.float32), NAMES[y]


def make_trainer(network=None, **training):
    settings = {"epochs": 4, "batch_size": 32, "learning_rate": 0.05, "dropout": 0.0, "seed": 7}
    settings |= {"network": {"epsilon": 4.0, "seed": 3} | (network or {})}
    return helpers.make_trainer((12, 30, 20, 3), **settings | training)


def state(network):
    numbers = [[layer.slope, layer.config.rate_scale, layer.number] for layer in network.layers]
    return [*copies_of(network), np.array(numbers)]


def measured(history):
    """A history without its times, which differ from run to run."""
    return [
        {key: value for key, value in record.items() if not key.endswith("_s")}
        for record in history.to_list()
    ]


@pytest.fixture(scope="module")
def trained():
    """A trainer with everything that a checkpoint can hold."""
    trainer = make_trainer(dropout=0.2, validation_fraction=0.2, schedule="cosine", micro_batch=10)
    X, y = task()
    trainer.fit(X, y, test=(X, y), progress=False)
    return trainer


@pytest.fixture(scope="module")
def original(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "checkpoint"
    save_checkpoint(trained, folder)
    return folder


@pytest.fixture
def copy(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "copy"))


def edit_manifest(folder, change):
    """Change the manifest, and its checksum to fit."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["sha256"]
    change(manifest)
    data = json.dumps(manifest, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(manifest), encoding="utf-8")


def edit_arrays(folder, name, change):
    """Change a file's arrays, and its entry in the manifest to fit."""
    arrays = {key: array.copy() for key, array in load_file(folder / name).items()}
    change(arrays)
    save_file(arrays, folder / name)
    data = (folder / name).read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))


def assert_refused(folder, load=load_checkpoint):
    """Loading fails, with one sentence that names the folder; return it."""
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(folder))
    return message


# A saved model


@pytest.mark.parametrize("threads", [1, 2])
def test_a_saved_model_predicts_the_same(trained, tmp_path, threads):
    X, _ = task()
    save_model(trained.network, tmp_path / "model")
    network = load_model(tmp_path / "model")
    for options in ({"threads": threads}, {"threads": threads, "batch_size": 7}):
        with Predictor(network, backend="scipy", **options) as predictor:
            probabilities = predictor.predict_proba(X)
            labels = predictor.predict(X)
        options["threads"] = 1
        expected = predict_proba(trained.network, X, backend="scipy", **options)
        np.testing.assert_array_equal(probabilities, expected)
        np.testing.assert_array_equal(labels, np.sort(NAMES)[expected.argmax(axis=1)])
    assert network.config == trained.network.config


def test_a_saved_model_has_no_velocities_and_a_checkpoint_is_a_model_too(
    trained, original, tmp_path
):
    save_model(trained.network, tmp_path / "model")
    arrays = load_file(tmp_path / "model/layer-01.safetensors")
    assert sorted(arrays) == ["bias", "indices", "indptr", "values"]
    models = [load_model(tmp_path / "model"), load_model(original)]
    for network in models:
        for layer, expected in zip(network.layers, trained.network.layers, strict=True):
            np.testing.assert_array_equal(layer.values, expected.values)
            np.testing.assert_array_equal(layer.bias, expected.bias)
    assert not any(layer.velocity.any() for layer in models[0].layers)


def test_an_untrained_network_can_be_saved(tmp_path):
    network = SparseMLP(NetworkConfig((5, 4, 2), epsilon=1), progress=False)
    save_model(network, tmp_path / "deep/down/model")
    again = load_model(tmp_path / "deep/down/model")
    assert again.classes is None
    assert again.preprocessing is None
    assert same(state(network), state(again))


def test_a_layer_without_connections_can_be_saved(tmp_path):
    network = SparseMLP(NetworkConfig((6, 5, 2), epsilon=1e-9), progress=False)
    assert network.connections == 0
    save_model(network, tmp_path / "model")
    assert same(state(network), state(load_model(tmp_path / "model")))


@pytest.mark.parametrize(
    "classes",
    [
        NAMES,
        np.array([1, 5, 9]),
        np.array([-1, 0, 2**40]),
        np.array([1.0, 2.0, 300.0]),
        np.array([3, 4, 5], dtype=np.uint8),
        np.array(["a", "b", "c" * 1000]),
    ],
)
def test_class_labels_survive(classes, tmp_path):
    trainer = make_trainer(epochs=1)
    X, y = task()
    labels = classes[np.searchsorted(np.sort(NAMES), y)]
    trainer.fit(X, labels, progress=False)
    save_model(trainer.network, tmp_path / "model")
    network = load_model(tmp_path / "model")
    assert network.classes.dtype == trainer.network.classes.dtype
    np.testing.assert_array_equal(network.classes, np.unique(labels))
    np.testing.assert_array_equal(predict(network, X), predict(trainer.network, X))


def test_byte_string_labels_survive(tmp_path):
    trainer = make_trainer(epochs=1)
    X, y = task()
    trainer.fit(X, np.char.encode(y, "utf-8"), progress=False)
    save_model(trainer.network, tmp_path / "model")
    assert load_model(tmp_path / "model").classes.dtype.kind == "S"


@pytest.mark.parametrize("place", ["layer_sizes", "learning_rate", "seed"])
def test_numpy_numbers_in_the_configuration_can_be_saved(place, tmp_path):
    sizes = (12, 5, np.int64(3) if place == "layer_sizes" else 3)
    settings = {"learning_rate": np.float32(0.5)} if place == "learning_rate" else {}
    network = NetworkConfig(sizes, seed=np.int64(1) if place == "seed" else 1)
    trainer = Trainer(SparseMLP(network, progress=False), TrainingConfig(**settings))
    save_checkpoint(trainer, tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint/manifest.json").is_file()


def test_paths_may_be_strings_and_relative(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(trained.network, "model")
    assert os.listdir(tmp_path) == ["model"]
    assert same(state(load_model("model/")), state(load_model(tmp_path / "model")))


# The format


def test_manifest_and_files_are_as_designed(trained, original):
    manifest = json.loads((original / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["format"] == "largesparse"
    assert manifest["version"] == 2
    assert manifest["kind"] == "checkpoint"
    assert manifest["network"]["layer_sizes"] == [12, 30, 20, 3]
    assert NetworkConfig(**manifest["network"]) == trained.network.config
    assert manifest["nnz"] == [layer.nnz for layer in trained.network.layers]
    assert manifest["classes"]["values"] == sorted(NAMES)
    assert manifest["preprocessing"] == "standardize"
    training = manifest["training"]
    assert training["epoch"] == 4
    assert training["step"] == trained.step_count == 12
    config = dataclasses.replace(trained.config, micro_batch=10)
    assert TrainingConfig(**training["config"]) == config
    assert len(training["history"]) == 5

    layers = [f"layer-0{k}.safetensors" for k in (1, 2, 3)]
    files = {*layers, *(f"best-{name}" for name in layers), "preprocessing.safetensors"}
    assert set(manifest["files"]) == files
    assert {path.name for path in original.iterdir()} == files | {"manifest.json"}
    for name, entry in manifest["files"].items():
        data = (original / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_arrays_have_the_types_of_the_format(original):
    arrays = load_file(original / "layer-02.safetensors")
    nnz = arrays["indptr"][-1]
    shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    assert shapes == {
        "indptr": ("int32", (31,)),
        "indices": ("int32", (nnz,)),
        "values": ("float32", (nnz,)),
        "velocity": ("float32", (nnz,)),
        "bias": ("float32", (20,)),
        "bias_velocity": ("float32", (20,)),
    }


def test_the_forward_pass_can_be_rebuilt_without_the_library(trained, original):
    """From JSON, safetensors, SciPy and the paper's eq. 3 alone."""
    X, _ = task()
    manifest = json.loads((original / "manifest.json").read_text(encoding="utf-8"))
    sizes, alpha = manifest["network"]["layer_sizes"], manifest["network"]["alpha"]
    assert manifest["network"]["activation"] == "all_relu"
    scaling = load_file(original / "preprocessing.safetensors")
    A = (X.astype(np.float64) - scaling["mean"]) * scaling["scale"]
    for k in range(3):
        arrays = load_file(original / f"layer-0{k + 1}.safetensors")
        shape = (sizes[k], sizes[k + 1])
        W = csr_array((arrays["values"], arrays["indices"], arrays["indptr"]), shape=shape)
        Z = A @ W.toarray().astype(np.float64) + arrays["bias"]
        if k < 2:
            slope = -alpha if (k + 2) % 2 == 0 else alpha  # the first hidden layer is layer 2
            A = np.where(Z > 0, Z, slope * Z)
    expected = softmax(Z, axis=1)
    np.testing.assert_allclose(predict_proba(trained.network, X), expected, atol=1e-5)
    np.testing.assert_allclose(predict_proba(load_model(original), X), expected, atol=1e-5)
    labels = np.array(manifest["classes"]["values"])[expected.argmax(axis=1)]
    np.testing.assert_array_equal(predict(load_model(original), X), labels)


PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_nothing_that_is_kept_is_pickled():
    package = Path(largesparse.__file__).parent
    of_a_job = package / "parallel"  # whose ranks exchange messages, and keep none
    for path in set(package.rglob("*.py")) - set(of_a_job.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                counts_cores = [alias.name for alias in node.names] == ["effective_n_jobs"]
                imported = set() if counts_cores else {node.module.partition(".")[0]}
            else:
                imported = set()
            assert not imported & PICKLERS, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


# Resuming


def run_and_resume(tmp_path, *, network=None, resume=None, **settings):
    """Train without interruption; yield that trainer, and those that went on after each epoch."""
    X, y = task()
    folder = tmp_path / "run"

    def keep(trainer, record):
        shutil.copytree(folder, tmp_path / f"after-{record.epoch}")

    trainer = make_trainer(network, **settings)
    trainer.fit(X, y, test=(X, y), checkpoint=folder, callbacks=[keep], progress=False)
    resumed = []
    for epoch in range(1, trainer.epoch + 1):
        again = load_checkpoint(tmp_path / f"after-{epoch}", **(resume or {}))
        assert again.epoch == epoch
        again.fit(X, y, test=(X, y), progress=False)
        resumed.append(again)
    return trainer, resumed


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        ({}, {}),
        ({}, {"evolve_last": True, "zeta": 0.5, "zeta_decay": 0.5}),
        ({}, {"evolution_interval": 3}),
        ({}, {"dropout": 0.4, "micro_batch": 7}),
        ({}, {"schedule": "cosine", "warmup_epochs": 1.5}),
        ({}, {"schedule": "step", "decay_every": 0.5}),
        ({}, {"standardize": False, "zeta": 0.0}),
        ({"recipe": "width"}, {"learning_rate": 0.5}),
        ({"activation": "relu", "initializer": "normal", "epsilon": None, "density": 0.3}, {}),
        ({}, {"validation_fraction": 0.3, "learning_rate": 0.3, "epochs": 6}),
        ({}, {"validation_fraction": 0.3, "learning_rate": 0.3, "epochs": 12, "patience": 2}),
    ],
)
def test_resuming_gives_the_same_bits(tmp_path, network, settings):
    trainer, resumed = run_and_resume(tmp_path, network=network, **settings)
    if settings.get("patience"):
        assert trainer.epoch < 12
    for again in resumed:
        assert again.step_count == trainer.step_count
        assert same(state(trainer.network), state(again.network))
        assert measured(trainer.history) == measured(again.history)


def test_resuming_under_another_number_of_threads(tmp_path):
    trainer, resumed = run_and_resume(tmp_path, dropout=0.2, resume={"threads": 2}, zeta=0.0)
    for again in resumed:
        assert again.threads == 2
        for one, other in zip(state(trainer.network), state(again.network), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_run_that_is_cut_off_goes_on_from_its_last_epoch(tmp_path, monkeypatch):
    X, y = task()
    whole = make_trainer(dropout=0.2)
    whole.fit(X, y, progress=False)
    cut = make_trainer(dropout=0.2)
    gradient = Trainer.gradient

    def interrupt(self, *arguments):
        if self.step_count == 2 * 3 + 1:  # in the third epoch
            raise KeyboardInterrupt
        return gradient(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "gradient", interrupt)
        cut.fit(X, y, checkpoint=tmp_path / "run", progress=False)
    assert os.listdir(tmp_path) == ["run"]
    again = load_checkpoint(tmp_path / "run")
    assert (again.epoch, again.step_count) == (2, 6)
    again.fit(X, y, checkpoint=tmp_path / "run", progress=False)
    assert same(state(whole.network), state(again.network))
    assert load_checkpoint(tmp_path / "run").epoch == 4


def test_the_micro_batch_is_kept(tmp_path):
    """It is part of what the bits depend on; by default it is the mini-batch."""
    save_checkpoint(make_trainer(), tmp_path / "a")
    save_checkpoint(make_trainer(micro_batch=7), tmp_path / "b")
    save_checkpoint(make_trainer(micro_batch=700), tmp_path / "c")
    found = [json.loads((tmp_path / x / "manifest.json").read_text()) for x in "abc"]
    assert [m["training"]["config"]["micro_batch"] for m in found] == [32, 7, 32]


def test_a_longer_training_is_the_same_where_every_epoch_evolves(tmp_path):
    X, y = task()
    long, short = make_trainer(evolve_last=True), make_trainer(evolve_last=True, epochs=2)
    long.fit(X, y, progress=False)
    short.fit(X, y, checkpoint=tmp_path / "run", progress=False)
    again = load_checkpoint(tmp_path / "run", epochs=4)
    again.fit(X, y, progress=False)
    assert same(state(long.network), state(again.network))


def test_a_longer_training_is_the_same_without_evolution_after_the_last_epoch(tmp_path):
    X, y = task()
    long, short = make_trainer(), make_trainer(epochs=2)
    long.fit(X, y, progress=False)
    short.fit(X, y, checkpoint=tmp_path / "run", progress=False)
    again = load_checkpoint(tmp_path / "run", epochs=4)
    again.fit(X, y, progress=False)
    assert same(state(long.network), state(again.network))


def unsteady(**changes):
    """A training whose best epoch is not its last one."""
    options = {"validation_fraction": 0.3, "learning_rate": 0.3, "epochs": 6}
    return make_trainer(**options | changes)


@pytest.mark.parametrize(("patience", "epochs"), [(None, 6), (2, 12)])
def test_the_folder_of_a_training_that_is_over_has_the_best_weights(patience, epochs, tmp_path):
    X, y = task()
    folder, trainer = (
        tmp_path / "run",
        unsteady(patience=patience, learning_rate=0.2, epochs=epochs),
    )
    trainer.fit(X, y, checkpoint=folder, progress=False)
    assert trainer.best.epoch < trainer.epoch
    assert same(state(trainer.network), state(load_model(folder)))
    assert same(state(trainer.network), state(load_checkpoint(folder).network))
    before = json.loads((folder / "manifest.json").read_text())["training"]
    assert before["best"] == {"epoch": trainer.best.epoch, "score": trainer.best.score}


def test_a_training_that_is_prolonged_goes_on_from_its_last_weights(tmp_path):
    X, y = task()
    long, short = unsteady(epochs=9), unsteady()
    long.fit(X, y, progress=False)
    short.fit(X, y, checkpoint=tmp_path / "run", progress=False)
    again = load_checkpoint(tmp_path / "run", epochs=9)
    again.fit(X, y, progress=False)
    assert same(state(long.network), state(again.network))
    assert measured(long.history) == measured(again.history)


@pytest.mark.parametrize("before", [0.0, 0.3, 0.2])
def test_a_patience_that_is_added_counts_from_the_resume(before, tmp_path):
    X, y = task()
    constant = {"learning_rate": 0.0, "weight_decay": 0.0, "zeta": 0.0}  # no epoch is better
    first = make_trainer(epochs=5, validation_fraction=before, **constant)
    first.fit(X, y, checkpoint=tmp_path / "run", progress=False)
    changes = {"validation_fraction": 0.3, "patience": 2, "epochs": 20}
    again = load_checkpoint(tmp_path / "run", **changes)
    again.fit(
        X, y, checkpoint=tmp_path / "run", callbacks=[lambda *_: True], progress=False
    )  # is saved, and counts on
    again = load_checkpoint(tmp_path / "run")
    assert (again.epoch, again.state.patience_since) == (6, 5)
    again.fit(X, y, progress=False)
    assert again.epoch == (7 if before == 0.3 else 8)  # the best one is 1, or the first that counts
    assert again.best.epoch == (1 if before == 0.3 else 6)


def test_early_stopping_of_an_older_checkpoint_goes_on(tmp_path):
    X, y = task()
    trainer = unsteady(epochs=12, patience=4)
    stop = lambda trainer, record: record.epoch == 4  # noqa: E731
    trainer.fit(X, y, checkpoint=tmp_path / "run", callbacks=[stop], progress=False)

    def age(manifest):
        del manifest["training"]["best"], manifest["training"]["patience_since"]
        manifest["training"]["config"]["backend"] = None

    whole = unsteady(epochs=12, patience=4)
    whole.fit(X, y, progress=False)
    edit_manifest(tmp_path / "run", age)
    again = load_checkpoint(tmp_path / "run", backend="scipy")
    assert (again.best.epoch, again.best.score) == (trainer.best.epoch, trainer.best.score)
    again.fit(X, y, progress=False)
    assert same(state(whole.network), state(again.network))


def test_the_backend_of_a_checkpoint_is_kept_and_a_change_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LARGESPARSE_BACKEND", "scipy")
    save_checkpoint(make_trainer(backend=None), tmp_path / "run")
    monkeypatch.setenv("LARGESPARSE_BACKEND", "fused")
    assert load_checkpoint(tmp_path / "run").backend.name == "scipy"
    assert not caplog.records
    assert load_checkpoint(tmp_path / "run", backend="fused").backend.name == "fused"
    assert load_checkpoint(tmp_path / "run", backend=None).backend.name == "fused"
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2 and all("'scipy' and goes on with 'fused'" in text for text in texts)

    def get_backend(name=None, layer_sizes=None):
        if name == "scipy":
            raise BackendError("There is no scipy here.")
        return backends.get_backend(name)

    caplog.clear()
    monkeypatch.setattr(resumed_settings, "get_backend", get_backend)
    assert load_checkpoint(tmp_path / "run").backend.name == "fused"
    (record,) = caplog.records
    assert record.getMessage().startswith("There is no scipy here. The training in ")
    with pytest.raises(BackendError, match="no scipy"):
        load_checkpoint(tmp_path / "run", backend="scipy")


def test_a_whole_mini_batch_stays_whole_where_its_size_is_changed(tmp_path):
    save_checkpoint(make_trainer(), tmp_path / "whole")
    save_checkpoint(make_trainer(micro_batch=8), tmp_path / "parts")
    for batch_size in (16, 48):
        changed = load_checkpoint(tmp_path / "whole", batch_size=batch_size)
        assert (changed.config.batch_size, changed.micro_batch) == (batch_size, batch_size)
        assert load_checkpoint(tmp_path / "parts", batch_size=batch_size).micro_batch == 8
    changed = load_checkpoint(tmp_path / "whole", batch_size=48, micro_batch=16)
    assert changed.micro_batch == 16


def test_a_training_by_single_steps_can_be_saved(tmp_path):
    X, y = task()
    labels = np.searchsorted(np.sort(NAMES), y).astype(np.int32)
    trainer = make_trainer(dropout=0.3)
    for _ in range(3):
        trainer.step(X, labels)
    save_checkpoint(trainer, tmp_path / "run")
    again = load_checkpoint(tmp_path / "run")
    assert again.step_count == 3
    assert trainer.step(X, labels) == again.step(X, labels)
    assert same(state(trainer.network), state(again.network))


def test_settings_can_be_changed_on_resuming(original):
    trainer = load_checkpoint(original, learning_rate=0.001, threads=2, epochs=9)
    assert trainer.config.learning_rate == 0.001
    assert trainer.config.epochs == 9
    assert trainer.threads == 2


@pytest.mark.parametrize("change", [{"epochs": 0}, {"backend": "cuda"}, {"nonsense": 1}])
def test_a_bad_change_is_not_called_damage(original, change):
    with pytest.raises((LargeSparseError, TypeError)) as caught:
        load_checkpoint(original, **change)
    assert "damaged" not in str(caught.value)


def test_a_model_is_no_checkpoint(trained, tmp_path):
    save_model(trained.network, tmp_path / "model")
    with pytest.raises(CheckpointError, match="is a saved model, not a checkpoint"):
        load_checkpoint(tmp_path / "model")


# Damage


ARRAY_FILES = [
    "layer-01.safetensors",
    "layer-03.safetensors",
    "best-layer-02.safetensors",
    "preprocessing.safetensors",
]


@pytest.mark.parametrize("name", ARRAY_FILES)
def test_a_truncated_file_is_refused(copy, name):
    data = (copy / name).read_bytes()
    for length in (0, 1, 8, 100, len(data) // 2, len(data) - 1):
        (copy / name).write_bytes(data[:length])
        assert_refused(copy)
    (copy / name).write_bytes(data + b"\0")
    assert_refused(copy)
    (copy / name).unlink()
    assert_refused(copy)
    (copy / name).mkdir()
    assert_refused(copy)


@pytest.mark.parametrize("name", ARRAY_FILES)
def test_a_flipped_bit_is_noticed(copy, name):
    data = (copy / name).read_bytes()
    for position in (0, 7, 9, 30, len(data) // 3, len(data) // 2, len(data) - 1):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        (copy / name).write_bytes(flipped)
        assert_refused(copy)


def test_a_file_in_the_place_of_another_is_noticed(copy):
    shutil.copy(copy / "best-layer-02.safetensors", copy / "layer-02.safetensors")
    assert_refused(copy)


def test_a_manifest_that_is_none_is_refused(copy):
    path = copy / "manifest.json"
    data = path.read_bytes()
    garbage = [b"", b"{", b"null", b"[]", b"5", b'"largesparse"', b"{}", b"\xff\xfe\0", b"\0" * 500]
    for content in [*garbage, *(data[:k] for k in range(1, len(data), len(data) // 10))]:
        path.write_bytes(content)
        assert_refused(copy)
    path.unlink()
    assert_refused(copy)
    path.mkdir()
    assert_refused(copy)


@pytest.mark.parametrize(
    "keys",
    [
        *[(key,) for key in ("format", "version", "network", "files", "classes", "preprocessing")],
        ("network", "layer_sizes"),
        ("files", "layer-02.safetensors"),
        ("files", "layer-02.safetensors", "sha256"),
        ("classes", "values"),
        *[("training", key) for key in ("config", "epoch", "step", "history")],
    ],
)
def test_a_missing_entry_of_the_manifest_is_refused(copy, keys):
    def remove(manifest):
        *outer, last = keys
        for key in outer:
            manifest = manifest[key]
        del manifest[last]

    edit_manifest(copy, remove)
    assert_refused(copy)


WRONG_ENTRIES = [
    ("format", "other"),
    ("files", []),
    ("files", {"layer-01.safetensors": 5}),
    ("network", []),
    ("network", {"layer_sizes": 5}),
    ("network", {"layer_sizes": [12, 30, 21, 3]}),
    ("network", {"layer_sizes": [12, 30, 20]}),
    ("network", {"layer_sizes": [12, 30, 20, 3], "nonsense": 1}),
    ("network", {"layer_sizes": [12, 30, 20, 3], "alpha": "much"}),
    ("network", {"layer_sizes": [12, 2**31 - 2, 2**31 - 2, 3]}),
    ("classes", 5),
    ("classes", {"dtype": "O", "values": ["a", "b", "c"]}),
    ("classes", {"dtype": "<U1", "values": ["a", "b"]}),
    ("classes", {"dtype": "nonsense", "values": [1, 2, 3]}),
    ("training", []),
    ("training", {}),
]


@pytest.mark.parametrize(("key", "value"), WRONG_ENTRIES)
def test_a_wrong_entry_of_the_manifest_is_refused(copy, key, value):
    edit_manifest(copy, lambda manifest: manifest.update({key: value}))
    assert_refused(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", "x"),
        ("step", None),
        ("history", 5),
        ("history", [{}]),
        ("history", [{"epoch": 0}]),
        ("config", {"epochs": 0}),
        ("config", {"nonsense": 1}),
        ("config", {"backend": "scipy", "activation_dtype": "bfloat16"}),
        ("config", {"backend": "cuda"}),
        ("config", []),
    ],
)
def test_a_wrong_entry_of_the_training_is_refused(copy, key, value):
    edit_manifest(copy, lambda manifest: manifest["training"].update({key: value}))
    assert_refused(copy)
    assert load_model(copy).neurons == 50  # the network itself is intact


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_version_of_the_format_is_told(copy, version):
    edit_manifest(copy, lambda manifest: manifest.update(version=version))
    assert_refused(copy)
    with pytest.raises(CheckpointError, match=f"version {version} .*reads versions 1 and 2"):
        load_model(copy)


@pytest.mark.parametrize("case", ["infinite epoch", "label beyond its type", "deep nesting"])
def test_numbers_out_of_range_in_the_manifest_are_refused(copy, case):
    if case == "infinite epoch":
        edit_manifest(copy, lambda manifest: manifest["training"].update(epoch=float("inf")))
    elif case == "label beyond its type":
        classes = {"dtype": "|i1", "values": [1, 2, 1000]}
        edit_manifest(copy, lambda manifest: manifest.update(classes=classes))
    else:
        (copy / "manifest.json").write_text("[" * 100_000)
    assert_refused(copy)


def test_a_flipped_bit_in_the_manifest_is_noticed(copy):
    path = copy / "manifest.json"
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(data), size=200, replace=False):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            load_checkpoint(copy)
        except CheckpointError:
            continue
        assert json.loads(flipped) == json.loads(data)  # 1E-05 in the place of 1e-05


def test_a_changed_setting_in_the_manifest_is_noticed(copy):
    path = copy / "manifest.json"
    data = path.read_bytes()
    assert data.count(b'"alpha": 0.6') == 1
    path.write_bytes(data.replace(b'"alpha": 0.6', b'"alpha": 0.2'))  # one bit
    assert_refused(copy)


def set_item(name, position, value):
    def change(arrays):
        arrays[name][position] = value

    return change


def swap_first_indices(arrays):
    """Two indices of the first row that has two."""
    row = int(np.argmax(np.diff(arrays["indptr"]) >= 2))
    start = arrays["indptr"][row]
    arrays["indices"][start : start + 2] = arrays["indices"][start : start + 2][::-1].copy()


def double_first_index(arrays):
    row = int(np.argmax(np.diff(arrays["indptr"]) >= 2))
    start = arrays["indptr"][row]
    arrays["indices"][start + 1] = arrays["indices"][start]


def cut(name):
    def change(arrays):
        arrays[name] = arrays[name][:-1].copy()

    return change


def convert(name, dtype):
    def change(arrays):
        arrays[name] = arrays[name].astype(dtype)

    return change


def remove(name):
    return lambda arrays: arrays.pop(name)


def two_dimensions(arrays):
    arrays["bias"] = arrays["bias"][:, None].copy()


def with_indptr(*start):
    """Three connections, in ascending cells, and an indptr that begins with 0, then `start`."""

    def change(arrays):
        for name in ("indices", "values", "velocity"):
            arrays[name] = arrays[name][:3].copy()
        arrays["indices"][:] = 0, 1, 2
        arrays["indptr"][1:] = 3
        arrays["indptr"][1 : 1 + len(start)] = start

    return change


BAD_ARRAYS = {
    "negative index": set_item("indices", 3, -1),
    "negative index first in its row": set_item("indices", 0, -1),
    "most negative index": set_item("indices", 3, -(2**31)),
    "index too large": set_item("indices", -1, 20),
    "largest index": set_item("indices", 0, 2**31 - 1),
    "unsorted indices": swap_first_indices,
    "the same connection twice": double_first_index,
    "indptr not from 0": set_item("indptr", 0, 1),
    "negative indptr": set_item("indptr", 3, -1),
    "indptr descends": set_item("indptr", 3, 10**6),
    "indptr goes back": with_indptr(3, 1, 3),
    "indptr ends too early": set_item("indptr", -1, 0),
    "indptr ends too late": set_item("indptr", -1, 10**6),
    "indptr ends negative": set_item("indptr", -1, -5),
    "indptr too short": cut("indptr"),
    "indices too short": cut("indices"),
    "values too short": cut("values"),
    "bias too short": cut("bias"),
    "velocity too short": cut("velocity"),
    "bias velocity too short": cut("bias_velocity"),
    "int64 indices": convert("indices", np.int64),
    "float64 values": convert("values", np.float64),
    "float16 bias": convert("bias", np.float16),
    "two dimensions": two_dimensions,
    "no indptr": remove("indptr"),
    "no values": remove("values"),
    "no bias": remove("bias"),
    "no bias velocity": remove("bias_velocity"),
    "NaN weight": set_item("values", 5, np.nan),
    "infinite weight": set_item("values", 5, -np.inf),
    "NaN bias": set_item("bias", 5, np.nan),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_layer_are_refused(copy, case):
    """With a checksum that fits, as from another program or a bug in ours."""
    edit_arrays(copy, "layer-02.safetensors", BAD_ARRAYS[case])
    message = assert_refused(copy)
    if "index" in case:
        assert "an index is outside [0, 20)" in message  # noticed before it is used


def test_intact_arrays_with_a_new_checksum_are_accepted(copy, trained):
    edit_arrays(copy, "layer-02.safetensors", lambda arrays: None)
    assert same(state(trained.network), state(load_checkpoint(copy).network))


def test_an_indptr_whose_differences_wrap_around_is_refused(copy, monkeypatch):
    def stop(*arguments):
        pytest.fail("accepted")  # before it crashes

    edit_arrays(copy, "layer-02.safetensors", with_indptr(2**31 - 1, -(2**31), -1))
    original = Topology.from_input_order
    monkeypatch.setattr(
        Topology,
        "from_input_order",
        lambda n_in, *rest: stop() if n_in == 30 else original(n_in, *rest),
    )
    assert_refused(copy)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("layer-02.safetensors", "velocity"),
        ("layer-02.safetensors", "bias_velocity"),
        ("preprocessing.safetensors", "mean"),
        ("preprocessing.safetensors", "scale"),
    ],
)
def test_nan_elsewhere_is_refused(copy, file, name):
    edit_arrays(copy, file, set_item(name, 1, np.nan))
    assert_refused(copy)


@pytest.mark.parametrize("change", [cut("mean"), remove("scale"), convert("mean", np.float32)])
def test_bad_statistics_of_the_inputs_are_refused(copy, change):
    edit_arrays(copy, "preprocessing.safetensors", change)
    assert_refused(copy)


def test_what_is_not_there_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "no/where"):
        assert_refused(path)
        assert_refused(path, load_model)
    (tmp_path / "file").write_text("x")
    assert_refused(tmp_path / "file", load_model)


# Writing


def other_network():
    network = SparseMLP(NetworkConfig((12, 30, 20, 3), epsilon=2, seed=99), progress=False)
    network.classes = np.array([1, 2, 3])
    return network


class Failure:
    """Stands in for a function, and raises an error in place of one of its calls."""

    def __init__(self, function, call, error):
        self.function, self.call, self.error, self.calls = function, call, error, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        if self.calls == self.call:
            raise self.error
        return self.function(*arguments, **options)


FULL = OSError(28, "No space left on device")
FAILURES = [
    ("arrays", checkpoint_module, "write_arrays", 1, FULL),
    ("arrays", checkpoint_module, "write_arrays", 3, FULL),
    ("safetensors", safetensors.numpy, "save_file", 2, SafetensorError("full")),
    ("manifest", json, "dump", 1, FULL),
    ("sync", os, "fsync", 4, FULL),
    ("rename", os, "rename", 1, PermissionError(13, "Permission denied")),
]


@pytest.mark.parametrize(("what", "module", "name", "call", "error"), FAILURES)
def test_the_old_model_survives_a_failure(
    trained, tmp_path, monkeypatch, what, module, name, call, error
):
    folder = tmp_path / "model"
    save_model(trained.network, folder)
    with monkeypatch.context() as patch:
        failure = Failure(getattr(module, name), call, error)
        patch.setattr(module, name, failure)
        with pytest.raises(CheckpointError) as caught:
            save_model(other_network(), folder)
        assert failure.calls >= call
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 1  # the old one, if under another name
    again = load_model(folder)
    for layer, expected in zip(again.layers, trained.network.layers, strict=True):
        np.testing.assert_array_equal(layer.values, expected.values)
    save_model(other_network(), folder)
    assert load_model(folder).classes.tolist() == [1, 2, 3]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_the_old_model_survives_an_interruption(trained, tmp_path, monkeypatch, error):
    folder = tmp_path / "model"
    save_model(trained.network, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint_module, "write_arrays", Failure(checkpoint_module.write_arrays, 2, error)
        )
        with pytest.raises(type(error)):
            save_model(other_network(), folder)
    assert os.listdir(tmp_path) == ["model"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_at_every_moment_a_model_can_be_found(trained, tmp_path, monkeypatch):
    """Whatever the step of the file system at which the process dies."""
    folder = tmp_path / "model"
    save_model(trained.network, folder)
    seen = []

    def watch(function):
        def watched(*arguments, **options):
            seen.append(load_model(folder).classes.tolist()[-1])
            result = function(*arguments, **options)
            seen.append(load_model(folder).classes.tolist()[-1])
            return result

        return watched

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", watch(os.rename))
        patch.setattr(checkpoint_module, "write_arrays", watch(checkpoint_module.write_arrays))
        save_model(other_network(), folder)
    old, new = np.sort(NAMES)[-1], 3
    assert set(seen) == {old, new}
    assert seen == sorted(seen, key=lambda label: label == new)  # first the old one


def test_a_failure_at_the_first_save_leaves_nothing(trained, tmp_path, monkeypatch):
    for module, name in ((checkpoint_module, "write_arrays"), (json, "dump"), (os, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, Failure(getattr(module, name), 1, FULL))
            with pytest.raises(CheckpointError, match="No space left"):
                save_model(trained.network, tmp_path / "model")
        assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(trained, tmp_path):
    (tmp_path / "file").write_text("x")
    places = [tmp_path / "file/model", tmp_path / "file/a/b"]
    if sys.platform == "linux":
        places.append(Path("/proc/model"))
    for place in places:
        for save, what in ((save_model, trained.network), (save_checkpoint, trained)):
            with pytest.raises(CheckpointError) as caught:
                save(what, place)
            assert str(place) in str(caught.value)
            assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_a_place_that_cannot_be_written_stops_a_training_before_it_starts(tmp_path):
    (tmp_path / "file").write_text("x")
    trainer = make_trainer()
    before = state(trainer.network)
    with pytest.raises(CheckpointError):
        trainer.fit(*task(), checkpoint=tmp_path / "file/run", progress=False)
    assert same(before, state(trainer.network))
    assert len(trainer.history) == 0


@pytest.mark.parametrize("save", ["save_model", "save_checkpoint", "fit"])
def test_a_folder_of_other_things_is_not_replaced(trained, tmp_path, save):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("precious")
    with pytest.raises(CheckpointError) as caught:
        if save == "fit":
            make_trainer().fit(*task(), checkpoint=folder, progress=False)
        elif save == "save_model":
            save_model(trained.network, folder)
        else:
            save_checkpoint(trained, folder)
    assert str(folder) in str(caught.value)
    assert (folder / "chapter.tex").read_text() == "precious"
    assert os.listdir(tmp_path) == ["thesis"]


def test_a_file_is_not_replaced(trained, tmp_path):
    (tmp_path / "model").write_text("precious")
    with pytest.raises(CheckpointError):
        save_model(trained.network, tmp_path / "model")
    assert (tmp_path / "model").read_text() == "precious"
    assert os.listdir(tmp_path) == ["model"]


def test_an_empty_folder_is_taken(trained, tmp_path):
    (tmp_path / "model").mkdir()
    save_model(trained.network, tmp_path / "model")
    assert load_model(tmp_path / "model").neurons == 50
    assert os.listdir(tmp_path) == ["model"]


def test_a_link_to_a_folder_can_be_saved_to_again(trained, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for _ in range(3):
        save_model(trained.network, tmp_path / "link")
    assert load_model(tmp_path / "link").neurons == 50


def test_a_training_overwrites_its_checkpoint_every_epoch(tmp_path):
    epochs = []
    trainer = make_trainer()
    trainer.fit(
        *task(),
        checkpoint=tmp_path / "run",
        callbacks=[lambda trainer, record: epochs.append(load_checkpoint(tmp_path / "run").epoch)],
        progress=False,
    )
    assert epochs == [1, 2, 3, 4]
    assert os.listdir(tmp_path) == ["run"]


def test_a_save_that_fails_on_the_way_does_not_end_the_training(tmp_path, monkeypatch, caplog):
    X, y = task()
    saved = []
    with monkeypatch.context() as patch:
        write = checkpoint_module.write_arrays
        patch.setattr(checkpoint_module, "write_arrays", Failure(write, 6, FULL))  # epoch 2
        make_trainer().fit(
            X,
            y,
            checkpoint=tmp_path / "run",
            callbacks=[lambda *_: saved.append(load_checkpoint(tmp_path / "run").epoch)],
            progress=False,
        )
    assert saved == [1, 1, 3, 4]
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "No space left" in record.getMessage()
    assert os.listdir(tmp_path) == ["run"]


def test_data_of_another_size_is_not_resumed(tmp_path):
    X, y = task()
    make_trainer().fit(X, y, checkpoint=tmp_path / "run", progress=False)
    again = load_checkpoint(tmp_path / "run", epochs=9)
    before = state(again.network)
    with pytest.raises((LargeSparseError, ParameterError), match="rows"):
        again.fit(X[:-1], y[:-1], progress=False)
    assert same(before, state(again.network))

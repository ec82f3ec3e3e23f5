"""Weights for SciPy and PyTorch, and the saved format read by NumPy alone."""

from __future__ import annotations

import copy
import itertools
import json
import struct
import sys

import numpy as np
import pytest

from largesparse import NetworkConfig, SparseMLP, Standardizer, Trainer, TrainingConfig
from largesparse.errors import BackendError, DataError
from largesparse.model.export import to_scipy
from largesparse.torch.export import to_torch
from largesparse.training import prediction as inference
from largesparse.training.checkpoint import save_model


def trained(activation="all_relu", loss="softmax_cross_entropy"):
    rng = np.random.default_rng(0)
    X = (3 + 2 * rng.standard_normal((90, 12))).astype(np.float32)
    y = X[:, 0] if loss == "mean_squared_error" else X[:, :3].argmax(axis=1)
    n_out = 1 if loss == "mean_squared_error" else 3
    config = NetworkConfig((12, 20, 15, n_out), epsilon=4, activation=activation, loss=loss)
    trainer = Trainer(SparseMLP(config), TrainingConfig(epochs=2, batch_size=16, backend="scipy"))
    trainer.fit(X, y, progress=False)
    if loss == "mean_squared_error":
        trainer.network.target_mean = np.array([3], dtype=np.float32)
        trainer.network.target_scale = np.array([2], dtype=np.float32)
    return trainer.network, X


def probabilities(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_scipy_weights_compute_the_same():
    network, X = trained()
    a = (X - network.preprocessing.mean) * network.preprocessing.scale
    for W, layer in zip(to_scipy(network), network.layers, strict=True):
        z = a @ W + layer.bias
        a = np.where(z > 0, z, layer.slope * z)
    found = inference.predict_proba(network, X)
    np.testing.assert_allclose(probabilities(a), found, rtol=1e-4, atol=1e-6)


def test_scipy_weights_are_copies():
    network, _ = trained()
    before = network.layers[0].values.copy()
    to_scipy(network)[0].data[:] = 0
    np.testing.assert_array_equal(network.layers[0].values, before)


@pytest.mark.parametrize("activation", ["all_relu", "srelu"])
def test_a_torch_module_has_the_same_outputs(activation):
    torch = pytest.importorskip("torch")
    network, X = trained(activation)
    with torch.no_grad():
        logits = to_torch(network)(torch.from_numpy(X)).numpy()
    found = inference.predict_proba(network, X)
    np.testing.assert_allclose(probabilities(logits), found, rtol=1e-4, atol=1e-6)


def test_a_torch_module_predicts_numbers():
    torch = pytest.importorskip("torch")
    network, X = trained(loss="mean_squared_error")
    with torch.no_grad():
        found = to_torch(network)(torch.from_numpy(X)).numpy()[:, 0]
    np.testing.assert_allclose(found, inference.predict(network, X), rtol=1e-4, atol=1e-5)


def test_a_torch_module_is_copied_and_saved(tmp_path):
    torch = pytest.importorskip("torch")
    network, X = trained("srelu")
    module = to_torch(network)
    with torch.no_grad():
        expected = module(torch.from_numpy(X)).numpy()
        torch.save(module, tmp_path / "module.pt")
        torch.save(module.state_dict(), tmp_path / "arrays.pt")
        other = to_torch(trained("srelu")[0])
        other.layers[0].values[:] = 0
        other.load_state_dict(torch.load(tmp_path / "arrays.pt"))
        loaded = torch.load(tmp_path / "module.pt", weights_only=False)
        for again in (copy.deepcopy(module), loaded, other):
            np.testing.assert_array_equal(again(torch.from_numpy(X)).numpy(), expected)


def test_a_torch_module_takes_moved_rows():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((90, 12))
    network, _ = trained(loss="mean_squared_error")
    network.preprocessing = Standardizer.fit(X + 1e8)
    network.target_mean = np.array([1e9])
    with torch.no_grad():
        found = to_torch(network)(torch.from_numpy(X + 1e8)).numpy()[:, 0]
    expected = inference.predict(network, X + 1e8)
    np.testing.assert_allclose(found - 1e9, expected - 1e9, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(12,), (5, 11), (2, 3, 12)])
def test_inputs_of_another_shape_are_refused_by_a_torch_module(shape):
    torch = pytest.importorskip("torch")
    network, _ = trained()
    with pytest.raises(DataError, match=r"shape \(batch, 12\).*Got"):
        to_torch(network)(torch.ones(shape))


def test_without_torch_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "largesparse.torch.module", raising=False)
    with pytest.raises(BackendError, match="needs PyTorch, which is not installed"):
        to_torch(trained()[0])


def read_with_numpy(path):
    """Read a safetensors file as docs/checkpoint-format.md says."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    types = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "BOOL": np.bool_}
    return {
        name: np.frombuffer(
            data[8 + length :][slice(*entry["data_offsets"])], types[entry["dtype"]]
        )
        for name, entry in header.items()
    }


def test_numpy_alone_reads_a_saved_model(tmp_path):
    network, X = trained()
    save_model(network, tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    scaling = read_with_numpy(tmp_path / "model" / "preprocessing.safetensors")
    a = (X - scaling["mean"]) * scaling["scale"]
    sizes, alpha = manifest["network"]["layer_sizes"], manifest["network"]["alpha"]
    for k, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        layer = read_with_numpy(tmp_path / "model" / f"layer-{k + 1:02d}.safetensors")
        W = np.zeros((n_in, n_out), np.float32)
        W[np.repeat(np.arange(n_in), np.diff(layer["indptr"])), layer["indices"]] = layer["values"]
        a = a @ W + layer["bias"]
        if k < len(sizes) - 2:
            a = np.where(a > 0, a, (-alpha if k % 2 == 0 else alpha) * a)
    found = inference.predict_proba(network, X)
    np.testing.assert_allclose(probabilities(a), found, rtol=1e-4, atol=1e-6)

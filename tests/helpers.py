"""What the tests of several files use: places, tools, small networks, and dense references."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import largesparse
from largesparse import NetworkConfig, SparseMLP, Trainer, TrainingConfig
from largesparse.errors import BackendError

HERE = Path(__file__).resolve()
ROOT = next(folder for folder in HERE.parents if (folder / "pyproject.toml").is_file())
TOOLS = ROOT / "tools"
DATA = ROOT / "tests" / "data"


# Other processes


def child_path() -> str:
    """`PYTHONPATH` of child processes: the package under test, and the tests' folders.

    Installed, the package is not the one of the working copy, whose kernels would be compiled too.
    """
    package = Path(largesparse.__file__).parents[1]
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    tests = sorted(str(folder) for folder in HERE.parent.iterdir() if folder.is_dir())
    folders = (str(package), str(HERE.parent), *tests, *before)
    return os.pathsep.join(dict.fromkeys(filter(None, folders)))


def run_python(*words: object, **options) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments to its end, and keep what it writes."""
    command = [sys.executable, *map(str, words)]
    defaults = {"capture_output": True, "text": True, "timeout": 300, "check": False}
    return subprocess.run(command, **defaults | options)


def load_file(file: Path, name: str | None = None) -> ModuleType:
    """Return a new module made from a file, such as a tool, which is in no package."""
    specification = importlib.util.spec_from_file_location(name or file.stem, file)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    try:
        specification.loader.exec_module(module)
    finally:
        del sys.modules[module.__name__]
    return module


def load_tool(name: str) -> ModuleType:
    """Return a tool as a new module."""
    return load_file(TOOLS / f"{name}.py")


# Small networks


@cache
def backend_or_skip(name: str):
    """Return a backend; the test is skipped where it cannot be loaded."""
    from largesparse.backends import get_backend

    try:
        return get_backend(name)
    except BackendError as error:
        pytest.skip(str(error))


def make_network(layer_sizes=(12, 30, 20, 3), **options) -> SparseMLP:
    return SparseMLP(NetworkConfig(layer_sizes, **options), progress=False)


def make_trainer(layer_sizes=(12, 30, 20, 3), *, network=None, trainer=Trainer, **options):
    """Return a trainer of one thread and the scipy backend, unless `options` say otherwise.

    Of the options, those that a network has are the network's; `network` has more of them, such as
    its seed.
    """
    fields = {field.name for field in dataclasses.fields(NetworkConfig)} - {"seed"}
    of_network = {key: options.pop(key) for key in fields & options.keys()} | (network or {})
    config = TrainingConfig(**{"backend": "scipy", "threads": 1} | options)
    return trainer(make_network(layer_sizes, **of_network), config)


# Arguments of an estimator that is quick on few rows.
SMALL = {"hidden_layer_sizes": (30,), "random_state": 0, "n_jobs": 1, "backend": "fused"}

PATTERN = ("indptr", "indices", "indptr_by_output", "indices_by_output", "to_output_order")
ARRAYS = ("values", "velocity", "values_by_output", "bias", "bias_velocity", "srelu", "dead")


def arrays_of(network: SparseMLP) -> list[np.ndarray]:
    """Return every array of a network that is there, layer by layer."""
    found = []
    for layer in network.layers:
        found += [getattr(layer.topology, name) for name in PATTERN]
        found += [getattr(layer, name) for name in ARRAYS]
    return [array for array in found if array is not None]


def copies_of(network: SparseMLP) -> list[np.ndarray]:
    return [array.copy() for array in arrays_of(network)]


def same(one, other) -> bool:
    """Whether two lists of arrays are equal, or the arrays of two networks."""
    one, other = (arrays_of(each) if isinstance(each, SparseMLP) else each for each in (one, other))
    pairs = zip(one, other, strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def normal_rows(rows: int, features: int, seed: int = 0) -> np.ndarray:
    """Return X, float32 (rows, features), of the standard normal distribution."""
    return np.random.default_rng(seed).standard_normal((rows, features), dtype=np.float32)


# Dense NumPy computations to compare with


def pattern(layer) -> np.ndarray:
    """Return where a layer has connections, bool (n_in, n_out)."""
    cells = np.zeros((layer.n_in, layer.n_out), dtype=bool)
    cells[layer.topology.rows(), layer.topology.indices] = True
    return cells


def dense(layer) -> np.ndarray:
    """Return W of a layer, float64 (n_in, n_out)."""
    W = np.zeros((layer.n_in, layer.n_out))
    W[layer.topology.rows(), layer.topology.indices] = layer.values
    return W


def dense_gradients(network, X, y):
    """dL/dW of every cell of every layer, in float64, for the mean cross-entropy."""
    inputs, derivatives = [X.astype(np.float64)], []
    for layer in network.layers:
        z = inputs[-1] @ dense(layer) + layer.bias
        derivatives.append(np.where(z > 0, 1.0, layer.slope))
        inputs.append(np.where(z > 0, z, layer.slope * z))
    p = np.exp(inputs[-1] - inputs[-1].max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    delta = (p - np.eye(p.shape[1])[y]) / len(y)
    gradients = []
    for k in reversed(range(len(network.layers))):
        gradients.append(inputs[k].T @ delta)
        if k:
            delta = (delta @ dense(network.layers[k]).T) * derivatives[k - 1]
    return gradients[::-1]

"""Predictions that ranks make under mpiexec, and one process to compare: imported by both."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.sparse import csr_array, issparse

from largesparse import NetworkConfig, SparseMLP
from largesparse.data.standardizer import Standardizer

RANKS, ROWS, FEATURES, BATCH = 3, 103, 15, 10
NAMES = np.array(["ant", "bee", "cow"])
OPTIONS = {"batch_size": BATCH, "threads": 1, "backend": "scipy"}

CASES = {  # by the ranks of a simulated node
    None: ["dense", "csr", "mapped", "labels", "regression", "few", "threads", "several", "top"],
    1: ["dense", "csr", "mapped", "regression", "few", "several", "top"],
    2: ["dense", "csr", "mapped"],
}


def case(name: str, folder) -> tuple[SparseMLP, np.ndarray | csr_array]:
    """Return the network and X of a case; a mapped X is in a file of the folder."""
    rng = np.random.default_rng(3)
    loss = {"loss": "mean_squared_error"} if name == "regression" else {}
    if name == "several":
        loss = {"loss": "binary_cross_entropy"}
    n_out = 2 if name == "regression" else 3
    config = NetworkConfig((FEATURES, 40, 30, n_out), epsilon=4, seed=1, **loss)
    network = SparseMLP(config, progress=False)
    for layer in network.layers:
        layer.bias[:] = rng.normal(scale=0.1, size=layer.n_out)
    if name == "regression":
        network.target_mean, network.target_scale = np.float32([5, -3]), np.float32([2, 4])
    else:
        network.classes = NAMES
    if name in ("csr", "labels"):
        mean, scale = rng.normal(size=FEATURES), rng.uniform(0.5, 2, FEATURES)
        network.preprocessing = Standardizer(mean.astype(np.float32), scale.astype(np.float32))
    rows = 1 if name == "few" else ROWS
    X = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    if name == "csr":
        X[np.abs(X) < 0.7] = 0
        return network, csr_array(X)
    if name == "mapped":
        path = folder / "X.npy"
        if not path.exists():
            np.save(path, X)
        return network, np.load(path, mmap_mode="r")
    return network, X


def function_of(owner, name: str):
    """Return the function that predicts in a case."""
    if name == "top":
        return partial(owner.predict_top, k=2)
    indicated = name in ("labels", "regression", "several")
    return owner.predict if indicated else owner.predict_proba


def as_array(found) -> np.ndarray:
    """Return predictions as one array."""
    if isinstance(found, tuple):
        return np.hstack([found[0].astype(str), found[1].astype(str)])
    return found.toarray() if issparse(found) else found


def path_of(array) -> str | None:
    """Return the path of the file that an array is a view of, if it is."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return array.filename and str(array.filename)
        array = array.base
    return None

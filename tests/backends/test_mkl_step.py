"""A step in one compiled call gives the bits of products by `sparse_dot_mkl`, layer by layer."""

from __future__ import annotations

import copy
import ctypes

import numpy as np
import pytest
from helpers import backend_or_skip, make_trainer

from largesparse.errors import BackendError
from largesparse.model.evolution import evolve

NO_CONNECTIONS = {  # of a layer of 50 inputs and 20 neurons
    "indptr": np.zeros(51, dtype=np.int32),
    "indices": np.empty(0, dtype=np.int32),
    "values": np.empty(0, dtype=np.float32),
    "bias": np.ones(20, dtype=np.float32),
}


@pytest.fixture
def mkl():
    """The backend, where kernels can call MKL."""
    backend = backend_or_skip("mkl")
    if not backend.has_whole_step:
        pytest.skip("kernels cannot call this MKL here")
    return backend


def pair_of_trainers(mkl, sizes, **options):
    """Return one trainer, and one that computes its steps layer by layer."""
    given = {"epsilon": 5, "batch_size": 40, "epochs": 2, "learning_rate": 0.05, "backend": "mkl"}
    whole, layers = (make_trainer(sizes, **given | options) for _ in range(2))
    layers.backend = copy.copy(mkl)
    layers.backend.has_whole_step = False
    return whole, layers


def data_of(rows, features):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, features), dtype=np.float32)
    return X, rng.integers(3, size=rows).astype(np.int32)


def assert_same_bits(whole, layers):
    assert whole._compiled_step is not None and layers._compiled_step is None
    for one, other in zip(whole.network.layers, layers.network.layers, strict=True):
        for name in ("values", "velocity", "values_by_output", "bias", "bias_velocity"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(
    "hidden, options",
    [
        ((), {}),
        ((150,), {"recipe": "width", "threads": 2}),
        ((400, 70, 300), {"threads": 2}),
        ((400, 70, 300), {"recipe": "width", "optimizer": "nesterov"}),
        ((90, 50), {"batch_size": 33, "clip_norm": 0.5}),
        ((90, 50), {"batch_size": 1, "learning_rate": 0.001}),
    ],
)
def test_a_whole_step_has_the_bits_of_its_layers(mkl, hidden, options):
    X, y = data_of(80, 60)
    whole, layers = pair_of_trainers(mkl, (60, *hidden, 3), **options)
    for trainer in (whole, layers):
        trainer.fit(X, y, progress=False)
    assert_same_bits(whole, layers)


def test_handles_follow_connections_that_change_and_that_are_none(mkl):
    X, y = data_of(40, 30)
    whole, layers = pair_of_trainers(mkl, (30, 50, 20, 3))
    for trainer in (whole, layers):
        trainer.step(X, y)
        evolve(trainer.network.layers[1], 0.3, np.random.default_rng(0))
        trainer.workspace.resize_(trainer.network.layer_connections)
        trainer.step(X, y)
        trainer.network.layers[1].restore_(NO_CONNECTIONS)
        trainer.workspace.resize_(trainer.network.layer_connections)
        trainer.step(X, y)
    assert whole.network.layers[1].nnz == 0
    assert_same_bits(whole, layers)


def test_a_product_that_mkl_cannot_compute_is_told(mkl):
    X, y = data_of(40, 30)
    trainer, _ = pair_of_trainers(mkl, (30, 50, 3))
    failing = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 2)  # SPARSE_STATUS_ALLOC_FAILED
    trainer.backend = copy.copy(mkl)
    trainer.backend.multiply = ctypes.cast(failing, ctypes.c_void_p).value
    with pytest.raises(BackendError, match="is there memory"):
        trainer.step(X, y)

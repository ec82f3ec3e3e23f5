"""Models and checkpoints that an earlier release has saved load, predict and go on as they did.

`data/make_version_2.py` has written them. On another CPU a sum may be rounded otherwise, hence the
tolerance; the connections are equal.
"""

import dataclasses
import shutil

import numpy as np
import pytest
from helpers import DATA

from largesparse import (
    SparseMLPClassifier,
    SparseMLPRegressor,
    load_checkpoint,
    load_model,
    predict,
    predict_proba,
)

FOLDER = DATA / "version-2"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FUSED = {"backend": "fused", "threads": 1}


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz") as file:
        return dict(file)


@pytest.mark.parametrize("load", [load_model, SparseMLPClassifier.load])
def test_a_classifier_predicts_as_before(load, expected):
    model = load(FOLDER / "classifier")
    X = expected["X"]
    if load is load_model:
        found = predict_proba(model, X, **FUSED)
        assert list(model.classes) == ["no", "some", "yes"]
    else:
        found = model.predict_proba(X)
        assert model.max_epochs == 3 and model.batch_size == 16 and model.epsilon == 3
    np.testing.assert_allclose(found, expected["classifier"], **CLOSE)


@pytest.mark.parametrize("load", [load_model, SparseMLPRegressor.load])
def test_a_regressor_predicts_as_before(load, expected):
    model, X = load(FOLDER / "regressor"), expected["X"]
    found = predict(model, X, **FUSED) if load is load_model else model.predict(X)
    np.testing.assert_allclose(found, expected["regressor"], rtol=1e-9)


@pytest.mark.parametrize("activation", ["all_relu", "srelu"])
def test_a_checkpoint_goes_on_as_before(activation, expected, tmp_path):
    folder = shutil.copytree(FOLDER / f"checkpoint-{activation}", tmp_path / "checkpoint")
    X, y = expected["X"], expected["y"]
    trainer = load_checkpoint(folder)
    assert trainer.notes == {"made": "before"} and trainer.epoch == 3
    found = predict_proba(trainer.network, X, **FUSED)
    np.testing.assert_allclose(found, expected[f"{activation}-saved"], **CLOSE)

    trainer.config = dataclasses.replace(trainer.config, epochs=6)
    trainer.fit(X, y, progress=False)
    losses = [record.loss for record in trainer.history.epochs]
    np.testing.assert_allclose(losses, expected[f"{activation}-losses"], **CLOSE)
    for k, layer in enumerate(trainer.network.layers):
        before = {name: expected[f"{activation}-{k}-{name}"] for name in ("indptr", "indices")}
        np.testing.assert_array_equal(layer.topology.indptr, before["indptr"])
        np.testing.assert_array_equal(layer.topology.indices, before["indices"])
        for name in ("values", "bias"):
            array = expected[f"{activation}-{k}-{name}"]
            np.testing.assert_allclose(getattr(layer, name), array, **CLOSE)
